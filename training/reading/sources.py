"""From what the user typed to a stream of rows: files, a folder or a Hub data set, checked to exist and fingerprinted.

Opening a source reads every file once, for its SHA-256, and parses nothing: whether there is anything to parse is the
decision of the cache in `corpus.py`. The formats themselves are read in `readers.py`.
"""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import TypeVar

import datasets
from datasets.exceptions import DatasetsError
from huggingface_hub import HfFileSystem, hf_hub_download, snapshot_download

from seqloom.configuration.data_names import DataName, can_follow, data_name, format_of
from seqloom.configuration.suggestion import SENTENCE, did_you_mean
from seqloom.hub.tags import FEATURES_END, tag_of
from seqloom.training.reading import readers
from seqloom.training.reading.alignment import read_aligned
from seqloom.training.reading.readers import Row
from seqloom.training.reading.text_file import CorpusError, FileFacts, TextFile, neighbours

logger = logging.getLogger(__name__)

T = TypeVar("T")

TEXT_BUILDERS = {"csv": "csv", "json": "jsonl", "text": "text"}
"""What `datasets` calls text formats, to our names. Its own readers are not used: they read `NA` as nothing, "007" as a
number, and many lines after a single quote as one."""

SPLIT_ALIASES = {"valid": ("valid", "validation", "val", "dev")}
"""What Hub data sets call our splits, where not by the same name."""


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
    """Further columns, by whose values rows are selected; in every row they follow the others."""
    tags: tuple[str, ...] = ()
    """Columns whose values stand in front of the source; see `Extra`."""

    @property
    def all_columns(self) -> tuple[str, ...]:
        """What is read of every row."""
        return self.columns + self.selecting + self.tags


class Extra(StrEnum):
    """What stands at the end of each row where any corpus was named with it."""

    TAGS = "tags"
    """The tokens in front of its source, in one text."""
    WEIGHT = "weight"
    """How often an epoch holds it, as written."""


MOST_TAGS = 1000
"""Different tokens in front of sources."""


def extras_of(names: Sequence[str], tags: Sequence[str] = ()) -> tuple[Extra, ...]:
    """Return what stands at the end of the rows of some corpora.

    Args:
        names: as a recipe has them.
        tags: columns that make tags.
    """
    corpora = [data_name(name) for name in names]
    has_tags, has_weights = bool(tags) or any(each.tag for each in corpora), any(each.weight for each in corpora)
    return (Extra.TAGS,) * has_tags + (Extra.WEIGHT,) * has_weights


@dataclass(frozen=True)
class Source:
    """Something that yields rows, opened but not yet read."""

    name: str
    """As the user typed it."""
    rows: Iterator[Row]
    identity: Sequence[object]
    """What the rows depend on: the content of the files and the way of reading them."""
    files: tuple[FileFacts, ...] = ()
    """Complete once the rows have been read."""


def open_source(names: Sequence[str], request: Request) -> Source:
    """Open one name or several; see `load_corpus` for what they may be.

    Raises:
        CorpusError: For names that do not exist or do not fit the columns asked for.
    """
    if len(names) == 2 and not can_follow(names):
        return _open_aligned(names[0], names[1], request)
    extras = extras_of(names, request.tags)
    corpora = [data_name(name) for name in names]
    parts = [_with_extras(_open_corpus(corpus.path, request), corpus, request, extras) for corpus in corpora]
    if len(parts) == 1:
        return parts[0]
    return _one_after_the_other(
        " + ".join(names), parts, "several", tuple(file for part in parts for file in part.files)
    )


def _with_extras(source: Source, corpus: DataName, request: Request, extras: Sequence[Extra]) -> Source:
    """Put tags and weight behind the texts of each row; the values of the columns that make tags are no texts."""
    if not extras:
        return source
    width = len(request.columns) + len(request.selecting)
    weight = corpus.weight or "1"

    def rows() -> Iterator[Row]:
        for number, values in source.rows:
            tags = corpus.tag + "".join(map(tag_of, request.tags, values[width:]))
            found = {Extra.TAGS: tags, Extra.WEIGHT: weight}
            yield number, (*values[:width], *(found[extra] for extra in extras))

    made = [FEATURES_END, request.tags, corpus.tag, corpus.weight, extras]
    return replace(source, rows=rows(), identity=["extras", made, source.identity])


def _open_corpus(name: str, request: Request) -> Source:
    if os.path.isdir(name) or not (os.path.exists(name) or _looks_like_a_file(name)):
        return _open_dataset(name, request)
    return _open_file(name, request, format_of(name))


def _looks_like_a_file(name: str) -> bool:
    """Whether a name that does not exist was meant as a file rather than as a Hub data set, `owner/name`."""
    folder, _, base = name.rpartition("/")
    if name.endswith(".gz") or format_of(name) != "text" or name.startswith((".", "/")) or name.count("/") > 1:
        return True
    return os.path.isdir(folder) if folder else "." in base


def _open_aligned(source_path: str, target_path: str, request: Request) -> Source:
    if len(request.columns) != 2:
        raise CorpusError(
            f"Two files ({source_path}, {target_path}) are the source and target of pairs; "
            "a task that reads one column takes one file."
        )
    source, target = TextFile(source_path), TextFile(target_path)  # first: whether they are there
    for path in (source_path, target_path):
        if (kind := format_of(path)) != "text":
            raise CorpusError(
                f"{path} is {kind.upper()} by its name, but two file names mean plain text, aligned line by line. "
                "Give one file that holds both columns, or rename it."
            )
    _refuse_selection(f"{source_path} and {target_path} are", request)
    if not request.is_default:
        logger.warning("`columns` is ignored: %s and %s are plain text without columns.", source_path, target_path)
    if os.path.realpath(source_path) == os.path.realpath(target_path):
        logger.warning("%s is both source and target: each target is its source.", source_path)
    files = (source.facts, target.facts)
    name, identity = f"{source_path} + {target_path}", ["aligned", *(facts.sha256 for facts in files)]
    return Source(name, read_aligned(source, target), identity, files)


def _open_file(path: str, request: Request, kind: str) -> Source:
    columns = request.all_columns
    if kind == "parquet":
        if path.endswith(".gz"):
            unpack = f"gunzip {shlex.quote(path)}"
            raise CorpusError(f"{path} is a gzipped Parquet file; Parquet compresses itself. Unpack it: {unpack}")
        facts = FileFacts.of(path)
        return Source(path, readers.read_parquet(path, columns), [kind, columns, facts.sha256], (facts,))
    file = TextFile(path)
    if kind == "tsv":
        rows = readers.read_tsv(file, columns, is_default=request.is_default and columns == request.columns)
    elif kind == "csv":
        rows = readers.read_csv(file, columns)
    elif kind == "jsonl":
        rows = readers.read_jsonl(file, columns)
    elif kind == "lexicon":
        _refuse_selection(f"{path} is", request)
        rows = readers.read_lexicon(file, num_columns=len(columns))
    elif readers.are_positions(columns) and "\t" in file.first_line():
        kind, rows = "tsv", readers.read_tsv(file, columns, is_default=False)
    else:
        _check_plain_text(path, request, file.first_line())
        rows = readers.read_text(file)
    return Source(path, rows, [kind, columns, request.is_default, file.facts.sha256], (file.facts,))


def _check_plain_text(path: str, request: Request, first: str) -> None:
    if len(request.columns) == 2:
        if "\t" in first:
            raise readers.UnclearColumnsError(path, first.split("\t"), is_header=False)
        stem = Path(path.removesuffix(".gz")).stem
        beside = [name for name in neighbours(path) if name.startswith(f"{stem}.") and name != Path(path).name]
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
    for names, use, key in (
        (request.selecting, "rows are to be selected by", "where"),
        (request.tags, "tags to be made of", "tags"),
    ):
        if names:
            others = "(a recipe's: --where null; in `seqloom evaluate`, which takes the run's: --where none)"
            own = f" {others}" if key == "where" else ""
            raise CorpusError(
                f"{subject} plain text without columns, and {use} {', '.join(names)}. Leave `{key}` out{own}, or give "
                "a .tsv, .jsonl, .csv or .parquet file that has the column."
            )


def _open_dataset(name: str, request: Request) -> Source:
    """Open a folder or a Hub data set: text with our readers, as by its name, and all else with `datasets`."""
    if (Path(name) / "config.json").is_file() and (Path(name) / "tokenizer_config.json").is_file():
        raise CorpusError(f"{name} is the folder of a model; give a file of text, or a folder of such files.")
    with _explained_errors(name):
        if any((Path(name) / mark).exists() for mark in ("state.json", "dataset_dict.json")):  # of `save_to_disk`
            return _open_tables(name, datasets.load_from_disk(name), request)
        builder = _find_builder(name)
        if kind := TEXT_BUILDERS.get(str(builder.info.builder_name)):
            return _open_text_files(name, kind, builder.config.data_files, request)
        builder.download_and_prepare(num_proc=request.num_proc)
        return _open_tables(name, builder.as_dataset(), request)


def _open_text_files(name: str, kind: str, splits: Mapping[str, Sequence[str]], request: Request) -> Source:
    """Open the files of one split, one after the other; rows of several files are numbered through."""
    paths = [_download(name, file) for file in _choose_split(name, splits, request.split)]
    sources = [_open_file(path, request, "tsv" if ".tsv" in Path(path).suffixes else kind) for path in paths]
    is_folder = os.path.isdir(name)
    if is_folder and len(sources) == 1:
        return replace(sources[0], name=name)
    files = tuple(facts for source in sources for facts in source.files if is_folder)
    return _one_after_the_other(name, sources, "files", files, is_folder)


def _one_after_the_other(
    name: str, sources: Sequence[Source], kind: str, files: tuple[FileFacts, ...], *identity: object
) -> Source:
    """Return several sources as one, whose rows are numbered through."""
    rows = ((number, texts) for number, (_, texts) in enumerate(chain.from_iterable(s.rows for s in sources), 1))
    return Source(name, rows, [kind, *identity, *(source.identity for source in sources)], files)


@contextmanager
def _explained_errors(name: str) -> Iterator[None]:
    try:
        yield
    except CorpusError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError, DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        if os.path.isdir(name):
            raise CorpusError(
                f"The folder {name} cannot be loaded as a data set: {reason}. Give the files in it by name."
            ) from error
        raise CorpusError(
            f"{name} is no file here, and as a Hub data set it cannot be loaded: {reason}. Check the spelling and the "
            f"connection, or download it once and give the folder.{did_you_mean(name, neighbours(name), SENTENCE)}"
        ) from error


def _find_builder(name: str) -> datasets.DatasetBuilder:
    """Find what `datasets` would read, and how; without a connection, among the files that were downloaded earlier."""
    if os.path.isdir(name):
        return _load_builder(name)
    repository, _, configuration = name.partition(":")
    try:
        builder = _load_builder(repository, configuration)
        if builder.info.builder_name not in TEXT_BUILDERS or builder.config.data_files:
            return builder
        unread: Exception = FileNotFoundError("only what datasets made of its text is here, not the text")
    except OSError as error:
        unread = error
    try:
        folder = snapshot_download(repository, repo_type="dataset", local_files_only=True)
    except (OSError, ValueError):
        raise unread from None
    return _load_builder(folder, configuration)


def _load_builder(place: str, configuration: str = "") -> datasets.DatasetBuilder:
    """Load what reads a folder or a repository, whose card may name files: its own, or of the web."""
    builder = datasets.load_dataset_builder(place, configuration or None)
    own = Path(place).resolve().as_posix() if os.path.isdir(place) else builder.base_path
    for file in chain.from_iterable((builder.config.data_files or {}).values()):
        path = file.rpartition("::")[2]  # zip://INSIDE::ARCHIVE
        if ".." in path.split("/") or not path.startswith((f"{own}/", "https://", "http://")):
            raise CorpusError(f"{place} names {file} as its text, which lies elsewhere; give that file by its name.")
    return builder


def _download(name: str, file: str) -> str:
    """Return the path of a data file, which is fetched first if it is on the Hub."""
    if file.startswith("hf://"):
        place = HfFileSystem().resolve_path(file)
        return hf_hub_download(place.repo_id, place.path_in_repo, repo_type=place.repo_type)
    if "://" in file:
        raise CorpusError(f"{name} keeps its text elsewhere, at {file}; download that file and give its name.")
    return file


def _open_tables(name: str, loaded: datasets.Dataset | datasets.DatasetDict, request: Request) -> Source:
    dataset = loaded if isinstance(loaded, datasets.Dataset) else _choose_split(name, loaded, request.split)
    readers.check_text_columns(name, dataset.features.arrow_schema, request.all_columns)
    top_level = readers.top_level_columns(request.all_columns, dataset.column_names)
    tables = dataset.with_format("arrow").select_columns(top_level).iter(batch_size=1000)
    rows = readers.read_tables(name, tables, request.all_columns, num_rows=len(dataset))
    return Source(name, rows, ["dataset", request.all_columns, dataset._fingerprint])


def _choose_split(name: str, splits: Mapping[str, T], split: str) -> T:
    for alias in SPLIT_ALIASES.get(split, (split,)):
        if alias in splits:
            return splits[alias]
    raise CorpusError(
        f"{name} has no split {split!r}; it has: {', '.join(map(str, splits))}. Give other data for {split!r}, or none."
    )
