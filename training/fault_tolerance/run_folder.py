"""The run folder: the finished model at the top, checkpoints below it, and the records of the run in `run/`.

OUTPUT/            config.json, model.safetensors, tokenizer.json, ... : the model, loadable
OUTPUT/checkpoint-N/                                                   : whole models during training
OUTPUT/run/        recipe.yaml, tokenizer/, data.json, environment.json, results.json, test_outputs.jsonl, ...
OUTPUT/_saving/    what is being written; gone when nothing is
OUTPUT/_broken-checkpoint-N/                                           : a checkpoint that was found damaged

Every file and folder outside `_saving` is whole at any moment; `checkpoints` says how. What else lies in a folder is
not touched: `ownership` says in which folder a run may start.

    open     a new run prepares its records in _saving/run, one that goes on those that change in _saving/changed
    begin    what was prepared moves to run/, and what an earlier run had left goes: training starts

So a start that is refused before its first update changes nothing, and a run without a checkpoint takes a new recipe.
"""

import contextlib
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import Seq2SeqTrainingArguments

from seqloom.configuration.automatic import Choice, choice_of_old
from seqloom.configuration.configuration_seqloom import SeqloomConfig
from seqloom.configuration.recipe import NARROW_FORMATS, Recipe, RecipeError
from seqloom.configuration.recipe_keys import shown
from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.hub.bundle import MANIFEST_NAME
from seqloom.hub.files import SEAL_NAME as MANIFEST
from seqloom.hub.files import read_object, sha256_of, try_lock
from seqloom.training.fault_tolerance.checkpoints import (
    PREPARED,
    RECIPE,
    STAGING,
    checkpoints_in,
    clear_staging,
    discard,
    file_fault,
    find_damage,
    find_fault,
    flush,
    last_whole_checkpoint,
    put_in_place,
    remove,
    seal,
    write_json,
    write_text,
)
from seqloom.training.fault_tolerance.ownership import forget_records, refuse_foreign
from seqloom.training.parent import RECORD as PARENT_RECORD

logger = logging.getLogger(__name__)

# What may differ when a run goes on: how long, how fast, how watched; never what is learned from what.
CHANGEABLE = frozenset(
    {"resume", "overwrite", "output", "tokens_per_device", "num_proc", "max_steps", "num_train_epochs", "metrics"}
    | {"num_beams", "length_penalty", "max_new_tokens", "num_sample_outputs", "test", "report_to", "run_name"}
    | {"gradient_checkpointing", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"}
    | {"eval_steps", "eval_strategy", "save_steps", "save_strategy", "save_total_limit", "logging_steps"}
    | {"logging_strategy", "logging_dir", "disable_tqdm", "dataloader_num_workers", "per_device_eval_batch_size"}
    | {"push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy", "hub_revision", "languages", "license"}
    | {"load_best_model_at_end", "metric_for_best_model", "early_stopping_patience"}
    | {"average_checkpoints", "average_by", "log_gradient_flow", "activation_checkpointing", "dataloader_pin_memory"}
    | {"dataloader_prefetch_factor", "dataloader_persistent_workers", "dataloader_multiprocessing_context"}
    | {"ddp_backend", "ddp_bucket_cap_mb", "ddp_timeout"}
)
CHANGED = "changed"
"""Folder below `STAGING` with those records of a run that goes on which may change."""

EDITABLE = ("generation_config.json", "chat_template.jinja")
"""Files of a finished model that stay as their owner has edited them, where a run installs its model again."""

PATIENCE = 60.0
"""Seconds for which a run waits for its folder: a killed run may still be dying when it is started again."""

PACKAGES = ("seqloom", "torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy", "sacrebleu")


@dataclass(frozen=True)
class RunFolder:
    """Paths and records of one run."""

    path: Path

    @property
    def records(self) -> Path:
        """Where the records lie."""
        return self.path / "run"

    @property
    def prepared(self) -> Path:
        """Where the records of the run lie that is about to begin or to go on."""
        staged = self.path / STAGING / PREPARED
        return staged if (staged / RECIPE).is_file() else self.records

    @property
    def _next(self) -> Path:
        """Where the records of the run are written until it begins."""
        return self.path / STAGING / CHANGED if self.prepared == self.records else self.prepared

    @property
    def recipe_file(self) -> Path:
        """The resolved recipe."""
        return self.records / RECIPE

    @property
    def is_finished(self) -> bool:
        """Whether a run has ended here; its results are written last."""
        return read_object(self.records / "results.json") is not None

    def results(self) -> dict[str, Any]:
        """Return what a finished run scored; nothing if there is none."""
        return read_object(self.records / "results.json") or {}

    def last_checkpoint(self) -> str | None:
        """Return the newest whole checkpoint of this run, or None; broken ones are named in a warning and set aside."""
        checkpoint = last_whole_checkpoint(self.path) if self.prepared == self.records else None
        return None if checkpoint is None else str(checkpoint)

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a whole checkpoint; others are left where they are."""
        return any(find_fault(checkpoint) is None for checkpoint in reversed(checkpoints_in(self.path)))

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Keep other runs out of the folder until the end, and remove what a killed one has left half-written.

        The first process speaks for a run; the others hold nothing.

        Raises:
            RecipeError: when the folder is not ours, or another run is still writing there after `PATIENCE`.
        """
        refuse_foreign(self.path)
        created = [path for path in (self.path, *self.path.parents) if not path.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        held = [os.open(self.path, os.O_RDONLY)] if os.name == "posix" else []
        if held:
            os.register_at_fork(after_in_child=lambda: _let_go(held))  # data workers may outlive a killed run
        try:
            for handle in held:
                self._wait_for(handle)
            refuse_foreign(self.path)  # again: it may have been somebody else's turn
            with self._tidied():
                yield
        finally:
            for path in created:  # a refused start leaves nothing behind
                with contextlib.suppress(OSError):
                    path.rmdir()
            _let_go(held)

    @contextlib.contextmanager
    def _tidied(self) -> Iterator[None]:
        clear_staging(self.path)
        self.stop_file.unlink(missing_ok=True)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # a disk that takes nothing any more
                clear_staging(self.path)

    @property
    def stop_file(self) -> Path:
        """Stands where a run was stopped on request and wants to go on, so that a script can ask for it."""
        return self.records / "stopped.json"

    def note_stop(self, message: str) -> bool:
        """Write that the run was stopped on request, and return whether it was; the next start removes the note."""
        if self._failure.exists():
            return False
        with contextlib.suppress(OSError, RecipeError):
            refuse_foreign(self.path)
            self.records.mkdir(parents=True, exist_ok=True)
            write_json(self.stop_file, {"stopped": message})
        return self.stop_file.exists()

    def forget_stop(self) -> None:
        """Remove the note, for the run failed before it had stopped."""
        with contextlib.suppress(OSError):
            self.stop_file.unlink(missing_ok=True)

    @property
    def _failure(self) -> Path:
        return self.path / STAGING / ".failed.tmp"  # a name that is in no start's way

    def note_failure(self) -> None:
        """Tell the first process that another one has failed; a launcher ends it as if it were asked to stop."""
        with contextlib.suppress(OSError):  # no such folder: the first process has ended
            self._failure.touch()

    def _wait_for(self, handle: int) -> None:
        started = time.monotonic()
        while not try_lock(handle):
            if time.monotonic() - started > PATIENCE:
                raise RecipeError(
                    f"another run is still writing to {self.path}; wait for its end, stop it, or take another --output."
                )
            if time.monotonic() - started < 1:
                logger.warning("Another run is still writing to %s; waiting for its end.", self.path)
            time.sleep(1)

    def goes_on(self, recipe: Recipe) -> bool:
        """Return whether a command continues the run in this folder."""
        return recipe.resume != "never" and bool(checkpoints_in(self.path))

    def choice(self) -> Choice:
        """Return what `auto` stood for when the run was started."""
        recorded = self.data_facts().get("train", {}).get("auto")
        return Choice(**recorded) if recorded else choice_of_old(resolve_recipe(self.recipe_file))

    def refuse_to_replace(self, recipe: Recipe) -> None:
        """Refuse to start over in the place of a finished run unless told.

        Raises:
            RecipeError: with the remedy.
        """
        if recipe.resume == "never" and self.is_finished and not recipe.overwrite:
            raise RecipeError(
                f"{self.path} holds a finished run and resume=never would replace it; choose another --output, "
                f"or add --overwrite."
            )

    def open(self, recipe: Recipe) -> None:
        """Go on in the folder with `recipe`, or prepare the records of a new run beside what is there.

        Raises:
            RecipeError: when it holds a finished run that may not be replaced, or a run of another recipe.
        """
        self.refuse_to_replace(recipe)
        if not self.goes_on(recipe):
            home = self.path / STAGING / PREPARED
        else:
            home = self.path / STAGING / CHANGED
            self._refuse_other_recipe(recipe)
            self._refuse_other_vocabulary()
        home.mkdir(parents=True, exist_ok=True)
        write_text(home / RECIPE, _to_keep(recipe))
        write_json(home / "environment.json", describe_environment())

    def note_choice(self, recipe: Recipe) -> None:
        """Write what was decided after the folder was opened, before the run begins."""
        write_text(self._next / RECIPE, _to_keep(recipe))

    def begin(self) -> None:
        """Put what was prepared in the place of what an earlier run has left; a run that goes on is unfinished again.

        Killed in between there is no checkpoint, and so whoever comes next begins anew.
        """
        home, is_new = self._next, self.prepared != self.records
        for name in ("results.json", "weights.json"):  # first: half removed is not finished
            (self.records / name).unlink(missing_ok=True)
        if is_new:
            for checkpoint in checkpoints_in(self.path):
                discard(checkpoint, self.path)
            forget_records(self.records)
        if (home / "tokenizer").is_dir():
            seal(home / "tokenizer")
        files = sorted(
            (path for path in home.rglob("*") if path.is_file()), key=lambda path: (path.name != RECIPE, path)
        )
        for file in files:
            place = self.records / file.relative_to(home)
            place.parent.mkdir(parents=True, exist_ok=True)
            put_in_place(file, place)
        remove(home)

    # The finished model ------------------------------------------------------------------------------------------

    def write_model_facts(self, facts: Mapping[str, Any]) -> None:
        """Write which files a model has that was installed, so that a damaged one can be told later."""
        write_json(self.records / "model_manifest.json", {"files": facts})

    def model_faults(self) -> dict[str, str]:
        """Return name -> what is wrong with it, for each file of the finished model that is missing or damaged.

        Weights and vocabulary have to be those that were installed, code what `seqloom_manifest.json` says. Other JSON
        files may be edited, and have to be JSON; the card is its owner's.
        """
        if not self._installed():  # of an older release
            needed = ("config.json", "model.safetensors")
            return {name: f"{name} is missing" for name in needed if not (self.path / name).is_file()}
        return self.installed_faults()

    def installed_faults(self) -> dict[str, str]:
        """Return `model_faults` of a model that a run has installed; nothing where no run has left a record of it."""
        installed = self._installed()
        code = self._code_digests()
        faults = {name: _installed_fault(self.path / name, facts, code) for name, facts in installed.items()}
        return {name: fault for name, fault in faults.items() if fault}

    def edited_files(self) -> list[str]:
        """Return the files of the installed model that people may edit, and have."""
        facts = {name: facts for name, facts in self._installed().items() if name in EDITABLE}
        code = self._code_digests()
        whole = [name for name in facts if not _installed_fault(self.path / name, facts[name], code)]
        return [name for name in whole if file_fault(self.path / name, facts[name])]

    def _code_digests(self) -> dict[str, str]:
        return (read_object(self.path / MANIFEST_NAME) or {}).get("sha256", {})

    def _installed(self) -> dict[str, Any]:
        return (read_object(self.records / "model_manifest.json") or {}).get("files", {})

    def note_card_facts(self, recipe: Recipe) -> None:
        """Take over what a recipe says for the card alone."""
        known = replace(resolve_recipe(self.recipe_file), languages=recipe.languages, license=recipe.license)
        write_text(self.recipe_file, known.to_file())

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write what a run scored, and thereby that it is finished."""
        write_json(self.records / "results.json", results)

    def write_lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write one record as JSON lines, whole or not at all."""
        write_text(self.records / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def write_data_facts(self, facts: Mapping[str, Any]) -> None:
        """Write what is known of the data.

        Raises:
            RecipeError: when training or validation text is not the one that the run was started with.
        """
        file = self.prepared / "data.json"
        before = read_object(file) if file.is_file() else facts
        if before is None:
            raise RecipeError(
                f"{file} cannot be read; it says which text the run was started with. Delete it if the text is still "
                f"the same, or start over: --resume never."
            )
        for split in facts:
            old, new = (each.get(split, {}) for each in (before, facts))
            if (old.get("fingerprint") or new.get("fingerprint")) != new.get("fingerprint"):
                is_tests = split == "train" and _is_cleaned_by_another_test(before, facts)
                self._refuse_other_text(
                    split, old, new, ": with another test text clean leaves out other rows" * is_tests
                )
        self._next.mkdir(parents=True, exist_ok=True)
        write_json(self._next / file.name, facts)

    def write_parent(self, facts: Mapping[str, Any]) -> None:
        """Write what is known of the folder with whose weights a new run begins."""
        write_json(self._next / PARENT_RECORD, facts)

    def data_facts(self) -> dict[str, Any]:
        """Return what is known of the data that the run was trained on."""
        return read_object(self.records / "data.json") or {}

    def _refuse_other_text(self, split: str, old: Mapping[str, Any], new: Mapping[str, Any], why: str) -> None:
        rows = f"{old['num_rows']:,} and {new['num_rows']:,} rows, then and now"
        changed = (
            f"{'training' if split == 'train' else split} text has changed since the run in {self.path} was started"
        )
        if split == "test":  # read at the end alone
            logger.warning("The %s (%s); its scores will be those of the new one.", changed, rows)
            return
        raise RecipeError(
            f"the {changed} ({rows}){why}, so it cannot go on where it was; bring the old text back, take another "
            f"--output, or --resume never."
        )

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Hand out a folder on the run's disk that is gone afterwards."""
        (self.path / STAGING).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.path / STAGING, ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    @contextlib.contextmanager
    def staged(self, final: Path) -> Iterator[Path]:
        """Hand out a path of the same name to write to; what was written there then appears at `final` in one step."""
        with self.scratch() as folder:
            yield folder / final.name
            flush(folder)
            put_in_place(folder / final.name, final)

    def _refuse_other_recipe(self, recipe: Recipe) -> None:
        changed = {key: values for key, values in self.changes(recipe).items() if key not in CHANGEABLE}
        if changed:
            key, (before, now) = next(iter(changed.items()))
            raise RecipeError(
                f"the run in {self.path} was started with {key}={shown(before)} and is now asked to go on with "
                f"{key}={shown(now)}{and_more(list(changed))}; take the old value, another --output, or --resume never."
            )

    def changes(self, recipe: Recipe) -> dict[str, tuple[Any, Any]]:
        """Return key -> value then and now, for each key of the run's recipe that a resolved recipe has otherwise.

        A default that one of them spells out is no change.
        """
        before, now = resolve_recipe(self.recipe_file).flat(), recipe.flat()
        keys = sorted((before | now).keys() - NARROW_FORMATS)  # precision says it
        usual = {each.name: each.default for kind in (Seq2SeqTrainingArguments, SeqloomConfig) for each in fields(kind)}
        values = {key: (before.get(key, usual.get(key)), now.get(key, usual.get(key))) for key in keys}
        return {key: (then, today) for key, (then, today) in values.items() if then != today}

    def _refuse_other_vocabulary(self) -> None:
        """Refuse another vocabulary than the run was started with; older runs did not seal theirs."""
        home = self.records / "tokenizer"
        is_sealed = (home / MANIFEST).is_file()
        fault = find_damage(home) if is_sealed else None if home.is_dir() else "it is missing"
        if fault:
            raise RecipeError(
                f"{home} is not the vocabulary that the run was started with: {fault}. Bring the old file back, take "
                f"another --output, or --resume never."
            )


def _is_cleaned_by_another_test(before: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """Return whether `clean` leaves other rows of the same training files, for another test text is read with them."""
    then, now = (
        [list(each.get(split, {}).get("files", ())) for split in ("train", "test")] for each in (before, facts)
    )
    is_cleaned = any(reason.startswith("clean: ") for reason in facts["train"].get("num_dropped", ()))
    return is_cleaned and then[0] == now[0] and then[1] != now[1]


def _to_keep(recipe: Recipe) -> str:
    """Return the recipe's file, which says what a run is: started again it goes on, and replaces nothing."""
    return replace(recipe, resume="auto", overwrite=False).to_file()


def and_more(names: Sequence[str]) -> str:
    """Return what follows the first of several names: " (and 2 more: seed, train)"."""
    return f" (and {len(names) - 1} more: {', '.join(names[1:])})" if names[1:] else ""


def _installed_fault(path: Path, facts: Mapping[str, Any], code: Mapping[str, str]) -> str | None:
    if not path.is_file() and not (path.suffix == ".py" and path.name not in code):  # `seqloom upgrade` may remove code
        return f"{path.name} is missing"
    if path.suffix == ".safetensors" or path.name == "tokenizer.json":
        return file_fault(path, facts)
    if path.suffix == ".json":
        return None if read_object(path) is not None else f"{path.name} is damaged (it is no JSON object)"
    if path.name in code:
        return None if sha256_of(path) == code[path.name] else f"{path.name} is not the code that {MANIFEST_NAME} names"
    return None if path.suffix == ".py" or path.stat().st_size else f"{path.name} is empty"


def describe_environment() -> dict[str, Any]:
    """Return what a reader needs to repeat the run elsewhere: versions and hardware."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "device": device,
        "device_count": max(1, torch.cuda.device_count()),
        "threads": torch.get_num_threads(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def _let_go(held: list[int]) -> None:
    while held:
        os.close(held.pop())
