"""An answer in pieces is the answer, whatever bytes a model writes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqloom.hub.serving.answer_pieces import HALF, AnswerPieces
from seqloom.training.tokenizer import train_tokenizer

LINES = ["the cat sat on the mat 今天的天气很好"] * 20
KINDS = ("bpe", "unigram", "char", "word")


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: train_tokenizer(LINES, kind=kind, vocab_size=300).source for kind in KINDS}


def pieces_of(tokenizer, ids):
    pieces = AnswerPieces(tokenizer)
    return [piece for token in ids if (piece := pieces.step(None, token)) is not None], pieces.rest()


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
