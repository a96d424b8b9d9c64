"""The nearest training lines against a search through all of them, and words counted by hand."""

import random

import pytest
from datasets import Dataset
from rapidfuzz.distance import Indel

from seqloom.hub.tags import Tags
from seqloom.training.scoring import nearness as module
from seqloom.training.scoring.nearness import near_training


@pytest.fixture
def corpus():
    rng = random.Random(4)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 7))) for _ in range(40)]
    sources = [" ".join(rng.choices(words, k=rng.randint(2, 7))) for _ in range(320)]
    return Dataset.from_dict({"source": sources[:300], "target": [f"t{n}" for n in range(300)]}), sources[300:]


def test_the_nearest_line_is_that_of_a_search_through_all(corpus):
    training, sources = corpus
    found = near_training(training, sources)
    for source, line in zip(sources, found.nearest, strict=True):
        best = max(Indel.normalized_similarity(source, each) for each in training["source"])
        assert line.similarity == pytest.approx(best)
        assert line.target == f"t{training['source'][:].index(line.source)}"


def test_few_candidates_are_enough_for_what_was_learned(corpus, monkeypatch):
    """A copy has all the pieces, so it is found through its rarest one; spaces and letter case do not count."""
    training, _ = corpus
    monkeypatch.setattr(module, "MOST_CANDIDATES", 1)
    copies = [f" {text.upper()}" for text in training["source"][:20]]
    assert [line.similarity for line in near_training(training, copies).nearest] == [1.0] * 20


def test_tags_in_front_are_no_text():
    """Nor does another tag hide a copy; of lines that are as near, the same source letter for letter is the nearest."""
    sources = ["<pos=N>kutya", "<pos=V>Alma", "<pos=N>alma"]
    training = Dataset.from_dict({"source": sources, "target": ["x", "y", "z"]})
    tags = Tags(("pos",), ("<pos=N>", "<pos=V>"))
    found = near_training(training, ["<pos=N>ing", "<pos=N>alma", "<pos=V>kutya", "<no>kutya"], tags)
    assert [line.similarity for line in found.nearest[:3]] == [0, 1, 1]
    assert found.nearest[3].similarity < 1
    assert [line.target for line in found.nearest[1:3]] == ["z", "x"]


def test_the_rarest_word_is_counted():
    training = Dataset.from_dict({"source": ["the old house", "the house", "A Tree"], "target": ["x"] * 3})
    found = near_training(training, ["the house", "the old tree", "a new house", "tree old the"])
    assert (found.unit, found.rarest, found.num_rows) == ("word", [2, 1, 0, 1], 3)


def test_single_words_are_looked_up_by_pairs_of_characters():
    training = Dataset.from_dict({"source": ["abba", "abc"], "target": ["x"] * 2})
    found = near_training(training, ["abc", "zz"])
    assert (found.unit, found.rarest) == ("pair of characters", [1, 0])
    assert found.nearest[1].similarity == 0
