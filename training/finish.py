"""The end of a run: checkpoints averaged, the model put in its place, every set scored as the folder will decode."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import DatasetDict

from seqloom.configuration.recipe_keys import shown
from seqloom.hub.files import read_object
from seqloom.hub.quoting import shell
from seqloom.training.confidence import confidence_intervals
from seqloom.training.examples import lengths_of, weights_of
from seqloom.training.fault_tolerance.checkpoints import (
    STAGING,
    checkpoint_path,
    file_facts,
    install,
    update_of,
)
from seqloom.training.fault_tolerance.run_folder import RunFolder
from seqloom.training.fault_tolerance.run_health import TrainingError, explained_writing
from seqloom.training.fault_tolerance.together import from_main_process
from seqloom.training.held_out import found_in
from seqloom.training.metrics import METRICS
from seqloom.training.monitoring.console import SampleOutputs, is_score, say
from seqloom.training.monitoring.progress import RunClock, mean_loss
from seqloom.training.mouth import check_trained
from seqloom.training.quality.averaging import average_weights, load_weights, refuse_damaged, updates_to_average
from seqloom.training.trainer import SeqloomTrainer
from seqloom_cli.command import explain_error

logger = logging.getLogger(__name__)

DOUBT = "doubt"
"""Key in results.json: why the scores say nothing. Such a run is not finished."""

ERRORS = "errors"
"""Key in results.json: what could not be scored, and why. Such a run is not finished either."""


def average_run(trainer: SeqloomTrainer, count: int, by: str) -> dict[str, Any]:
    """Put the mean of a finished training's checkpoints into its model, and measure and say whether that helped.

    Args:
        trainer: when `train` has ended; its folder holds the checkpoints.
        count: how many are wanted.
        by: "last" or "best", the latter by the trainer's `metric_for_best_model`.

    Returns:
        `averaged_updates`; where fewer were there than wanted, `averaged_wanted` and `averaged_missing`, those that
        are gone; and, where there is a validation set, the scores during training of the model that would have been
        kept alone (`single_...`) and those of the mean (`averaged_...`), both decoded alike.

    Raises:
        CheckpointError: where one of them is damaged.
    """
    args, state, folder = trainer.args, trainer.state, Path(trainer.args.output_dir)
    metric, higher = str(args.metric_for_best_model), bool(args.greater_is_better)
    saved = trainer.saved_updates

    def average() -> tuple[list[int], list[int]]:
        updates, missing = updates_to_average(folder, state, count, by=by, metric=metric, higher=higher, saved=saved)
        checkpoints = [checkpoint_path(folder, update) for update in updates]
        refuse_damaged(checkpoints)
        load_weights(trainer.model, average_weights(checkpoints))
        return updates, missing

    updates, missing = from_main_process(average)
    if args.world_size > 1:
        for parameter in trainer.model.parameters():
            torch.distributed.broadcast(parameter.data, src=0)
    results: dict[str, Any] = {"averaged_updates": updates}
    if len(updates) < count:
        results |= {"averaged_wanted": count, "averaged_missing": missing}
    if trainer.eval_dataset is not None:
        alone = state.best_global_step if by == "best" or args.load_best_model_at_end else updates[-1]
        history = [row for row in state.log_history if row.get("step") == alone]
        results |= {f"single_{name}": value for row in history for name, value in _scores(row, "eval_").items()}
        results["single_update"] = alone
        averaged = trainer.evaluate(metric_key_prefix="averaged")
        results |= {f"averaged_{name}": value for name, value in _scores(averaged, "averaged_").items()}
    if trainer.is_world_process_zero():
        say(f"average   {describe_average(results)}")
        if missing:
            logger.warning("%s", describe_average(results))
    return results


def _scores(row: Mapping[str, Any], prefix: str) -> dict[str, float]:
    named = {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)}
    return {name: value for name, value in named.items() if is_score(name, value)}


def describe_average(results: Mapping[str, Any]) -> str:
    """Say what was averaged, and what it did to the scores: "loss 1.82 -> 1.79"."""
    updates = results["averaged_updates"]
    names = [name.removeprefix("single_") for name in results if name.startswith("single_") and name != "single_update"]
    changes = [f"{name} {results[f'single_{name}']:.4g} -> {results[f'averaged_{name}']:.4g}" for name in names]
    compared = f"; against update {results['single_update']:,} alone: {', '.join(changes)}" if changes else ""
    wanted = f" of {results['averaged_wanted']} asked" if "averaged_wanted" in results else ""
    missing = results.get("averaged_missing")
    gone = f"; gone are those of updates {', '.join(f'{u:,}' for u in missing)}" if missing else ""
    return (
        f"{len(updates)}{wanted} checkpoints averaged, updates {', '.join(f'{u:,}' for u in updates)}{gone}{compared}"
    )


def save(trainer: SeqloomTrainer, folder: RunFolder) -> None:
    """Leave the model at the top of the folder: all of it, or nothing that looks like a model.

    Where the same run had installed its model before, what people have edited since then stays.
    """
    staged = folder.path / STAGING / "model"
    with explained_writing(folder.path, folder.path):
        trainer.save_model(str(staged), _internal_call=True)  # pushed later, with its scores in the card
        if trainer.is_world_process_zero():
            facts = file_facts(staged)
            for name in folder.edited_files():
                if changes := _search_changes(staged / name, folder.path / name):
                    say(f"edited    {name} stays as it was edited, and not as the run decodes: {changes}")
                (staged / name).unlink()
            install(staged, folder.path)
            folder.write_model_facts(facts)
    trainer.accelerator.wait_for_everyone()


def _search_changes(own: Path, edited: Path) -> str:
    """Say in which settings of a search an edited file differs from what the run scores with."""
    scored, kept = (read_object(path) or {} for path in (own, edited))
    names = [name for name in ("num_beams", "length_penalty", "max_new_tokens") if scored.get(name) != kept.get(name)]
    return ", ".join(f"{name}={shown(kept.get(name))}, scored with {shown(scored.get(name))}" for name in names)


def refuse_lost_model(folder: RunFolder) -> str:
    """Return what of a finished run's model is missing or damaged, if a checkpoint can bring it back; "": nothing.

    Raises:
        TrainingError: if none can.
    """
    faults = "; ".join(folder.model_faults().values())
    if faults and folder.last_checkpoint() is None:
        raise TrainingError(
            f"{folder.path} holds a finished run, but {faults}; and there is no whole checkpoint to bring it back "
            f"from. Bring the file back, or train again: --resume never --overwrite."
        )
    return faults


def final_scores(trainer: SeqloomTrainer, data: DatasetDict, folder: RunFolder, num_beams: int) -> dict[str, Any]:
    """Score validation and test sets as the folder will decode, and keep what the model wrote for the test set."""
    trainer.remove_callback(SampleOutputs)
    trainer.evaluation = replace(trainer.evaluation, num_beams=num_beams)
    if num_beams > 1 and trainer.evaluation.metrics and not trainer.is_sharded:
        from_main_process(lambda: check_trained(trainer.model))  # what beams write is not read again
    results: dict[str, Any] = {}
    for split in ("validation", "test"):
        if split in data:
            try_together(trainer, results, f"{split} set", partial(_score, trainer, data, folder, split, results))
    return results


def try_together(trainer: SeqloomTrainer, results: dict[str, Any], what: str, do: Callable[[], None]) -> None:
    """Do what must not lose a trained model and its other results: what fails is told, and kept in the results.

    What fails on one process fails on all. Where weights are sharded, one cannot go on while others wait for its part;
    there the error ends the run, as everywhere.

    Args:
        trainer: says whether they are.
        results: get the error under `ERRORS`.
        what: is done, for a person.
        do: does it.
    """
    failures = []
    try:
        do()
    except OSError:  # a disk that takes no results takes no word of that either
        raise
    except Exception as error:
        if trainer.is_sharded and trainer.args.world_size > 1:
            raise
        failures = [explain_error(error)]
    if failures := gather_object(failures):
        results[ERRORS] = {**results.get(ERRORS, {}), what: failures[0]}
        if trainer.is_world_process_zero():
            say(f"failed    {what}: {failures[0]}")


def _score(trainer: SeqloomTrainer, data: DatasetDict, folder: RunFolder, split: str, results: dict[str, Any]) -> None:
    results |= trainer.evaluate(data[split], metric_key_prefix=split)
    results |= {f"{split}_{name}": signature for name, signature in trainer.signatures.items()}
    results |= {DOUBT: f"on the {split} set {trainer.doubt.reason}"} if trainer.doubt else {}
    results |= _scores_on_unseen(trainer, data, split)
    if split == "test" and trainer.outputs and trainer.is_world_process_zero():
        texts = data["test"].select_columns(["source", "target"])
        rows = ({**text, "output": output} for text, output in zip(texts, trainer.outputs, strict=True))
        folder.write_lines("test_outputs.jsonl", rows)
        intervals = confidence_intervals(trainer.outputs, data["test"]["target"][:], trainer.evaluation.metrics)
        results |= {f"test_{name}": bounds for name, bounds in intervals.items()}


def _scores_on_unseen(trainer: SeqloomTrainer, data: DatasetDict, split: str) -> dict[str, Any]:
    """Return how many sources of a set were training sources too, and what the others score; it is said where it is."""
    sources, references = data[split]["source"][:], data[split]["target"][:]
    learned = found_in(data["train"], sources)
    unseen = [index for index, source in enumerate(sources) if source not in learned]
    found: dict[str, Any] = {f"{split}_in_training": len(sources) - len(unseen)}
    if learned and unseen and trainer.outputs:
        sums = {name: METRICS[name](trainer.outputs, references) for name in trainer.evaluation.metrics}
        found |= {f"{split}_unseen_{name}": each.of(np.array(unseen)).value for name, each in sums.items()}
    if learned and trainer.is_world_process_zero():
        names = {name.removeprefix(f"{split}_unseen_"): value for name, value in found.items() if "_unseen_" in name}
        others = f"; the others score {', '.join(f'{name} {value:.2f}' for name, value in names.items())}" * bool(names)
        count = len(sources) - len(unseen)
        say(f"learned   {count:,} of {len(sources):,} {split} sources are training lines{others}")
    return found


def is_whole(results: Mapping[str, Any]) -> bool:
    """Return whether results say all that a run can say; else the same command scores once more."""
    return not {DOUBT, ERRORS} & results.keys()


def refuse_unfinished(folder: RunFolder, results: Mapping[str, Any]) -> None:
    """End a run whose model is in its place with an error where its results are not whole; on all processes.

    Raises:
        TrainingError: saying what is missing, and why.
    """
    if is_whole(results):
        return
    text = f"{folder.path} holds a model and its results, but: {results.get(DOUBT)}"
    remedy = ""
    if failed := "; ".join(f"{what}: {error}" for what, error in results.get(ERRORS, {}).items()):
        text = f"{folder.path} holds the trained model, and results but for what failed ({failed})."
        remedy = " The same command tries that again, and trains nothing."
    if not folder.has_checkpoint:
        remedy = (
            f" But that needs a checkpoint, and none is whole: seqloom evaluate {shell(str(folder.path))} scores the "
            f"model; --resume never --overwrite trains it again."
        )
    raise TrainingError(text + remedy)


def refuse_to_retrain(folder: RunFolder) -> None:
    """Refuse what could only train anew where a finished run's results are not whole.

    Raises:
        TrainingError: where there is no checkpoint to score from.
    """
    if not folder.has_checkpoint:
        refuse_lost_model(folder)
        refuse_unfinished(folder, folder.results())


def training_facts(trainer: SeqloomTrainer, data: DatasetDict, checkpoint: str | None) -> dict[str, Any]:
    """Return what a model card says of the training beyond the recipe; over all starts of the run."""
    lengths, weights = lengths_of(data["train"]), weights_of(data["train"])
    source, target = (lengths if weights is None else weights[:, None] * lengths).sum(axis=0).round().tolist()
    resumed = {"resumed_at": update_of(Path(checkpoint))} if checkpoint else {}
    clock = next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, RunClock))
    return {
        "seconds": round(clock.seconds, 1),
        "updates": trainer.state.global_step,
        "train_loss": mean_loss(trainer.state.log_history),
        "epochs": trainer.state.epoch,
        "train_source_tokens": int(source),
        "train_target_tokens": int(target),
        "processes": trainer.args.world_size,
        **resumed,
    }
