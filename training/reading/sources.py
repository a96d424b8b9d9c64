"""From what the user typed to a stream of rows: files, a folder or a Hub data set, checked to exist and fingerprinted.

Opening a source reads every file once, for its SHA-256, and parses nothing: whether there is anything to parse is the
decision of the cache in `corpus.py`. The formats themselves are read in `readers.py`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
from datasets.exceptions import DatasetsError
from datasets.utils import tqdm

from seqloom.configuration.suggestion import SENTENCE, did_you_mean
from seqloom.training.reading import readers
from seqloom.training.reading.readers import CorpusError, Row, TextFile

logger = logging.getLogger(__name__)

FORMATS = {
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}
"""Suffix (before .gz) to format; any other suffix is plain text, one example per line."""

SPLIT_ALIASES = {"valid": ("valid", "validation", "val", "dev")}
"""What Hub data sets call our splits, where not by the same name."""


@dataclass(frozen=True)
class FileFacts:
    """What a file was when it was read."""

    path: str
    """As the user named it."""
    num_bytes: int
    """Size on disk, compressed if the file is."""
    sha256: str
    """Of the bytes on disk."""
    num_lines: int | None = None
    """Lines of text, headers and blank lines included; None for Parquet."""
    num_crlf_lines: int = 0
    """Lines that ended in CR LF; the CR is not part of the text."""
    has_byte_order_mark: bool = False
    """Whether it began with a UTF-8 byte order mark, which is not part of the text."""


@dataclass(frozen=True)
class Request:
    """What is to be read: the arguments of `load_corpus` that concern the source."""

    columns: tuple[str, ...]
    """Names in the source, in the order of the task's columns."""
    is_default: bool
    """Whether `columns` are the task's own names because the user gave none."""
    split: str
    num_proc: int | None = None
    selecting: tuple[str, ...] = ()
    """Further columns, by whose values rows are selected; they come last in every row."""

    @property
    def all_columns(self) -> tuple[str, ...]:
        """What is read of every row."""
        return self.columns + self.selecting


@dataclass
class Source:
    """Something that yields rows, opened but not yet read."""

    name: str
    """As the user typed it."""
    rows: Iterator[Row]
    identity: list[object]
    """What the rows depend on: the content of the files and the way of reading them."""
    files: tuple[FileFacts, ...] = ()
    text_files: tuple[TextFile, ...] = ()
    total: int | None = None
    """For the progress bar: bytes of the text files, or rows."""
    position: Callable[[], int] | None = None
    """Bytes read so far; None where rows are counted."""

    def describe_files(self) -> tuple[FileFacts, ...]:
        """Return the facts of the files, complete once the rows have been read."""
        if not self.text_files:
            return self.files
        return tuple(
            replace(
                facts,
                num_lines=file.num_lines,
                num_crlf_lines=file.num_crlf_lines,
                has_byte_order_mark=file.has_byte_order_mark,
            )
            for facts, file in zip(self.files, self.text_files)
        )


def open_source(names: Sequence[str], request: Request) -> Source:
    """Open one or two names; see `load_corpus` for what they may be.

    Raises:
        CorpusError: For names that do not exist or do not fit the columns asked for.
    """
    if len(names) == 2:
        return _open_aligned(names[0], names[1], request)
    (name,) = names
    if os.path.isdir(name) or not (os.path.exists(name) or _looks_like_a_file(name)):
        return _open_dataset(name, request)
    return _open_file(name, request)


def progress_bar(description: str, total: int | None, unit: str) -> tqdm:
    """Return a bar that short work does not show; `datasets.disable_progress_bars()` turns it off."""
    return tqdm(desc=description, total=total, unit=unit, unit_scale=True, delay=2)


def _looks_like_a_file(name: str) -> bool:
    """Whether a name that does not exist was meant as a file rather than as a Hub data set, `owner/name`."""
    folder, _, base = name.rpartition("/")
    if name.endswith(".gz") or _format_of(name) != "text" or name.startswith((".", "/")) or name.count("/") > 1:
        return True
    return os.path.isdir(folder) if folder else "." in base


def _format_of(path: str) -> str:
    return FORMATS.get(Path(path.removesuffix(".gz")).suffix.lower(), "text")


def _open_aligned(source_path: str, target_path: str, request: Request) -> Source:
    if len(request.columns) != 2:
        raise CorpusError(
            f"Two files ({source_path}, {target_path}) are the source and target of pairs; "
            "a task that reads one column takes one file."
        )
    for path in (source_path, target_path):
        if (kind := _format_of(path)) != "text":
            raise CorpusError(
                f"{path} is {kind.upper()} by its name, but two file names mean plain text, aligned line by line. "
                "Give one file that holds both columns, or rename it."
            )
    _refuse_selection(f"{source_path} and {target_path} are", request)
    if not request.is_default:
        logger.warning("`columns` is ignored: %s and %s are plain text without columns.", source_path, target_path)
    if os.path.realpath(source_path) == os.path.realpath(target_path):
        logger.warning("%s is both source and target: the model will learn to copy.", source_path)
    source, target = TextFile(source_path), TextFile(target_path)
    return _text_source((source, target), readers.read_aligned(source, target), ["aligned"])


def _open_file(path: str, request: Request) -> Source:
    kind = _format_of(path)
    file = TextFile(path)
    if kind == "parquet":
        return _open_parquet(path, request)
    if kind == "tsv":
        rows = readers.read_tsv(file, request.all_columns, is_default=request.is_default and not request.selecting)
    elif kind == "csv":
        rows = readers.read_csv(file, request.all_columns)
    elif kind == "jsonl":
        rows = readers.read_jsonl(file, request.all_columns)
    else:
        _check_plain_text(path, request)
        rows = readers.read_text(file)
    return _text_source((file,), rows, [kind, request.all_columns, request.is_default])


def _check_plain_text(path: str, request: Request) -> None:
    if len(request.columns) == 2:
        describe_file(path)  # "does not exist" is the better message
        stem = Path(path.removesuffix(".gz")).stem
        beside = [name for name in _neighbours(path) if name.startswith(f"{stem}.") and name != Path(path).name]
        raise CorpusError(
            f"{path} is plain text and can only be one side of pairs; the {request.split} split needs a source and a "
            f"target. Give two line-aligned files{f' (beside it lies {beside[0]})' if beside else ''}, "
            "or a .tsv, .jsonl, .csv or .parquet file."
        )
    _refuse_selection(f"{path} is", request)
    if not request.is_default:
        logger.warning("`columns` is ignored: %s is plain text without columns.", path)


def _refuse_selection(subject: str, request: Request) -> None:
    """Plain text has no columns to select by; to take all of it instead would train on what was to be left out."""
    if request.selecting:
        raise CorpusError(
            f"{subject} plain text without columns, and rows are to be selected by {', '.join(request.selecting)}. "
            "Leave `where` out, or give a .tsv, .jsonl, .csv or .parquet file that has the column."
        )


def _open_parquet(path: str, request: Request) -> Source:
    if path.endswith(".gz"):
        raise CorpusError(f"{path} is a gzipped Parquet file; Parquet compresses itself. Unpack it: gunzip {path}")
    facts = describe_file(path)
    with readers.open_parquet(path) as file:
        total = file.metadata.num_rows
    rows = readers.read_parquet(path, request.all_columns)
    return Source(path, rows, ["parquet", request.all_columns, facts.sha256], (facts,), total=total)


def _text_source(text_files: tuple[TextFile, ...], rows: Iterator[Row], options: list[object]) -> Source:
    files = tuple(describe_file(file.path) for file in text_files)
    return Source(
        name=" + ".join(file.path for file in text_files),
        rows=rows,
        identity=[*options, *(facts.sha256 for facts in files)],
        files=files,
        text_files=text_files,
        total=sum(facts.num_bytes for facts in files),
        position=lambda: sum(file.position() for file in text_files),
    )


def describe_file(path: str) -> FileFacts:
    """Check that `path` is a readable file, and take its fingerprint.

    Raises:
        CorpusError: If it is missing (with the name of a neighbour that is close), no regular file, or not readable.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise CorpusError(f"{path} is no regular file; a corpus is read more than once. Save it to a file first.")
        return FileFacts(path, status.st_size, _sha256(path, status.st_size))
    except FileNotFoundError as error:
        raise CorpusError(_describe_missing_file(path)) from error
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}. Check the file and its permissions.") from error


def _sha256(path: str, num_bytes: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file, progress_bar(f"Fingerprint of {Path(path).name}", num_bytes, "B") as bar:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _neighbours(path: str) -> list[str]:
    folder = Path(path).parent
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def _describe_missing_file(path: str) -> str:
    folder = Path(path).parent
    if not folder.is_dir():
        return f"{path} does not exist, nor does the folder {folder}. Check the path; it is taken from {os.getcwd()}."
    hint = did_you_mean(Path(path).name, _neighbours(path), SENTENCE)
    return f"{path} does not exist.{hint or f' Check the path; it is taken from {os.getcwd()}.'}"


def _open_dataset(name: str, request: Request) -> Source:
    dataset = _choose_split(name, _load_dataset(name, request.num_proc), request.split)
    readers.check_text_columns(name, dataset.features.arrow_schema, request.all_columns)
    top_level = readers.top_level_columns(request.all_columns, dataset.column_names)
    tables = dataset.with_format("arrow").select_columns(top_level).iter(batch_size=1000)
    rows = readers.read_tables(tables, request.all_columns)
    return Source(name, rows, ["dataset", request.all_columns, dataset._fingerprint], total=len(dataset))


def _load_dataset(name: str, num_proc: int | None) -> datasets.Dataset | datasets.DatasetDict:
    """Load from a folder that `save_to_disk` wrote, a folder of data files, or the Hub."""
    is_folder = os.path.isdir(name)
    try:
        if is_folder and any((Path(name) / mark).exists() for mark in ("state.json", "dataset_dict.json")):
            return datasets.load_from_disk(name)
        repository, _, configuration = (name, "", "") if is_folder else name.partition(":")
        return datasets.load_dataset(repository, configuration or None, num_proc=num_proc)
    except (OSError, ValueError, RuntimeError, ImportError, DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        if is_folder:
            raise CorpusError(
                f"The folder {name} cannot be loaded as a data set: {reason}. Give the files in it by name."
            ) from error
        raise CorpusError(
            f"{name} is no file here, and as a Hub data set it cannot be loaded: {reason}. Check the spelling and the "
            f"connection, or download it once and give the folder.{did_you_mean(name, _neighbours(name), SENTENCE)}"
        ) from error


def _choose_split(name: str, loaded: datasets.Dataset | datasets.DatasetDict, split: str) -> datasets.Dataset:
    if isinstance(loaded, datasets.Dataset):
        return loaded
    for alias in SPLIT_ALIASES.get(split, (split,)):
        if alias in loaded:
            return loaded[alias]
    raise CorpusError(
        f"{name} has no split {split!r}; it has: {', '.join(map(str, loaded))}. Give other data for {split!r}, or none."
    )
