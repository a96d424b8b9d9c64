"""What the names of data files say: their format, and whether several of them belong together."""

from collections.abc import Sequence
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


def format_of(path: str) -> str:
    """Return the format that a file has by its name: one of `FORMATS`, or text."""
    name = PurePath(path.removesuffix(".gz"))
    kind = FORMATS.get(name.suffix.lower(), "text")
    return "lexicon" if kind == "text" and name.name.lower().startswith(LEXICON) else kind


def is_aligned(names: Sequence[str]) -> bool:
    """Whether names mean a source and a target, line by line."""
    return len(names) == 2 and all(format_of(name) == "text" for name in names)


def can_follow(names: Sequence[str]) -> bool:
    """Whether names mean corpora that are read one after the other: each holds all columns by itself."""
    return len(names) > 1 and all(format_of(name) != "text" for name in names)
