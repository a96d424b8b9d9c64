"""A command meets a finished run: is it the same one, one that goes on, or another that must not be swallowed?

the same command                   nothing to do; a job queue may start it as often as it likes
another licence, other languages   the card is written anew
another test set, other beams      scored anew from the last checkpoint; nothing is trained
more updates or epochs             goes on from the last checkpoint
other text, another model          refused, with what can be done instead
"""

import shlex
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState

from seqloom.configuration.data_size import AUTO
from seqloom.configuration.recipe import Recipe
from seqloom.configuration.recipe_keys import shown
from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.hub.files import sha256_of
from seqloom.training.fault_tolerance.resumable import ended_early
from seqloom.training.fault_tolerance.run_folder import CHANGEABLE, RunFolder, and_more
from seqloom.training.fault_tolerance.run_health import TrainingError
from seqloom.training.parent import fit_to_parent, is_changed, recorded_parent

LENGTH = frozenset({"max_steps", "num_train_epochs"})
CARD = frozenset({"languages", "license"})
SCORING = frozenset({"test", "metrics", "num_beams", "length_penalty", "max_new_tokens"})
BEST = frozenset({"load_best_model_at_end", "metric_for_best_model", "early_stopping_patience"})
"""Which of the run's models is kept, and when it ends: decided while it ran."""
ENDING = SCORING | {"average_checkpoints", "average_by"}
"""What is done to a model after its last update."""


class Asked(StrEnum):
    """What a command wants of a finished run."""

    NOTHING = "nothing"
    CARD = "card"
    SCORES = "scores"
    LONGER = "longer"


def asked_of_finished(folder: RunFolder, recipe: Recipe) -> Asked:
    """Compare a command with the finished run in its folder, as `RunFolder.open` does with an unfinished one.

    The text is not read again: how many examples it had is recorded, and its files are known by their digests. A file
    that is gone is no other text.

    Args:
        folder: with a finished run.
        recipe: before the data have decided on it.

    Raises:
        TrainingError: with the first thing that differs, and every way out that there is.
    """
    parent = recorded_parent(folder.records)
    own_parent = parent if parent and parent.folder == recipe.init_from else None
    fitted, _ = fit_to_parent(recipe, folder.choice(), own_parent)
    fitted = as_settled(fitted, folder)
    changes = folder.changes(fitted)
    holds_out = any(each.share_of("test") for each in (fitted, resolve_recipe(folder.recipe_file)))
    own = CHANGEABLE - ({"test"} if holds_out else set())  # what is held out is no training text
    foreign = {key: values for key, values in changes.items() if key not in own}
    if foreign:
        key, (before, now) = next(iter(foreign.items()))
        what = f"{key}={shown(before)}, and {key}={shown(now)}{and_more(list(foreign))} is asked for now"
        raise TrainingError(_refusal(folder, f"trained with {what}"))
    other_files = list(other_texts(folder))
    if changed := [path for split, path in other_files if split != "test"]:
        raise TrainingError(_refusal(folder, f"and {changed[0]}{and_more(changed)} is another text since"))
    if own_parent and is_changed(own_parent):
        raise TrainingError(_refusal(folder, f"and init_from={own_parent.folder} holds other weights since"))
    if changes.keys() & LENGTH:
        _refuse_shorter(folder, fitted)
        if was_stopped_early(folder):
            raise TrainingError(_refusal(folder, "stopped early, for its score no longer improved"))
        asked = Asked.LONGER
    elif decided := sorted(changes.keys() & BEST):
        raise TrainingError(_refusal(folder, f"and {decided[0]} says which of its models is kept: that is decided"))
    elif changes.keys() & ENDING or other_files:
        asked = Asked.SCORES
    else:
        return Asked.CARD if changes.keys() & CARD & recipe.named else Asked.NOTHING
    if folder.last_checkpoint() is None:
        key = next(iter(changes), "test")
        raise TrainingError(_refusal(folder, f"without a whole checkpoint left to go on from with another {key}"))
    return asked


def as_settled(recipe: Recipe, folder: RunFolder) -> Recipe:
    """Write into a recipe what the data had decided when the run was asked for the same: see `preparation.settle`."""
    recorded, asked = resolve_recipe(folder.recipe_file), folder.data_facts().get("train", {}).get("asked", {})
    same = {name for name in ("valid", "test") if name in asked and recipe.share_of(name) == asked[name]}
    if not recipe.metrics:
        same.add("metrics")
    changes: dict[str, Any] = {name: getattr(recorded, name) for name in same}
    if "valid" in same and not recorded.valid:
        changes["training_arguments"] = {**recipe.training_arguments, "eval_strategy": "no"}
    return with_recorded_precision(replace(recipe, **changes), recorded)


def with_recorded_precision(recipe: Recipe, recorded: Recipe) -> Recipe:
    """Give a recipe that names no format of numbers the one that its run has measured and recorded."""
    return replace(recipe, precision=recorded.precision) if recipe.precision == AUTO else recipe


def other_texts(folder: RunFolder) -> Iterator[tuple[str, str]]:
    """Yield split and path of each file that is there, and not as it was read."""
    for split, facts in folder.data_facts().items():
        for file in facts.get("files", ()):
            path = Path(file["path"]).expanduser()
            if path.is_file() and (path.stat().st_size != file["num_bytes"] or sha256_of(path) != file["sha256"]):
                yield split, file["path"]


def was_stopped_early(folder: RunFolder) -> bool:
    """Return whether something else than its length has ended a run: nothing makes it longer."""
    state = Path(folder.last_checkpoint() or folder.path) / TRAINER_STATE_NAME
    return state.is_file() and ended_early(TrainerState.load_from_json(str(state)))


def _refuse_shorter(folder: RunFolder, recipe: Recipe) -> None:
    """Refuse fewer updates than were made; what a model has learned cannot be taken back."""
    wanted, results = recipe.training_arguments, folder.results()
    by_updates = wanted.get("max_steps", -1) > 0
    key, done = ("max_steps", results.get("updates")) if by_updates else ("num_train_epochs", results.get("epochs"))
    if done is not None and wanted.get(key, 0) < done:
        raise TrainingError(_refusal(folder, f"and {key}={wanted.get(key)} is less than the {done:g} that it has had"))


def _refusal(folder: RunFolder, why: str) -> str:
    updates = folder.results().get("updates", 0)
    can_go_on = folder.last_checkpoint() and not was_stopped_early(folder)
    longer = f"its own command with --max_steps above {updates} goes on; " if can_go_on else ""
    return (
        f"{folder.path} holds a finished run of {updates:,} updates, {why}. Nothing was changed. What can be done: "
        f"{longer}--init_from {shlex.quote(str(folder.path))} and another --output begin with its weights; another "
        f"--output alone trains anew beside it; --resume never --overwrite trains anew in its place."
    )


__all__ = ["Asked", "asked_of_finished", "with_recorded_precision"]
