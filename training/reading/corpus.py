"""Text in, a checked data set out: everything that is wrong with the data is said here, before anything is trained.

`load_corpus` reads line-aligned files, TSV, JSONL, CSV, Parquet or a Hub data set into one memory-mapped Arrow file
with the columns of the task, and returns it with the facts of the reading. The Arrow file is cached under a fingerprint
of the *content* (SHA-256 of every file, and the options): a second run parses nothing, a changed file is noticed, and
two names of one content share a cache entry. What a name means is decided in `sources.py`; formats are read in
`readers.py` from the lines of a `text_file.py`.

Pairs with a blank side are dropped with a counted warning (a blank *target* in the test split is an error: scores on a
shortened test set compare with nobody's). Rows are only ever dropped as wholes, so the alignment cannot shift.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path

import datasets
from datasets.arrow_writer import ArrowWriter

from seqloom.configuration.data_names import can_follow
from seqloom.training.reading.sources import Extra, Request, Source, extras_of, open_source
from seqloom.training.reading.tasks import get_task
from seqloom.training.reading.text_file import CorpusError, Defects, FileFacts, is_blank

__all__ = ["Corpus", "CorpusError", "CorpusFacts", "FileFacts", "load_corpus"]

logger = logging.getLogger(__name__)

RULES = 1
"""Version of the reading rules; a part of every fingerprint, so that a change of the rules is a change of the data."""

WRITE_ROWS, WRITE_CHARACTERS = 1000, 1 << 24
"""An Arrow batch is written at whichever comes first, so that long lines do not pile up in memory."""


@dataclass(frozen=True)
class CorpusFacts:
    """What was read, kept and dropped: the numbers for the run report."""

    name: str
    """The files or the Hub data set, as the user named them."""
    task: str
    """The task whose columns were read."""
    split: str
    """Train, valid or test."""
    columns: tuple[str, ...]
    """Columns that were read, by their names in the source."""
    files: tuple[FileFacts, ...]
    """Those given by name or by their folder; empty for tables that `datasets` reads, and for a Hub data set."""
    num_rows: int = 0
    """Rows kept."""
    num_dropped: dict[str, int] = field(default_factory=dict)
    """Rows dropped, by reason."""
    num_unselected: int = 0
    """Rows that `where` left out."""
    num_selected: dict[str, int] = field(default_factory=dict)
    """Rows that `where` selected, by each of its conditions ("source=tatoeba")."""
    fingerprint: str = ""
    """Of content and options: equal fingerprints mean equal data sets."""

    @property
    def num_rows_read(self) -> int:
        """Rows kept, dropped and left out."""
        return self.num_rows + sum(self.num_dropped.values()) + self.num_unselected

    def describe_dropped(self) -> str:
        """Say how many rows were dropped, and why: "60 of 2,000 rows (40 source blank, 20 target blank)"."""
        return f"{sum(self.num_dropped.values()):,} of {self.num_rows_read:,} rows ({_list_counts(self.num_dropped)})"


@dataclass(frozen=True)
class Corpus:
    """A data set that is ready for training, and how it came to be."""

    dataset: datasets.Dataset
    """Memory-mapped; text columns `source` and `target`, or `text`, and those of `Extra` that there are."""
    facts: CorpusFacts
    """What was read, kept and dropped."""

    def __len__(self) -> int:
        return len(self.dataset)


@dataclass(frozen=True)
class RowRule:
    """Which rows are kept: of a row's texts, the first are the task's columns, then those of `where`, then extras."""

    columns: tuple[str, ...]
    """The task's own."""
    names: tuple[str, ...]
    """The same, as the source calls them."""
    where: tuple[tuple[str, tuple[str, ...]], ...]
    needs_target: bool
    extras: tuple[Extra, ...] = ()

    def selected(self, values: tuple[str | None, ...]) -> tuple[str | None, ...]:
        """Return what a row has in the columns of `where`."""
        width = len(self.columns)
        return values[width : width + len(self.where)]

    def selects(self, values: tuple[str | None, ...]) -> bool:
        """Whether a row is wanted."""
        return all(value in allowed for value, (_, allowed) in zip(self.selected(values), self.where, strict=True))

    def conditions(self) -> list[str]:
        """What `where` accepts, as "column=value"."""
        return [f"{column}={value}" for column, values in self.where for value in values]

    def find_blank(self, texts: tuple[str | None, ...]) -> str | None:
        """Name the blank columns of a row, or None for a row to keep."""
        if not any(map(is_blank, texts)):
            return None
        return f"{' and '.join(column for column, text in zip(self.columns, texts) if is_blank(text))} blank"


@dataclass
class _Tally:
    """What is counted while rows are read; the names are those of `CorpusFacts`."""

    num_dropped: Counter[str] = field(default_factory=Counter)
    num_unselected: int = 0
    num_selected: Counter[str] = field(default_factory=Counter)


def load_corpus(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    columns: Sequence[str] | None = None,
    task: str = "pairs",
    split: str = "train",
    where: Mapping[str, Sequence[str]] | None = None,
    tags: Sequence[str] = (),
    num_proc: int | None = None,
) -> Corpus:
    """Read a corpus, check it, and return it as a memory-mapped data set.

    Args:
        paths: Two names: line-aligned files (plain or .gz), line i of the first is the source of line i of the second.
            One name: a .tsv, .jsonl, .csv (each plain or .gz) or .parquet file; a dictionary as CMUdict's, .dict or
            cmudict*; any other file is plain text with one document per line (task "continuation"); a folder with a
            data set; or a Hub data set, `owner/name` or `owner/name:configuration`. Text files of a data set are read
            as they would be by name. Several names of files with columns: read one after the other.
        columns: Names of the columns to read, in the order of the task's own (source, target; or text), which are the
            default. "a.b" is field b inside a ("translation.de"). For TSV and CSV also positions counted from 1 ("1"),
            which say that the file has no header.
        task: "pairs" or "continuation".
        where: Column name -> values: only rows whose text in that column is one of them are read; of several columns,
            all must agree. {"source": ["tatoeba", "kdconv"]}
        tags: Columns whose values make tags; see `Extra` for what they, and names with a weight or a tag, add to rows.
        split: "train", "valid" or "test"; names the split of a Hub data set, and forbids blank targets in "test".
        num_proc: Processes with which `datasets` prepares a Hub data set. Files are read in one stream.

    Returns:
        The data set and the facts of the reading.

    Raises:
        CorpusError: For data that cannot be trained on. The message names the file, the place, the rule and the remedy.
    """
    source, rule = open_corpus(
        paths, columns=columns, task=task, split=split, where=where, tags=tags, num_proc=num_proc
    )
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "seqloom" / _fingerprint(source, rule)
    if not (folder / "facts.json").exists():
        _build(folder, source, rule)
    corpus = _load(folder, CorpusFacts(source.name, task, split, rule.names, source.files))
    _log(corpus.facts)
    return corpus


def open_corpus(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    columns: Sequence[str] | None = None,
    task: str = "pairs",
    split: str = "train",
    where: Mapping[str, Sequence[str]] | None = None,
    tags: Sequence[str] = (),
    num_proc: int | None = None,
) -> tuple[Source, RowRule]:
    """Open a corpus without reading its rows; see `load_corpus`.

    Returns:
        The rows to come, and which of them are wanted.
    """
    wanted = get_task(task).columns
    selection = tuple((column, tuple(sorted(values))) for column, values in sorted((where or {}).items()))
    selecting = tuple(column for column, _ in selection)
    request = Request(_check_columns(columns, wanted, task), columns is None, split, num_proc, selecting, tuple(tags))
    names = _check_names(paths)
    needs_target = task == "pairs" and split == "test"
    rule = RowRule(wanted, request.columns, selection, needs_target, extras_of(names, tags))
    return open_source(names, request), rule


def _check_names(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    names = [os.path.expanduser(os.fspath(path)) for path in paths]
    if not all(names) or not (len(names) in (1, 2) or can_follow(names)):
        raise CorpusError(
            f"{len(names)} names are given for a corpus ({', '.join(names[:4]) or 'none'}); give one (TSV, JSONL, CSV, "
            "Parquet, text or a Hub data set), two (line-aligned source and target), or several with columns."
        )
    return names


def _check_columns(columns: Sequence[str] | None, wanted: tuple[str, ...], task: str) -> tuple[str, ...]:
    if columns is None:
        return wanted
    if isinstance(columns, str) or len(columns) != len(wanted):
        raise CorpusError(
            f"columns={columns!r} does not fit task {task!r}, which reads {len(wanted)}: {', '.join(wanted)}. "
            "Give as many names, in this order."
        )
    return tuple(str(column) for column in columns)


def _fingerprint(source: Source, rule: RowRule) -> str:
    rules = {"columns": rule.columns, "where": rule.where, "drop_blank": True, "needs_target": rule.needs_target}
    key = json.dumps([RULES, source.identity, rules])  # "drop_blank" was a choice once; runs remember their data by it
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def _build(folder: Path, source: Source, rule: RowRule) -> None:
    """Read all wanted rows into `folder`, which appears complete or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-", ignore_cleanup_errors=True) as temporary:
        part = Path(temporary) / "corpus"
        part.mkdir()
        tally = _Tally(num_selected=Counter(dict.fromkeys(rule.conditions(), 0)))
        num_rows = _write_rows(part / "rows.arrow", source, rule, tally, fingerprint=folder.name)
        if not num_rows:
            raise CorpusError(_describe_empty(source.name, rule, tally))
        files = [asdict(facts) for facts in source.files]
        facts = {"files": files, "num_rows": num_rows, **vars(tally)}
        (part / "facts.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        try:
            part.rename(folder)
        except OSError:
            if not (folder / "facts.json").exists():  # else another process was faster
                raise


def _write_rows(path: Path, source: Source, rule: RowRule, tally: _Tally, *, fingerprint: str) -> int:
    """Write the rows to keep as an Arrow stream; returns their number."""
    columns = (*rule.columns, *map(str, rule.extras))
    features = datasets.Features({column: datasets.Value("string") for column in columns})
    kept = _keep(source, rule, tally)
    num_rows = 0
    with ArrowWriter(path=str(path), features=features, fingerprint=fingerprint) as writer:
        while batch := _take_batch(kept):
            writer.write_batch({column: list(texts) for column, texts in zip(columns, zip(*batch))})
            num_rows += len(batch)
        writer.finalize()
    return num_rows


def _take_batch(rows: Iterator[tuple[str | None, ...]]) -> list[tuple[str | None, ...]]:
    batch, num_characters = [], 0
    for texts in islice(rows, WRITE_ROWS):
        batch.append(texts)
        num_characters += sum(len(text or "") for text in texts)
        if num_characters >= WRITE_CHARACTERS:
            break
    return batch


def _keep(source: Source, rule: RowRule, tally: _Tally) -> Iterator[tuple[str | None, ...]]:
    """Yield the texts of the rows to keep and count the others; at the end, refuse what `rule` does not let pass."""
    refused = Defects(source.name, "must not be blank")
    number, width = 0, len(rule.columns)
    for number, values in source.rows:
        texts = values[:width]
        if not rule.selects(values):
            tally.num_unselected += 1
            continue
        selected = zip(rule.selected(values), rule.where)
        tally.num_selected.update(f"{column}={value}" for value, (column, _) in selected)
        reason = rule.find_blank(texts)
        if reason is None:
            yield texts + values[width + len(rule.where) :]
        elif rule.needs_target and reason == "target blank":
            refused.add(number, reason)
        else:
            tally.num_dropped[reason] += 1
        if refused.is_full:
            break
    refused.check(number, "The test split needs every target: fill or remove these rows.")


def _describe_empty(name: str, rule: RowRule, tally: _Tally) -> str:
    if tally.num_unselected:
        return (
            f"{name} holds {tally.num_unselected:,} rows, and none of use with {', '.join(rule.conditions())}; "
            "a corpus needs at least one row. Check the columns and values of `where`."
        )
    found = f"only blank rows ({_list_counts(tally.num_dropped)})" if tally.num_dropped else "nothing"
    wanted = " and ".join(rule.columns)
    return f"{name} holds {found}; a corpus needs at least one row with {wanted}. Check that it is the right file."


def _list_counts(num_dropped: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in num_dropped.items())


def _load(folder: Path, facts: CorpusFacts) -> Corpus:
    """Open a finished cache folder; names are those of this call, the rest was written with the data."""
    stored = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    files = tuple(FileFacts(**{**old, "path": new.path}) for old, new in zip(stored.pop("files"), facts.files))
    facts = replace(facts, files=files, fingerprint=folder.name, **stored)
    return Corpus(datasets.Dataset.from_file(str(folder / "rows.arrow")), facts)


def _log(facts: CorpusFacts) -> None:
    for file in facts.files:
        if file.has_byte_order_mark:
            logger.info("%s: removed the byte order mark at its start.", file.path)
        if file.num_crlf_lines:
            logger.info("%s: %s lines end in CR LF; removed the CR.", file.path, f"{file.num_crlf_lines:,}")
    for condition, count in facts.num_selected.items():
        level = logging.INFO if count else logging.WARNING
        logger.log(level, "%s: %s rows have %s.", facts.name, f"{count:,}" if count else "no", condition)
    if facts.num_dropped:
        logger.warning("%s: dropped %s.", facts.name, facts.describe_dropped())
