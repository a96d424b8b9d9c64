"""The embedded demo: dates as twelve languages write them, turned into ISO 8601.

Whoever starts Seqloom without data still sees it learn something real in a minute. Date normalisation suits: it
cannot be done by copying alone ("22 novembre 2026" has its day in front, "2026年11月22日" at the end), every answer is
right or wrong, and the data needs no download, because Babel carries the formats of the Unicode CLDR
(https://cldr.unicode.org/translation/date-time/date-time-patterns).

One rule keeps the task fair: every pattern names its month or begins with the year, so that no reader can take
04.03.1987 for April 3. German's medium format is such a pattern and therefore absent.
"""

import hashlib
from collections.abc import Iterable
from datetime import date, timedelta
from functools import cache

from babel.core import Locale
from babel.dates import format_date
from datasets import Dataset, DatasetDict

FIRST_DAY, LAST_DAY = date(1900, 1, 1), date(2099, 12, 31)
"""The demo's calendar, 73,049 days. Each day is used at most once, in one split only."""

DEMO_TARGET = "2026-11-22"
"""The answer to each of `DEMO_EXAMPLES`. This day is in no split: the model has never met it when it is asked."""

DEMO_EXAMPLES = ("22 novembre 2026", "2026年11月22日", "Sunday, November 22, 2026")
"""What the closing printout asks the trained model: French, Chinese and English, all meaning `DEMO_TARGET`."""

PATTERNS: dict[str, tuple[str, ...]] = {
    "de": ("full", "long", "d. MMM y", "EEE, d. MMM y"),
    "en": ("full", "long", "medium", "EEEE, d MMMM y", "d MMM y"),
    "es": ("full", "long", "medium", "EEE, d MMM y"),
    "fr": ("full", "long", "medium", "EEE d MMM y"),
    "it": ("full", "long", "medium", "EEE d MMM y"),
    "ja": ("full", "long", "medium", "y年M月d日(EEE)"),
    "ko": ("full", "long", "medium", "y년 M월 d일 (EEE)"),
    "pl": ("full", "long", "medium", "EEE, d MMM y"),
    "pt": ("full", "long", "medium", "EEE, d MMM y"),
    "ru": ("full", "long", "medium", "EEE, d MMM y"),
    "tr": ("full", "long", "medium", "d MMM y EEE"),
    "zh": ("full", "long", "y年M月d日EEE", "y年MM月dd日", "y-MM-dd"),
}
"""Language -> its ways to write a date: CLDR's own by name, a few custom ones in CLDR's pattern letters."""


def build_demo(*, num_train: int = 40_000, num_validation: int = 1_000, num_test: int = 2_000) -> DatasetDict:
    """Build the demo's three splits; the same arguments give the same examples on any machine.

    Each example stands for a day of its own, so a day of one split never occurs in another. Language and format are
    drawn evenly: first the language, then one of its patterns.

    Args:
        num_train: Examples in the split "train".
        num_validation: Examples in the split "validation".
        num_test: Examples in the split "test".

    Returns:
        "train", "validation" and "test", each with the string columns "source" (the date as people write it) and
        "target" (ISO 8601, "2026-11-22").
    """
    sizes = {"test": num_test, "validation": num_validation, "train": num_train}
    days = _shuffled_days()
    splits, start = {}, 0
    for name, size in sizes.items():
        splits[name] = _to_dataset(days[start : start + size])
        start += size
    return DatasetDict({name: splits[name] for name in ("train", "validation", "test")})


def write_date(day: date, language: str, pattern: str) -> str:
    """Write a day the way a language does, with the spaces a keyboard has.

    Args:
        day: The day to write.
        language: A CLDR language code, for instance "fr".
        pattern: "full", "long", "medium", or CLDR pattern letters such as "d MMM y".

    Returns:
        The date as text, for instance "22 novembre 2026".
    """
    # CLDR sets U+202F before the Russian "г."; nobody types it.
    return " ".join(format_date(day, pattern, locale=_locale(language)).split())


_LANGUAGES = tuple(PATTERNS)


@cache
def _locale(language: str) -> Locale:
    """Parse a language code once; Babel does it at every call, for a third of the time."""
    return Locale.parse(language)


def _shuffled_days() -> list[date]:
    """Put the calendar, without the day shown at the end, in a random order that is always the same."""
    calendar = {FIRST_DAY + timedelta(days) for days in range((LAST_DAY - FIRST_DAY).days + 1)}
    calendar.remove(date.fromisoformat(DEMO_TARGET))
    return sorted(calendar, key=_digest)


def _digest(day: date) -> int:
    """Hash a day to 64 random bits; a hash, unlike a generator, is the same in every version of every library."""
    return int.from_bytes(hashlib.blake2b(f"0 {day}".encode(), digest_size=8).digest(), "big")


def _to_dataset(days: Iterable[date]) -> Dataset:
    sources, targets = [], []
    for day in days:
        # The order of the days used the high bits; what remains after a division is as good as new.
        rest, language_index = divmod(_digest(day), len(_LANGUAGES))
        language = _LANGUAGES[language_index]
        patterns = PATTERNS[language]
        sources.append(write_date(day, language, patterns[rest % len(patterns)]))
        targets.append(day.isoformat())
    return Dataset.from_dict({"source": sources, "target": targets})
