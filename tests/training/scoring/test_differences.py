"""What is marked in an output: all of it, in order, and nothing else."""

from hypothesis import given
from hypothesis import strategies as st

from seqloom.training.scoring.differences import Piece, confusions, differences

texts = st.text(st.sampled_from("ab é\u0301今天"), max_size=12)


@given(texts, texts, st.booleans())
def test_the_pieces_are_the_two_texts(output, reference, by_words):
    pieces = differences(output, reference, by_words=by_words)
    for text, other in ((output, "missing"), (reference, "extra")):
        left = "".join(piece.text for piece in pieces if piece.kind != other)
        assert left.split() == text.split()
        if output == reference:
            assert {piece.kind for piece in pieces} <= {"same"}


def test_words_or_characters_are_marked():
    assert differences("ein Hut", "ein Hund", by_words=True) == [
        Piece("same", "ein "),
        Piece("missing", "Hund "),
        Piece("extra", "Hut "),
    ]
    assert differences("Hut", "Hund", by_words=False) == [
        Piece("same", "Hu"),
        Piece("missing", "nd"),
        Piece("extra", "t"),
    ]
    assert {piece.kind for piece in differences("a  b", "a b", by_words=True)} == {"same", "extra"}, "a space too many"


def test_what_is_taken_for_what_is_counted():
    references, outputs = ["k a t", "k o t", "d o"], ["k e t", "k e t", "d o k"]
    assert confusions(outputs, references, by_words=True) == []
    assert confusions(outputs * 2, references * 2, by_words=True) == [("a", "e", 2), ("o", "e", 2), ("", "k", 2)]
