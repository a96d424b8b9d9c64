"""Intervals against sacreBLEU's own bootstrap and against the textbook's formula for a share."""

import math
import random

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from seqloom.training import confidence
from seqloom.training.confidence import confidence_intervals, interval, paired_difference, paired_test
from seqloom.training.metrics import METRICS, score

NAMES = ["bleu", "tokenized_bleu", "chrf", "exact_match", "cer", "per", "wer"]


@pytest.fixture(scope="module")
def texts():
    """Sentences, and the same with some words changed, some swapped and some lost."""
    rng = random.Random(1)
    references = [
        " ".join(rng.choices("the a cat dog sees eats small big house tree".split(), k=9)) for _ in range(300)
    ]
    outputs = []
    for reference in references:
        kept = [word for word in reference.split() if rng.random() > 0.05]
        outputs.append(" ".join("bird" if rng.random() < 0.1 else word for word in kept))
    return outputs, references


def test_the_whole_set_scores_as_the_metric_says(texts):
    expected = score(*texts, NAMES)
    for name in NAMES:
        sums = METRICS[name](*texts)
        assert sums.score(sums.values.sum(axis=0)) == pytest.approx(expected[name], abs=1e-9), name


@pytest.mark.parametrize(("name", "metric"), [("bleu", BLEU()), ("chrf", CHRF())])
def test_bleu_and_chrf_agree_with_sacrebleu(texts, name, metric):
    outputs, references = texts
    theirs = metric.corpus_score(outputs, [references], n_bootstrap=1000)
    low, high = confidence_intervals(outputs, references, [name])[f"{name}_ci95"]
    assert (high - low) / 2 == pytest.approx(theirs._ci, rel=0.1)
    assert (high + low) / 2 == pytest.approx(theirs._mean, rel=0.01)


def test_a_share_agrees_with_the_normal_approximation():
    right, size = 120, 400
    low, high = confidence_intervals(["a"] * size, ["a"] * right + ["b"] * (size - right), ["exact_match"])[
        "exact_match_ci95"
    ]
    error = 100 * math.sqrt(right / size * (1 - right / size) / size)
    assert low == pytest.approx(30 - 1.96 * error, abs=0.6)
    assert high == pytest.approx(30 + 1.96 * error, abs=0.6)


def test_intervals_hold_the_score_and_shrink_with_the_test_set(texts):
    outputs, references = texts
    expected = score(outputs, references, NAMES)
    wide = confidence_intervals(outputs[:60], references[:60], NAMES)
    narrow = confidence_intervals(outputs, references, NAMES)
    for name in NAMES:
        low, high = narrow[f"{name}_ci95"]
        assert low < expected[name] < high
        assert high - low < np.subtract(*reversed(wide[f"{name}_ci95"]))


def test_the_same_texts_give_the_same_interval(texts):
    sums = METRICS["cer"](*texts)
    assert interval(sums) == interval(sums)


def test_no_interval_without_something_to_draw_from():
    assert confidence_intervals(["a"], ["a"], NAMES) == {}
    assert confidence_intervals(["a", "b"], ["a", "b"], ["perplexity"]) == {}


@pytest.mark.parametrize(
    ("right", "size", "bounds"), [(0, 200, (0, 1.88)), (200, 200, (98.12, 100)), (2, 2, (34.24, 100))]
)
def test_a_share_of_none_or_all_is_not_certain(right, size, bounds):
    """Wilson 1927, as R's prop.test(..., correct = FALSE) has it."""
    outputs = ["a"] * right + ["b"] * (size - right)
    found = confidence_intervals(outputs, ["a"] * size, ["exact_match"])["exact_match_ci95"]
    assert found == pytest.approx(bounds, abs=0.01)


def test_every_metric_of_text_has_an_interval(texts):
    assert set(confidence_intervals(*texts, list(METRICS))) == {f"{name}_ci95" for name in METRICS}


# Two systems ---------------------------------------------------------------------------------------------------------


def worse(outputs, share, seed=2):
    """Return outputs of which a share has lost its last word."""
    rng = random.Random(seed)
    return [text.rpartition(" ")[0] if rng.random() < share else text for text in outputs]


def test_p_agrees_with_sacrebleus_approximate_randomisation(texts):
    """With systems that differ in so many sentences that ties, which sacreBLEU does not count, are rare."""
    outputs, references = texts
    one, other = worse(outputs, 0.30), worse(outputs, 0.33, seed=4)
    systems = [("one", one), ("other", other)]
    _, theirs = PairedTest(systems, {"BLEU": BLEU()}, [references], test_type="ar", n_samples=3000)()
    ours = paired_difference(METRICS["bleu"](one, references), METRICS["bleu"](other, references))
    assert 0.05 < theirs["BLEU"][1].p_value < 0.95, "a question that is not settled"
    assert ours.p_value == pytest.approx(theirs["BLEU"][1].p_value, abs=0.05)


def test_p_agrees_with_the_sign_test_on_hits(monkeypatch):
    """Seven sentences only the one system has right, one only the other: 18 of 256 ways to swap are as far apart."""
    references = ["right"] * 20
    one = METRICS["exact_match"](["right"] * 19 + ["wrong"], references)
    other = METRICS["exact_match"](["wrong"] * 7 + ["right"] * 13, references)
    monkeypatch.setattr(confidence, "NUM_RESAMPLES", 10_000)
    assert paired_difference(one, other).p_value == pytest.approx(18 / 256, abs=0.01)


def test_the_bootstraps_p_agrees_with_the_normal_approximation_to_both_sides(monkeypatch):
    size, gained, lost = 400, 36, 20
    references = ["a"] * size
    one = METRICS["exact_match"](["b"] * lost + ["a"] * (size - lost), references)
    other = METRICS["exact_match"](["a"] * lost + ["b"] * gained + ["a"] * (size - lost - gained), references)
    error = math.sqrt(gained + lost - (gained - lost) ** 2 / size)
    expected = math.erfc((gained - lost) / error / math.sqrt(2))
    assert expected == pytest.approx(0.031, abs=0.001)
    monkeypatch.setattr(confidence, "NUM_RESAMPLES", 10_000)
    for found in (paired_difference(one, other), paired_difference(other, one)):
        assert found.p_bootstrap == pytest.approx(expected, abs=0.01)


def test_the_interval_of_a_difference_agrees_with_the_normal_approximation():
    size, gained, lost = 400, 60, 20
    references = ["a"] * size
    one = METRICS["exact_match"](["b"] * lost + ["a"] * (size - lost), references)
    other = METRICS["exact_match"](["a"] * lost + ["b"] * gained + ["a"] * (size - lost - gained), references)
    found = paired_difference(one, other)
    error = 100 * math.sqrt(gained + lost - (gained - lost) ** 2 / size) / size
    assert found.value == 10
    assert found.interval == pytest.approx((10 - 1.96 * error, 10 + 1.96 * error), abs=0.6)


@pytest.mark.parametrize("name", NAMES)
def test_systems_that_write_the_same_do_not_differ(texts, name):
    sums = METRICS[name](*texts)
    found = paired_difference(sums, sums)
    assert (found.value, found.interval, found.p_value, found.p_bootstrap) == (0, (0, 0), 1, 1)
    assert paired_test(sums, sums, (texts[0], texts[0], [[text] for text in texts[1]])) == found


@pytest.mark.parametrize("name", NAMES)
def test_a_clear_difference_is_seen_from_both_sides(texts, name):
    outputs, references = texts
    better, poorer = (METRICS[name](each, references) for each in (outputs, worse(references, 0.9)))
    forth, back = paired_difference(better, poorer), paired_difference(poorer, better)
    expected = score(outputs, references, [name])[name] - score(worse(references, 0.9), references, [name])[name]
    assert forth.value == pytest.approx(expected)
    assert (back.value, back.p_value) == (-forth.value, forth.p_value)
    assert back.interval == tuple(-bound for bound in reversed(forth.interval))
    assert forth.interval[0] < forth.value < forth.interval[1]


def test_systems_of_other_test_sets_or_metrics_are_refused(texts):
    outputs, references = texts
    sums = METRICS["bleu"](outputs, references)
    with pytest.raises(ValueError, match=r"one system has 300 scored sentences and the other 200 .* same test set"):
        paired_difference(sums, METRICS["bleu"](outputs[:200], references[:200]))
    with pytest.raises(ValueError, match=r"tok:13a.*tok:none.*score both by the same metric"):
        paired_difference(sums, METRICS["tokenized_bleu"](outputs, references))
