"""What a person sees while it trains: a line for each reading, with the loss, the speed in tokens and the time left.

At a terminal a bar runs below. The same numbers go to Trainer's log, and from there to `history.py` and to TensorBoard,
trackio or W&B, whichever `report_to` names.
"""

import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState, TrainerControl, TrainerState

from seqloom.training.collator import IGNORED_LABEL
from seqloom.training.monitoring.console import is_score, say

PACE_READINGS = 20
"""Readings from which the time left is told: a machine that slept, or was busy, is soon forgotten."""


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
    """A line for each reading; at a terminal a bar of updates below it, and one of an evaluation's batches."""

    def __init__(self, *, shows_bars: bool | None = None) -> None:
        """Show nothing yet; `shows_bars` None: where stderr is a terminal."""
        self.shows_bars = sys.stderr.isatty() if shows_bars is None else shows_bars
        self.training_bar: Any = None
        self.evaluation_bar: Any = None
        self._readings: deque[tuple[float, int]] = deque(maxlen=PACE_READINGS + 1)  # time, updates done

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Open the bar where the run stands, so that a resumed one shows its own speed and time left."""
        self._readings.clear()
        self._readings.append((time.perf_counter(), state.global_step))
        if state.is_world_process_zero:
            self.training_bar = self._bar(
                total=state.max_steps, initial=state.global_step, unit="update", smoothing=0.05
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
            self.evaluation_bar = self._bar(total=len(eval_dataloader), leave=self.training_bar is None)
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
        """Show a reading: its main numbers beside the bar, all of it above; what Trainer sums up is said at the end."""
        if self.training_bar is None or not logs or "train_loss" in logs:
            return
        if "loss" in logs:
            self.training_bar.set_postfix(brief(logs), refresh=False)
        say(f"update {state.global_step:>6,}  {describe(logs, self._to_go(state) if 'loss' in logs else '')}")

    def _bar(self, **options: Any) -> Any:
        return tqdm(dynamic_ncols=True, disable=not self.shows_bars, **options)

    def _to_go(self, state: TrainerState) -> str:
        """Return how long the rest takes at the pace of the latest readings; nothing where the end is reached."""
        self._readings.append((time.perf_counter(), state.global_step))
        (earlier, before), (now, after) = self._readings[0], self._readings[-1]
        seconds, done, left = now - earlier, after - before, state.max_steps - after
        return f"{duration(seconds / done * left)} to go" if done and left > 0 else ""


def brief(logs: dict[str, Any]) -> dict[str, str]:
    """Return what stands beside the bar."""
    shown = {"loss": f"{logs['loss']:.3f}"}
    if "tokens_per_second" in logs:
        shown["tokens/s"] = f"{logs['tokens_per_second']:,.0f}"
        shown["padding"] = f"{logs['padding']:.1f}%"
    return shown


FIRST = {"epoch": "epoch {:.2f}", "loss": "loss {:.4g}", "tokens_per_second": "{:,.0f} tokens/s"}
"""Of a reading, what a person looks for first, and how it is written."""


def describe(logs: Mapping[str, Any], to_go: str = "") -> str:
    """Return one reading as a line: "epoch 1.25  loss 3.214  12,346 tokens/s  13 min to go  learning_rate 0.0002".

    Left out is what nobody looks for here: durations of an evaluation, and groups such as gradient_norm/, which are
    long.
    """
    parts = [text.format(logs[name]) for name, text in FIRST.items() if name in logs]
    parts += [to_go] if to_go else []
    rest = {
        name: value for name, value in logs.items() if name not in FIRST and "/" not in name and name != "total_flos"
    }
    return "  ".join(parts + [f"{name} {_shown(value)}" for name, value in rest.items() if is_score(name, value)])


def _shown(value: float) -> str:
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Return a time as people say it: "40 s", "13 min", "2 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
