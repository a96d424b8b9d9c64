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

NUM_CLASSES = 40
"""Classes of length: each takes in a fortieth of the rows."""

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
        """Learn from the first rows, at the offset at which they say most: the corpus may be shifted from its start."""
        records = np.concatenate(list(_first_chunks(store, TABLE_ROWS)))
        quantiles = np.linspace(0, 1, NUM_CLASSES + 1)[1:-1]
        borders = tuple(np.unique(np.quantile(records["lengths"][:, side], quantiles)) for side in (0, 1))
        classes = [np.searchsorted(border, records["lengths"][:, side]) for side, border in enumerate(borders)]
        digits = records["digits"]
        tables = []
        for offset in sorted(OFFSETS, key=abs):
            rows = _rows_at(len(records), int(offset))
            lengths, says = _log_odds(_counts(classes[0][rows], classes[1][rows + offset]))
            marks, also_says = _mark_odds(digits[rows, 0], digits[rows + offset, 1])
            tables.append((says + also_says, lengths, marks))
        _, lengths, marks = max(tables, key=lambda table: table[0])
        return cls((borders[0], borders[1]), lengths, marks)

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


def _log_odds(counts: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the log of counts over what chance would give, and how much it says in sum (mutual information)."""
    total = max(1.0, counts.sum())
    chance = counts.sum(1, keepdims=True) * counts.sum(0, keepdims=True) / total
    odds = np.log((counts + 2.0) / (chance + 2.0))
    return odds, float((counts * odds).sum() / total)


def _mark_kinds(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    return np.where(source == target, np.where(source == 0, 0, 1), 2)


def _mark_odds(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, float]:
    """As `_log_odds` for the kinds of `_mark_kinds`; chance is the same rows in another order."""
    there = np.bincount(_mark_kinds(source, target), minlength=3)
    chance = sum(np.bincount(_mark_kinds(source, np.roll(target, by)), minlength=3) for by in (97, 211, 389)) / 3
    odds = np.log((there + 2.0) / (chance + 2.0))
    return odds, float((there * odds).sum() / max(1, there.sum()))


def _first_chunks(store: RowStore, num_rows: int) -> Iterator[np.ndarray]:
    for records in store.chunks():
        yield records[:num_rows]
        num_rows -= len(records)
        if num_rows <= 0:
            return


def _rows_between(store: RowStore, first: int, end: int) -> np.ndarray:
    first = max(0, first)
    return np.fromfile(store.path, RECORD, count=max(0, end - first), offset=first * RECORD.itemsize)
