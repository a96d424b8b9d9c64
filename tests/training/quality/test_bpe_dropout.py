"""BPE-dropout: the library's pieces without dropout, the paper's with it, and a plan that keeps its budget."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqloom.training.batching import BatchSettings
from seqloom.training.quality.bpe_dropout import EpochEncodings, LengthLimits, PieceDropout
from seqloom.training.tokenizer import train_tokenizer
from tests.tiny_trainer import tiny_pairs, tiny_tokenizers, tiny_trainer

NO_LIMITS = LengthLimits(np.inf, np.inf, np.inf)
TEXTS = ["the cat sat on the mat", "the other cats sat there", "今天的天气很好", "今天", "naïve café", "a <b> </s> 12"]


@pytest.fixture(scope="module")
def joint():
    return train_tokenizer(TEXTS, TEXTS, kind="bpe", vocab_size=340, min_frequency=1, show_progress=False)


@pytest.fixture(scope="module")
def separate():
    return train_tokenizer(
        TEXTS, TEXTS[::-1], kind="bpe", vocab_size=320, joint=False, min_frequency=1, show_progress=False
    )


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30) | st.lists(st.sampled_from(TEXTS), max_size=3).map(" ".join))
def test_without_dropout_it_cuts_as_the_library_does(joint, text):
    assert PieceDropout(joint.source, 0.0).encode(text) == joint.source(text).input_ids


def test_separate_vocabularies_cut_as_the_library_does(separate):
    for side in (separate.source, separate.target):
        for text in TEXTS:
            assert PieceDropout(side, 0.0).encode(text) == side(text).input_ids


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=20), st.integers(0, 9))
def test_whatever_is_skipped_the_text_stays(joint, text, epoch):
    ids = PieceDropout(joint.source, 0.5).encode(text, 1, epoch)
    plain = joint.source(text).input_ids
    assert joint.source.decode(ids, skip_special_tokens=True) == joint.source.decode(plain, skip_special_tokens=True)
    assert len(ids) >= len(plain)


def test_pieces_depend_on_the_key_alone(joint):
    cut, again = PieceDropout(joint.source, 0.3), PieceDropout(joint.source, 0.3)
    text = " ".join(TEXTS)
    first = cut.encode(text, 42, 0, 7)
    assert again.encode(text, 42, 0, 7) == first
    others = [cut.encode(text, *key) for key in ((43, 0, 7), (42, 1, 7), (42, 0, 8))]
    assert all(other != first for other in others)


def test_merges_are_skipped_as_often_as_asked(joint):
    """Of "ab" with one merge, the share of whole pieces is 1 - p; with all dropped, characters are left."""
    tokenizers = train_tokenizer(["ab"] * 3, None, kind="bpe", vocab_size=263, show_progress=False)
    cut = PieceDropout(tokenizers.source, 0.25)
    whole = sum(len(cut.encode("ab", 0, 0, i)) == 2 for i in range(4000)) / 4000
    assert whole == pytest.approx(0.75, abs=0.025)
    assert len(PieceDropout(joint.source, 0.999999).encode("the cat", 0)) == len("the cat") + 1


WORDS = ["the cats sat on the mat .", "Paula saw the cat", "the cat , cats", "今天 the", "naïve <b> Paula ."]


@pytest.fixture(scope="module", params=["joint", "separate"])
def of_words(request):
    return train_tokenizer(
        WORDS, WORDS[::-1], kind="word", vocab_size=400, joint=request.param == "joint", show_progress=False
    )


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30) | st.lists(st.sampled_from(WORDS), max_size=3).map(" ".join))
def test_without_dropout_words_are_cut_as_the_library_does(of_words, text):
    for side in (of_words.source, of_words.target):
        assert PieceDropout(side, 0.0).encode(text) == side(text).input_ids
        spelled = PieceDropout(side, 0.999999).encode(text, 1)
        assert side.decode(spelled, skip_special_tokens=True) == side.decode(side(text).input_ids[:-1])


def test_a_word_is_spelled_on_both_sides_or_on_none(of_words):
    """Whether a blank is before it or not, and so are its forms; a word of one sign stays."""
    source, target = (PieceDropout(side, 0.5) for side in (of_words.source, of_words.target))
    share, both = [], []
    for index in range(500):
        pieces = of_words.source.convert_ids_to_tokens(source.encode("Paula saw the cat .", index))
        written = of_words.target.convert_ids_to_tokens(target.encode("the cat , cats Paula .", index, side=1))
        assert (" cats" in written) == (" cat" in written)
        is_whole = {word: f" {word}" in pieces for word in ("the", "cat")} | {"Paula": "Paula" in pieces}
        assert is_whole == {word: f" {word}" in written or word in written for word in is_whole}
        assert " ." in pieces
        share.append(is_whole["cat"])
        both.append((is_whole["cat"], is_whole["the"]))
    assert np.mean(share) == pytest.approx(0.5, abs=0.07)
    assert set(both) == {(True, True), (True, False), (False, True), (False, False)}


@pytest.fixture
def encodings():
    def make(dropout=0.3, limits=NO_LIMITS, count=300, seed=3, **keys):
        tokenizers = tiny_tokenizers("bpe")
        pairs = tiny_pairs(tokenizers, count)
        return EpochEncodings(pairs, tokenizers, dropout=dropout, seed=seed, limits=limits, **keys)

    return make


def rows_of(encodings, epoch):
    encodings.set_epoch(epoch)
    rows = encodings.__getitems__(list(range(len(encodings))))
    return [(row["input_ids"], row["labels"]) for row in rows]


def test_each_epoch_cuts_anew_and_any_process_alike(encodings):
    one, other = encodings(), encodings()
    epochs = [rows_of(one, epoch) for epoch in (0, 1, 2)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert rows_of(other, 2) == epochs[2]  # without having seen the first two
    assert rows_of(encodings(num_proc=2), 1) == epochs[1]
    assert rows_of(encodings(seed=4), 0) != epochs[0]
    assert len(list(one.lengths_of_epoch(2))) == 300
    assert one.lengths_of_epoch(2).tolist() == [[len(source), len(target)] for source, target in epochs[2]]


def test_the_last_epochs_file_is_removed(encodings):
    import pathlib

    one = encodings()
    for epoch in range(3):
        one.set_epoch(epoch)
    assert [path.name for path in pathlib.Path(one._files.name).glob("*")] == ["epoch-2.arrow"]


def test_what_grows_too_long_keeps_its_plain_pieces(encodings):
    plain = rows_of(encodings(dropout=0.0), 0)
    longest = max(len(source) for source, _ in plain)
    cut = rows_of(encodings(dropout=0.6, limits=LengthLimits(longest, np.inf, np.inf)), 0)
    assert max(len(source) for source, _ in cut) <= longest
    assert any(a != b for a, b in zip(cut, plain))


@pytest.mark.parametrize("world_size", [1, 2])
def test_every_epoch_has_the_same_updates_within_budget(encodings, world_size):
    samplers = [
        encodings(count=600).sampler(BatchSettings(400, seed=1, world_size=world_size, rank=rank))
        for rank in range(world_size)
    ]
    counts = set()
    for epoch in range(4):
        seen, sizes = [], []
        for sampler in samplers:
            sampler.set_epoch(epoch)
            batches = list(sampler)
            counts.add(len(batches))
            seen += [index for batch in batches for index in batch]
            sizes.append([sampler.lengths[batch].sum() for batch in batches])
        assert sorted(seen) == list(range(600))
        assert np.sum(sizes, axis=0).max() <= 400
    assert counts == {len(samplers[0])}


def test_a_run_sees_other_pieces_in_each_epoch_and_resumes_exactly(tmp_path):
    tokenizers = tiny_tokenizers("bpe")

    def run(name):
        own = EpochEncodings(tiny_pairs(tokenizers), tokenizers, dropout=0.3, seed=42, limits=NO_LIMITS)
        return tiny_trainer(
            tmp_path / name,
            tokenizers=tokenizers,
            encodings=own,
            tokens_per_update=100,
            num_train_epochs=3,
            save_steps=3,
            learning_rate=0.01,
        )

    whole = run("whole")
    whole.train()
    updates = whole.state.max_steps // 3
    middle = 3 * (updates // 3 + 1)  # in the second epoch
    assert updates < middle < 2 * updates
    rest = run("rest")
    rest.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{middle}"))
    losses = [{row["step"]: row["loss"] for row in t.state.log_history if "loss" in row} for t in (whole, rest)]
    assert losses[0] == losses[1]
    for ours, theirs in zip(whole.model.parameters(), rest.model.parameters()):
        assert (ours == theirs).all()


def test_evaluation_never_cuts(tmp_path):
    tokenizers = tiny_tokenizers("bpe")
    own = EpochEncodings(tiny_pairs(tokenizers), tokenizers, dropout=0.5, seed=42, limits=NO_LIMITS)
    cut, plain = (tiny_trainer(tmp_path, tokenizers=tokenizers, encodings=e).evaluate() for e in (own, None))
    assert cut["eval_loss"] == plain["eval_loss"]
    assert tokenizers.source.backend_tokenizer.model.dropout is None
