"""What an output has other than its reference, piece by piece, and what is taken for what most often."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import regex
from rapidfuzz.distance import Levenshtein

_CHARACTERS = regex.compile(r"\X")


@dataclass(frozen=True)
class Piece:
    """A stretch of text that both have, or only one of them."""

    kind: Literal["same", "missing", "extra"]
    """missing: the reference has it; extra: the output has it."""
    text: str


def differences(output: str, reference: str, *, by_words: bool) -> list[Piece]:
    """Return what makes the output of the reference, in the order of reading.

    Args:
        output: what was written.
        reference: what would be right.
        by_words: compare words, else what a reader sees as one character.
    """
    by_words &= output.split() != reference.split()  # else it is spaces in which they differ
    written, right = _cut(output, by_words), _cut(reference, by_words)
    pieces, missing, extra = [], "", ""
    for step in [*Levenshtein.opcodes(right, written), None]:
        if step is None or step.tag == "equal":
            pieces += [Piece("missing", missing)] * bool(missing) + [Piece("extra", extra)] * bool(extra)
            missing = extra = ""
        if step is None:
            continue
        stretch = "".join(right[step.src_start : step.src_end])
        if step.tag == "equal":
            pieces.append(Piece("same", stretch))
        else:
            missing, extra = missing + stretch, extra + "".join(written[step.dest_start : step.dest_end])
    return pieces


def _cut(text: str, by_words: bool) -> list[str]:
    """Return words, each with a space behind it, or what a reader sees as characters."""
    if not by_words:
        return _CHARACTERS.findall(text)
    return [f"{word} " for word in text.split()]


def confusions(outputs: Iterable[str], references: Iterable[str], *, by_words: bool) -> list[tuple[str, str, int]]:
    """Return the dozen that was written for something else most often: (right, written, times); "": nothing.

    Args:
        outputs: one text a sentence.
        references: the same.
        by_words: count words, or phones, else characters.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for output, reference in zip(outputs, references, strict=True):
        written, right = ([each.strip() or each for each in _cut(text, by_words)] for text in (output, reference))
        for edit in Levenshtein.editops(right, written):
            counts[
                right[edit.src_pos] if edit.tag != "insert" else "",
                written[edit.dest_pos] if edit.tag != "delete" else "",
            ] += 1
    return [(*pair, count) for pair, count in counts.most_common(12) if count > 1]


__all__ = ["Piece", "confusions", "differences"]
