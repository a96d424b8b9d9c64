"""What a person sees while it trains: one bar with the loss, the speed in tokens, the padding, and the time left.

The same numbers go to Trainer's log, and from there to TensorBoard, trackio or W&B, whichever `report_to` names.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState, TrainerControl, TrainerState

from seqloom.training.collator import IGNORED_LABEL


class TokenMeter(TrainerCallback):
    """Counts what the updates since the last reading learned from, and how long they took.

    Evaluation and saving are not on the clock: it runs from the batches of an update to its optimizer step.
    """

    def __init__(self, world_size: int = 1) -> None:
        """Start at zero; each process counts its own share, and a reading multiplies it by `world_size`."""
        self.world_size = world_size
        self._started = 0.0
        self._reset()

    def _reset(self) -> None:
        self.seconds, self.num_tokens, self.num_padded = 0.0, 0, 0

    def start(self, batches: Iterable[dict[str, Tensor]]) -> None:
        """Begin an update with these micro-batches."""
        self._started = time.perf_counter()
        for batch in batches:
            source, labels = batch["input_ids"], batch["labels"]
            is_real = batch.get("attention_mask", torch.ones_like(source))  # packed, all are
            self.num_tokens += int(is_real.sum()) + int((labels != IGNORED_LABEL).sum())
            self.num_padded += source.numel() + labels.numel()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End the update."""
        self.seconds += time.perf_counter() - self._started

    def read(self) -> dict[str, float]:
        """Return the numbers since the last reading, and begin anew.

        Returns:
            `tokens_per_second`: source + target, over all processes, without padding. `padding`: the share of positions
            that were computed for nothing, in percent. Empty if nothing was counted.
        """
        if not self.num_padded or not self.seconds:
            return {}
        reading = {
            "tokens_per_second": round(self.num_tokens * self.world_size / self.seconds, 1),
            "padding": round(100 * (1 - self.num_tokens / self.num_padded), 2),
        }
        self._reset()
        return reading


class RunClock(TrainerCallback, ExportableState):
    """Counts the seconds of a run over all its starts; each checkpoint says how many went into it."""

    def __init__(self, earlier: float = 0.0) -> None:
        """Go on from `earlier` seconds, those of the checkpoint that a start goes on from."""
        self.earlier = earlier
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time spent up to now; what a killed start did after its last checkpoint is done again, and counted once."""
        return self.earlier + time.perf_counter() - self._started

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start."""
        self._started = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """Return what Trainer keeps in a checkpoint and hands to a new clock."""
        return {"args": {"earlier": self.seconds}, "attributes": {}}


def mean_loss(log_history: Iterable[Mapping[str, Any]]) -> float:
    """Return the training loss over all updates of a run; Trainer's own sum forgets those before a resume."""
    readings = [(row["step"], row["loss"]) for row in log_history if "loss" in row]
    if not readings:
        return float("nan")
    updates, losses = zip(*readings)
    return float(np.average(losses, weights=np.diff(updates, prepend=0)))


class TrainingProgress(TrainerCallback):
    """A bar of updates with what matters beside it, one of an evaluation's batches; each reading is a line above."""

    def __init__(self) -> None:
        """Show nothing yet."""
        self.training_bar: Any = None
        self.evaluation_bar: Any = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Open the bar where the run stands, so that a resumed one shows its own speed and time left."""
        if state.is_world_process_zero:
            self.training_bar = tqdm(
                total=state.max_steps, initial=state.global_step, unit="update", dynamic_ncols=True, smoothing=0.05
            )

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move to the update that is done."""
        if self.training_bar is not None:
            self.training_bar.update(state.global_step - self.training_bar.n)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Close the bar."""
        if self.training_bar is not None:
            self.training_bar.close()
        self.training_bar = None

    def on_prediction_step(
        self, args: Any, state: TrainerState, control: TrainerControl, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Show how far an evaluation is; the bar stays only where there is no training above it."""
        if not state.is_world_process_zero:
            return
        if self.evaluation_bar is None:
            leave = self.training_bar is None
            self.evaluation_bar = tqdm(total=len(eval_dataloader), leave=leave, dynamic_ncols=True)
        self.evaluation_bar.update(1)

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Close the evaluation's bar."""
        if self.evaluation_bar is not None:
            self.evaluation_bar.close()
        self.evaluation_bar = None

    on_predict = on_evaluate

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Show a reading: its main numbers beside the bar, all of it above."""
        if self.training_bar is None or not logs:
            return
        if "loss" in logs:
            self.training_bar.set_postfix(brief(logs), refresh=False)
        self.training_bar.write(f"update {state.global_step:>6,}  {describe(logs)}")


def brief(logs: dict[str, Any]) -> dict[str, str]:
    """Return what stands beside the bar."""
    shown = {"loss": f"{logs['loss']:.3f}"}
    if "tokens_per_second" in logs:
        shown["tokens/s"] = f"{logs['tokens_per_second']:,.0f}"
        shown["padding"] = f"{logs['padding']:.1f}%"
    return shown


UNSEEN = ("total_flos", "epoch")
"""Of a reading, what a person does not look for; `epoch` comes first, and groups such as gradient_norm/ are long."""


def describe(logs: dict[str, Any]) -> str:
    """Return one reading as a line: "epoch 1.25  loss 3.214  tokens_per_second 12,345"."""
    parts = [f"epoch {logs['epoch']:.2f}"] if "epoch" in logs else []
    parts += [f"{name} {_shown(value)}" for name, value in logs.items() if name not in UNSEEN and "/" not in name]
    return "  ".join(parts)


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
