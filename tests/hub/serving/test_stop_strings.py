"""Stop strings: the streamed answer is the whole answer's text before the first of them, and nothing comes late."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqloom.hub.serving.stop_strings import UntilStop, cut_at_stop, length_to_hold

texts = st.text("ab\n今", max_size=12)
stops = st.lists(st.text("ab\n今", min_size=1, max_size=4), min_size=1, max_size=3)


def queue_of(items):
    queue = asyncio.Queue()
    for item in items:
        queue.put_nowait(item)
    return queue


def read_all(items, stops):
    async def read():
        reader = UntilStop(queue_of(items), stops)
        found = [await reader.get()]
        while found[-1] is not None:
            found.append(await reader.get())
        return found[:-1]

    return asyncio.run(read())


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [("abcd", ["c"], "ab"), ("abcd", ["cd", "b"], "a"), ("abcd", ["x"], "abcd"), ("abcd", [], "abcd"), ("", ["a"], "")],
)
def test_the_first_stop_string_cuts(text, stops, expected):
    assert cut_at_stop(text, stops) == expected


@pytest.mark.parametrize(("text", "held"), [("ab", 1), ("abc", 2), ("a", 0), ("", 0), ("bcdbc", 2), ("bcd", 0)])
def test_only_the_beginning_of_a_stop_string_is_held(text, held):
    assert length_to_hold(text, ["bcd"]) == held


@given(st.lists(texts, max_size=6), stops)
def test_pieces_add_up_to_the_cut_text(pieces, stops):
    assert "".join(read_all([*pieces, None], stops)) == cut_at_stop("".join(pieces), stops)


@given(st.lists(texts, max_size=6), stops)
def test_nothing_comes_late(pieces, stops):
    reader, seen = UntilStop(queue_of(pieces), stops), ""
    while True:
        try:
            seen += reader.get_nowait()
        except asyncio.QueueEmpty:
            break
    whole = "".join(pieces)
    expected = cut_at_stop(whole, stops)
    if expected == whole:
        expected = whole[: len(whole) - length_to_hold(whole, stops)]
    assert seen == expected


def test_what_is_no_text_passes_through_behind_the_held_text():
    error = ValueError("broken")
    assert read_all(["a", error, "x", None], ["ab"]) == ["a", error, "x"]
    assert read_all(["ab", error, None], ["ab"]) == [error]
