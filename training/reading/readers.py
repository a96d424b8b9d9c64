"""Files in, rows out: one reader for each format that has columns, and one for plain text.

Python's own csv and json modules do the work, a line of a `TextFile` at a time. A reader either yields a record or
raises a `CorpusError`, and it reads on to the end of the file first, so that one error names all the records that need
repair.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from seqloom.configuration.suggestion import SENTENCE, did_you_mean
from seqloom.training.reading.text_file import (
    MAX_LINE_BYTES,
    CorpusError,
    Defects,
    TextFile,
    is_blank,
    reading_bar,
    shorten,
)

Row = tuple[int, tuple[str | None, ...]]
"""The 1-based line or record number and one text per wanted column; None where the file has nothing."""

HEADER_WORDS = frozenset(
    (
        "source target src tgt trg input output text sentence sentence1 sentence2 translation original label id index "
        "word words lemma form inflected features tags pronunciation pron phonemes phoneme phones graphemes grapheme "
        "ipa spelling question answer prompt completion article summary instruction response context language lang "
        "split reference normalized normalised modern classical simple complex "
        "english german french spanish italian portuguese dutch russian ukrainian polish czech chinese mandarin "
        "japanese korean arabic hebrew persian turkish hindi bengali tamil thai vietnamese indonesian swahili latin "
        "greek finnish hungarian swedish danish norwegian romanian bulgarian"
    ).split()
)
"""Words that name columns, in English: a first TSV line of which half the fields are such words is a header."""

LANGUAGE_CODES = frozenset(
    (
        "ar bg bn ca cs da de el en es et eu fa fi fr ga gl he hi hr hu hy id is it ja ka ko la lt lv mk ms mt nl no "
        "pl pt ro ru sk sl sq sr sv sw ta th tr uk ur vi zh deu eng fra spa ita por nld rus ukr pol ces cmn zho jpn "
        "kor ara heb fas tur hin ben tam tha vie ind swa lat ell fin hun swe dan nor ron bul lzh"
    ).split()
)
"""Codes that name columns where all fields of a first line are such."""

FIRST_LINE = "its first line holds"
"""Where the names of columns stand in TSV and CSV, for messages."""

NUMBERED = ["1", "2"]
"""The columns of a file without header."""


def read_text(file: TextFile) -> Iterator[Row]:
    """Yield one document per line."""
    for number, text in enumerate(file, 1):
        yield number, (text,)


_VARIANT = re.compile(r"\(\d+\)$")


def read_lexicon(file: TextFile, *, num_columns: int) -> Iterator[Row]:
    """Yield word and pronunciation from lines as in CMUdict: a word, space, its phones.

    Left out are comments (lines after ";;;", what follows " #") and the number of a further pronunciation, "WORD(2)".

    Raises:
        CorpusError: For a task that reads one column, and for lines without a pronunciation.
    """
    if num_columns != 2:
        raise CorpusError(f"{file.path} is a pronunciation dictionary by its name: words and phones. Use task=pairs.")
    defects = Defects(file.path, "cannot be used")
    for number, line in enumerate(file, 1):
        entry = line.partition(" #")[0].strip()
        if entry.startswith((";;;", "#")) or not entry:
            continue
        word, _, phones = entry.partition("\t" if "\t" in entry else " ")
        if phones.strip():
            yield number, (_VARIANT.sub("", word), phones.strip())
        else:
            defects.add(number, f"{shorten(entry)} has no pronunciation")
    defects.check(file.num_lines, "Every line is a word, space, its phones: repair or remove these lines.")


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
    for number, fields in records if is_header(names, columns) else chain([first], records):
        if len(fields) == len(names):
            yield number, tuple(fields[position] for position in positions)
        elif is_blank("".join(fields)) and len(fields) <= 1:
            yield number, (None,) * len(columns)
        else:
            defects.add(number, f"{_count_fields(fields)} instead of {len(names)}")
        if defects.is_full:
            break
    defects.check(file.num_lines, "Every line needs as many as the first: repair or remove these lines.")


def are_positions(columns: Sequence[str]) -> bool:
    """Whether columns are given as numbers, from 1."""
    return all(column.isascii() and column.isdecimal() for column in columns)


def is_header(first: Sequence[str], columns: Sequence[str]) -> bool:
    """Whether the first line names the columns that are asked for."""
    return not are_positions(columns) and set(columns) <= {*first, *(name.strip() for name in first)}


def _find_positions(path: str, first: list[str], columns: Sequence[str], *, needs_header: bool) -> list[int]:
    if are_positions(columns):
        return _check_positions(path, first, [int(column) - 1 for column in columns])
    if is_header(first, columns):
        names = first if set(columns) <= set(first) else [name.strip() for name in first]
        refuse_same_names(path, names, columns)
        return [names.index(column) for column in columns]
    if needs_header:
        raise CorpusError(describe_missing_columns(path, columns, first, FIRST_LINE))
    if len(first) >= len(columns) > 1 and looks_like_header(first):
        raise UnclearColumnsError(path, first, is_header=True)
    if len(columns) == 1 and len(first) > 1:
        raise CorpusError(
            f"{path} has {len(first)} fields per line and no header, but one text per line is wanted. "
            "Choose the field by its number, e.g. columns: ['1']."
        )
    return _check_positions(path, first, list(range(len(columns))))


def looks_like_header(first: Sequence[str]) -> bool:
    """Whether a first line names columns rather than being a pair, as far as its words tell."""
    if any(len(field.split()) > 2 or field.strip().endswith((".", "!", "?")) for field in first):
        return False
    words = [field.strip().lower().partition(" ")[0].partition("_")[0] for field in first]
    num_known = sum(word in HEADER_WORDS for word in words)
    return num_known * 2 >= len(words) or all(word in HEADER_WORDS | LANGUAGE_CODES for word in words)


class UnclearColumnsError(CorpusError):
    """A file that can be read in a way that its owner should confirm."""

    rule = "columns"
    answers: dict[str, list[str]]
    """What somebody who is asked may answer -> the columns that this means."""

    def __init__(self, path: str, first: Sequence[str], *, is_header: bool) -> None:
        """Say what the first line holds and which flag settles it.

        Args:
            path: the file.
            first: the fields of its first line.
            is_header: whether they look like names of columns.
        """
        listed = " | ".join(shorten(field) for field in first[:4])
        numbers = f"--columns {' '.join(NUMBERED)}"
        if is_header:
            names = [field.strip() for field in first[:2]]
            self.answers = {"y": names, "n": NUMBERED}
            said = (
                f"{path}: its first line ({listed}) looks like names of columns. If it is, add --columns "
                f"{' '.join(map(shlex.quote, names))}; if it is an example, add {numbers}."
            )
        else:
            self.answers = {"y": NUMBERED}
            said = (
                f"{path} is plain text by its name, and its lines hold {len(first)} fields with tabs between them "
                f"({listed}). To read field 1 as source and field 2 as target, add {numbers}."
            )
        super().__init__(said)


def refuse_same_names(path: str, names: Sequence[str], columns: Sequence[str]) -> None:
    """Refuse a column whose name is another's too.

    Raises:
        CorpusError: with the name.
    """
    for column in columns:
        if (count := names.count(column)) > 1:
            raise CorpusError(f"{path} has {count} columns called {column}; give each a name of its own.")


def _check_positions(path: str, first: list[str], positions: list[int]) -> list[int]:
    wanted = max(positions) + 1
    if min(positions) < 0 or wanted > len(first):
        numbers = " and ".join(str(position + 1) for position in positions)
        raise CorpusError(
            f"{path} line 1 has {_count_fields(first)}: {shorten(' | '.join(first))}. Wanted: {numbers}, "
            "counted from 1. Separate the fields by tabs (.tsv) or commas (.csv), or name other columns."
        )
    return positions


def _count_fields(fields: Sequence[str]) -> str:
    return f"{len(fields)} field{'' if len(fields) == 1 else 's'}"


def describe_missing_columns(path: str, columns: Sequence[str], existing: Sequence[str], lead: str = "it has") -> str:
    """Say which of `columns` are missing in `path`, which exist, and what to do."""
    missing = [column for column in columns if column not in existing]
    listed = ", ".join(shorten(name) for name in existing[:12]) + (", …" if len(existing) > 12 else "")
    hint = did_you_mean(missing[0], existing, SENTENCE)
    if len(existing) == 1 and any(separator in existing[0] for separator in ",;\t|"):
        hint = " Is another separator in use? .csv means commas and .tsv tabs."
    names = " or ".join(repr(name) for name in missing)
    numbered = [str(number) for number in range(1, len(columns) + 1)]
    numbers = f", or number them if that is no header: {numbered}" if lead == FIRST_LINE else ""
    flag = "`columns`" if len(columns) <= len(NUMBERED) else "`columns`, `where`, `tags` and `by`"
    if len(existing) == len(columns) == len(NUMBERED):
        flag = f"--columns {' '.join(map(shlex.quote, existing))}"
    return f"{path} has no column {names}; {lead}: {listed or 'nothing'}.{hint} Name yours with {flag}{numbers}."


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
        raise _RecordError(f"not JSON ({error}) in {shorten(line)}") from error
    if not isinstance(record, dict):
        raise _RecordError(f"not an object but {shorten(line)}")
    return record


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise _RecordError(f"names {twice!r} twice")
    return record


def _check_first_object(path: str, record: dict[str, Any], columns: Sequence[str]) -> None:
    if not all(reach(record, column)[0] for column in columns):
        raise CorpusError(describe_missing_columns(path, columns, list(list_names(record))))


def list_names(record: dict[str, Any]) -> Iterator[str]:
    """Yield the names of a record's columns; "a.b" is key b of the object under a."""
    for name, value in record.items():
        yield from (f"{name}.{inner}" for inner in list_names(value)) if isinstance(value, dict) else (name,)


def reach(record: dict[str, Any], column: str) -> tuple[bool, Any]:
    """Return whether `column` is there, and its value; "a.b" is key b of the object under a."""
    if column in record:
        return True, record[column]
    head, dot, rest = column.partition(".")
    inner = record.get(head)
    return reach(inner, rest) if dot and isinstance(inner, dict) else (False, None)


def _text_field(record: dict[str, Any], column: str) -> str | None:
    is_there, value = reach(record, column)
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
    try:
        with pa.parquet.ParquetFile(path) as file:
            check_text_columns(path, file.schema_arrow, columns)
            top_level = top_level_columns(columns, file.schema_arrow.names)
            batches = file.iter_batches(batch_size=1000, columns=top_level)
            tables = (pa.Table.from_batches([batch]) for batch in batches)
            yield from read_tables(path, tables, columns, num_rows=file.metadata.num_rows)
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
    refuse_same_names(name, flat.names, columns)
    for column in columns:
        column_type = flat.field(column).type
        if not holds_text(column_type):
            raise CorpusError(f"{name} column {column!r} holds {column_type}, not text. Choose another column.")


def holds_text(column_type: pa.DataType) -> bool:
    """Whether a column of Arrow is text."""
    if pa.types.is_dictionary(column_type):
        column_type = column_type.value_type
    tests: list[Callable[[pa.DataType], bool]] = [pa.types.is_string, pa.types.is_large_string, pa.types.is_null]
    return any(test(column_type) for test in tests)


def read_tables(name: str, tables: Iterable[pa.Table], columns: Sequence[str], *, num_rows: int) -> Iterator[Row]:
    """Yield the rows of Arrow tables."""
    number = 0
    with reading_bar(f"Reading {name}", num_rows, "row") as bar:
        for table in tables:
            flat = flatten(table)
            for texts in zip(*(flat.column(column).to_pylist() for column in columns)):
                number += 1
                yield number, texts
            bar.update(len(table))
