"""Scores for decoded text. Each metric is defined once, as counts for every sentence and a score of their sum.

Whatever is said of a score comes from these counts: its value, its confidence interval, and whether it differs from
another system's (`seqloom.training.confidence`). `SeqloomMetric` shows them as an `evaluate.Metric`: `evaluate.load`
would fetch code from a hub. Each result says how it was measured: BLEU and chrF carry sacreBLEU's signature, and BLEU
tokenises by the script of the references, for Chinese scored with "13a" is one word a sentence.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import evaluate
import numpy as np
import regex
from datasets import Features, Value
from datasets import Sequence as ListOf
from rapidfuzz.distance import Levenshtein
from sacrebleu.metrics import BLEU, CHRF, TER

from seqloom.configuration.suggestion import did_you_mean
from seqloom.configuration.task_kind import are_phones

Texts = Sequence[str]
References = Sequence[str] | Sequence[Sequence[str]]
"""One text a sentence, or for each sentence one or more, of which each is right."""


@dataclass(frozen=True)
class SentenceSums:
    """What a metric counts in each sentence, and how the sum over a set becomes the score of the set."""

    values: np.ndarray
    """(sentences, k) numbers that add up over a set."""
    score: Callable[[np.ndarray], float]
    """(k,) sums -> score."""
    signature: str = ""
    """How it was measured, in sacreBLEU's words; empty: there is nothing to choose."""
    sacrebleu: BLEU | CHRF | TER | None = None
    """What counted, where sacreBLEU did: its own tests can be run with it."""

    @property
    def value(self) -> float:
        """The score of all sentences."""
        return self.score(self.values.sum(axis=0))

    def per_sentence(self) -> np.ndarray:
        """The score of each sentence on its own; (sentences,)."""
        return np.array([self.score(row) for row in self.values])

    def of(self, rows: np.ndarray) -> "SentenceSums":
        """The same for some of the sentences."""
        return SentenceSums(self.values[rows], self.score, self.signature, self.sacrebleu)


Metric = Callable[[Texts, References], SentenceSums]
"""Counts from predictions and references."""


def bleu(predictions: Texts, references: References) -> SentenceSums:
    """Corpus BLEU by sacreBLEU (Post 2018), 0 to 100, with the tokeniser that fits the references' script."""
    tokenizer = bleu_tokenizer_for(_first(references))
    return _sacrebleu(BLEU(tokenize=tokenizer), predictions, references)


def tokenized_bleu(predictions: Texts, references: References) -> SentenceSums:
    """Corpus BLEU of text that is tokenised already, as multi-bleu.perl and fairseq compute it on Moses' tokens."""
    return _sacrebleu(BLEU(tokenize="none"), predictions, references)


def chrf(predictions: Texts, references: References) -> SentenceSums:
    """Corpus chrF2 by sacreBLEU (Popovic 2015), 0 to 100."""
    return _sacrebleu(CHRF(), predictions, references)


def chrf_plus_plus(predictions: Texts, references: References) -> SentenceSums:
    """Corpus chrF2++ by sacreBLEU, 0 to 100: chrF with words and pairs of words (Popovic 2017)."""
    return _sacrebleu(CHRF(word_order=2), predictions, references)


def ter(predictions: Texts, references: References) -> SentenceSums:
    """Translation edit rate by sacreBLEU (Snover et al. 2006): edits and shifts, in percent of the references' words.

    Scripts without spaces are cut into characters.
    """
    has_words = bleu_tokenizer_for(_first(references)) == "13a"
    return _sacrebleu(TER(normalized=not has_words, asian_support=not has_words), predictions, references)


def exact_match(predictions: Texts, references: References) -> SentenceSums:
    """Percentage of predictions that equal their reference, or one of several."""
    return _percentage([(p in r, 1) for p, r in zip(predictions, as_lists(references), strict=True)])


def cer(predictions: Texts, references: References) -> SentenceSums:
    """Edits of code points, in percent of the code points of the references."""
    return _edits(predictions, as_lists(references))


def per(predictions: Texts, references: References) -> SentenceSums:
    """Edits of phones, or of whatever stands between spaces, in percent of those of the references."""
    return _edits_of_words(predictions, references)


def wer(predictions: Texts, references: References) -> SentenceSums:
    """Word error rate in the sense of the field, which the references decide; the signature says which.

    Where targets are phones, separated by spaces, an output is one word, and it is wrong with any wrong phone: 100 -
    exact match. Elsewhere: edits of space-separated words, in percent of the references' words.
    """
    if are_phones(_first(references)):
        hits = exact_match(predictions, references).values
        return _percentage([(1 - hit, 1) for hit, _ in hits], "counts:outputs with any wrong phone")
    return _edits_of_words(predictions, references, "counts:edits of words")


METRICS: dict[str, Metric] = {
    "bleu": bleu,
    "tokenized_bleu": tokenized_bleu,
    "chrf": chrf,
    "chrf++": chrf_plus_plus,
    "ter": ter,
    "exact_match": exact_match,
    "cer": cer,
    "per": per,
    "wer": wer,
}
LOWER_IS_BETTER = frozenset({"ter", "cer", "per", "wer", "loss", "perplexity", "bits_per_character"})


def as_lists(references: References) -> list[list[str]]:
    """Return all references of each sentence, also where there is one."""
    return [[each] if isinstance(each, str) else list(each) for each in references]


def as_streams(references: References) -> list[Any]:
    """Return references as sacreBLEU takes them: first all first ones; None where a sentence has fewer.

    Its own annotations know no None.
    """
    return list(zip_longest(*as_lists(references)))


def _first(references: References) -> list[str]:
    return [each if isinstance(each, str) else each[0] for each in references]


def _sacrebleu(metric: BLEU | CHRF | TER, predictions: Texts, references: References) -> SentenceSums:
    """Count what sacreBLEU itself resamples; it has no public name for it."""
    lists = as_lists(references)
    if not len(predictions) == len(lists):
        raise ValueError(f"{len(predictions):,} outputs and {len(lists):,} references; each output needs its own.")
    values = np.array(metric._extract_corpus_statistics(predictions, as_streams(lists)), dtype=np.float64)
    return SentenceSums(
        values,
        lambda sums: float(metric._compute_score_from_stats(sums.tolist()).score),
        str(metric.get_signature()),
        metric,
    )


def _edits_of_words(predictions: Texts, references: References, signature: str = "") -> SentenceSums:
    words = [[text.split() for text in texts] for texts in as_lists(references)]
    return _edits([text.split() for text in predictions], words, signature)


def _edits(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]], signature: str = ""
) -> SentenceSums:
    """Count insertions, deletions and substitutions, of characters in texts or of words in lists, to the nearest."""
    counts = [
        min((Levenshtein.distance(p, each), len(each)) for each in several)
        for p, several in zip(predictions, references, strict=True)
    ]
    return _percentage(counts, signature)


def _percentage(counts: Sequence[Sequence[int]], signature: str = "") -> SentenceSums:
    """Return sums of (part, whole); a whole of 0, where all references are empty, counts as 1."""
    values = np.array(counts, dtype=np.int64).reshape(-1, 2)
    return SentenceSums(values, lambda sums: 100 * float(sums[0]) / max(1.0, float(sums[1])), signature)


class SeqloomMetric(evaluate.Metric):
    """One of `METRICS` as `evaluate` has them: `compute(predictions=, references=)` -> a dictionary of numbers."""

    def __init__(self, name: str, **kwargs: Any) -> None:
        # In memory and on one process: predictions are gathered before, and no cache file is left behind.
        super().__init__(config_name=name, keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        kinds = (Value("string"), ListOf(Value("string")))
        features = [Features({"predictions": Value("string"), "references": kind}) for kind in kinds]
        return evaluate.MetricInfo(
            description=inspect.getdoc(METRICS[self.config_name]), citation="", features=features
        )

    def _compute(self, predictions: Texts, references: References) -> dict[str, Any]:
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


def score(predictions: Texts, references: References, names: Sequence[str]) -> dict[str, Any]:
    """Return what the named metrics say of `predictions`, in one dictionary with the signatures."""
    results: dict[str, Any] = {}
    for metric in get_metrics(names):
        results.update(metric.compute(predictions=predictions, references=references))
    return results


def bleu_tokenizer_for(references: Sequence[str]) -> str:
    """Return sacreBLEU's tokeniser for the script that most letters of the references are written in, in any order."""
    letters = "".join(regex.findall(r"\p{L}+", "".join(references)))
    han = len(regex.findall(r"\p{Script=Han}", letters))
    kana = len(regex.findall(r"[\p{Script=Hiragana}\p{Script=Katakana}]", letters))
    others = len(regex.findall(r"[\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}]", letters))
    if (han + kana + others) * 2 <= len(letters):
        return "13a"
    is_japanese = kana * 20 > han  # Chinese has a brand's の here and there
    return "zh" if han * 2 > len(letters) and not is_japanese else "char"
