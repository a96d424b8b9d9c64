"""Scores for decoded text, as `evaluate.Metric` classes that need no hub.

`evaluate.load("sacrebleu")` fetches code from a hub; here the classes are at hand and instantiated. Each result says
how it was measured: BLEU and chrF carry sacreBLEU's signature, and BLEU tokenises by the script of the references,
for Chinese scored with "13a" is one word a sentence.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

import evaluate
from datasets import Features, Value
from rapidfuzz.distance import Levenshtein
from sacrebleu.metrics import BLEU, CHRF

WORDS = re.compile(r"\S+")


class SeqloomMetric(evaluate.Metric):
    """What our metrics share: one text predicted, one text expected, and a dictionary of numbers."""

    description = ""
    citation = ""

    def __init__(self, **kwargs: Any) -> None:
        # In memory and on one process: predictions are gathered before, and no cache file is left behind.
        super().__init__(keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        features = Features({"predictions": Value("string"), "references": Value("string")})
        return evaluate.MetricInfo(description=self.description, citation=self.citation, features=features)


class Bleu(SeqloomMetric):
    """Corpus BLEU by sacreBLEU (Post 2018), with the tokeniser that fits the references' script."""

    description = "sacreBLEU's corpus BLEU, 0 to 100."

    def __init__(self, tokenize: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tokenize = tokenize

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
        bleu = BLEU(tokenize=self.tokenize or bleu_tokenizer_for(references))
        score = bleu.corpus_score(predictions, [references])
        return {"bleu": score.score, "bleu_signature": str(bleu.get_signature())}


class TokenizedBleu(Bleu):
    """Corpus BLEU of text that is tokenised already, as multi-bleu.perl and fairseq compute it on Moses' tokens."""

    description = "sacreBLEU's corpus BLEU on space-separated tokens, 0 to 100."

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(tokenize="none", **kwargs)

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
        return {f"tokenized_{name}": value for name, value in super()._compute(predictions, references).items()}


class Chrf(SeqloomMetric):
    """Corpus chrF2 by sacreBLEU (Popovic 2015)."""

    description = "sacreBLEU's chrF2, 0 to 100."

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
        chrf = CHRF()
        score = chrf.corpus_score(predictions, [references])
        return {"chrf": score.score, "chrf_signature": str(chrf.get_signature())}


class ExactMatch(SeqloomMetric):
    """Share of outputs that equal their reference."""

    description = "Percentage of predictions identical with their reference."

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
        hits = sum(prediction == reference for prediction, reference in zip(predictions, references, strict=True))
        return {"exact_match": 100 * hits / len(references)}


class CharacterErrorRate(SeqloomMetric):
    """Edits of code points, divided by the code points of the references."""

    description = "Levenshtein distance in characters / length of the references, as a percentage."

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
        return {"cer": error_rate(predictions, references, list)}


class WordErrorRate(SeqloomMetric):
    """Edits of space-separated words (phones, for grapheme-to-phoneme), divided by the words of the references."""

    description = "Levenshtein distance in words / number of words in the references, as a percentage."

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
        return {"wer": error_rate(predictions, references, WORDS.findall)}


METRICS: dict[str, type[SeqloomMetric]] = {
    "bleu": Bleu,
    "tokenized_bleu": TokenizedBleu,
    "chrf": Chrf,
    "exact_match": ExactMatch,
    "cer": CharacterErrorRate,
    "wer": WordErrorRate,
}
LOWER_IS_BETTER = frozenset({"cer", "wer", "loss", "perplexity"})


def get_metrics(names: Sequence[str]) -> list[SeqloomMetric]:
    """Return the metrics of these names.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    for name in names:
        if name not in METRICS:
            near = get_close_matches(name, METRICS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"metric {name!r} is unknown; {hint}use some of {', '.join(METRICS)}.")
    return [METRICS[name]() for name in names]


def score(predictions: Sequence[str], references: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """Return what the named metrics say of `predictions`, in one dictionary with the signatures."""
    results: dict[str, Any] = {}
    for metric in get_metrics(names):
        results.update(metric.compute(predictions=predictions, references=references))
    return results


def error_rate(predictions: Sequence[str], references: Sequence[str], split: Callable[[str], list[str]]) -> float:
    """Return edits / reference length over a corpus, in percent; `split` says what an edit is counted in."""
    pairs = [(split(p), split(r)) for p, r in zip(predictions, references, strict=True)]
    edits = sum(Levenshtein.distance(p, r) for p, r in pairs)
    return 100 * edits / max(1, sum(len(r) for _, r in pairs))


def bleu_tokenizer_for(references: Sequence[str]) -> str:
    """Return sacreBLEU's tokeniser for the script that most letters of the references are written in."""
    letters = [c for reference in references[:1000] for c in reference if c.isalpha()]
    spaceless = sum(_script(c) in {"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR"} for c in letters)
    if spaceless * 2 <= len(letters):
        return "13a"
    han = sum(_script(c) == "CJK" for c in letters)
    kana = sum(_script(c) in {"HIRAGANA", "KATAKANA"} for c in letters)
    return "zh" if han * 2 > len(letters) and not kana else "char"


def _script(character: str) -> str:
    """Return the first word of a character's Unicode name, which names its script."""
    return unicodedata.name(character, "").split(" ")[0]
