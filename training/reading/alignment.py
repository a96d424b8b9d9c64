"""Two files, line i of one beside line i of the other; and where a line is missing when they do not go together.

Source of the search: sentence lengths alone align parallel text (Gale and Church 1993, "A program for aligning
sentences in bilingual corpora"); here as a Viterbi search over the few shifts that a missing line can cause.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, zip_longest

import numpy as np

from seqloom.training.reading.readers import Row
from seqloom.training.reading.text_file import LineCountError, TextFile, is_blank, reported_to, shorten

MAX_SHIFTS = 8
"""Shifts that the alignment search follows one by one; the difference of the line counts is always among them."""

SHIFT_COST = 4.0
"""Price of one more missing line, in units of a capped log length ratio; 2 to 8 find a missing line equally well
(within 5 lines in 9 of 10 trials on Tatoeba deu-eng and cmn-eng, Multi30k, Classical-Modern Chinese)."""


def read_aligned(source: TextFile, target: TextFile) -> Iterator[Row]:
    """Yield line i of both files as row i.

    Raises:
        LineCountError: At the end, when one file has more lines; with both counts and the first suspicious line.
    """
    for number, texts in enumerate(zip_longest(source, target), 1):
        if None not in texts:
            yield number, texts
    if source.num_lines != target.num_lines:
        raise LineCountError(_describe_misalignment(source, target))


def _describe_misalignment(source: TextFile, target: TextFile) -> str:
    counts = f"{source.path} has {source.num_lines:,} lines and {target.path} {target.num_lines:,}"
    longer = source if source.num_lines > target.num_lines else target
    num_paired = min(source.num_lines, target.num_lines)
    with reported_to(lambda *_: None):  # what is wrong with their lines has been said
        sides = [list(islice(file, 100_000)) for file in (source, target)]
    surplus = max(sides, key=len)[num_paired:]
    if surplus and all(map(is_blank, surplus)):
        hint = f"The lines of {longer.path} from {num_paired + 1:,} on are blank: remove them."
    else:
        hint = _hint_at_unpaired_line(sides, longer.path)
    return f"{counts}; they must be line-aligned. {hint}"


def _hint_at_unpaired_line(sides: list[list[str]], longer_path: str) -> str:
    source, target = sides
    line = find_unpaired_line([len(text) for text in source], [len(text) for text in target])
    if line is None:
        return f"Up to the end of the shorter file the lengths fit: is it cut off, or does {longer_path} go on too far?"
    pair = f"{shorten(source[line])} beside {shorten(target[line])}"
    return f"First suspicious line: {line + 1:,} ({pair}); lines near it may be missing on one side."


def find_unpaired_line(source_lengths: Sequence[int], target_lengths: Sequence[int]) -> int | None:
    """Find the first line of the longer side that has no partner on the other, from line lengths alone.

    Args:
        source_lengths: Characters per line of one side.
        target_lengths: Characters per line of the other.

    Returns:
        The 0-based line of the longer side, or None when the sides fit together up to the end of the shorter one.
    """
    longer, shorter = sorted((source_lengths, target_lengths), key=len, reverse=True)
    if len(shorter) == 0 or len(longer) == len(shorter):
        return None
    difference = len(longer) - len(shorter)
    shifts = sorted({*range(min(difference, MAX_SHIFTS) + 1), difference})
    return _first_shift(_shift_costs(np.asarray(longer), np.asarray(shorter), shifts))


def _shift_costs(longer: np.ndarray, shorter: np.ndarray, shifts: list[int]) -> np.ndarray:
    """Cost of pairing line i of the shorter side with line i + shift of the longer, one column per shift."""
    ratios = [np.log(longer[shift : shift + len(shorter)] + 4.0) - np.log(shorter + 4.0) for shift in shifts]
    usual = np.median(ratios[0])
    return np.minimum(np.abs(np.stack(ratios, axis=1) - usual), 1.0)


def _first_shift(costs: np.ndarray) -> int | None:
    """Viterbi over shifts that only grow; the line at which the best path leaves shift 0, or None."""
    num_shifts = costs.shape[1]
    best = np.full(num_shifts, np.inf)
    best[0] = 0.0
    left_zero_at = np.full(num_shifts, -1)  # per state: where its best path left shift 0
    for line, cost in enumerate(costs):
        cheapest = np.minimum.accumulate(best)[:-1]
        grown = cheapest + SHIFT_COST < best[1:]
        if grown.any():
            came_from = [int(best[: state + 1].argmin()) for state in range(num_shifts - 1)]
            origin = np.array([line if state == 0 else left_zero_at[state] for state in came_from])
            left_zero_at[1:] = np.where(grown, origin, left_zero_at[1:])
            best[1:] = np.where(grown, cheapest + SHIFT_COST, best[1:])
        best = best + cost
    found = int(left_zero_at[best.argmin()])
    return None if found < 0 else found
