"""What is normal for the two columns of a corpus: measured on a sample of it, never known beforehand.

No language is named here. Most languages that people train from scratch are in no classifier, and what matters is
whether a row is like its column: by script, by length, and by the trigrams that tell one column from the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from seqloom.training.checking.text_batch import NUM_BINS, SCRIPTS, Batch, Side, character_scripts

SAMPLE_ROWS = 30_000
"""Rows of the sample; more make no difference to what is measured here."""

DOMINANT_SHARE = 0.15
"""A script in which so many rows are written belongs to the column."""

SHRINK = 2.0
"""Counts added to a trigram on either side: a rare one says little."""

MIN_LETTERS = 8
"""A shorter row has too few trigrams to judge by."""

TELLS_APART = 0.85
"""The trigrams know a column where they are right for so many of its longer rows."""

FAR_APART = 2.0
"""And where the medians of `likeness` lie so far apart: 4.9 for German and English, 0.8 for old and modern Chinese."""

SPREADS = 6.0
"""A length is unusual so many spreads (median absolute deviations, scaled to a standard deviation) from the median."""


@dataclass
class Spread:
    """Median and robust standard deviation."""

    median: float
    deviation: float

    @classmethod
    def of(cls, values: np.ndarray, least: float) -> Spread:
        """Measure `values`; the deviation is at least `least`."""
        if not len(values):
            return cls(0.0, least)
        median = float(np.median(values))
        return cls(median, max(least, 1.4826 * float(np.median(np.abs(values - median)))))

    def excess(self, values: np.ndarray) -> np.ndarray:
        """How many deviations `values` lie above (below: negative) the median."""
        return (values - self.median) / self.deviation


@dataclass
class ColumnFacts:
    """What is normal for a corpus; small, so that it travels to other processes."""

    scripts: list[np.ndarray] = field(default_factory=list)
    """Each side: whether a value of `character_scripts` belongs to it."""
    log_lengths: list[Spread] = field(default_factory=list)
    """Each side: logarithm of its lengths in characters."""
    log_ratio: Spread | None = None
    """Of `Batch.log_ratio`; None for text alone."""
    trigrams: np.ndarray | None = None
    """Bin -> log of how much more frequent on the source's side; None where the sides cannot be told apart."""
    usual: tuple[float, float] = (0.0, 0.0)
    """Median of `likeness` on each side: above 0, below 0."""
    copies: float = 0.0
    """Share of rows whose target is their source."""

    split: str = "train"
    """The split that is looked at."""
    known: list[np.ndarray] = field(default_factory=list)
    """Each side: whether the training text has a code point; empty until it has been read."""

    @classmethod
    def of(cls, sample: Batch) -> ColumnFacts:
        """Measure a sample of the training split."""
        facts = cls(
            scripts=[_dominant_scripts(side) for side in sample.sides],
            log_lengths=[Spread.of(np.log1p(side.lengths), 0.4) for side in sample.sides],
        )
        if sample.is_pairs:
            source, target = sample.sides
            is_copy = source.near == target.near
            facts.copies = float(is_copy.mean())
            facts.log_ratio = Spread.of(sample.log_ratio[~is_copy], 0.15)
            facts._learn_trigrams(source, target)
        return facts

    def _learn_trigrams(self, source: Side, target: Side) -> None:
        counts = [np.bincount(side.trigrams, weights=side.folded > 0, minlength=NUM_BINS) for side in (source, target)]
        shares = [(count + SHRINK) / (count.sum() + SHRINK * NUM_BINS) for count in counts]
        log_odds = np.log(shares[0]) - np.log(shares[1])
        log_odds[(counts[0] + counts[1]) == 0] = 0
        self.trigrams = log_odds.astype(np.float32)
        rows = [self.likeness(side)[side.num_letters >= MIN_LETTERS] for side in (source, target)]
        if min(map(len, rows)) == 0 or min((rows[0] > 0).mean(), (rows[1] < 0).mean()) < TELLS_APART:
            self.trigrams = None
            return
        self.usual = float(np.median(rows[0])), float(np.median(rows[1]))
        if self.usual[0] - self.usual[1] < FAR_APART:
            self.trigrams = None

    def likeness(self, side: Side) -> np.ndarray:
        """Mean log odds of each row's trigrams: above 0 like the source's side, below 0 like the target's."""
        assert self.trigrams is not None, "asked only where the sides can be told apart"
        values = np.where(side.folded > 0, self.trigrams[side.trigrams], np.float32(0))
        return side.sum(values) / np.maximum(side.num_letters, 1)  # (R,)


def scripts_of(side: Side) -> tuple[np.ndarray, np.ndarray]:
    """Return the script of each character, and how many letters with a script each row has."""
    scripts = character_scripts()[side.codes]  # (C,)
    return scripts, side.sum((scripts > 0).astype(np.int32))


def _dominant_scripts(side: Side) -> np.ndarray:
    """Return which scripts are those of a column: most letters of many of its rows are written in them."""
    scripts, num_letters = scripts_of(side)
    is_dominant = np.zeros(len(SCRIPTS) + 2, bool)
    num_rows = max(1, int((num_letters > 0).sum()))
    for script in np.unique(scripts[scripts > 0]):
        dominated = side.sum((scripts == script).astype(np.int32)) * 2 > num_letters
        is_dominant[script] = dominated.sum() >= DOMINANT_SHARE * num_rows
    return is_dominant
