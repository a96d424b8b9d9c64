"""What a run looks at before it starts: the rules of the check on some rows, and leaks by the whole text of sources.

A glance takes about a second, however long the corpus is; `seqloom check` reads all of it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict

from seqloom.hub.tags import of_columns
from seqloom.training.checking.check import BATCH_ROWS, compare_rows, examine, show_rows
from seqloom.training.checking.check_report import Example, Finding, Report
from seqloom.training.checking.column_facts import ColumnFacts
from seqloom.training.checking.fault_rules import Harm
from seqloom.training.checking.row_store import Stores
from seqloom.training.checking.text_batch import Batch
from seqloom.training.fault_tolerance.checkpoints import write_text
from seqloom.training.held_out import found_in
from seqloom.training.reading.readers import Row
from seqloom.training.reading.sources import Extra

NUM_WINDOWS, WINDOW = 10, BATCH_ROWS // 10
"""Stretches of rows that are looked at, from all over a split, and how many rows each has: a missing line shows in
neighbours."""


def glance(corpus: DatasetDict, *, is_text: bool = False) -> Report:
    """Look at the pairs of a run.

    Args:
        corpus: its splits, as text.
        is_text: whether source and target are the two parts of one text.
    """
    report = Report()
    with Stores() as stores:
        facts: ColumnFacts | None = None
        for split, rows in corpus.items():
            seen = list(_windows(rows, is_text=is_text))
            batch = Batch.of(seen)
            facts = facts or ColumnFacts.of(batch)
            store = stores.open(split)
            store.is_pairs = not is_text
            examined = examine(batch, facts)
            store.append(examined.records)
            found = [
                Finding(
                    rule, split, len(lines), array("q", lines.tolist()), examined.examples[rule], num_rows=len(seen)
                )
                for rule, lines in examined.lines.items()
            ]
            compared = compare_rows(split, store)
            show_rows(compared, iter(seen))
            for each in compared:
                each.num_rows = len(seen)
            report.findings += [*found, *compared]
            if split != "train" and not is_text:
                report.findings += _leaks(split, rows, corpus["train"])
            report.notes.append(f"{split}: {len(seen):,} of {len(rows):,} rows that were read; numbers count these.")
    report.finish()
    return report


def _windows(rows: Dataset, *, is_text: bool) -> Iterator[Row]:
    starts = [0] if len(rows) <= BATCH_ROWS else np.linspace(0, len(rows) - WINDOW, NUM_WINDOWS).astype(int).tolist()
    size = BATCH_ROWS if len(starts) == 1 else WINDOW
    for start in starts:
        part = rows[start : start + size]
        tags = [of_columns(several) for several in part.get(Extra.TAGS, [""] * len(part["source"]))]
        for place, (source, target, tag) in enumerate(zip(part["source"], part["target"], tags), start + 1):
            yield place, (source + target,) if is_text else (source, target, tag)


def _leaks(split: str, small: Dataset, train: Dataset) -> list[Finding]:
    """Find sources that stand in the training text exactly so, behind the same tags of columns."""
    sources = _tagged(small)
    has_tags = Extra.TAGS in small.column_names
    leaked = set(sources).intersection(_tagged(train)) if has_tags else found_in(train, sources)
    lines = [place for place, text in enumerate(sources, 1) if text in leaked]
    examples = [Example.of(line, [small[line - 1]["source"], small[line - 1]["target"]]) for line in lines[:3]]
    found = Finding("leak-source", split, len(lines), array("q", lines), examples, num_rows=len(small))
    return [found] if lines else []


def _tagged(rows: Dataset) -> list[str]:
    """Return the source of each row with the tags of columns in front."""
    if Extra.TAGS not in rows.column_names:
        return list(rows["source"][:])
    return [of_columns(tags) + source for tags, source in zip(rows[Extra.TAGS][:], rows["source"][:], strict=True)]


def note_glance(corpus: DatasetDict, task: str, file: Path) -> str:
    """Look at the pairs of a run, keep what was found in `file`, and return one line for the start of the run."""
    report = glance(corpus, is_text=task == "continuation")
    write_text(file, report.to_json())
    worst = [found for found in report.findings if found.harm >= Harm.harmful]
    if worst:
        listed = "; ".join(f"{found.rule}, {found.split}: {found.amount}" for found in worst)
        return f"{listed}; seqloom check shows them, and what helps"
    count = len(report.findings)
    lesser = f"; {count} lesser finding{'s are' if count > 1 else ' is'} in {file.name}" if count else ""
    return f"nothing harmful at a glance{lesser}"
