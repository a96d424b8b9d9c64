"""The page of an evaluation: one HTML file without anything from elsewhere, for a person who wants to look."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from seqloom.hub.model_card import SCORES
from seqloom.modeling.canary import write_whole
from seqloom.training.metrics import LOWER_IS_BETTER, METRICS
from seqloom.training.scoring.differences import Piece, confusions, differences
from seqloom.training.scoring.evaluation import Evaluation
from seqloom.training.scoring.groups import Breakdown
from seqloom_cli.command import visible

PAGE_NAME, TEMPLATE = "evaluation.html", "score_page.html.jinja"
NUM_EXAMPLES = 20
"""Examples of each kind."""
MOST_CHARACTERS = 2000
"""Of a text that the page shows; outputs.jsonl has all of it."""


@dataclass(frozen=True)
class Example:
    """One example as the page shows it."""

    number: int
    """Its place in the test set, from 1."""
    score: float
    source: str
    reference: str
    more_references: list[str]
    pieces: list[Piece]
    """What the output has other than the reference."""
    is_cut: bool
    nearest: Any
    """The nearest training line, or None."""
    other_score: float | None = None
    other_pieces: list[Piece] | None = None


def write_page(evaluation: Evaluation, output: str | PathLike[str]) -> Path:
    """Write the page into a folder, whole or not at all, and return where."""
    path = Path(output) / PAGE_NAME
    write_whole(path, render_page(evaluation))
    return path


def render_page(evaluation: Evaluation) -> str:
    """Return the page."""
    environment = Environment(
        loader=PackageLoader("seqloom.training.scoring", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "thousands": "{:,}".format,
        "shown": _shown,
        "percent": lambda share: f"{100 * share:.0f} %",
    }
    environment.globals |= {"axis": _axis, "label_of": lambda name: SCORES.get(name, name)}
    order = [row for row in evaluation.order if not np.isnan(evaluation.sentence_scores[row])]
    is_perfect = _is_perfect(evaluation)
    worst = [row for row in order if not is_perfect[row]][:NUM_EXAMPLES]
    best = [row for row in order[::-1] if row not in set(worst)][:NUM_EXAMPLES]
    references = _nearest_references(evaluation)
    kinds = {
        "Worst": [_example(evaluation, references, int(row)) for row in worst],
        "Best": [_example(evaluation, references, int(row)) for row in best],
        **_parted(evaluation, references),
    }
    return environment.get_template(TEMPLATE).render(
        evaluation=evaluation,
        kinds={name: examples for name, examples in kinds.items() if examples},
        confusions=confusions(evaluation.answers.outputs, references, by_words=evaluation.by_words)
        if evaluation.sentence_metric in METRICS
        else [],
        num_perfect=int(is_perfect.sum()),
        sentence_label=SCORES.get(evaluation.sentence_metric, evaluation.sentence_metric),
    )


def _parted(evaluation: Evaluation, references: Sequence[str]) -> dict[str, list[Example]]:
    """Return the examples in which two systems are farthest apart, by who is better."""
    if evaluation.other is None or evaluation.other_scores is None:
        return {}
    sign = -1 if evaluation.sentence_metric in LOWER_IS_BETTER else 1
    gains = sign * (evaluation.sentence_scores - evaluation.other_scores)
    order = np.argsort(gains, kind="stable")
    better = [int(row) for row in order[::-1] if gains[row] > 0][:NUM_EXAMPLES]
    poorer = [int(row) for row in order if gains[row] < 0][:NUM_EXAMPLES]
    found = {"Better than the other": better, "Poorer than the other": poorer}
    return {name: [_example(evaluation, references, row) for row in rows] for name, rows in found.items()}


def _example(evaluation: Evaluation, references: Sequence[str], row: int) -> Example:
    answers, other, text = evaluation.answers, evaluation.other, evaluation.text

    def compared(output: str) -> list[Piece]:
        return differences(output[:MOST_CHARACTERS], references[row][:MOST_CHARACTERS], by_words=evaluation.by_words)

    return Example(
        number=row + 1,
        score=float(evaluation.sentence_scores[row]),
        source=text.sources[row],
        reference=references[row],
        more_references=[each for each in dict.fromkeys(text.references[row]) if each != references[row]],
        pieces=compared(answers.outputs[row]),
        is_cut=answers.is_cut is not None and bool(answers.is_cut[row]),
        nearest=evaluation.nearness.nearest[row] if evaluation.nearness else None,
        other_score=None if evaluation.other_scores is None else float(evaluation.other_scores[row]),
        other_pieces=compared(other.outputs[row]) if other else None,
    )


def _nearest_references(evaluation: Evaluation) -> list[str]:
    """Return for each example the reference that its output is nearest to."""
    cer = METRICS["cer"]
    return [
        several[0] if len(several) == 1 else min(several, key=lambda each: cer([output], [each]).value)
        for output, several in zip(evaluation.answers.outputs, evaluation.text.references, strict=True)
    ]


def _is_perfect(evaluation: Evaluation) -> np.ndarray:
    """Return which outputs equal a reference; (sentences,)."""
    pairs = zip(evaluation.answers.outputs, evaluation.text.references, strict=True)
    return np.array([output in several for output, several in pairs])


def _shown(text: str) -> str:
    """Return a text for the page: what nobody would see is made visible, and what is very long is shortened."""
    return visible(text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} [...]")


def _axis(breakdown: Breakdown, metric: str) -> float:
    """Return where the bars of a chart end: 100 for shares, else what holds all of them."""
    values = [group.scores[metric] for group in breakdown.groups]
    values += [group.interval[1] for group in breakdown.groups if group.interval]
    most = max(values, default=1.0)
    return 100.0 if 25 < most <= 100 else max(most * 1.05, 1e-9)


__all__ = ["PAGE_NAME", "render_page", "write_page"]
