"""How far a test score can be trusted: what other test sets of the same kind might have scored.

The bootstrap of Koehn (2004): sentences are drawn with replacement, as many as there are, and scored anew; the middle
95 % of 1,000 such scores are the interval. A draw needs no text: each metric is a function of sums over sentences
(matched n-grams, edits, lengths), so these are counted once. sacreBLEU's own bootstrap does the same for BLEU and chrF,
and holds all draws in memory at once: for chrF on 12,000 sentences 0.9 GB; here it is one draw.

A share of right or wrong outputs has Wilson's interval (1927) instead: of 0 right among 200 every draw is 0 as well,
and the bootstrap would be certain of 0 where up to 1.9 % cannot be ruled out.

Two systems are compared on the same sentences, for an easy sentence is easy for both: their intervals may overlap where
one of them is better nearly everywhere. p comes from approximate randomisation (Riezler and Maxwell 2005).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sacrebleu.significance import PairedTest

from seqloom.hub.export.engine_parity import ScoreRow
from seqloom.training.metrics import METRICS, References, SentenceSums, as_streams

NUM_RESAMPLES = 1000
SEED = 12345
"""sacreBLEU's."""
LEVEL = 95
"""Percent of the resampled scores that lie inside the interval."""


def confidence_intervals(
    predictions: Sequence[str], references: Sequence[str], names: Sequence[str]
) -> dict[str, list[float]]:
    """Return the 95 % interval of each named metric, as `bleu_ci95`: [low, high].

    Args:
        predictions: one text per sentence.
        references: one text per sentence.
        names: of `seqloom.training.metrics`; other scores (perplexity) get no interval.
    """
    if len(references) < 2:  # nothing can be drawn from
        return {}
    known = [name for name in names if name in METRICS]
    return {f"{name}_ci{LEVEL}": list(interval(METRICS[name](predictions, references))) for name in known}


def interval(sums: SentenceSums) -> tuple[float, float]:
    """Return the bounds between which 95 % of the scores of resampled sentences lie; of a share Wilson's bounds."""
    if _is_share(sums):
        return _wilson(int(sums.values[:, 0].sum()), len(sums.values))
    return _middle([sums.score(drawn @ sums.values) for drawn in _draws(len(sums.values))])


@dataclass(frozen=True)
class Difference:
    """By how much one system scores above another on the same sentences."""

    value: float
    """Score of the one minus score of the other."""
    interval: tuple[float, float]
    """The middle 95 % of the differences on resampled sentences."""
    p_value: float
    """How often outputs swapped at random between the systems are as far apart: below 0.05 it is hardly chance."""
    p_bootstrap: float = 1.0
    """The same question by resampled sentences: how often their difference is as far from its mean (Koehn 2004).

    To either side; sacreBLEU's own is nearly one-sided, for it takes the size of a difference before the mean.
    """


def paired_test(
    one: SentenceSums, other: SentenceSums, texts: tuple[Sequence[str], Sequence[str], References] | None = None
) -> Difference:
    """Compare two systems; where sacreBLEU counted, p is what its own command says of the same files.

    Args:
        one: a metric's sums for one system.
        other: the same metric's for the other.
        texts: outputs of the one, of the other, and references; None where no text was scored.

    Raises:
        ValueError: when the two are not of the same test set and metric.
    """
    found = paired_difference(one, other)
    if one.sacrebleu is None or texts is None or np.array_equal(one.values, other.values):
        return found
    ours, theirs, references = texts
    streams, systems = as_streams(references), [("other", theirs), ("one", ours)]
    p_values = {}
    for kind in ("ar", "bs"):
        signatures, scores = PairedTest(systems, {"": one.sacrebleu}, streams, test_type=kind)()
        (name,) = signatures  # sacreBLEU names the metric itself
        tested: Any = scores[name][1]  # behind the baseline
        p_values[kind] = float(tested.p_value)
    return replace(found, p_value=p_values["ar"], p_bootstrap=p_values["bs"])


def paired_difference(one: SentenceSums, other: SentenceSums) -> Difference:
    """Compare two systems by one metric, sentence by sentence.

    Args:
        one: a metric's sums for one system.
        other: the same metric's, for another system's outputs for the same sentences.

    Raises:
        ValueError: when the two are not of the same test set and metric.
    """
    if one.values.shape != other.values.shape or one.signature != other.signature:
        raise ValueError(
            f"one system has {len(one.values)} scored sentences and the other {len(other.values)} "
            f"({one.signature or 'no signature'}; {other.signature or 'no signature'}); score both by the same metric "
            "on the same test set."
        )

    if np.array_equal(one.values, other.values):  # nothing is rarer than itself, though sacreBLEU counts so
        return Difference(0.0, (0.0, 0.0), p_value=1.0, p_bootstrap=1.0)

    def apart(ours: np.ndarray, theirs: np.ndarray) -> float:
        return one.score(ours) - other.score(theirs)

    size, rng = len(one.values), np.random.default_rng(SEED)
    resampled = [apart(drawn @ one.values, drawn @ other.values) for drawn in _draws(size)]
    ours, theirs = one.values.sum(axis=0), other.values.sum(axis=0)
    as_far = 0
    for _ in range(NUM_RESAMPLES):
        swapped = rng.integers(2, size=size) @ (other.values - one.values)
        as_far += abs(apart(ours + swapped, theirs - swapped)) >= abs(apart(ours, theirs))
    as_far_drawn = int((np.abs(np.array(resampled) - np.nanmean(resampled)) >= abs(apart(ours, theirs))).sum())
    p_value, p_bootstrap = ((count + 1) / (NUM_RESAMPLES + 1) for count in (as_far, as_far_drawn))
    return Difference(apart(ours, theirs), _middle(resampled), p_value, p_bootstrap)


def compare_outputs(
    ours: Sequence[str], theirs: Sequence[str], references: Sequence[str], names: Sequence[str]
) -> list[ScoreRow]:
    """Score a folder's answers and those of its export, with intervals.

    Args:
        ours: what the folder writes.
        theirs: what the export writes for the same sources.
        references: one text a source.
        names: of `seqloom.training.metrics`; others are left out.
    """
    rows = []
    for name in names:
        if name in METRICS:
            one, other = METRICS[name](theirs, references), METRICS[name](ours, references)
            rows.append(ScoreRow(name, other.value, one.value, interval(one), paired_difference(one, other).interval))
    return rows


def _is_share(sums: SentenceSums) -> bool:
    """Whether each sentence counts as right or wrong, and the score is the percentage of one of them."""
    values = sums.values
    is_binary = values.shape[1] == 2 and bool((values[:, 1] == 1).all()) and bool(np.isin(values[:, 0], (0, 1)).all())
    return is_binary and sums.score(np.array([1.0, 4.0])) == 25


def _wilson(part: int, whole: int) -> tuple[float, float]:
    """Return the 95 % bounds of a percentage; at 0 and all of them the bound is that number itself."""
    z, share = 1.959964, part / whole  # of the normal distribution, 97.5 %
    middle = share + z * z / (2 * whole)
    spread = z * ((share * (1 - share) + z * z / (4 * whole)) / whole) ** 0.5
    low, high = (100 * bound / (1 + z * z / whole) for bound in (middle - spread, middle + spread))
    return round(low if part else 0.0, 4), round(high if part < whole else 100.0, 4)


def _draws(size: int) -> Iterator[np.ndarray]:
    """Yield test sets drawn from one of `size` sentences, each as how often every sentence is in it."""
    rng = np.random.default_rng(SEED)
    for _ in range(NUM_RESAMPLES):
        yield np.bincount(rng.integers(size, size=size), minlength=size)


def _middle(scores: Sequence[float]) -> tuple[float, float]:
    """Return the bounds of the middle 95 % of resampled scores; NaN is a draw of what could not be read."""
    low, high = np.nanpercentile(scores, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return round(float(low), 4), round(float(high), 4)
