"""Some thousand rows as arrays of characters, so that a rule looks at all of them in one go.

Letters: R rows, C characters of all rows of one side, line ends included.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import regex

NUM_CODES = 0x110000
"""Code points of Unicode."""

NUM_TABLED = 0x20000
"""Code points looked up in Unicode's tables; above lie rare ideographs, which have neither case nor punctuation."""

CONTROL, SEPARATOR, INVISIBLE, UNASSIGNED, SPACE = 1, 2, 4, 8, 16
"""Bits of `character_kinds`."""

KINDS = {
    CONTROL: r"[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069]",
    SEPARATOR: r"[\x0a\x0b\x0c\x0d\x1c-\x1e\x85\u2028\u2029]",
    INVISIBLE: r"[\xad\u180e\u200b\u200e\u200f\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb]",
    UNASSIGNED: r"[\ufffd\p{Co}\p{Noncharacter_Code_Point}]",
    SPACE: r"[\xa0\u1680\u2000-\u200a\u202f\u205f]",
}
"""Bit -> characters that few texts need. U+200C and U+200D are not among them, for Persian, Hindi and emoji need them,
nor is U+3000, Chinese's own blank."""

SCRIPTS = (
    "Latin Greek Cyrillic Armenian Hebrew Arabic Syriac Thaana Devanagari Bengali Gurmukhi Gujarati Oriya Tamil Telugu "
    "Kannada Malayalam Sinhala Thai Lao Tibetan Myanmar Georgian Hangul Ethiopic Cherokee Canadian_Aboriginal Khmer "
    "Mongolian Tifinagh Coptic Gothic Runic"
).split()
"""Scripts told apart; the signs of Chinese and Japanese are one, for Japanese mixes them."""

CJK = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}]"


@cache
def character_kinds() -> np.ndarray:
    """Code point -> bits of what is wrong with it, uint8."""
    return _table(KINDS, NUM_CODES)


@cache
def character_scripts() -> np.ndarray:
    """Code point -> 1 + place in `SCRIPTS`, `len(SCRIPTS) + 1` for Chinese and Japanese, 0 for no letter; uint8."""
    patterns = {place: rf"[\p{{{name}}}&&\p{{L}}]" for place, name in enumerate(SCRIPTS, 1)}
    return _table({**patterns, len(SCRIPTS) + 1: CJK}, 0x33480)


def _table(patterns: dict[int, str], num_codes: int) -> np.ndarray:
    codes = [code for code in range(num_codes) if not 0xD800 <= code < 0xE000]
    text = "".join(map(chr, codes))
    places = np.array(codes)
    table = np.zeros(NUM_CODES, np.uint8)
    for value, pattern in patterns.items():
        for run in regex.finditer(f"(?V1){pattern}+", text):
            table[places[run.start() : run.end()]] = value
    return table


@cache
def folded_characters() -> np.ndarray:
    """Code point -> the same in lower case, 0 for spaces and punctuation; uint32."""
    table = np.arange(NUM_CODES, dtype=np.uint32)
    for code in range(NUM_TABLED):
        category = unicodedata.category(chr(code))
        lower = chr(code).lower()
        is_kept = category[0] in "LMN" or (category == "Sk" and code > 0xFF)  # tone letters of phonetic text
        table[code] = ord(lower[0]) if is_kept else 0
    return table


def mix(values: np.ndarray) -> np.ndarray:
    """Spread 64-bit numbers (splitmix64, Steele et al. 2014), so that sums of them are hashes."""
    mixed = values.astype(np.uint64)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


class Side:
    """One column of a batch."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.joined = "\n".join(texts) + "\n"
        self.lengths = np.fromiter(map(len, texts), np.int64, len(texts))  # (R,) in characters
        self.starts = np.concatenate([[0], np.cumsum(self.lengths + 1)[:-1]]).astype(np.int64)  # (R,)

    @cached_property
    def codes(self) -> np.ndarray:
        """Code points, uint32."""
        return np.frombuffer(self.joined.encode("utf-32-le", "surrogatepass"), np.uint32)  # (C,)

    @cached_property
    def folded(self) -> np.ndarray:
        """Code points of letters and digits in lower case, 0 for all else, line ends too."""
        return folded_characters()[self.codes]  # (C,)

    @cached_property
    def kinds(self) -> np.ndarray:
        """Bits of what is wrong with a row's characters."""
        kinds = character_kinds()[self.codes]
        kinds[self.starts + self.lengths] = 0  # the end of a row is no character of it
        return np.bitwise_or.reduceat(kinds, self.starts)  # (R,)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sum values per character to values per row."""
        return np.add.reduceat(values, self.starts)  # (C,) -> (R,)

    @cached_property
    def num_letters(self) -> np.ndarray:
        """Letters and digits of each row."""
        return self.sum((self.folded > 0).astype(np.int32))  # (R,)

    @cached_property
    def num_spaces(self) -> np.ndarray:
        """Spaces of each row."""
        return self.sum((self.codes == 32).astype(np.int32))  # (R,)

    @cached_property
    def exact(self) -> np.ndarray:
        """A hash of each row as it is, uint64."""
        return self._hash(self.codes, np.arange(len(self.codes)) - np.repeat(self.starts, self.lengths + 1))  # (R,)

    @cached_property
    def near(self) -> np.ndarray:
        """A hash of each row's letters and digits alone, without case; of the row as it is where it has none."""
        ranks = np.cumsum(self.folded > 0)
        before: np.ndarray = ranks[self.starts] - (self.folded[self.starts] > 0)
        hashed = self._hash(self.folded, ranks - np.repeat(before, self.lengths + 1))
        return np.where(self.num_letters > 0, hashed, self.exact)  # (R,)

    def _hash(self, codes: np.ndarray, places: np.ndarray) -> np.ndarray:
        mixed = mix(codes.astype(np.uint64) + (places.astype(np.uint64) << np.uint64(32)) + np.uint64(1 << 21))
        mixed[codes == 0] = 0
        mixed[self.starts + self.lengths] = 0
        return self.sum(mixed)

    @cached_property
    def digits(self) -> np.ndarray:
        """A hash of each row's digits in any order, 0 where it has none, uint32."""
        values = np.where((self.codes >= 48) & (self.codes < 58), mix(self.codes), np.uint64(0))
        return (self.sum(values) & np.uint64(0xFFFFFFFF)).astype(np.uint32)  # (R,)

    @cached_property
    def trigrams(self) -> np.ndarray:
        """A bin for the three letters around each character; spaces and line ends count as one."""
        before, after = np.roll(self.folded, 1), np.roll(self.folded, -1)
        hashed = before * np.uint32(0x9E3779B1) ^ self.folded * np.uint32(0x85EBCA77) ^ after * np.uint32(0xC2B2AE3D)
        return (hashed ^ hashed >> np.uint32(15)) & np.uint32(NUM_BINS - 1)  # (C,)

    def rows_where(self, mask: np.ndarray) -> list[tuple[int, str]]:
        """Return place and text of the rows where `mask` is true."""
        return [(row, self.texts[row]) for row in np.flatnonzero(mask).tolist()]

    def matches(self, pattern: regex.Pattern[str]) -> np.ndarray:
        """Whether a pattern that crosses no line end is found in a row."""
        found = np.zeros(len(self.texts), bool)
        places = [match.start() for match in pattern.finditer(self.joined)]
        found[np.searchsorted(self.starts, places, "right") - 1] = True
        return found  # (R,)


NUM_SIDES = 2
"""Texts of a row at most; a third are its tags."""

NUM_BINS = 1 << 18
"""Bins for trigrams; a language of an alphabet has some ten thousand."""


@dataclass(frozen=True)
class Batch:
    """Some rows of a split."""

    numbers: np.ndarray
    """Line or record of each row, counted from 1."""
    sides: tuple[Side, ...]
    """Source and target, or the text alone."""
    tags: Side | None = None
    """What columns put in front of the source: another tag asks for another target."""

    @classmethod
    def of(cls, rows: Sequence[tuple[int, tuple[str | None, ...]]]) -> Batch:
        """Make a batch of rows, whose tags stand behind source and target; nothing counts as an empty text."""
        numbers, texts = zip(*rows)
        sides = tuple(Side([text or "" for text in side]) for side in zip(*texts))
        return cls(np.array(numbers), sides[:NUM_SIDES], sides[NUM_SIDES] if sides[NUM_SIDES:] else None)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def is_pairs(self) -> bool:
        """Whether rows have a source and a target."""
        return len(self.sides) == 2

    @cached_property
    def log_ratio(self) -> np.ndarray:
        """Natural logarithm of target length / source length; some characters more tame short rows."""
        source, target = (np.log(side.lengths + SHORT) for side in self.sides)
        return target - source  # (R,)


SHORT = 6.0
"""Characters added to both lengths before they are compared."""
