"""`clean: default | strict`: leave out training rows by the rules of the check, each named and counted.

Rows are left out as wholes and never changed; validation and test text stay as they are, or their scores would compare
with nobody's. What is left out depends on the text and the rules alone, and is kept beside the corpus in the cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np

from seqloom.hub.tags import of_columns
from seqloom.training.checking.check import batches_of, find_leaks, in_processes, sample_evenly
from seqloom.training.checking.check_report import COMMON
from seqloom.training.checking.column_facts import ColumnFacts
from seqloom.training.checking.fault_rules import RULES
from seqloom.training.checking.row_store import RowStore, Stores, records_of
from seqloom.training.checking.text_batch import Batch
from seqloom.training.reading.corpus import Corpus
from seqloom.training.reading.readers import Row
from seqloom.training.reading.sources import Extra
from seqloom.training.reading.tasks import get_task
from seqloom.training.reading.text_file import CorpusError, reading_bar

logger = logging.getLogger(__name__)

CLEANING = 3
"""Version of what is left out; a change of the rules that changes it raises this number."""

LEVELS = {"none": (), "default": ("default",), "strict": ("default", "strict")}
"""Value of `clean` -> marks of the rules that it applies."""


def clean_corpus(corpora: Mapping[str, Corpus], level: str, num_proc: int | None = None) -> Corpus:
    """Leave out rows of the training split.

    Args:
        corpora: by split: "train", and "valid" and "test" where there are any, which may have leaked into it.
        level: a value of the recipe's `clean`.
        num_proc: processes that look at rows; None: one.

    Returns:
        The training split without them; its facts count them by rule, each row under the worst.

    Raises:
        CorpusError: When nothing is left.
    """
    train = corpora["train"]
    if not LEVELS[level]:
        return train
    read = [(split, corpus.facts.fingerprint) for split, corpus in sorted(corpora.items())]
    file = Path(datasets.config.HF_DATASETS_CACHE) / "seqloom" / f"clean-{_digest(CLEANING, level, *read)}.npz"
    if not file.exists():
        _save(file, *_find(corpora, level, num_proc or 1))
    with np.load(file) as stored:
        kept, counts = stored["kept"], dict(zip(stored["rules"].tolist(), stored["counts"].tolist()))
    listed = ", ".join(f"{count:,} {rule}" for rule, count in counts.items())
    if not len(kept):
        raise CorpusError(
            f"{train.facts.name}: clean={level} leaves nothing ({listed}). Look at it with seqloom check."
        )
    if counts:
        logger.warning(
            "%s: clean=%s left out %s of %s rows: %s.",
            train.facts.name,
            level,
            f"{sum(counts.values()):,}",
            f"{len(train):,}",
            listed,
        )
    dropped = {**train.facts.num_dropped, **{f"clean: {rule}": count for rule, count in counts.items()}}
    # The text is what is kept of it, whichever other texts its rows leak into.
    fingerprint = _digest(train.facts.fingerprint, hashlib.sha256(kept.tobytes()).hexdigest())
    facts = replace(train.facts, num_rows=len(kept), num_dropped=dropped, fingerprint=fingerprint)
    return Corpus(train.dataset.select(kept) if counts else train.dataset, facts)


def _digest(*key: object) -> str:
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]


def _save(file: Path, rule_of_row: np.ndarray, rules: list[str]) -> None:
    counts = np.bincount(rule_of_row, minlength=len(rules) + 1)[1:]
    found = np.flatnonzero(counts)
    part = file.with_name(f".{file.stem}.{os.getpid()}.npz")
    np.savez_compressed(
        part,
        kept=np.flatnonzero(rule_of_row == 0),
        rules=np.array([rules[rule] for rule in found], "U40"),
        counts=counts[found],
    )
    part.replace(file)


def _find(corpora: Mapping[str, Corpus], level: str, num_proc: int) -> tuple[np.ndarray, list[str]]:
    """Return for each training row 0 to keep it, or 1 + the place of the worst rule that leaves it out."""
    rules = [rule.name for rule in RULES.values() if rule.cleaned in LEVELS[level]]
    train = corpora["train"]
    rows: dict[str, np.ndarray] = {}
    with Stores() as stores:
        store = stores.open("train")
        facts = ColumnFacts.of(Batch.of(sample_evenly(rows_of(train))))
        store.is_pairs = len(facts.scripts) == 2
        found: dict[str, list[np.ndarray]] = {}
        with reading_bar("Cleaning train", len(train), "row") as bar:
            for examined in in_processes(batches_of(rows_of(train)), facts, num_proc):
                store.append(examined.records)
                for rule, lines in examined.lines.items():
                    found.setdefault(rule, []).append(lines - 1)
                bar.update(len(examined.records))
        rows = {rule: np.concatenate(parts) for rule, parts in found.items()}
        rows = {rule: lines for rule, lines in rows.items() if len(lines) <= COMMON * len(train)}
        rows["duplicate"], rows["near-duplicate"] = store.repeated("pair"), store.repeated("near")
        for split, corpus in corpora.items():
            if split != "train":
                for rule, (_, lines) in find_leaks(_store_of(stores, split, corpus), store).items():
                    rows[rule] = np.concatenate([rows.get(rule, np.zeros(0, np.int64)), lines - 1])
    rule_of_row = np.zeros(len(train), np.int64)
    for place, rule in reversed(list(enumerate(rules, 1))):  # the worst comes last, and stays
        rule_of_row[rows.get(rule, np.zeros(0, np.int64)).astype(np.int64)] = place
    return rule_of_row, rules


def _store_of(stores: Stores, split: str, corpus: Corpus) -> RowStore:
    store = stores.open(split)
    for rows in batches_of(rows_of(corpus)):
        batch = Batch.of(rows)
        store.is_pairs = batch.is_pairs
        store.append(records_of(batch))
    return store


def rows_of(corpus: Corpus) -> Iterator[Row]:
    """Yield the rows of a corpus that has been read, numbered from 1, with the tags of columns."""
    number, columns = 0, list(get_task(corpus.facts.task).columns)
    if Extra.TAGS in corpus.dataset.column_names:
        columns.append(Extra.TAGS)
    for batch in corpus.dataset.select_columns(columns).iter(batch_size=1000):
        if Extra.TAGS in batch:
            batch[Extra.TAGS] = [of_columns(tags) for tags in batch[Extra.TAGS]]
        for texts in zip(*batch.values()):
            number += 1
            yield number, texts
