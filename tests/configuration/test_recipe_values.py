"""Text to typed values: the key decides the type, not YAML."""

from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.trainer_utils import IntervalStrategy, SchedulerType

from seqloom.configuration.recipe_values import (
    MismatchError,
    PlainText,
    choices_of,
    convert,
    describe,
    guess,
    read_yaml,
    write_yaml,
)


def plain(text: str) -> PlainText:
    return PlainText(text)


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("1e-3", float, 0.001),  # text in YAML 1.1
        ("1E3", int, 1000),
        ("10_000", int, 10_000),
        ("010", int, 10),  # 8 in YAML 1.1
        ("-1", int, -1),
        ("2000", float, 2000),
        (".5", float | int, 0.5),
        ("5.", float, 5.0),
        ("0", float | int, 0),
        ("no", bool, False),
        ("On", bool, True),
        ("1", bool, True),
        ("no", IntervalStrategy | str, "no"),  # False in YAML 1.1
        ("cosine", SchedulerType | str, "cosine"),
        ("null", int | None, None),
        ("", list[str] | None, None),
        ("none", None | str | list[str], "none"),
        ("null", str, "null"),
        ("null", list[str], []),
        ("2024", list[str], ["2024"]),
        ("[a, 1e3]", list[str], ["a", "1e3"]),
        ("[a].txt", str, "[a].txt"),
        ("{a: 1e-5, b: [true, x]}", dict | str | None, {"a": 1e-5, "b": [True, "x"]}),
        ("path.json", dict | str | None, "path.json"),
        ("all", str | bool, "all"),
        ("false", str | None | Literal[False], False),
        ("12:30", str, "12:30"),
        ("true", bool | None, True),
    ],
)
def test_text_becomes_what_the_annotation_asks_for(text: str, hint: Any, value: Any) -> None:
    converted = convert(plain(text), hint)
    assert converted == value
    assert type(converted) is type(value)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (plain("fast"), float),
        (plain("1.5"), int),
        (plain("1e-3"), int),
        (plain("nan"), float),
        (float("inf"), float),
        (True, int),
        (True, float),
        (plain("maybe"), bool),
        (2, bool),
        (["a"], str),
        (3, str),
        (None, str),
        (None, int),
        ([None], list[str]),
        (plain("[a"), dict),
        (plain("{a"), dict),
        (plain("linearr"), SchedulerType | str),
        (plain("x"), Path),
    ],
)
def test_what_does_not_fit_is_refused(value: Any, hint: Any) -> None:
    with pytest.raises(MismatchError):
        convert(value, hint)


def test_python_values_pass() -> None:
    assert convert(["a", Path("b")], list[str]) == ["a", "b"]
    assert convert(Path("a"), str) == "a"
    assert convert(SchedulerType.COSINE, SchedulerType | str) == "cosine"
    assert convert(False, IntervalStrategy | str) == "no"
    assert convert({"a": "1"}, dict | str) == {"a": "1"}


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "a whole number"),
        (float | int, "a number"),
        (bool | None, "true or false or null"),
        (list[str] | None, "a list of words or null"),
        (Literal["a", "b"], "one of a, b"),
        (IntervalStrategy | str, "one of no, steps, epoch"),
        (Path, "something that no recipe can hold"),
    ],
)
def test_annotations_in_words(hint: Any, words: str) -> None:
    assert describe(hint) == words


def test_choices_are_found_through_unions() -> None:
    assert choices_of(IntervalStrategy | str) == ["no", "steps", "epoch"]
    assert choices_of(Literal["a", "b"] | None) == ["a", "b"]
    assert choices_of(int) == []


def test_a_key_written_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not valid YAML, line 1, column 1: seed stands there twice"):
        read_yaml("seed: 1\nseed: 2")


def test_broken_yaml_says_where() -> None:
    with pytest.raises(ValueError, match=r"not valid YAML, line 2, column 5: "):
        read_yaml("a: [1,\nb: 2")


def test_yaml_builds_no_python_objects() -> None:
    with pytest.raises(ValueError, match="not valid YAML"):
        read_yaml("a: !!python/object/apply:os.getcwd []")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "null",
        "~",
        "",
        "no",
        "true",
        "1e-3",
        "0x10",
        "1_000",
        "-",
        "[a]",
        "{a: b}",
        "'",
        '"',
        "#",
        "a: b",
        "\u2028",
        "\r\n",
    ]
)
LEAF = (
    TEXT | st.booleans() | st.none() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False)
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(TEXT, st.recursive(LEAF, lambda inner: st.lists(inner, max_size=3), max_leaves=5), max_size=4))
def test_mappings_come_back_from_yaml(values: dict[str, Any]) -> None:
    assert guess(read_yaml(write_yaml(values))) == values


@settings(max_examples=150, deadline=None)
@given(TEXT)
def test_text_comes_back_from_yaml(text: str) -> None:
    assert convert(read_yaml(write_yaml({"key": text}))["key"], str) == text
    assert convert(read_yaml(write_yaml({"key": [text]}))["key"], list[str]) == [text]
    assert convert(read_yaml(write_yaml({"key": text}))["key"], str | None) == text


@pytest.mark.parametrize("text", ["None", "null", "~", "", "true", "1e-3", "010"])
def test_text_that_looks_like_something_else_stays_text(text: str) -> None:
    assert convert(read_yaml(write_yaml({"key": text}))["key"], str | None) == text


def test_an_alias_is_refused_before_it_multiplies() -> None:
    with pytest.raises(ValueError, match=r"not valid YAML, line 2, column 8: write \*all out"):
        read_yaml("data: &all [a, b]\nmodel: *all\n")
    doubling = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 99))
    with pytest.raises(ValueError, match="line 2, column "):
        read_yaml(doubling)
