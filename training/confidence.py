"""Confidence intervals of test scores: what other test sets of the same kind might have scored.

The bootstrap of Koehn (2004): sentences are drawn with replacement, as many as there are, and scored anew; the middle
95 % of 1,000 such scores are the interval. A draw needs no text: each metric is a function of sums over sentences
(matched n-grams, edits, lengths), so these are counted once. sacreBLEU's own bootstrap does the same for BLEU and chrF,
and holds all draws in memory at once: for chrF on 12,000 sentences 0.9 GB; here it is one draw.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rapidfuzz.distance import Levenshtein
from sacrebleu.metrics import BLEU, CHRF

from seqloom.training.metrics import WORDS, bleu_tokenizer_for

NUM_RESAMPLES = 1000
SEED = 12345
"""sacreBLEU's."""
LEVEL = 95
"""Percent of the resampled scores that lie inside the interval."""


@dataclass(frozen=True)
class SentenceSums:
    """What a metric needs to know of each sentence, and how their sum becomes the score."""

    values: np.ndarray
    """(sentences, k) numbers that add up over a set."""
    score: Callable[[np.ndarray], float]
    """(k,) sums -> score."""


def confidence_intervals(
    predictions: Sequence[str], references: Sequence[str], names: Sequence[str]
) -> dict[str, list[float]]:
    """Return the 95 % interval of each named metric, as `bleu_ci95`: [low, high].

    Args:
        predictions: one text per sentence.
        references: one text per sentence.
        names: of `seqloom.training.metrics`; those that are no function of sums over sentences get no interval.
    """
    if len(references) < 2:  # nothing can be drawn from
        return {}
    known = [name for name in names if name in SENTENCE_SUMS]
    return {f"{name}_ci{LEVEL}": list(interval(SENTENCE_SUMS[name](predictions, references))) for name in known}


def interval(sums: SentenceSums, *, num_resamples: int = NUM_RESAMPLES, seed: int = SEED) -> tuple[float, float]:
    """Return the bounds between which 95 % of the resampled scores lie.

    Args:
        sums: of the sentences of a test set.
        num_resamples: how often a set is drawn.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    size = len(sums.values)
    scores = []
    for _ in range(num_resamples):
        times_drawn = np.bincount(rng.integers(size, size=size), minlength=size)
        scores.append(sums.score(times_drawn @ sums.values))
    low, high = np.percentile(scores, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return round(float(low), 4), round(float(high), 4)


def _exact_match(predictions: Sequence[str], references: Sequence[str]) -> SentenceSums:
    hits = [[prediction == reference, 1] for prediction, reference in zip(predictions, references, strict=True)]
    return SentenceSums(np.array(hits, dtype=np.int64), _percentage)


def _edits(split: Callable[[str], list[str]]) -> Callable[[Sequence[str], Sequence[str]], SentenceSums]:
    def count(predictions: Sequence[str], references: Sequence[str]) -> SentenceSums:
        pairs = [(split(p), split(r)) for p, r in zip(predictions, references, strict=True)]
        edits = [[Levenshtein.distance(p, r), len(r)] for p, r in pairs]
        return SentenceSums(np.array(edits, dtype=np.int64), _percentage)

    return count


def _percentage(sums: np.ndarray) -> float:
    return 100 * float(sums[0]) / max(1, int(sums[1]))


def _bleu(predictions: Sequence[str], references: Sequence[str]) -> SentenceSums:
    return _sacrebleu(BLEU(tokenize=bleu_tokenizer_for(references)), predictions, references)


def _chrf(predictions: Sequence[str], references: Sequence[str]) -> SentenceSums:
    return _sacrebleu(CHRF(), predictions, references)


def _sacrebleu(metric: BLEU | CHRF, predictions: Sequence[str], references: Sequence[str]) -> SentenceSums:
    """The statistics that sacreBLEU itself resamples; it has no public name for them."""
    values = metric._extract_corpus_statistics(predictions, [references])
    return SentenceSums(
        np.array(values, dtype=np.int64), lambda sums: float(metric._compute_score_from_stats(sums.tolist()).score)
    )


def _tokenized_bleu(predictions: Sequence[str], references: Sequence[str]) -> SentenceSums:
    return _sacrebleu(BLEU(tokenize="none"), predictions, references)


SENTENCE_SUMS: dict[str, Callable[[Sequence[str], Sequence[str]], SentenceSums]] = {
    "bleu": _bleu,
    "tokenized_bleu": _tokenized_bleu,
    "chrf": _chrf,
    "exact_match": _exact_match,
    "cer": _edits(list),
    "wer": _edits(WORDS.findall),
}
"""Metric -> its sums."""

__all__ = ["SENTENCE_SUMS", "SentenceSums", "confidence_intervals", "interval"]
