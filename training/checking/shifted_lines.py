"""Where a line is missing on one side, and all that follow stand beside the wrong partner.

Two rows that belong together are alike in length, in how they end and in their numbers (after Gale and Church 1993).
How much each likeness says is learned from the corpus itself: the log of how much more often two classes stand
together than by chance. Then a Viterbi search over offsets, in blocks of rows, finds where another offset than 0 fits
better; inside the blocks where it changes, the row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from seqloom.training.checking.row_store import RECORD, RowStore

FARTHEST = 8
"""Lines by which one side may have run ahead of the other."""

OFFSETS = np.arange(-FARTHEST, FARTHEST + 1)

BLOCK = 20
"""Rows that are judged together."""

CHANGE_COST = 14.0
"""Log odds that speak for a change of the offset before it is believed."""

NUM_CLASSES, ROWS_A_CELL = 40, 8
"""Classes of length, each with as many rows: at most so many, and so few that a pair of classes stands for some rows.
With 40 of 515 templated rows, 50 shifted ones were found in none of 10 corpora; with 8 in 5, of longer rows in all."""

NOISES = 4
"""Standard deviations by which a corpus must say more at another offset than at 0 to be shifted from its start."""

TABLE_ROWS = 200_000
"""Rows from which the likeness is learned."""

MIN_ROWS = 100
"""A shorter corpus says too little about what belongs together."""


@dataclass(frozen=True)
class Shift:
    """A stretch of rows whose sides do not belong together."""

    first: int
    """Place of its first row, from 0."""
    end: int
    """Place behind its last row."""
    offset: int
    """The partner of source line n is target line n + offset; below 0: target lines are missing."""


def find_shifts(store: RowStore) -> list[Shift]:
    """Return the shifted stretches of a split, in order."""
    if store.num_rows < MIN_ROWS:
        return []
    likeness = Likeness.learn(store)
    blocks = likeness.of_blocks(store)  # (blocks, offsets)
    path = _best_offsets(blocks - blocks[:, [FARTHEST]])
    changes = np.flatnonzero(np.diff(path, prepend=FARTHEST))
    if not len(changes):
        return []
    starts = [
        likeness.refine(store, int(block), path[block - 1] if block else FARTHEST, path[block]) for block in changes
    ]
    ends = [*starts[1:], store.num_rows]
    found = [Shift(start, end, int(OFFSETS[path[block]])) for block, start, end in zip(changes, starts, ends)]
    return [shift for shift in found if shift.offset]


def _best_offsets(gains: np.ndarray) -> np.ndarray:
    """Viterbi: the offset of each block, from what each gains over offset 0 there; a change costs `CHANGE_COST`."""
    num_blocks, num_offsets = gains.shape
    came_from = np.zeros((num_blocks, num_offsets), np.int8)
    best = np.where(OFFSETS == 0, 0.0, -CHANGE_COST)
    stay = np.arange(num_offsets, dtype=np.int8)
    for block in range(num_blocks):
        top = int(best.argmax())
        jumps = best < best[top] - CHANGE_COST
        came_from[block] = np.where(jumps, top, stay)
        best = np.maximum(best, best[top] - CHANGE_COST) + gains[block]
    path = np.zeros(num_blocks, np.int8)
    state = int(best.argmax())
    for block in range(num_blocks - 1, -1, -1):
        path[block] = state
        state = int(came_from[block, state])
    return path


@dataclass
class Likeness:
    """How much it says that two rows stand together."""

    borders: tuple[np.ndarray, np.ndarray]
    """Of the classes of length, each side."""
    lengths: np.ndarray
    """(classes, classes) log odds of two classes of length."""
    marks: np.ndarray
    """Log odds of ends and numbers: both none, equal, different."""

    @classmethod
    def learn(cls, store: RowStore) -> Likeness:
        """Learn from the first rows at offset 0, or where they say clearly more: a shift may begin with the corpus.

        How much is said is measured on other rows than it was learned from: sides that have nothing to do with each
        other, such as texts and labels, say as much at every offset then, and are not shifted.
        """
        records = np.concatenate(list(_first_chunks(store, TABLE_ROWS)))
        num_classes = min(NUM_CLASSES, max(4, int((len(records) / ROWS_A_CELL) ** 0.5)))
        quantiles = np.linspace(0, 1, num_classes + 1)[1:-1]
        borders = tuple(np.unique(np.quantile(records["lengths"][:, side], quantiles)) for side in (0, 1))
        classes = [np.searchsorted(border, records["lengths"][:, side]) for side, border in enumerate(borders)]
        digits = records["digits"]

        def odds_of(rows: np.ndarray, offset: int) -> tuple[np.ndarray, np.ndarray]:
            counts = _counts(classes[0][rows], classes[1][rows + offset])
            return _log_odds(counts), _mark_odds(digits[rows, 0], digits[rows + offset, 1])

        def says(offset: int) -> float:
            rows = _rows_at(len(records), offset)
            is_learned = rows // BLOCK % 2 == 0
            lengths, marks = odds_of(rows[is_learned], offset)
            others = rows[~is_learned]
            kinds = _mark_kinds(digits[others, 0], digits[others + offset, 1])
            return float(lengths[classes[0][others], classes[1][others + offset]].sum() + marks[kinds].sum())

        best = max(OFFSETS.tolist(), key=says)
        noise = ((len(borders[0]) + 1) * (len(borders[1]) + 1)) ** 0.5  # of `says` where nothing is to be learned
        offset = best if says(best) - says(0) > CHANGE_COST + NOISES * noise else 0
        return cls((borders[0], borders[1]), *odds_of(_rows_at(len(records), offset), offset))

    def of_rows(self, records: np.ndarray) -> np.ndarray:
        """Return how much speaks for each offset at each row, (R, offsets); 0 where it has no partner."""
        classes = [np.searchsorted(self.borders[side], records["lengths"][:, side]) for side in (0, 1)]
        says = np.zeros((len(records), len(OFFSETS)), np.float32)
        for column, offset in enumerate(OFFSETS):
            rows = _rows_at(len(records), int(offset))
            kinds = _mark_kinds(records["digits"][rows, 0], records["digits"][rows + offset, 1])
            says[rows, column] = self.lengths[classes[0][rows], classes[1][rows + offset]] + self.marks[kinds]
        return says

    def of_blocks(self, store: RowStore) -> np.ndarray:
        """Return how much speaks for each offset in each block, (blocks, offsets)."""
        sums = []
        for records in store.chunks(BLOCK * 10_000):
            says = self.of_rows(records)
            sums.append(np.add.reduceat(says, np.arange(0, len(says), BLOCK)))
        return np.concatenate(sums)

    def refine(self, store: RowStore, block: int, before: int, after: int) -> int:
        """Return the row, near the start of a block, from which the offset `after` fits better than `before`."""
        first = max(0, (block - 2) * BLOCK)
        margin = FARTHEST
        window = _rows_between(store, first - margin, first + 4 * BLOCK + margin)
        says = self.of_rows(window)[min(first, margin) :]
        gains = says[: 4 * BLOCK, after] - says[: 4 * BLOCK, before]
        rest = np.cumsum(gains[::-1])[::-1]  # what the change gains if it comes here
        return first + int(rest.argmax())


def _rows_at(num_rows: int, offset: int) -> np.ndarray:
    return np.arange(max(0, -offset), min(num_rows, num_rows - offset))


def _counts(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    counts = np.zeros((NUM_CLASSES, NUM_CLASSES))
    np.add.at(counts, (source, target), 1)
    return counts


def _log_odds(counts: np.ndarray) -> np.ndarray:
    """Return the log of counts over what chance would give."""
    total = max(1.0, counts.sum())
    chance = counts.sum(1, keepdims=True) * counts.sum(0, keepdims=True) / total
    return np.log((counts + 2.0) / (chance + 2.0))


def _mark_kinds(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    return np.where(source == target, np.where(source == 0, 0, 1), 2)


def _mark_odds(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """As `_log_odds` for the kinds of `_mark_kinds`; chance is the same rows in another order."""
    there = np.bincount(_mark_kinds(source, target), minlength=3)
    chance = sum(np.bincount(_mark_kinds(source, np.roll(target, by)), minlength=3) for by in (97, 211, 389)) / 3
    return np.log((there + 2.0) / (chance + 2.0))


def _first_chunks(store: RowStore, num_rows: int) -> Iterator[np.ndarray]:
    for records in store.chunks():
        yield records[:num_rows]
        num_rows -= len(records)
        if num_rows <= 0:
            return


def _rows_between(store: RowStore, first: int, end: int) -> np.ndarray:
    first = max(0, first)
    return np.fromfile(store.path, RECORD, count=max(0, end - first), offset=first * RECORD.itemsize)
