"""An answer in pieces is the answer, whatever bytes a model writes, and ends before the first stop string."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqloom.hub.serving.answer_text import HALF, AnswerPieces, UntilStop
from seqloom.training.tokenizer import train_tokenizer

LINES = ["the cat sat on the mat 今天的天气很好"] * 20
KINDS = ("bpe", "unigram", "char", "word")


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: train_tokenizer(LINES, kind=kind, vocab_size=300).source for kind in KINDS}


def pieces_of(tokenizer, ids):
    pieces = AnswerPieces(tokenizer)
    return [piece for token in ids if (piece := pieces.take(token))], pieces.rest()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=st.text(st.sampled_from("the cat 今天🙂é"), max_size=30))
def test_the_pieces_of_a_text_are_the_text(tokenizers, kind, text):
    tokenizer = tokenizers[kind]
    ids = tokenizer(text).input_ids
    found, rest = pieces_of(tokenizer, ids)
    assert "".join(found) == tokenizer.decode(ids, skip_special_tokens=True)
    assert rest == ""
    assert not any(HALF in piece for piece in found)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_bytes_that_are_no_text_pass(tokenizers, kind, data):
    """Decoded as a whole, a run of bytes may be written anew; readable characters between such runs all arrive."""
    tokenizer = tokenizers[kind]
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=20))
    found, rest = pieces_of(tokenizer, ids)
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    if HALF not in whole:
        assert "".join(found) + rest == whole
    else:
        assert HALF not in "".join(found)[-1:]


def test_half_a_character_at_the_end_is_not_lost(tokenizers):
    tokenizer = tokenizers["bpe"]
    ids = tokenizer("the 🙂", add_special_tokens=False).input_ids[:-1]
    found, rest = pieces_of(tokenizer, ids)
    assert ("".join(found), set(rest)) == ("the ", {HALF})


# Stop strings --------------------------------------------------------------------------------------------------------

texts = st.text("ab\n今", max_size=12)
stops = st.lists(st.text("ab\n今", min_size=1, max_size=4), min_size=1, max_size=3)


def cut_at_stop(text, stops):
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


def read_all(pieces, stops):
    until = UntilStop(stops)
    taken = "".join(map(until.take, pieces))
    return taken if until.is_stopped else taken + until.rest()


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [("abcd", ["c"], "ab"), ("abcd", ["cd", "b"], "a"), ("abcd", ["x"], "abcd"), ("abcd", [], "abcd"), ("", ["a"], "")],
)
def test_the_first_stop_string_cuts(text, stops, expected):
    assert read_all([text], stops) == read_all(text, stops) == expected


@pytest.mark.parametrize(("text", "held"), [("ab", 1), ("abc", 2), ("a", 0), ("", 0), ("bcdbc", 2), ("bcd", 0)])
def test_only_the_beginning_of_a_stop_string_is_held(text, held):
    until = UntilStop(["bcd"])
    out = until.take(text)
    assert until.rest() == ("" if until.is_stopped else text[len(text) - held :])
    assert until.is_stopped or out + until.rest() == text


@given(st.lists(texts, max_size=6), stops)
def test_pieces_add_up_to_the_cut_text(pieces, stops):
    assert read_all(pieces, stops) == cut_at_stop("".join(pieces), stops)


@given(st.lists(texts, max_size=6), stops)
def test_nothing_comes_late(pieces, stops):
    until, whole = UntilStop(stops), "".join(pieces)
    seen = "".join(map(until.take, pieces))
    held = max(
        (
            n
            for n in range(4)
            if whole[len(whole) - n :] and any(s[:n] == whole[len(whole) - n :] for s in stops if n < len(s))
        ),
        default=0,
    )
    assert seen == (cut_at_stop(whole, stops) if until.is_stopped else whole[: len(whole) - held])
