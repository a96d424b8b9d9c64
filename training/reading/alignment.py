"""Two files, line i of one beside line i of the other."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from itertools import islice, zip_longest

from seqloom.training.reading.readers import Row
from seqloom.training.reading.text_file import LineCountError, TextFile, is_blank, is_reported, reported_to


def read_aligned(source: TextFile, target: TextFile) -> Iterator[Row]:
    """Yield line i of both files as row i.

    Raises:
        LineCountError: At the end, when one file has more lines; with both counts.
    """
    for number, texts in enumerate(zip_longest(source, target), 1):
        if None not in texts:
            yield number, texts
    if source.num_lines != target.num_lines:
        raise LineCountError(_describe_misalignment(source, target))


def _describe_misalignment(source: TextFile, target: TextFile) -> str:
    counts = f"{source.path} has {source.num_lines:,} lines and {target.path} {target.num_lines:,}"
    counts = f"{counts}; they must be line-aligned."
    num_paired = min(source.num_lines, target.num_lines)
    longer = (source if source.num_lines > num_paired else target).path
    with reported_to(lambda *_: None):  # what is wrong with its lines has been said
        if all(map(is_blank, islice(TextFile(longer), num_paired, None))):
            return f"{counts} The lines of {longer} from {num_paired + 1:,} on are blank: remove them."
    if is_reported():  # to `seqloom check`, which looks itself
        return counts
    command = shlex.join(["seqloom", "check", source.path, target.path])
    return f"{counts} `{command}` looks for the line where one is missing."
