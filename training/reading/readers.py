r"""Files in, rows out: one reader per format, and one error that names everything wrong in a file.

Python's own gzip, csv and json modules do the work, a line at a time, so a file never has to fit into memory. What is
fixed here and nowhere else:

- A line ends at "\n" only. U+2028, NEL, VT, FF and a lone "\r" are characters of the line, so two files that `wc -l`
  finds aligned stay aligned (`str.splitlines` and text mode break them apart).
- A "\r" before "\n" (Windows line end) and a byte order mark at the start of a file belong to the file, not to the
  text: both are removed and counted.
- Text is UTF-8. Nothing is replaced or skipped: a reader either yields a record or raises a `CorpusError`, and it reads
  on to the end of the file first, so that one error names all the records that need repair.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, zip_longest
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from seqloom.configuration.suggestion import SENTENCE, did_you_mean
from seqloom.training.reading import diagnosis

Row = tuple[int, tuple[str | None, ...]]
"""The 1-based line or record number and one text per wanted column; None where the file has nothing."""

BLANK_CHARACTERS = "".join(
    chr(code)
    for first, last in (
        (0x00, 0x20),  # C0 controls and space
        (0x7F, 0xA0),  # DEL, C1 controls, no-break space
        (0xAD, 0xAD),  # soft hyphen
        (0x1680, 0x1680),
        (0x180E, 0x180E),
        (0x2000, 0x200F),  # spaces, zero-width space and joiners, direction marks
        (0x2028, 0x202F),  # line and paragraph separator, direction overrides, narrow no-break space
        (0x205F, 0x206F),  # word joiner, invisible operators, isolates
        (0x3000, 0x3000),  # ideographic space
        (0xFEFF, 0xFEFF),  # byte order mark
    )
    for code in range(first, last + 1)
)
"""Characters that leave a line blank to the eye: white space, controls and zero-width characters."""

MAX_LINE_BYTES = 1 << 26
"""Longest line accepted; a longer one is a binary file or a data set without line ends, and would fill the memory."""

MAX_DEFECTS = 1000
"""Reading stops early after this many defects: the file is then wrong as a whole."""

HEADER_WORDS = frozenset(
    {"source", "target", "src", "tgt", "trg", "input", "output", "text", "sentence", "translation", "label", "id"}
)
"""A first TSV line made of these words only is a header, never a pair."""


FIRST_LINE = "its first line holds"
"""Where the names of columns stand in TSV and CSV, for messages."""

NUMBERED = ["1", "2"]
"""The columns of a file without header."""


class CorpusError(ValueError):
    """A data set that cannot be trained on: what was found, the rule it breaks, and how to repair it."""


class Defects:
    """Collects the unusable lines of a file, so that one error names them all."""

    def __init__(self, path: str, verdict: str) -> None:
        self.path, self.verdict = path, verdict
        self.num = 0
        self.examples: list[str] = []

    @property
    def is_full(self) -> bool:
        """Whether there are so many that the file is wrong as a whole and reading on teaches nothing."""
        return self.num >= MAX_DEFECTS

    def add(self, line: int, finding: str) -> None:
        """Note that `line` (1-based) is unusable, and why."""
        self.num += 1
        if len(self.examples) < 5:
            self.examples.append(f"line {line:,}: {finding}")

    def check(self, num_lines: int, remedy: str) -> None:
        """Raise a `CorpusError` when something was collected in the `num_lines` read so far."""
        if not self.num:
            return
        rest = self.num - len(self.examples)
        listed = "; ".join(self.examples) + (f"; and {rest:,} more" if rest else "")
        total = f"the first {num_lines:,}" if self.is_full else f"{num_lines:,}"
        raise CorpusError(f"{self.path}: {self.num:,} of {total} lines {self.verdict}. {listed}. {remedy}")


def is_blank(text: str | None) -> bool:
    """True when `text` holds nothing a reader can see: None, empty, or `BLANK_CHARACTERS` only."""
    return not text or not text.strip(BLANK_CHARACTERS)


class TextFile:
    r"""One text file, plain or .gz, as an iterator of decoded lines without their line ends.

    Attributes:
        num_lines: Lines read so far; a last line without "\n" counts.
        num_crlf_lines: How many of them ended in "\r\n".
        has_byte_order_mark: Whether the file began with a UTF-8 byte order mark (removed).
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.num_lines = 0
        self.num_crlf_lines = 0
        self.has_byte_order_mark = False
        self._num_lines_beyond_ascii = 0  # good ones: the file is UTF-8, if not all of it
        self._undecodable = Defects(path, "cannot be read as UTF-8")
        self._undecodable_sample = b""
        self._raw: io.BufferedReader | None = None

    def position(self) -> int:
        """Bytes of the file (as it lies on disk) read so far."""
        if self._raw is None:
            return 0
        return os.path.getsize(self.path) if self._raw.closed else self._raw.tell()

    def __iter__(self) -> Iterator[str]:
        """Yield the lines; raises `CorpusError` at the end when some could not be decoded."""
        for raw_line in self._raw_lines():
            self.num_lines += 1
            if len(raw_line) > MAX_LINE_BYTES:
                raise CorpusError(self._describe_long_line())
            yield self._strip_line_end(self._decode(raw_line))
        self.check_encoding()

    def check_encoding(self) -> None:
        """Raise a `CorpusError` when lines read so far were not UTF-8."""
        self._undecodable.check(self.num_lines, self._encoding_remedy())

    def _raw_lines(self) -> Iterator[bytes]:
        with _open_bytes(self.path) as (self._raw, stream), self._explained_gzip_errors():
            head = stream.peek(4096)[:4096]
            if content := diagnosis.name_foreign_content(self.path, head):
                raise CorpusError(f"{self.path} {content}")
            yield from iter(partial(stream.readline, MAX_LINE_BYTES + 1), b"")

    @contextmanager
    def _explained_gzip_errors(self) -> Iterator[None]:
        try:
            yield
        except EOFError as error:
            raise CorpusError(
                f"{self.path} is a truncated gzip file: its compressed data stop before their end. "
                f"Copy or download it again (gunzip -t {self.path} tells when it is whole)."
            ) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise CorpusError(
                f"{self.path} is a damaged gzip file: {error} after {self.num_lines:,} lines. "
                f"Copy or download it again (gunzip -t {self.path} tells when it is whole)."
            ) from error

    def _decode(self, raw_line: bytes) -> str:
        try:
            text = raw_line.decode("utf-8")
        except UnicodeDecodeError as error:
            return self._note_undecodable(raw_line, error)
        if not text.isascii():
            self._num_lines_beyond_ascii += 1
        if self.num_lines == 1 and text.startswith("\ufeff"):
            self.has_byte_order_mark = True
            return text[1:]
        return text

    def _note_undecodable(self, raw_line: bytes, error: UnicodeDecodeError) -> str:
        self._undecodable_sample += raw_line[:200] if len(self._undecodable_sample) < 20_000 else b""
        self._undecodable.add(self.num_lines, f"byte 0x{raw_line[error.start]:02X} at position {error.start + 1:,}")
        if self._undecodable.is_full:
            self.check_encoding()
        return raw_line.decode("utf-8", errors="replace")  # never written: check_encoding raises

    def _encoding_remedy(self) -> str:
        encoding = diagnosis.guess_encoding(self._undecodable_sample)
        if encoding and self._num_lines_beyond_ascii < self._undecodable.num:
            command = diagnosis.iconv_command(self.path, encoding)
            return f"Text must be UTF-8; this looks like {encoding}. Convert it: {command}"
        return "Text must be UTF-8; the rest of the file is. Repair these lines, or remove them on both sides."

    def _strip_line_end(self, text: str) -> str:
        if text.endswith("\r\n"):
            self.num_crlf_lines += 1
            return text[:-2]
        return text.removesuffix("\n")

    def _describe_long_line(self) -> str:
        return (
            f"{self.path} line {self.num_lines:,} is longer than {MAX_LINE_BYTES >> 20} MiB; a line (up to \\n) is one "
            "example. Break the text into lines, or name the file after its format."
        )


@contextmanager
def _open_bytes(path: str) -> Iterator[tuple[io.BufferedReader, io.BufferedReader]]:
    """Open a file; yields the file itself (for its position) and the stream of its content, unpacked if .gz."""
    with open(path, "rb") as raw:
        if not path.endswith(".gz"):
            yield raw, raw
            return
        head = raw.peek(2)[:2]
        if head and head != b"\x1f\x8b":
            raise CorpusError(
                f"{path} is not gzip, though its name ends in .gz (it starts with {head!r}). "
                f"Rename it to {path.removesuffix('.gz')}, or compress it with gzip."
            )
        yield raw, io.BufferedReader(gzip.GzipFile(fileobj=raw), 1 << 16)


def read_aligned(source: TextFile, target: TextFile) -> Iterator[Row]:
    """Yield line i of both files as row i.

    Raises:
        CorpusError: At the end, when one file has more lines; with both counts and the first suspicious line.
    """
    for number, texts in enumerate(zip_longest(source, target), 1):
        if None not in texts:
            yield number, texts
    if source.num_lines != target.num_lines:
        raise CorpusError(_describe_misalignment(source, target))


def _describe_misalignment(source: TextFile, target: TextFile) -> str:
    counts = f"{source.path} has {source.num_lines:,} lines and {target.path} {target.num_lines:,}"
    lines = [list(zip(range(100_000), TextFile(file.path))) for file in (source, target)]
    longer = source if source.num_lines > target.num_lines else target
    num_paired = min(source.num_lines, target.num_lines)
    surplus = [text for number, text in max(lines, key=len) if number >= num_paired]
    if surplus and all(is_blank(text) for text in surplus):
        hint = f"The lines of {longer.path} from {num_paired + 1:,} on are blank: remove them."
    else:
        hint = _hint_at_unpaired_line([[text for _, text in side] for side in lines], longer.path)
    return f"{counts}; they must be line-aligned. {hint}"


def _hint_at_unpaired_line(sides: list[list[str]], longer_path: str) -> str:
    source, target = sides
    line = diagnosis.find_unpaired_line([len(text) for text in source], [len(text) for text in target])
    if line is None:
        return f"Up to the end of the shorter file the lengths fit: is it cut off, or does {longer_path} go on too far?"
    pair = f"{diagnosis.shorten(source[line])} beside {diagnosis.shorten(target[line])}"
    return f"First suspicious line: {line + 1:,} ({pair}); lines near it may be missing on one side."


def read_text(file: TextFile) -> Iterator[Row]:
    """Yield one document per line."""
    for number, text in enumerate(file, 1):
        yield number, (text,)


def read_tsv(file: TextFile, columns: Sequence[str], *, is_default: bool) -> Iterator[Row]:
    """Yield the wanted fields of tab-separated lines; quotes are characters, as in parallel data.

    The first line is a header when it holds all of `columns`. Without one, default columns mean the first fields in
    order, and columns given as numbers (`1 2`, `2 1`) always mean positions in a file without header.

    Args:
        file: The open file.
        columns: Names or 1-based positions.
        is_default: Whether the user left the names to us.

    Raises:
        CorpusError: For columns that are not there, and for lines with another number of fields than the first.
    """
    records = ((number, [line] if is_blank(line) else line.split("\t")) for number, line in enumerate(file, 1))
    yield from _read_fields(file, records, columns, needs_header=not is_default)


def read_csv(file: TextFile, columns: Sequence[str]) -> Iterator[Row]:
    """Yield the wanted fields of comma-separated records with a header; quoted fields may hold line breaks.

    Raises:
        CorpusError: For columns that are not there, for records with another number of fields than the header, and for
            a quote that is never closed.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))  # the module's own limit is 128 KiB
    yield from _read_fields(file, _csv_records(file), columns, needs_header=True)


def _csv_records(file: TextFile) -> Iterator[tuple[int, list[str]]]:
    records = csv.reader((line + "\n" for line in file), strict=True)
    first_line = 1
    try:
        for record in records:
            yield first_line, record
            first_line = records.line_num + 1
    except csv.Error as error:
        file.check_encoding()
        raise CorpusError(
            f"{file.path} line {first_line:,}: no CSV record can be read from here ({error}). A field with quotes or "
            'line breaks stands in double quotes, a quote inside it is doubled (""): look for one that is never closed.'
        ) from error


def _read_fields(
    file: TextFile, records: Iterator[tuple[int, list[str]]], columns: Sequence[str], *, needs_header: bool
) -> Iterator[Row]:
    """Find the wanted columns in the first record, then yield them from every record."""
    first = next(records, None)
    if first is None:
        return
    _, names = first
    positions = _find_positions(file.path, names, columns, needs_header=needs_header)
    defects = Defects(file.path, "cannot be used")
    for number, fields in records if _is_header(names, columns) else chain([first], records):
        if len(fields) == len(names):
            yield number, tuple(fields[position] for position in positions)
        elif is_blank("".join(fields)) and len(fields) <= 1:
            yield number, (None,) * len(columns)
        else:
            defects.add(number, f"{_count_fields(fields)} instead of {len(names)}")
        if defects.is_full:
            break
    defects.check(file.num_lines, "Every line needs as many as the first: repair or remove these lines.")


def _are_positions(columns: Sequence[str]) -> bool:
    return all(column.isascii() and column.isdecimal() for column in columns)


def _is_header(first: Sequence[str], columns: Sequence[str]) -> bool:
    return not _are_positions(columns) and set(columns) <= set(first)


def _find_positions(path: str, first: list[str], columns: Sequence[str], *, needs_header: bool) -> list[int]:
    if _are_positions(columns):
        return _check_positions(path, first, [int(column) - 1 for column in columns])
    if _is_header(first, columns):
        return [first.index(column) for column in columns]
    if needs_header or (len(first) > 1 and HEADER_WORDS.issuperset(field.strip().lower() for field in first)):
        raise CorpusError(describe_missing_columns(path, columns, first, FIRST_LINE))
    if len(columns) == 1 and len(first) > 1:
        raise CorpusError(
            f"{path} has {len(first)} fields per line and no header, but one text per line is wanted. "
            "Choose the field by its number, e.g. columns: ['1']."
        )
    return _check_positions(path, first, list(range(len(columns))))


def _check_positions(path: str, first: list[str], positions: list[int]) -> list[int]:
    wanted = max(positions) + 1
    if min(positions) < 0 or wanted > len(first):
        numbers = " and ".join(str(position + 1) for position in positions)
        raise CorpusError(
            f"{path} line 1 has {_count_fields(first)}: {diagnosis.shorten(' | '.join(first))}. Wanted: {numbers}, "
            "counted from 1. Separate the fields by tabs (.tsv) or commas (.csv), or name other columns."
        )
    return positions


def _count_fields(fields: Sequence[str]) -> str:
    return f"{len(fields)} field{'' if len(fields) == 1 else 's'}"


def describe_missing_columns(path: str, columns: Sequence[str], existing: Sequence[str], lead: str = "it has") -> str:
    """Say which of `columns` are missing in `path`, which exist, and what to do."""
    missing = [column for column in columns if column not in existing]
    listed = ", ".join(diagnosis.shorten(name) for name in existing[:12]) + (", …" if len(existing) > 12 else "")
    hint = did_you_mean(missing[0], existing, SENTENCE)
    if len(existing) == 1 and any(separator in existing[0] for separator in ",;\t|"):
        hint = " Is another separator in use? .csv means commas and .tsv tabs."
    names = " or ".join(repr(name) for name in missing)
    numbers = f", or number them if that is no header: {NUMBERED[: len(columns)]}" if lead == FIRST_LINE else ""
    return f"{path} has no column {names}; {lead}: {listed or 'nothing'}.{hint} Name yours with `columns`{numbers}."


def read_jsonl(file: TextFile, columns: Sequence[str]) -> Iterator[Row]:
    """Yield the wanted fields of one JSON object per line; "a.b" reaches into nested objects.

    Raises:
        CorpusError: For lines that are no JSON object, lack a column or hold something else than text in it.
    """
    defects = Defects(file.path, "cannot be used")
    for number, line in enumerate(file, 1):
        if is_blank(line):
            yield number, (None,) * len(columns)
            continue
        try:
            record = _parse_object(line)
            if number == 1:
                _check_first_object(file.path, record, columns)
            yield number, tuple(_text_field(record, column) for column in columns)
        except _RecordError as error:
            defects.add(number, str(error))
        if defects.is_full:
            break
    defects.check(file.num_lines, _describe_json_lines(file.path))


def _describe_json_lines(path: str) -> str:
    remedy = "Every line must be one JSON object with text in its columns: repair or remove these lines."
    if ".json" in os.path.splitext(path.removesuffix(".gz")):
        remedy += " If the file is one JSON array, make lines of it: jq -c '.[]'"
    return remedy


class _RecordError(Exception):
    """Why one record is unusable; becomes part of a `CorpusError`."""


def _parse_object(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line, object_pairs_hook=_refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise _RecordError(f"not JSON ({error}) in {diagnosis.shorten(line)}") from error
    if not isinstance(record, dict):
        raise _RecordError(f"not an object but {diagnosis.shorten(line)}")
    return record


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RecordError(f"names {next(name for name in names if names.count(name) > 1)!r} twice")
    return record


def _check_first_object(path: str, record: dict[str, Any], columns: Sequence[str]) -> None:
    if not all(_reach(record, column)[0] for column in columns):
        raise CorpusError(describe_missing_columns(path, columns, list(_list_names(record))))


def _list_names(record: dict[str, Any]) -> Iterator[str]:
    for name, value in record.items():
        yield from (f"{name}.{inner}" for inner in _list_names(value)) if isinstance(value, dict) else (name,)


def _reach(record: dict[str, Any], column: str) -> tuple[bool, Any]:
    """Return whether `column` is there, and its value; "a.b" is key b of the object under a."""
    if column in record:
        return True, record[column]
    head, dot, rest = column.partition(".")
    inner = record.get(head)
    return _reach(inner, rest) if dot and isinstance(inner, dict) else (False, None)


def _text_field(record: dict[str, Any], column: str) -> str | None:
    is_there, value = _reach(record, column)
    if not is_there:
        raise _RecordError(f"no {column!r} (it has: {', '.join(record) or 'nothing'})")
    if value is None:
        return None
    if not isinstance(value, str):
        raise _RecordError(f"{column!r} is {json.dumps(value)[:40]}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _RecordError(f"{column!r} holds half a surrogate pair, \\u{ord(value[error.start]):04x}") from error
    return value


def read_parquet(path: str, columns: Sequence[str]) -> Iterator[Row]:
    """Yield the wanted text columns of a Parquet file, one row group batch in memory at a time.

    Raises:
        CorpusError: For a file that is not Parquet, for columns that are not there or hold no text.
    """
    with open_parquet(path) as file:
        check_text_columns(path, file.schema_arrow, columns)
        top_level = top_level_columns(columns, file.schema_arrow.names)
        batches = file.iter_batches(batch_size=1000, columns=top_level)
        yield from read_tables((pa.Table.from_batches([batch]) for batch in batches), columns)


@contextmanager
def open_parquet(path: str) -> Iterator[pa.parquet.ParquetFile]:
    """Open a Parquet file; what pyarrow cannot read becomes a `CorpusError`."""
    try:
        with pa.parquet.ParquetFile(path) as file:
            yield file
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CorpusError(
            f"{path} cannot be read as Parquet: {reason}. Copy it again, or name the file after its format."
        ) from error


def top_level_columns(columns: Sequence[str], existing: Sequence[str]) -> list[str]:
    """Return the columns to fetch so that nested ones ("translation.de") can be reached."""
    return sorted({column if column in existing else column.split(".")[0] for column in columns})


def flatten(table: pa.Table) -> pa.Table:
    """Return `table` with nested columns spread out: {"translation": {"de": ...}} becomes "translation.de"."""
    while any(pa.types.is_struct(column_type) for column_type in table.schema.types):
        table = table.flatten()
    return table


def check_text_columns(name: str, schema: pa.Schema, columns: Sequence[str]) -> None:
    """Raise a `CorpusError` unless every one of `columns` is there and holds text."""
    flat = flatten(schema.empty_table()).schema
    if not set(columns) <= set(flat.names):
        raise CorpusError(describe_missing_columns(name, columns, flat.names))
    for column in columns:
        column_type = flat.field(column).type
        if not _holds_text(column_type):
            raise CorpusError(f"{name} column {column!r} holds {column_type}, not text. Choose another column.")


def _holds_text(column_type: pa.DataType) -> bool:
    if pa.types.is_dictionary(column_type):
        column_type = column_type.value_type
    tests: list[Callable[[pa.DataType], bool]] = [pa.types.is_string, pa.types.is_large_string, pa.types.is_null]
    return any(test(column_type) for test in tests)


def read_tables(tables: Iterable[pa.Table], columns: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of Arrow tables."""
    number = 0
    for table in tables:
        flat = flatten(table)
        for texts in zip(*(flat.column(column).to_pylist() for column in columns)):
            number += 1
            yield number, texts
