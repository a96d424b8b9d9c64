"""Checkpoint averaging: the mean of several checkpoints' weights, often better than any of them.

Late in training the weights wander around a good place; their mean is closer to it (Vaswani et al. 2017, section 6.1,
average the last 5 or 20; Wu et al. 2021 the last 10). The mean is taken in float64, tied weights stand in a checkpoint
once and are averaged once. Whether it helped is measured: see `average_run` in training/finish.py.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState

from seqloom.training.fault_tolerance.checkpoints import (
    checkpoint_path,
    checkpoints_in,
    discard,
    facts_of,
    find_damage,
    update_of,
)
from seqloom.training.fault_tolerance.run_health import CheckpointError
from seqloom.training.quality.selection import best_updates, scores_by_update

WEIGHTS = "model.safetensors"


def saved_updates(folder: Path) -> list[int]:
    """Return the updates of which `folder` holds a checkpoint with weights, in order."""
    return [update_of(path) for path in checkpoints_in(folder) if (path / WEIGHTS).is_file()]


def updates_to_average(
    folder: Path,
    state: TrainerState,
    count: int,
    *,
    by: str,
    metric: str = "loss",
    higher: bool = False,
    saved: Iterable[int] = (),
) -> tuple[list[int], list[int]]:
    """Choose the checkpoints to average.

    Args:
        folder: holds `checkpoint-N`.
        state: of the finished training; its history has the scores.
        count: how many are wanted; there may be fewer.
        by: "last" or "best".
        metric: for "best", a score of the evaluations during training.
        higher: whether that score is better when it is high.
        saved: updates at which the run is known to have saved; those that are gone are not replaced by others.

    Returns:
        Their updates, in order, and those of the checkpoints that should be there and are not.

    Raises:
        CheckpointError: when there is no checkpoint to average.
    """
    there = saved_updates(folder)
    updates = sorted(update for update in {*there, *saved} if update <= state.global_step)
    if by == "best":
        scores = scores_by_update(state.log_history, metric)
        updates = sorted(best_updates({u: scores[u] for u in updates if u in scores}, count, higher=higher))
    found = [update for update in updates[-count:] if update in there]
    if not found:
        raise CheckpointError(
            f"{folder} holds no {'scored ' if by == 'best' else ''}checkpoint to average; lower save_steps and "
            f"eval_steps, or leave average_checkpoints out."
        )
    return found, [update for update in updates[-count:] if update not in there]


def refuse_damaged(checkpoints: Iterable[Path]) -> None:
    """Refuse to average a checkpoint whose files are not as they were written.

    Raises:
        CheckpointError: naming it.
    """
    for path in checkpoints:
        fault = find_damage(path)
        if fault is None and WEIGHTS not in facts_of(path)["files"]:
            fault = f"its manifest does not know {WEIGHTS}"
        if fault:
            raise CheckpointError(
                f"{path} is to be averaged, but {fault}. Bring it back as it was, or move it away; the same command "
                f"started again then averages the others."
            )


def average_weights(checkpoints: Sequence[Path]) -> dict[str, Tensor]:
    """Return the mean of the checkpoints' weights by name, computed in float64 and returned in their own type.

    Args:
        checkpoints: folders with a model.safetensors each; one tensor of each is in memory at a time.

    Raises:
        ValueError: when they are not checkpoints of one model.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path / WEIGHTS, framework="pt")) for path in checkpoints]
        for path, file in zip(checkpoints, files, strict=True):
            if set(file.keys()) != set(files[0].keys()):
                raise ValueError(f"{path} and {checkpoints[0]} hold different weights; average checkpoints of one run.")
        return {name: _mean([file.get_tensor(name) for file in files]) for name in files[0].keys()}  # noqa: SIM118


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor in tensors:
        total += tensor
    return (total / len(tensors)).to(tensors[0].dtype)


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put weights into a model whose tied ones stand in `weights` once; with several processes rank 0's win.

    Raises:
        ValueError: when they are another model's.
    """
    missing, unexpected = model.load_state_dict(weights, strict=False)
    loaded = {parameter.data_ptr() for name, parameter in model.named_parameters() if name in weights}
    missing = [name for name in missing if model.get_parameter(name).data_ptr() not in loaded]
    if missing or unexpected:
        raise ValueError(
            f"the averaged weights do not fit the model (missing: {', '.join(missing) or 'none'}; unexpected: "
            f"{', '.join(unexpected) or 'none'}); average checkpoints of the same run."
        )


class KeepBestCheckpoints(TrainerCallback):
    """Deletes all checkpoints but the best ones and the newest, which a resume needs."""

    def __init__(self, count: int, metric: str, *, higher: bool) -> None:
        """Keep `count` of the best by `metric`, a score of the evaluations during training."""
        self.count = count
        self.metric = metric
        self.higher = higher

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look through the folder after each checkpoint."""
        if not args.should_save:
            return
        folder = Path(args.output_dir)
        updates = saved_updates(folder)
        scores = scores_by_update(state.log_history, self.metric)
        best = best_updates({u: scores[u] for u in updates if u in scores}, self.count, higher=self.higher)
        kept = {*best, state.global_step, max(updates, default=0)}
        if state.best_model_checkpoint:  # of equals Trainer's is the first, and the averaged ones are the last
            kept.add(update_of(Path(state.best_model_checkpoint)))
        for update in set(updates) - kept:
            discard(checkpoint_path(folder, update), folder)

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Do what a kill may have come before."""
        if state.global_step:
            self.on_save(args, state, control)


__all__ = ["KeepBestCheckpoints", "average_weights", "load_weights", "refuse_damaged", "updates_to_average"]
