"""Columns that nobody reads, and one among them that decides which target is wanted.

Lemma, form and features of an inflection table are such a file: read as pairs, no model can be right on it. Features
are known by what stands between them; other columns by sources that have several targets. A few such sources, as words
with two pronunciations, are no such file, and a number for each row tells nothing.
"""

import csv
import json
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import pyarrow.parquet as pq

from seqloom.configuration.data_names import data_name, format_of
from seqloom.configuration.recipe import Recipe
from seqloom.configuration.task_kind import count_rivals
from seqloom.hub.tags import FEATURES_END
from seqloom.training.reading.readers import Row, are_positions, flatten, holds_text, is_header, list_names, reach
from seqloom.training.reading.sources import MOST_TAGS, Request, open_source
from seqloom.training.reading.tasks import get_task
from seqloom.training.reading.text_file import CorpusError, TextFile, is_blank, shorten

SAMPLED = 20_000
"""Rows that are looked at, the first ones."""

SHARED = 0.1
"""Share of the rows whose source has another target elsewhere, from which on a column is looked for."""

ROWS_A_VALUE = 10
"""A column of fewer rows a value numbers rows, or is text; of several features in a value each is one."""

LISTED = 0.5
"""Share of the rows with several features from which on a column is one of features."""

SHOWN = 3
"""Values named of a column."""


@dataclass(frozen=True)
class UnreadColumns:
    """Columns that nobody reads, none of which decides."""

    file: str
    names: tuple[str, ...]
    """Or their numbers where there is no header."""
    read: tuple[str, ...]
    """The columns that are read, as `columns` names them: those of the source and of the target."""

    @property
    def num_misled(self) -> int:
        """Rows that no model can be right on."""
        return 0

    def __str__(self) -> str:
        names = f"column {self.names[0]}" if len(self.names) == 1 else f"columns {', '.join(self.names)}"
        return (
            f"{names} of {self.file}; the source is column {self.read[0]}, the target column {self.read[1]}, and "
            f"--columns names others"
        )


@dataclass(frozen=True)
class UnreadColumn(UnreadColumns):
    """A column that tells apart what shares a source."""

    name: str
    """Its name, or its number where there is no header."""
    values: tuple[str, ...]
    """Some of its values, the most frequent ones."""
    num_rows: int
    """Rows that were looked at."""
    num_rivals: int
    """Those of them whose source has another target elsewhere."""

    @property
    def num_misled(self) -> int:
        """Rows that no model can be right on."""
        return self.num_rivals

    @property
    def flags(self) -> str:
        """What reads the column."""
        columns = f"--columns {' '.join(self.read)} " if are_positions(self.read) else ""
        return f"{columns}--tags {shlex.quote(self.name)}"

    def __str__(self) -> str:
        return (
            f"column {self.name} of {self.file} ({', '.join(map(shorten, self.values))}, ...) is not read, and it "
            f"{self._deed}. {self.flags} puts its value in front of each source"
        )

    @property
    def _deed(self) -> str:
        return (
            f"tells apart what {self.num_rivals:,} of {self.num_rows:,} rows have: a source that stands there with "
            f"other targets, too"
        )


@dataclass(frozen=True)
class UnreadFeatures(UnreadColumn):
    """A column of features, whether or not a source stands there twice."""

    @property
    def num_misled(self) -> int:
        """Rows that no model can be right on: of another source it would never learn which target is wanted."""
        return self.num_rows

    @property
    def _deed(self) -> str:
        return "holds features, which say what target is wanted"


@dataclass(frozen=True)
class ReadFeatures(UnreadFeatures):
    """Features that are read as the target, for they stand in front of it."""

    @property
    def flags(self) -> str:
        """What reads another column as the target."""
        return f"--columns {shlex.join((self.read[0], self.names[0]))} --tags {shlex.quote(self.name)}"

    def __str__(self) -> str:
        return (
            f"column {self.names[0]} of {self.file} is not read, and column {self.name}, which is read as the target, "
            f"{self._deed} ({', '.join(map(shorten, self.values))}, ...). {self.flags} puts them in front of each "
            f"source"
        )


def find_unread(recipe: Recipe) -> UnreadColumns | None:
    """Look for such columns in the first file of a recipe's training text; in TSV also for those that do not decide.

    Args:
        recipe: with the columns that it reads; one that names `tags` has made its choice.
    """
    if recipe.task != "pairs" or recipe.tags or recipe.is_demo or not recipe.train:
        return None
    file = data_name(recipe.train[0]).path
    try:
        read, others = _columns(file, recipe.columns)
        if not others:
            return None
        source = open_source([file], Request(read, False, "train", selecting=others))
        rows = list(islice(_wanted(source.rows, others, recipe), SAMPLED))
    except (CorpusError, OSError, ValueError):  # what is wrong with the file is told where it is read
        return None
    names = tuple(name for name in others if name not in recipe.selection())
    columns = {name: [values[place] or "" for values in rows] for place, name in enumerate((*read, *others))}
    forms = tuple(name for name in names if not _is_of_few_values(columns[name]))
    found = _deciding(columns, read, others, has_forms=bool(forms))
    if found is None:
        return UnreadColumns(file, names, read) if names and format_of(file) == "tsv" else None
    kind, name, rivals = found
    common = tuple(value for value, _ in Counter(columns[name]).most_common(SHOWN))
    return kind(file, forms if kind is ReadFeatures else names, read, name, common, len(rows), rivals)


def _deciding(
    columns: Mapping[str, Sequence[str]], read: Sequence[str], others: Sequence[str], *, has_forms: bool
) -> tuple[type[UnreadColumn], str, int] | None:
    """Return what a deciding column is, its name, and how many rows have a source that has another target elsewhere."""
    sources, targets = columns[read[0]], columns[read[1]]
    rivals = count_rivals(sources, targets)
    if rivals >= max(1, SHARED * len(sources)):
        few = [name for name in others if _is_of_few_values(columns[name])]
        left = [(count_rivals(list(zip(sources, columns[name], strict=True)), targets), name) for name in few]
        still, name = min(left, default=(rivals, ""))
        if still * 2 <= rivals:
            return UnreadColumn, name, rivals
    if _are_features(targets) and len(read) == 2 and has_forms:  # without, features are what is to be learned
        return ReadFeatures, read[1], rivals
    return next(((UnreadFeatures, name, rivals) for name in others if _are_features(columns[name])), None)


def _is_of_few_values(values: Sequence[str]) -> bool:
    features = {feature for value in set(values) for feature in value.split(FEATURES_END)}
    return len(set(values)) > 1 and len(features) <= min(MOST_TAGS, len(values) / ROWS_A_VALUE)


def _are_features(values: Sequence[str]) -> bool:
    several = [value for value in values if FEATURES_END in value and not value.split()[1:]]
    return len(several) >= max(1, LISTED * len(values)) and _is_of_few_values(values)


def _wanted(rows: Iterator[Row], others: Sequence[str], recipe: Recipe) -> Iterator[tuple[str | None, ...]]:
    """Yield the texts of the rows that the recipe selects and reads."""
    selection = [(others.index(name) - len(others), allowed) for name, allowed in recipe.selection().items()]
    for _, values in rows:
        if not any(map(is_blank, values[: -len(others)])) and all(values[place] in ok for place, ok in selection):
            yield values


def _columns(file: str, columns: Sequence[str] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the two columns that are read of a file, and the others with text; none for a file without columns."""
    kind = format_of(file)
    if kind == "parquet":
        fields = flatten(pq.read_schema(file).empty_table()).schema
        names = [field.name for field in fields if holds_text(field.type)]
    elif kind == "jsonl":
        record = json.loads(TextFile(file).first_line())
        names = [name for name in list_names(record) if isinstance(reach(record, name)[1], str)]
    elif kind in ("tsv", "csv"):
        first = TextFile(file).first_line()
        names = next(csv.reader([first])) if kind == "csv" else first.split("\t")
    else:
        return (), ()
    read = tuple(columns or get_task("pairs").columns)
    if kind == "tsv" and not is_header(names, read):
        names = [str(number) for number in range(1, len(names) + 1)]
        read = tuple(columns or names[:2])
    return read, tuple(name for name in names if name not in read and names.count(name) == 1)


__all__ = ["UnreadColumns", "find_unread"]
