"""Scores for decoded text. Each metric is defined once, as counts for every sentence and a score of their sum.

Whatever is said of a score comes from these counts: its value, its confidence interval, and whether it differs from
another system's (`seqloom.training.confidence`). `SeqloomMetric` shows them as an `evaluate.Metric`: `evaluate.load`
would fetch code from a hub. Each result says how it was measured: BLEU and chrF carry sacreBLEU's signature, and BLEU
tokenises by the script of the references, for Chinese scored with "13a" is one word a sentence.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import evaluate
import numpy as np
import regex
from datasets import Features, Value
from rapidfuzz.distance import Levenshtein
from sacrebleu.metrics import BLEU, CHRF

from seqloom.configuration.suggestion import did_you_mean


@dataclass(frozen=True)
class SentenceSums:
    """What a metric counts in each sentence, and how the sum over a set becomes the score of the set."""

    values: np.ndarray
    """(sentences, k) numbers that add up over a set."""
    score: Callable[[np.ndarray], float]
    """(k,) sums -> score."""
    signature: str = ""
    """How it was measured, in sacreBLEU's words; empty: there is nothing to choose."""

    @property
    def value(self) -> float:
        """The score of all sentences."""
        return self.score(self.values.sum(axis=0))


Metric = Callable[[Sequence[str], Sequence[str]], SentenceSums]
"""Counts from predictions and references, one text a sentence each."""


def bleu(predictions: Sequence[str], references: Sequence[str]) -> SentenceSums:
    """Corpus BLEU by sacreBLEU (Post 2018), 0 to 100, with the tokeniser that fits the references' script."""
    return _sacrebleu(BLEU(tokenize=bleu_tokenizer_for(references)), predictions, references)


def tokenized_bleu(predictions: Sequence[str], references: Sequence[str]) -> SentenceSums:
    """Corpus BLEU of text that is tokenised already, as multi-bleu.perl and fairseq compute it on Moses' tokens."""
    return _sacrebleu(BLEU(tokenize="none"), predictions, references)


def chrf(predictions: Sequence[str], references: Sequence[str]) -> SentenceSums:
    """Corpus chrF2 by sacreBLEU (Popovic 2015), 0 to 100."""
    return _sacrebleu(CHRF(), predictions, references)


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> SentenceSums:
    """Percentage of predictions that equal their reference."""
    return _percentage([(p == r, 1) for p, r in zip(predictions, references, strict=True)])


def cer(predictions: Sequence[str], references: Sequence[str]) -> SentenceSums:
    """Edits of code points, in percent of the code points of the references."""
    return _edits(predictions, references)


def wer(predictions: Sequence[str], references: Sequence[str]) -> SentenceSums:
    """Edits of space-separated words (phones, for grapheme-to-phoneme), in percent of the references' words."""
    return _edits([text.split() for text in predictions], [text.split() for text in references])


METRICS: dict[str, Metric] = {metric.__name__: metric for metric in (bleu, tokenized_bleu, chrf, exact_match, cer, wer)}
LOWER_IS_BETTER = frozenset({"cer", "wer", "loss", "perplexity"})


def _sacrebleu(metric: BLEU | CHRF, predictions: Sequence[str], references: Sequence[str]) -> SentenceSums:
    """Count what sacreBLEU itself resamples; it has no public name for it."""
    values = np.array(metric._extract_corpus_statistics(predictions, [references]), dtype=np.int64)
    return SentenceSums(
        values,
        lambda sums: float(metric._compute_score_from_stats(sums.tolist()).score),
        str(metric.get_signature()),
    )


def _edits(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> SentenceSums:
    """Count insertions, deletions and substitutions, of characters in texts or of words in lists."""
    return _percentage([(Levenshtein.distance(p, r), len(r)) for p, r in zip(predictions, references, strict=True)])


def _percentage(counts: Sequence[tuple[int, int]]) -> SentenceSums:
    """Return sums of (part, whole); a whole of 0, where all references are empty, counts as 1."""
    return SentenceSums(np.array(counts, dtype=np.int64), lambda sums: 100 * int(sums[0]) / max(1, int(sums[1])))


class SeqloomMetric(evaluate.Metric):
    """One of `METRICS` as `evaluate` has them: `compute(predictions=, references=)` -> a dictionary of numbers."""

    def __init__(self, name: str, **kwargs: Any) -> None:
        # In memory and on one process: predictions are gathered before, and no cache file is left behind.
        super().__init__(config_name=name, keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        features = Features({"predictions": Value("string"), "references": Value("string")})
        return evaluate.MetricInfo(
            description=inspect.getdoc(METRICS[self.config_name]), citation="", features=features
        )

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
        name, sums = self.config_name, METRICS[self.config_name](predictions, references)
        return {name: sums.value} | ({f"{name}_signature": sums.signature} if sums.signature else {})


def get_metrics(names: Sequence[str]) -> list[SeqloomMetric]:
    """Return the metrics of these names.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    for name in names:
        if name not in METRICS:
            hint = did_you_mean(name, METRICS, "did you mean {!r}? ")
            raise ValueError(f"metric {name!r} is unknown; {hint}use some of {', '.join(METRICS)}.")
    return [SeqloomMetric(name) for name in names]


def score(predictions: Sequence[str], references: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """Return what the named metrics say of `predictions`, in one dictionary with the signatures."""
    results: dict[str, Any] = {}
    for metric in get_metrics(names):
        results.update(metric.compute(predictions=predictions, references=references))
    return results


def bleu_tokenizer_for(references: Sequence[str]) -> str:
    """Return sacreBLEU's tokeniser for the script that most letters of the references are written in."""
    letters = "".join(regex.findall(r"\p{L}+", "".join(references[:1000])))
    han = len(regex.findall(r"\p{Script=Han}", letters))
    kana = len(regex.findall(r"[\p{Script=Hiragana}\p{Script=Katakana}]", letters))
    others = len(regex.findall(r"[\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}]", letters))
    if (han + kana + others) * 2 <= len(letters):
        return "13a"
    return "zh" if han * 2 > len(letters) and not kana else "char"
