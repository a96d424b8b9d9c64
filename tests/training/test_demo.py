import re
from datetime import date, timedelta

import pytest

from seqloom.training.demo import (
    DEMO_EXAMPLES,
    DEMO_TARGET,
    FIRST_DAY,
    LAST_DAY,
    PATTERNS,
    build_demo,
    write_date,
)

SMALL = {"num_train": 600, "num_validation": 50, "num_test": 50}


@pytest.fixture(scope="module")
def demo():
    return build_demo(**SMALL)


def days_between(first, last):
    return [first + timedelta(days) for days in range((last - first).days + 1)]


def all_ways(day):
    return [write_date(day, language, pattern) for language, patterns in PATTERNS.items() for pattern in patterns]


def conflicts(days):
    """Texts that two different days share."""
    meaning = {}
    texts = ((text, day) for day in days for text in all_ways(day))
    return [(text, day) for text, day in texts if meaning.setdefault(text, day) != day]


def test_demo_has_three_splits_of_the_sizes_asked_for(demo):
    assert {name: split.num_rows for name, split in demo.items()} == {"train": 600, "validation": 50, "test": 50}
    assert all(split.column_names == ["source", "target"] for split in demo.values())


def test_the_data_is_always_the_same(demo):
    assert build_demo(**SMALL)["train"].to_dict() == demo["train"].to_dict()


def test_a_smaller_train_split_is_the_start_of_a_larger_one(demo):
    shorter = build_demo(**{**SMALL, "num_train": 100})
    assert shorter["test"].to_dict() == demo["test"].to_dict()
    assert shorter["train"].to_dict() == demo["train"].select(range(100)).to_dict()


def test_default_sizes():
    assert {name: split.num_rows for name, split in build_demo().items()} == {
        "train": 40_000,
        "validation": 1_000,
        "test": 2_000,
    }


def test_each_day_is_used_once_so_no_day_is_in_two_splits(demo):
    days = [target for split in demo.values() for target in split["target"]]
    assert len(days) == len(set(days)) == 700
    assert DEMO_TARGET not in days


def test_every_target_is_an_iso_date_of_the_calendar(demo):
    days = [date.fromisoformat(target) for split in demo.values() for target in split["target"]]
    assert [day.isoformat() for day in days] == [target for split in demo.values() for target in split["target"]]
    assert all(FIRST_DAY <= day <= LAST_DAY for day in days)


def test_every_source_is_a_way_to_write_its_target(demo):
    assert all(row["source"] in all_ways(date.fromisoformat(row["target"])) for row in demo["train"])


def test_every_language_and_pattern_occurs_in_training():
    train = build_demo(**{**SMALL, "num_train": 3_000})["train"]
    texts = {row["target"]: row["source"] for row in train}
    for language, patterns in PATTERNS.items():
        for pattern in patterns:
            hits = sum(write_date(date.fromisoformat(iso), language, pattern) == text for iso, text in texts.items())
            # 3,000 / 12 languages / 5 patterns = 50 on average for the rarest
            assert hits > 20, (language, pattern)


def test_a_dozen_languages_with_chinese():
    assert len(PATTERNS) == 12
    assert "zh" in PATTERNS


def test_the_examples_are_three_ways_to_write_the_unseen_day():
    assert set(DEMO_EXAMPLES) <= set(all_ways(date.fromisoformat(DEMO_TARGET)))


def test_each_text_has_one_meaning():
    # Two years hold each day of a year, leap day included; the year itself stands in the text, see the next test.
    assert conflicts(days_between(date(2024, 1, 1), date(2025, 12, 31))) == []


def test_each_text_holds_its_four_digit_year_once():
    for day in (date(1900, 3, 4), date(2024, 2, 29), date(2099, 12, 31)):
        assert all(re.findall(r"[0-9]{4}", text) == [str(day.year)] for text in all_ways(day))


def test_the_search_for_two_meanings_finds_one(monkeypatch):
    # "listopada" is November in Polish and October in Croatian, which is why Croatian is not in the demo.
    monkeypatch.setitem(PATTERNS, "hr", ("d. MMMM y",))
    monkeypatch.setitem(PATTERNS, "pl", ("d. MMMM y",))
    assert ("5. listopada 2026", date(2026, 11, 5)) in conflicts(days_between(date(2026, 1, 1), date(2026, 12, 31)))


@pytest.mark.slow  # 3.5 million texts, half a minute
def test_each_text_of_the_whole_calendar_has_one_meaning():
    assert conflicts(days_between(FIRST_DAY, LAST_DAY)) == []


@pytest.mark.parametrize("language", PATTERNS)
def test_the_month_is_a_name_or_the_year_stands_in_front(language):
    for pattern in PATTERNS[language]:
        text = write_date(date(2026, 4, 3), language, pattern)
        assert text.startswith("2026") or sorted(re.findall("[0-9]+", text)) == ["2026", "3"], text


@pytest.mark.parametrize("language", PATTERNS)
def test_texts_hold_only_what_a_keyboard_types(language):
    for day in days_between(date(2026, 1, 1), date(2026, 12, 31)):
        for pattern in PATTERNS[language]:
            text = write_date(day, language, pattern)
            assert text == text.strip()
            assert all(letter.isprintable() for letter in text), ascii(text)  # of the spaces only U+0020 is


def test_years_have_four_digits():
    assert FIRST_DAY.year >= 1000
    assert LAST_DAY.year <= 9999
