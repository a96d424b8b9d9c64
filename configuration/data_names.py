"""What the names of data files say: their format, whether several of them belong together, and what stands behind them.

a.tsv              a file
a.tsv:2            each of its examples is learned twice an epoch; 0.5: in every other one
a.tsv:tag=<bt>     the token <bt> stands in front of each of its sources
a.tsv:0.5,tag=<bt> both
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

FORMATS = {
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".dict": "lexicon",
}
"""Suffix (before .gz) to format; any other suffix is plain text, one example per line."""

LEXICON = "cmudict"
"""How the names of CMUdict's files begin, as they are given out: cmudict.dict, cmudict-0.7b."""


_OPTIONS = re.compile(r"(?s:(.+)):(?:([0-9]*\.?[0-9]+)(?:,tag=([^\s,]+))?|tag=([^\s,]+))")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
TAG = re.compile(r"<[^<>\s]+>")
"""A token that may stand in front of a source."""

_RESERVED = re.compile(r"<(pad|s|/s|unk|source|target|0x[0-9A-F]{2})>")

MOST_TIMES = 1000
"""How often an epoch may hold an example."""


class DataNameError(ValueError):
    """A corpus that is named with a weight or a tag that cannot be."""


@dataclass(frozen=True)
class DataName:
    """A corpus as a recipe names it."""

    path: str
    """A file, a folder or a Hub data set."""
    weight: str | None = None
    """How often an epoch holds each of its examples, as written; None: once."""
    tag: str = ""
    """The token in front of each source; "": none."""

    def __str__(self) -> str:
        """Return it as a recipe names it."""
        options = [*([self.weight] if self.weight else []), *([f"tag={self.tag}"] if self.tag else [])]
        return ":".join([self.path, ",".join(options)]) if options else self.path

    @property
    def has_options(self) -> bool:
        """Whether anything stands behind the path."""
        return self.weight is not None or bool(self.tag)


def data_name(name: str) -> DataName:
    """Take a name apart. A file that is called so, and the configuration of a Hub data set, are names as they are.

    Raises:
        DataNameError: for a weight or a tag that cannot be.
    """
    if os.path.exists(name):
        return DataName(name)
    match = _OPTIONS.fullmatch(name)
    if match is None or (_HUB_NAME.fullmatch(match[1]) and match[2] and not _is_file(match[1])):
        path, _, options = name.rpartition(":")
        if options and os.path.isfile(path):
            raise DataNameError(
                f"{name}: behind {path} may stand how often it is learned and a tag, e.g. {path}:2, {path}:tag=bt or "
                f"{path}:0.5,tag=bt; {options!r} is neither."
            )
        return DataName(name)
    weight, tag = match[2], match[3] or match[4]
    if weight is not None and not 0 < float(weight) <= MOST_TIMES:
        raise DataNameError(
            f"{name}: an epoch cannot hold examples {weight} times; use a number above 0 and up to {MOST_TIMES:,}, or "
            f"leave the corpus out."
        )
    token = f"<{tag.removeprefix('<').removesuffix('>')}>" if tag else ""
    if tag and (not TAG.fullmatch(token) or _RESERVED.fullmatch(token)):
        raise DataNameError(
            f"{name}: tag={tag} cannot stand in front of sources; use a name without blanks, < and >, that no special "
            f"token has, e.g. tag=bt for <bt>."
        )
    return DataName(match[1], weight, token)


def _is_file(path: str) -> bool:
    return os.path.exists(path) or format_of(path) != "text" or path.endswith(".gz")


def format_of(path: str) -> str:
    """Return the format that a file has by its name: one of `FORMATS`, or text."""
    name = PurePath(path.removesuffix(".gz"))
    kind = FORMATS.get(name.suffix.lower(), "text")
    return "lexicon" if kind == "text" and name.name.lower().startswith(LEXICON) else kind


def is_aligned(names: Sequence[str]) -> bool:
    """Whether names mean a source and a target, line by line."""
    return (
        len(names) == 2 and not can_follow(names) and all(format_of(data_name(name).path) == "text" for name in names)
    )


def can_follow(names: Sequence[str]) -> bool:
    """Whether names mean corpora that are read one after the other: each holds all columns by itself."""
    corpora = [data_name(name) for name in names]
    return len(names) > 1 and all(corpus.has_options or format_of(corpus.path) != "text" for corpus in corpora)
