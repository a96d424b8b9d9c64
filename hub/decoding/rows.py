"""What stands on a line of input, and what a line of output looks like: text, columns of a TSV, keys of JSON lines.

text     the source                       the output
tsv      one column of several            the columns, and the output behind them
jsonl    one key of an object, a.b in b   the object, with the key "output"
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import PurePath
from typing import Any

from seqloom.configuration.suggestion import did_you_mean
from seqloom.hub.lines import one_line
from seqloom.hub.tags import NO_TAGS, TagError, Tags

FORMATS = ("text", "tsv", "jsonl")

SUFFIXES = {".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
"""The format by a file's name, .gz left out; anything else is text."""


class RowError(ValueError):
    """A line that is not what its file promises."""


@dataclass(frozen=True)
class Row:
    """One line of input."""

    number: int
    source: str
    prefix: str = ""
    """What the output has to begin with."""
    record: Any = None
    """The columns of a TSV, the object of a JSON line."""
    num_added: int = 0
    """Characters of the tags that columns put in front of the source."""


@dataclass(frozen=True)
class Layout:
    """Where a line has its source, and where its output goes."""

    name: str
    """Of the input, for messages."""
    read_as: str = "text"
    write_as: str = "text"
    source: str | None = None
    """A column's name, its number counted from 1, or a key; None: "source", or the first column."""
    prefix: str | None = None
    """The same for what outputs have to begin with; None: nothing."""
    header: tuple[str, ...] | None = None
    """Names of the columns, where the first line has them."""
    tags: Tags = NO_TAGS
    """What stands in front of each source; text has it there already."""

    @property
    def names_columns(self) -> bool:
        """Whether a column is called by its name, so that the first line must hold the names."""
        given = [name for name in (self.source, self.prefix) if name is not None]
        return self.read_as == "tsv" and any(not name.isdecimal() for name in given)

    def with_first_line(self, line: str) -> tuple["Layout", bool]:
        """Take a first line for the header if columns are called by name, or one of its columns is called "source".

        Returns:
            The layout that knows the header; whether the line was one.
        """
        columns = line.split("\t")
        names = {"source", *self.tags.columns} - set(map(str, range(1, len(columns) + 1)))
        if self.read_as != "tsv" or not (self.names_columns or names & set(columns)):
            return self, False
        source = self.source or ("source" if "source" in columns else "1")
        return replace(self, source=source, header=tuple(columns)), True

    def header_line(self, *, n_best: int | None, with_score: bool) -> str:
        """Return the header of the output, "" if it has none."""
        if self.write_as != "tsv" or (self.header is None and self.read_as == "tsv"):
            return ""
        names = [*self._kept(self.header or ("source",)), "output", *(["score"] if with_score or n_best else [])]
        return "\t".join(names) + "\n"

    def _kept(self, columns: Sequence[str]) -> list[str]:
        """Return what is copied of a line: all but the output of a former command, in whose place the new one comes."""
        if self.header is None or "output" not in self.header:
            return list(columns)
        return [text for name, text in zip(self.header, columns, strict=True) if name not in ("output", "score")]

    def parse(self, line: str, number: int) -> Row:
        """Return what stands on a line.

        Raises:
            RowError: naming the line and what it lacks.
        """
        if self.read_as == "tsv":
            columns = line.split("\t") if line or self.header is None else [""] * len(self.header)
            if self.header is not None and len(columns) != len(self.header):
                raise RowError(
                    f"{self.name}: line {number} has {len(columns)} columns and the first line {len(self.header)}; "
                    f"mend it."
                )
            prefix = self._column(columns, self.prefix, number) if self.prefix else ""
            source = self._column(columns, self.source or "1", number)
            tagged = self._tagged(source, number, columns, self._column)
            return Row(number, tagged, prefix, columns, len(tagged) - len(source))
        if self.read_as == "jsonl":
            record = self._object(line, number)
            prefix = self._value(record, self.prefix, number) if self.prefix else ""
            source = self._value(record, self.source or "source", number)
            tagged = self._tagged(source, number, record, self._value)
            return Row(number, tagged, prefix, record, len(tagged) - len(source))
        return Row(number, line)

    def _tagged(self, source: str, number: int, record: Any, read: Callable[[Any, str, int], str]) -> str:
        """Put in front of a source what the columns say that the folder was trained with."""
        if self.read_as == "tsv" and self.header is None and not all(map(str.isdecimal, self.tags.columns)):
            return source

        def value_of(column: str) -> str | None:
            is_null = self.read_as == "jsonl" and record.get(column, "") is None
            return None if is_null else read(record, column, number)

        try:
            return self.tags.put_before(source, value_of)
        except TagError as error:
            raise RowError(f"{self.name}: line {number}: {error}") from None
        except RowError as error:
            example = self.tags.known[0] if self.tags.known else ""
            raise RowError(
                f"{error} In training {' and '.join(self.tags.columns)} stood in front of each source: give these "
                f"columns, or begin sources with such tags, e.g. {example}."
            ) from None

    def render(self, row: Row, outputs: Sequence[tuple[str, float | None]], *, n_best: bool) -> str:
        """Return the lines of output for a line of input, each with its end.

        Args:
            row: the input.
            outputs: text and score, best first; not empty.
            n_best: whether all are written, or the first alone.
        """
        if self.write_as == "jsonl":
            return json.dumps(self._as_object(row, outputs, n_best), ensure_ascii=False) + "\n"
        chosen = outputs if n_best else outputs[:1]
        if self.write_as == "text":
            return "".join(f"{text}\n" if score is None else f"{score:.4f}\t{text}\n" for text, score in chosen)
        columns = self._kept(row.record) if self.read_as == "tsv" else [one_line(row.source).replace("\t", " ")]
        lines = ([*columns, text.replace("\t", " "), *_column_of(score)] for text, score in chosen)
        return "".join("\t".join(line) + "\n" for line in lines)

    def _as_object(self, row: Row, outputs: Sequence[tuple[str, float | None]], n_best: bool) -> dict[str, Any]:
        if self.read_as == "jsonl":
            record = dict(row.record)
        elif self.header:
            record = dict(zip(self.header, row.record, strict=False))
        else:
            record = {"source": row.source}
        entries = [{"output": text} if score is None else {"output": text, "score": score} for text, score in outputs]
        return {**record, "outputs": entries} if n_best else {**record, **entries[0]}

    def _column(self, columns: list[str], name: str, number: int) -> str:
        if name.isdecimal() and not (self.header and name in self.header):
            index = int(name) - 1
        elif name in (self.header or ()):
            index = (self.header or ()).index(name)
        else:
            known = self.header or ()
            hint = did_you_mean(name, known, "did you mean {}? ")
            raise RowError(f"{self.name}: line 1 has no column {name!r}; {hint}it has {', '.join(known)}.")
        if not 0 <= index < len(columns):
            raise RowError(
                f"{self.name}: line {number} has {len(columns)} columns, and {name!r} is number {index + 1}; correct "
                f"the line, or name another column."
            )
        return columns[index]

    def _object(self, line: str, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RowError(f"{self.name}: line {number} is no JSON ({error}); correct or remove it.") from error
        if not isinstance(record, dict):
            raise RowError(f"{self.name}: line {number} is no JSON object; each line needs its keys in {{...}}.")
        return record

    def _value(self, record: dict[str, Any], key: str, number: int) -> str:
        try:
            value = record[key] if key in record else reduce(lambda inner, name: inner[name], key.split("."), record)
        except (KeyError, TypeError, IndexError):
            hint = did_you_mean(key, list(record), "did you mean {}? ")
            keys = ", ".join(map(str, record)) or "none"
            raise RowError(f"{self.name}: line {number} has no {key!r}; {hint}its keys: {keys}.") from None
        if not isinstance(value, str):
            raise RowError(f"{self.name}: line {number} has {value!r} as {key!r}; a source is a text in quotes.")
        return value


def format_of(file: str | None) -> str:
    """Return the format by the name of a file; None, stdin or stdout, is text."""
    if file is None:
        return "text"
    return SUFFIXES.get(PurePath(file.removesuffix(".gz")).suffix.lower(), "text")


def _column_of(score: float | None) -> list[str]:
    return [] if score is None else [f"{score:.4f}"]


__all__ = ["FORMATS", "Layout", "Row", "RowError", "format_of"]
