"""What was read while a run trained, for plots of one's own and for the pages of ours.

    state.log_history    what Trainer logged, and the samples; each checkpoint keeps it
        |-- run/history.jsonl        a line for each reading, evaluation and set of samples
        |-- run/report.html          the same to look at, anew at each evaluation
        +-- learning_curve.png       loss and score for the model card, at the end, where matplotlib is installed

The log of the checkpoint is the one truth: each start begins the file anew from it. So a line stands there once,
however often the run was killed.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState

from seqloom.modeling.canary import write_whole
from seqloom.training.monitoring.console import is_score
from seqloom.training.monitoring.gradient_flow import can_draw

REPORT_PAGE, CHARTS = (Path(__file__).with_name(name) for name in ("report_page.html", "charts.html"))
"""A page with places for the data and for what draws them, and what draws them: styles and JavaScript."""


class History(TrainerCallback):
    """Writes `history.jsonl` line by line and the report at each evaluation; hang it in behind what adds to the log."""

    def __init__(self, records: Path, facts: Mapping[str, Any]) -> None:
        """Watch a run.

        Args:
            records: the folder `run/`.
            facts: what the head of the report says, by name; `lengths` and `results` have places of their own.
        """
        self.table, self.report = records / "history.jsonl", records / "report.html"
        self.facts = dict(facts)
        self._num_written = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Begin the file; a resumed run begins it with what its checkpoint remembers."""
        if state.is_world_process_zero:
            self._num_written = 0
            self.table.write_text("", encoding="utf-8")
            self._write(state)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Append what is new."""
        if state.is_world_process_zero:
            self._write(state)

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Append the samples, too, and draw everything."""
        if state.is_world_process_zero:
            self._write(state)
            self.write_report(state)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Draw a run that is never evaluated."""
        self.on_evaluate(args, state, control)

    def write_report(self, state: TrainerState, **facts: Any) -> None:
        """Write the page, with more facts where more is known by now."""
        self.facts |= facts
        write_report(self.report, rows_of(state.log_history), self.facts)

    def _write(self, state: TrainerState) -> None:
        new = rows_of(state.log_history[self._num_written :])
        with self.table.open("a", encoding="utf-8", newline="\n") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in new))
        self._num_written = len(state.log_history)


def rows_of(log_history: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what a run logged: `update`, then what was read; no number that JSON lacks."""
    rows = []
    for entry in log_history:
        row = {"update": entry["step"], **{name: value for name, value in entry.items() if name != "step"}}
        rows.append({name: None if _is_no_number(value) else value for name, value in row.items()})
    return rows


def _is_no_number(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def histogram(lengths: np.ndarray) -> dict[str, list[int]]:
    """Count how many examples have how many tokens on either side.

    Args:
        lengths: source and target tokens, (N, 2).

    Returns:
        `edges`, one more than there are bins (some 40, of one whole width), and the counts of `source` and `target`.
    """
    width = max(1, math.ceil(int(lengths.max(initial=1)) / 40))
    edges = np.arange(0, int(lengths.max(initial=1)) + width + 1, width)
    counts = {side: np.histogram(lengths[:, at], edges)[0].tolist() for at, side in enumerate(("source", "target"))}
    return {"edges": edges.tolist(), **counts}


# The page and the picture --------------------------------------------------------------------------------------------


def write_report(path: Path, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> None:
    """Write one page that needs no network and nothing beside it.

    Args:
        path: where.
        rows: of `rows_of`.
        facts: see `History`.
    """
    write_whole(path, filled_page(REPORT_PAGE, {"rows": rows, "facts": facts}))


def filled_page(template: Path, data: Mapping[str, Any]) -> str:
    """Return a page with the charts and the data in their places."""
    text = json.dumps(data, ensure_ascii=False, default=str).replace("<", "\\u003c")  # no text ends the script
    page = template.read_text(encoding="utf-8").replace("__CHARTS__", CHARTS.read_text(encoding="utf-8").rstrip())
    return page.replace("__DATA__", text)


def draw_curve(log_history: Iterable[Mapping[str, Any]], path: Path, metric: str | None) -> bool:
    """Draw loss and score over the updates, if matplotlib is there and there is something to draw.

    Args:
        log_history: of a run.
        path: the picture; its ending names the format, .png or .svg.
        metric: the score beside the loss, as evaluations during training call it; None: the loss alone.

    Returns:
        Whether there is a picture.
    """
    entries = list(log_history)
    names = [("loss", "training"), ("eval_loss", "validation"), *([(f"eval_{metric}", str(metric))] if metric else [])]
    curves = {label: [(e["step"], e[name]) for e in entries if is_score(name, e.get(name))] for name, label in names}
    curves = {label: points for label, points in curves.items() if points}
    if not curves or not can_draw():
        return False
    from matplotlib.figure import Figure

    score = [metric] if metric and metric in curves else []
    panels = [panel for panel in ([label for label in ("training", "validation") if label in curves], score) if panel]
    figure = Figure(figsize=(5.5 * len(panels), 3.6), layout="constrained")
    for axes, labels in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for label in labels:
            axes.plot(*zip(*curves[label], strict=True), label=label, marker="o" if len(curves[label]) < 30 else None)
        axes.set_title(f"{metric} on the validation set" if labels == score else "loss")
        axes.set_xlabel("update")
        axes.grid(visible=True, alpha=0.25)
        if labels == score:
            axes.set_ylim(bottom=0)
        if len(labels) > 1:
            axes.legend()
    figure.savefig(path, dpi=120)
    return True


__all__ = ["History", "draw_curve", "filled_page", "histogram", "rows_of", "write_report"]
