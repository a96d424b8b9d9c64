"""A column that nobody reads and that decides: one source has several targets, and the column tells which is wanted.

Lemma, form and features of an inflection table are such a file: read as pairs, no model can be right on it. A few
sources with several targets, as words with two pronunciations, are no such file, and a number for each row tells
nothing.
"""

import csv
import json
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import pyarrow.parquet as pq

from seqloom.configuration.data_names import data_name, format_of
from seqloom.configuration.recipe import Recipe
from seqloom.configuration.task_kind import count_rivals
from seqloom.training.reading.readers import Row, are_positions, flatten, holds_text, is_header, list_names, reach
from seqloom.training.reading.sources import MOST_TAGS, Request, open_source
from seqloom.training.reading.tasks import get_task
from seqloom.training.reading.text_file import CorpusError, TextFile, is_blank, shorten

SAMPLED = 20_000
"""Rows that are looked at, the first ones."""

SHARED = 0.1
"""Share of the rows whose source has another target elsewhere, from which on a column is looked for."""

ROWS_A_VALUE = 10
"""A column of fewer rows a value numbers rows, or is text."""

SHOWN = 3
"""Values named of a column."""


@dataclass(frozen=True)
class UnreadColumn:
    """A column that tells apart what shares a source."""

    file: str
    name: str
    """Its name, or its number where there is no header."""
    read: tuple[str, ...]
    """The columns that are read, as `columns` names them."""
    values: tuple[str, ...]
    """Some of its values, the most frequent ones."""
    num_rows: int
    """Rows that were looked at."""
    num_rivals: int
    """Those of them whose source has another target elsewhere."""

    def __str__(self) -> str:
        columns = f"--columns {' '.join(self.read)} " if are_positions(self.read) else ""
        shown = ", ".join(map(shorten, self.values))
        return (
            f"column {self.name} of {self.file} ({shown}, ...) is not read, and it tells apart what "
            f"{self.num_rivals:,} of {self.num_rows:,} rows have: a source that stands there with other targets, too. "
            f"{columns}--tags {shlex.quote(self.name)} puts its value in front of each source"
        )


def find_unread(recipe: Recipe) -> UnreadColumn | None:
    """Look for such a column in the first file of a recipe's training text.

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
    targets = [values[1] for values in rows]
    rivals = count_rivals([values[0] for values in rows], targets)
    if rivals < SHARED * len(rows) or not rivals:
        return None
    left = []
    for place, name in enumerate(others, len(read)):
        counts = Counter(values[place] or "" for values in rows)
        if 1 < len(counts) <= min(MOST_TAGS, len(rows) / ROWS_A_VALUE):
            still = count_rivals([(values[0], values[place]) for values in rows], targets)
            left.append((still, name, [value for value, _ in counts.most_common(SHOWN)]))
    still, name, common = min(left, default=(rivals, "", []))
    if still * 2 > rivals:
        return None
    return UnreadColumn(file, name, read, tuple(common), len(rows), rivals)


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


__all__ = ["UnreadColumn", "find_unread"]
