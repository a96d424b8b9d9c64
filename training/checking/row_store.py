"""What is kept of every row while a corpus streams past: 44 bytes on disk, whatever the text is long.

Duplicates, leaks and shifted lines are found in these records, some of them in memory at a time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np

from seqloom.training.checking.text_batch import Batch, Side, mix

RECORD = np.dtype(
    [
        ("number", "i8"),  # line or record
        ("pair", "u8"),  # hash of the row as it is
        ("source", "u8"),  # hash of its letters and digits, and of tags in front, as in pair
        ("target", "u8"),
        ("lengths", "u2", 2),
        ("digits", "u4", 2),  # hashes
    ]
)

CHUNK = 1 << 19
"""Records in memory at a time while all are read."""

AT_ONCE = 1 << 21
"""Hashes compared at a time."""

Key = Literal["pair", "near", "source", "target"]


def records_of(batch: Batch) -> np.ndarray:
    """Return what is kept of each row of a batch."""
    records = np.zeros(len(batch), RECORD)
    records["number"] = batch.numbers
    records["pair"] = batch.sides[0].exact
    if batch.is_pairs:
        records["pair"] += mix(batch.sides[1].exact)
    for place, (name, side) in enumerate(zip(("source", "target"), batch.sides)):
        records[name] = side.near
        records["lengths"][:, place] = np.minimum(side.lengths, 0xFFFF)
        records["digits"][:, place] = side.digits ^ _last_mark(side)
    if batch.tags is not None:
        for name in ("pair", "source"):
            records[name] += mix(batch.tags.exact)
    return records


def _last_mark(side: Side) -> np.ndarray:
    """Return a hash of how each row ends: question, exclamation, full stop, colon, or none of them."""
    last = side.codes[np.maximum(side.starts + side.lengths - 1, 0)]
    kinds = np.zeros(len(last), np.uint32)
    for kind, marks in enumerate(("?？؟;՞", "!！՜", ".。۔।", ":：…"), 1):
        kinds[np.isin(last, [ord(mark) for mark in marks])] = kind
    return kinds * np.uint32(0x9E3779B1)


def key_of(records: np.ndarray, key: Key) -> np.ndarray:
    """Return the hashes by which rows are compared; near: both sides without case and punctuation."""
    if key == "near":
        return records["source"] + mix(records["target"])
    return records[key]


@dataclass
class RowStore:
    """The records of one split in a temporary file, in the order of the rows."""

    path: Path
    num_rows: int = 0
    is_pairs: bool = True

    def __post_init__(self) -> None:
        self._file = self.path.open("wb")

    def append(self, records: np.ndarray) -> None:
        """Add the records of a batch."""
        self._file.write(records.tobytes())
        self.num_rows += len(records)

    def chunks(self, size: int = CHUNK) -> Iterator[np.ndarray]:
        """Yield all records, some at a time."""
        self._file.flush()
        with self.path.open("rb") as file:
            while raw := file.read(size * RECORD.itemsize):
                yield np.frombuffer(raw, RECORD)

    def repeated(self, key: Key) -> np.ndarray:
        """Return the places (from 0) of rows of which an earlier row has the same hash, in order."""
        num_parts = np.uint64(-(-self.num_rows // AT_ONCE) or 1)
        found = [np.zeros(0, np.int64)]
        for part in range(int(num_parts)):
            hashes, places, first = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], 0
            for records in self.chunks():
                values = key_of(records, key)
                mine = np.flatnonzero(values % num_parts == part)
                hashes.append(values[mine])
                places.append(mine + first)
                first += len(records)
            values, rows = np.concatenate(hashes), np.concatenate(places)
            order = np.argsort(values, kind="stable")
            is_again = np.zeros(len(order), bool)
            is_again[1:] = values[order][1:] == values[order][:-1]
            found.append(rows[order[is_again]])
        return np.sort(np.concatenate(found))

    def numbers(self, places: np.ndarray) -> np.ndarray:
        """Return the lines of rows at `places`, which are in order."""
        found, first = [np.zeros(0, np.int64)], 0
        for records in self.chunks():
            inside = places[np.searchsorted(places, first) : np.searchsorted(places, first + len(records))]
            found.append(records["number"][inside - first])
            first += len(records)
        return np.concatenate(found)


def is_among(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Return which of `values` are in `ordered`, a sorted array."""
    if not len(ordered):
        return np.zeros(len(values), bool)
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return ordered[places] == values


class Stores:
    """The stores of all splits, in a folder that goes with them."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="seqloom-check-", ignore_cleanup_errors=True)
        self.by_split: dict[str, RowStore] = {}

    def open(self, split: str) -> RowStore:
        """Begin the store of a split."""
        self.by_split[split] = RowStore(Path(self._folder.name) / split)
        return self.by_split[split]

    def __enter__(self) -> Stores:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for store in self.by_split.values():
            store._file.close()
        self._folder.cleanup()
