r"""Tags: tokens in front of a source that say what is wanted, or where it comes from.

    language  hun            \
    pos       V               >   <language=hun><pos=V>alma
    source    alma           /

A value of several features, as UniMorph writes them, makes a token of each: V;PST becomes <pos=V><pos=PST>. A folder
remembers the columns that made them, in tokenizer_config.json, so whoever reads files with columns for it puts the
same tokens in front. Anybody else writes them himself; a source that begins with one is left as it is.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from seqloom.configuration.data_names import TAG
from seqloom.configuration.suggestion import did_you_mean
from seqloom.hub.files import read_object

SETTINGS_KEY = "seqloom_tokenizer"
"""Where tokenizer_config.json says how a vocabulary was made."""


FEATURES_END = ";"
"""Between the features of a value."""


class TagError(ValueError):
    """A value that no source of the training had."""


@dataclass(frozen=True)
class Tags:
    """What a folder knows of the tags of its sources."""

    columns: tuple[str, ...] = ()
    """Whose values make them, in this order."""
    known: tuple[str, ...] = ()
    """Those that have an entry in the vocabulary."""

    @classmethod
    def of(cls, folder: str | PathLike[str]) -> "Tags":
        """Read what a folder knows."""
        return cls.in_settings(read_object(Path(folder) / "tokenizer_config.json") or {})

    @classmethod
    def in_settings(cls, settings: Mapping[str, Any]) -> "Tags":
        """Read what a tokenizer's settings know."""
        made = settings.get(SETTINGS_KEY)
        made = made if isinstance(made, dict) else {}
        columns, known = (made.get(name) for name in ("tag_columns", "tags"))
        return cls(*(tuple(map(str, each)) if isinstance(each, list) else () for each in (columns, known)))

    def put_before(self, source: str, value_of: Callable[[str], str | None]) -> str:
        """Return a source with its tags in front; one that begins with a tag already stays as it is.

        Args:
            source: as the file has it.
            value_of: gives the value of a column.

        Raises:
            TagError: for a value that no training source had.
        """
        first = TAG.match(source)
        if not self.columns or (first and first[0] in self.known):
            return source
        tags = [(column, tag) for column in self.columns for tag in TAG.findall(tag_of(column, value_of(column)))]
        for column, tag in tags:
            if tag not in self.known:
                value, same = tag[len(column) + 2 : -1], f"<{column}="
                values = [each[len(same) : -1] for each in self.known if each.startswith(same)]
                hint = did_you_mean(value, values, "did you mean {}? ")
                listed = ", ".join(values[:12]) + (", ..." if values[12:] else "")
                raise TagError(f"{column}={value} is no value that the training text had; {hint}it had {listed}.")
        return "".join(tag for _, tag in tags) + source

    def text_of(self, source: str) -> str:
        """Return a source without the known tags in front of it."""
        while (first := TAG.match(source)) and first[0] in self.known:
            source = source[first.end() :]
        return source


NO_TAGS = Tags()


def tag_of(column: str, value: str | None) -> str:
    """Return the token that a column's value is: <language=hun>, one for each of its features; "" for no value."""
    features = [re.sub(r"[<>\s]+", "_", feature.strip()) for feature in (value or "").split(FEATURES_END)]
    return "".join(f"<{column}={feature}>" for feature in features if feature)


def of_columns(tags: str) -> str:
    """Return those of some tags that say what is wanted, as columns make them, without those of a whole corpus."""
    return "".join(tag for tag in TAG.findall(tags) if "=" in tag)


__all__ = ["NO_TAGS", "SETTINGS_KEY", "TagError", "Tags", "of_columns", "tag_of"]
