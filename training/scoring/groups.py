"""Where a folder is good and where it is not: the same scores for parts of a test set."""

import math
import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from seqloom.configuration.task_kind import are_phones
from seqloom.hub.tags import tag_of
from seqloom.training.confidence import interval
from seqloom.training.metrics import SentenceSums
from seqloom.training.scoring.evaluation_text import EvaluationText
from seqloom.training.scoring.nearness import Nearness

MOST_VALUES = 40
"""Groups that a column may make; the rarest values beyond are one group."""

NUM_LENGTHS = 5

_TAG = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
"""A tag that says what is wanted, e.g. the language: <de>."""


@dataclass(frozen=True)
class Group:
    """Some sentences of a test set and what they score."""

    label: str
    count: int
    scores: dict[str, float]
    """By name of the metric."""
    interval: tuple[float, float] | None
    """95 % interval of the first score; None: one sentence alone."""


@dataclass(frozen=True)
class Breakdown:
    """A test set cut into groups by one property."""

    name: str
    title: str
    note: str
    groups: list[Group]


def breakdowns(text: EvaluationText, sums: Mapping[str, SentenceSums], nearness: Nearness | None) -> list[Breakdown]:
    """Return the scores by length, by nearness to the training text and rarity of words, and by column.

    Args:
        text: the test set.
        sums: by name of the metric; the first gets intervals.
        nearness: None: no training text is known.
    """
    labels = {"length": ("By length of the reference", *_lengths(text))}
    if nearness:
        note = "Nearest training source; 100 %: the same but for tags, spaces and letter case."
        labels["nearness"] = ("By nearness to the training text", note, _nearness_labels(nearness))
        title = f"By frequency of the rarest {nearness.unit}"
        note = f"How often the source's rarest {nearness.unit} stands in the {nearness.num_rows:,} training sources."
        labels["frequency"] = (title, note, [_frequency_label(count) for count in nearness.rarest])
    tags = [found[0] if (found := _TAG.match(source)) else "(none)" for source in text.sources]
    made = {tag_of(column, value) for column, values in text.columns.items() for value in set(values)}
    if not set(tags) <= {tag for several in made for tag in _TAG.findall(several)}:
        labels["tag"] = ("By tag at the start of the source", "", _common(tags))
    for column, values in text.columns.items():
        labels[free_name(column, labels)] = (f"By {column}", "", _common(values))
    return [
        Breakdown(name, title, note, _grouped(values, sums))
        for name, (title, note, values) in labels.items()
        if len(set(values)) > 1 or title.removeprefix("By ") in text.columns
    ]


def free_name(column: str, taken: Container[str]) -> str:
    """Return a column's name, or, where something of ours is called so, one that says it is a column's."""
    return f"column {column}" if column in taken else column


def _grouped(labels: Sequence[str], sums: Mapping[str, SentenceSums]) -> list[Group]:
    """Score the sentences of each label; labels keep the order of `_ordered`."""
    found = np.array(labels)
    groups = []
    for label in _ordered(labels):
        rows = np.flatnonzero(found == label)
        parts = {name: each.of(rows) for name, each in sums.items()}
        scores = {name: each.value for name, each in parts.items()}
        if any(map(math.isnan, scores.values())):  # nothing of them could be read
            continue
        bounds = interval(next(iter(parts.values()))) if len(rows) > 1 and parts else None
        groups.append(Group(label.partition("\0")[2] or label, len(rows), scores, bounds))
    return groups


def _ordered(labels: Sequence[str]) -> list[str]:
    """Labels with a rank before a NUL stand in that order, others by their number of sentences."""
    counts = Counter(labels)
    return sorted(counts, key=lambda label: label if "\0" in label else f"{10**9 - counts[label]:010}")


def _lengths(text: EvaluationText) -> tuple[str, list[str]]:
    """Cut the set into parts of near-equal size by the references' length, in words where there are such."""
    references = text.first_references
    has_words = sum(" " in reference for reference in references) * 2 > len(references)
    lengths = np.array([len(reference.split()) if has_words else len(reference) for reference in references])
    bounds = np.unique(np.quantile(lengths, np.linspace(0, 1, NUM_LENGTHS + 1)[1:], method="closest_observation"))
    places = np.searchsorted(bounds, lengths)
    unit = "phones" if are_phones(references) else "words" if has_words else "characters"
    names = {}
    for place in np.unique(places):
        inside = lengths[places == place]
        low, high = int(inside.min()), int(inside.max())
        names[place] = f"{place:02}\0{low if low == high else f'{low}–{high}'} {unit}"
    return "Parts of near-equal size.", [names[place] for place in places]


def _nearness_labels(nearness: Nearness) -> list[str]:
    names = ("100 %", "80–99 %", "60–79 %", "40–59 %", "below 40 %")
    bounds = (1.0, 0.8, 0.6, 0.4, 0.0)
    ranks = [next(i for i, low in enumerate(bounds) if line.similarity >= low) for line in nearness.nearest]
    return [f"{rank}\0{names[rank]}" for rank in ranks]


def _frequency_label(count: int) -> str:
    if not count:
        return "0\0never seen"
    rank = min(4, int(math.log10(count)))
    return f"{rank + 1}\0{('1–9', '10–99', '100–999', '1,000–9,999', '10,000 and more')[rank]} times"


def _common(values: Sequence[str]) -> list[str]:
    """Keep the most frequent values, and call the rest "others"."""
    counts = Counter(values)
    kept = set(sorted(counts, key=lambda value: -counts[value])[:MOST_VALUES])
    return [(value or "(empty)") if value in kept else "others" for value in values]


__all__ = ["Breakdown", "Group", "breakdowns"]
