"""Intervals against sacreBLEU's own bootstrap and against the textbook's formula for a share."""

import math
import random

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF

from seqloom.training.confidence import SENTENCE_SUMS, confidence_intervals, interval
from seqloom.training.metrics import METRICS, score

NAMES = ["bleu", "tokenized_bleu", "chrf", "exact_match", "cer", "wer"]


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
        sums = SENTENCE_SUMS[name](*texts)
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
    sums = SENTENCE_SUMS["cer"](*texts)
    assert interval(sums) == interval(sums)
    assert interval(sums) != interval(sums, seed=1)


def test_no_interval_without_something_to_draw_from():
    assert confidence_intervals(["a"], ["a"], NAMES) == {}
    assert confidence_intervals(["a", "b"], ["a", "b"], ["perplexity"]) == {}
    assert confidence_intervals(["a", "b"], ["a", "b"], ["exact_match"]) == {"exact_match_ci95": [100.0, 100.0]}


def test_every_metric_of_text_has_an_interval():
    assert set(SENTENCE_SUMS) == set(METRICS)
