"""`seqloom check`: a recipe's corpora, read to their end whatever is wrong with them, and all of it said at once.

    every split -> rows, in batches -> find_faults, in all processes -> lines and examples by rule
                                    -> records_of, on disk           -> duplicates, leaks, shifted lines

The training split is read twice: first a sample of it is measured (`ColumnFacts`), for only the corpus itself tells
what is normal there.
"""

from __future__ import annotations

import os
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import ClassVar

import numpy as np

from seqloom.configuration.recipe import Recipe
from seqloom.hub.tags import of_columns
from seqloom.training.checking.check_report import Example, Finding, Report, SplitFacts
from seqloom.training.checking.column_facts import SAMPLE_ROWS, ColumnFacts
from seqloom.training.checking.fault_rules import find_faults
from seqloom.training.checking.row_store import Key, RowStore, Stores, is_among, key_of, records_of
from seqloom.training.checking.shifted_lines import Shift, find_shifts
from seqloom.training.checking.text_batch import NUM_CODES, NUM_SIDES, Batch, mix
from seqloom.training.reading.corpus import RowRule, open_corpus
from seqloom.training.reading.readers import Row
from seqloom.training.reading.sources import Extra, Source
from seqloom.training.reading.text_file import CorpusError, Defects, is_blank, reported_to
from seqloom.training.reading.unread import find_unread

BATCH_ROWS, BATCH_CHARACTERS = 10_000, 1 << 22
"""A batch ends at whichever comes first."""

NUM_EXAMPLES = 5
"""Rows shown of each finding."""

SPLITS = ("train", "valid", "test")


@dataclass
class Examined:
    """What one batch showed."""

    records: np.ndarray
    lines: dict[str, np.ndarray]
    """Rule -> numbers of the rows that have the fault."""
    examples: dict[str, list[Example]]
    codes: list[np.ndarray]
    """Each side: the code points that occur."""


def examine(batch: Batch, facts: ColumnFacts) -> Examined:
    """Look at the rows of a batch."""
    faults = find_faults(batch, facts)
    records = records_of(batch)
    is_empty = np.logical_or.reduce([side.lengths == 0 for side in batch.sides]) | faults.get("blank", False)
    for name in ("pair", "source", "target"):  # no row is another's copy for having nothing
        records[name][is_empty] = mix(batch.numbers[is_empty])
    lines = {rule: batch.numbers[mask] for rule, mask in faults.items()}
    examples = {
        rule: [_example(batch, row) for row in np.flatnonzero(mask)[:NUM_EXAMPLES]] for rule, mask in faults.items()
    }
    return Examined(records, lines, examples, [np.unique(side.codes) for side in batch.sides])


def _example(batch: Batch, row: int) -> Example:
    return Example.of(int(batch.numbers[row]), [side.texts[row] for side in batch.sides])


@dataclass
class SplitReader:
    """One split of a recipe, as rows, with the tags of columns; what ends a training is noted and read past."""

    recipe: Recipe
    split: str
    findings: list[Finding] = field(default_factory=list)
    source: Source | None = None

    def rows(self) -> Iterator[Row]:
        """Yield the rows that are wanted; afterwards `findings` holds what could not be read."""
        self.findings, recipe = [], self.recipe
        with reported_to(self._note):
            try:
                self.source, rule = open_corpus(
                    getattr(recipe, self.split),
                    columns=recipe.columns,
                    task=recipe.task,
                    split=self.split,
                    where=recipe.selection(),
                    tags=recipe.tags,
                    num_proc=recipe.num_proc,
                )
                yield from self._wanted(self.source, rule)
            except CorpusError as error:
                self._note(error, "")

    def _wanted(self, source: Source, rule: RowRule) -> Iterator[Row]:
        width = len(rule.columns)
        tags = len(rule.columns) + len(rule.where)
        for number, values in source.rows:
            if rule.selects(values):
                found = (of_columns(values[tags] or ""),) if Extra.TAGS in rule.extras else ()
                yield number, values[:width] + found

    def _note(self, defects: Defects | CorpusError, remedy: str) -> None:
        if isinstance(defects, CorpusError):
            found = Finding(defects.rule, self.split, 1, message=str(defects))
        else:
            message = f"{defects.path}: {'; '.join(defects.examples)}. {remedy}"
            found = Finding(defects.rule, self.split, defects.num, defects.lines, message=message)
        self.findings.append(found)


def batches_of(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Cut rows into batches."""
    batch: list[Row] = []
    num_characters = 0
    for row in rows:
        batch.append(row)
        num_characters += sum(len(text or "") for text in row[1])
        if len(batch) == BATCH_ROWS or num_characters > BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


def sample_evenly(rows: Iterable[Row], most: int = SAMPLE_ROWS) -> list[Row]:
    """Return rows from all over a stream of unknown length, at most `most`."""
    sample: list[Row] = []
    step = 1
    for place, row in enumerate(rows):
        if place % step == 0 and not any(map(is_blank, row[1][:NUM_SIDES])):
            sample.append(row)
            if len(sample) > most:
                sample, step = sample[::2], step * 2
    return sample


def check_corpora(recipe: Recipe, *, num_proc: int | None = None) -> Report:
    """Read the splits of a recipe and tell all that is wrong with them.

    Args:
        recipe: its keys of the chapter data.
        num_proc: processes that look at rows; None: all cores, where there is enough to do.
    """
    report = Report()
    with Stores() as stores:
        sample = sample_evenly(SplitReader(recipe, "train").rows())
        facts = ColumnFacts.of(Batch.of(sample)) if sample else ColumnFacts()
        known = [np.zeros(NUM_CODES, bool) for _ in facts.scripts]
        for split in SPLITS:
            if not getattr(recipe, split) or recipe.share_of(split):  # held out of the training text, which is read
                continue
            facts.split = split
            walk = SplitWalk(SplitReader(recipe, split), facts, report, stores.open(split))
            codes = walk.run(num_proc or os.cpu_count() or 1)
            if split == "train":
                for table, found in zip(known, codes):
                    table[found] = True
                facts.known = known
        for split, store in stores.by_split.items():
            findings = compare_rows(split, store)
            if split != "train":
                leaks = find_leaks(store, stores.by_split["train"])
                findings += [_finding(rule, split, *lines) for rule, lines in leaks.items() if len(lines[0])]
            show_rows(findings, SplitReader(recipe, split).rows())
            report.findings += findings
    if (unread := find_unread(recipe)) is not None and unread.num_misled:
        report.findings.append(Finding("unread-column", "train", unread.num_misled, message=f"{unread}."))
    report.finish()
    return report


@dataclass
class SplitWalk:
    """One split, looked at row by row."""

    reader: SplitReader
    facts: ColumnFacts
    report: Report
    store: RowStore
    lines: dict[str, array[int]] = field(default_factory=dict)
    examples: dict[str, list[Example]] = field(default_factory=dict)

    def run(self, num_proc: int) -> list[np.ndarray]:
        """Examine all rows and add what was found to the report; returns the code points of each side."""
        codes = [np.zeros(NUM_CODES, bool) for _ in self.facts.scripts]
        for examined in in_processes(batches_of(self.reader.rows()), self.facts, num_proc):
            self._take(examined)
            for table, found in zip(codes, examined.codes):
                table[found] = True
        split = self.reader.split
        self.report.findings += self.reader.findings
        self.store.is_pairs = len(self.facts.scripts) == 2
        for rule, lines in self.lines.items():
            self.report.findings.append(Finding(rule, split, len(lines), lines, self.examples[rule]))
        self.report.splits.append(SplitFacts.of(split, self.reader.source, self.store))
        has_text = self.store.num_rows > len(self.lines.get("blank", ()))
        if not has_text and not self.reader.findings:
            self.report.findings.append(Finding("no-rows", split, 1, message=f"{split} holds no row with text."))
        return [np.flatnonzero(table) for table in codes]

    def _take(self, examined: Examined) -> None:
        self.store.append(examined.records)
        for rule, lines in examined.lines.items():
            self.lines.setdefault(rule, array("q")).frombytes(lines.astype(np.int64).tobytes())
            shown = self.examples.setdefault(rule, [])
            shown += examined.examples[rule][: NUM_EXAMPLES - len(shown)]


def in_processes(batches: Iterator[list[Row]], facts: ColumnFacts, num_proc: int) -> Iterator[Examined]:
    """Examine batches, in order, in `num_proc` processes; few rows are looked at here."""
    first = list(islice(batches, 2))
    rest = chain(first, batches)
    if num_proc == 1 or len(first) < 2:
        yield from (examine(Batch.of(rows), facts) for rows in rest)
        return
    pending: deque[Future[Examined]] = deque()
    with ProcessPoolExecutor(num_proc, initializer=_Worker.begin, initargs=(facts,)) as pool:
        for rows in rest:
            pending.append(pool.submit(_Worker.examine, rows))
            if len(pending) > 2 * num_proc:  # so many batches are in memory, whatever the corpus holds
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


class _Worker:
    """What a process knows from its start."""

    facts: ClassVar[ColumnFacts]

    @classmethod
    def begin(cls, facts: ColumnFacts) -> None:
        cls.facts = facts

    @classmethod
    def examine(cls, rows: list[Row]) -> Examined:
        return examine(Batch.of(rows), cls.facts)


# Rows compared with each other ----------------------------------------------------------------------------------------


def compare_rows(split: str, store: RowStore) -> list[Finding]:
    """Find what only all rows of a split together show: duplicates and shifted lines."""
    again = store.repeated("pair")
    findings = [_finding("duplicate", split, store.numbers(again))]
    near = np.setdiff1d(store.repeated("near"), again)
    findings.append(_finding("near-duplicate", split, store.numbers(near)))
    findings += [_shift_finding(split, store, shift) for shift in (find_shifts(store) if store.is_pairs else [])]
    return [finding for finding in findings if finding.count]


def _finding(rule: str, split: str, lines: np.ndarray, train_lines: np.ndarray | None = None) -> Finding:
    train = array("q", train_lines.astype(np.int64).tobytes() if train_lines is not None else b"")
    return Finding(rule, split, len(lines), array("q", lines.astype(np.int64).tobytes()), train_lines=train)


def _shift_finding(split: str, store: RowStore, shift: Shift) -> Finding:
    places = np.arange(shift.first, shift.end)
    lines = store.numbers(places)
    side = "source" if shift.offset > 0 else "target"
    message = (
        f"from line {lines[0]:,} to {lines[-1]:,} line n of the source belongs to line n {shift.offset:+d} of the "
        f"target: look for {abs(shift.offset)} missing on the {side}'s side, near or before line {lines[0]:,}."
    )
    return Finding("shifted", split, len(lines), array("q", lines.astype(np.int64).tobytes()), message=message)


def find_leaks(small: RowStore, train: RowStore) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return rule -> lines of a small split that are in the training text, and where they are there.

    Only the small split's records are held in memory; the training text's stream past them.
    """
    leaks: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    told, told_places = np.zeros(0, np.int64), np.zeros(0, np.int64)
    keys: dict[str, Key] = {"leak": "near"}
    if small.is_pairs:
        keys |= {"leak-source": "source", "leak-target": "target"}
    rows = [_filled(records) for records in small.chunks()]
    for rule, key in keys.items():
        wanted = np.unique(np.concatenate([told[:0].astype("u8"), *(key_of(records, key) for records in rows)]))
        hits, train_lines = [wanted[:0]], [told[:0]]
        for records in map(_filled, train.chunks()):
            values = key_of(records, key)
            is_hit = is_among(values, wanted)
            hits.append(values[is_hit])
            train_lines.append(records["number"][is_hit])
        hit = np.unique(np.concatenate(hits))
        found = (records["number"][is_among(key_of(records, key), hit)] for records in rows)
        lines, places = (np.concatenate([told[:0], *each]) for each in (found, train_lines))
        leaks[rule] = np.setdiff1d(lines, told), np.setdiff1d(places, told_places)
        told, told_places = np.union1d(told, lines), np.union1d(told_places, places)
    return leaks


def _filled(records: np.ndarray) -> np.ndarray:
    """Return the records of rows that have a text: what is blank is nobody's copy; see `examine`."""
    return records[records["pair"] != mix(records["number"])]


def show_rows(findings: list[Finding], rows: Iterator[Row]) -> None:
    """Fill in the examples of findings that only know lines; `rows` are read as far as they are needed."""
    wanted = {line for finding in findings if not finding.examples for line in finding.lines[:NUM_EXAMPLES]}
    texts: dict[int, Example] = {}
    for number, values in rows if wanted else ():
        if number in wanted:
            texts[number] = Example.of(number, values[:NUM_SIDES])
            if len(texts) == len(wanted):
                break
    for finding in findings:
        finding.examples = finding.examples or [texts[line] for line in finding.lines[:NUM_EXAMPLES] if line in texts]
