"""What kind of text the targets of a corpus are: phones, short strings, code or sentences; and which scores suit them.

Decided from the training text alone, and only where nobody names `metrics`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import regex

SAMPLE = 2000
"""Texts that are looked at."""

_LETTER = regex.compile(r"\p{L}")
_HAN = regex.compile(r"\p{Script=Han}")
_UNSPACED = regex.compile(r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}]")
_CODE = regex.compile(r"[_(){}\[\]=<>;/\\]|^[^\p{L}\p{N}]$")

MOST_PHONES = 200
"""Different phones that a language's transcription has at most; with tones and lengths Vietnamese has the most, 110."""


@dataclass(frozen=True)
class TargetKind:
    """A kind of targets, and what is usually scored on them."""

    name: str
    """As a person calls it."""
    metrics: tuple[str, ...]
    """Of `seqloom.training.metrics`; the first chooses the best checkpoint."""


PHONES = TargetKind("phones, separated by spaces", ("exact_match", "per", "wer"))
SHORT = TargetKind("short strings without spaces", ("exact_match", "cer"))
CODE = TargetKind("code-like text", ("exact_match", "chrf", "bleu"))
SENTENCES = TargetKind("sentences", ("bleu", "chrf", "exact_match", "cer"))


def kind_of(targets: Sequence[str]) -> TargetKind:
    """Return the kind of some targets, at most `SAMPLE` of them.

    Args:
        targets: texts of one corpus.
    """
    targets = [text for text in targets[:SAMPLE] if text.strip()]
    if are_phones(targets):
        return PHONES
    words = [word for text in targets for word in text.split()]
    if words and sum(bool(_CODE.search(word)) for word in words) > 0.2 * len(words):
        return CODE
    num_alone = sum(len(text.split()) == 1 for text in targets)
    num_characters = sum(map(len, targets)) / max(1, len(targets))
    longest = 6 if sum(bool(_UNSPACED.search(text)) for text in targets) * 2 > len(targets) else 40
    return SHORT if num_alone >= 0.9 * len(targets) and num_characters <= longest else SENTENCES


def are_phones(targets: Sequence[str]) -> bool:
    """Return whether texts are phones separated by spaces: few different symbols, each of at most three letters.

    Tones may be symbols of their own, without a letter.
    """
    words = [word for text in targets[:SAMPLE] for word in text.split()]
    if len(words) < 2 * min(len(targets), SAMPLE) or len(set(words)) > MOST_PHONES:
        return False
    letters = [99 if _HAN.search(word) else len(_LETTER.findall(word)) for word in words]
    return sum(n <= 3 for n in letters) >= 0.98 * len(words) and sum(n > 0 for n in letters) >= 0.6 * len(words)


__all__ = ["CODE", "PHONES", "SENTENCES", "SHORT", "TargetKind", "are_phones", "kind_of"]
