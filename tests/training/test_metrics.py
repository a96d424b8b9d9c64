"""Scores: known values, the tokeniser that fits the script, and names that do not exist."""

import inspect

import evaluate
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF, TER

from seqloom.configuration.task_kind import are_phones
from seqloom.training.metrics import METRICS, bleu_tokenizer_for, get_metrics, score

texts = st.text(st.sampled_from("ab .,ß今天\u3000"), max_size=12) | st.sampled_from(["", "a b a b a", "今天的天气很好"])
corpora = st.lists(st.tuples(texts, texts) | texts.map(lambda text: (text, text)), min_size=1, max_size=8)


def test_identical_texts_score_perfectly():
    texts = ["ein Mann mit einem orangefarbenen Hut", "das Wetter ist heute sehr schön"]
    scores = score(texts, texts, list(METRICS))
    assert scores["bleu"] == pytest.approx(100)
    assert scores["chrf"] == pytest.approx(100)
    assert scores["tokenized_bleu"] == pytest.approx(100)
    assert scores["exact_match"] == 100
    assert scores["cer"] == scores["wer"] == scores["per"] == scores["ter"] == 0


def test_error_rates_count_edits_over_the_reference():
    scores = score(["a b c", "x"], ["a c", "x y z"], ["per", "cer", "exact_match"])
    assert scores["per"] == pytest.approx(100 * 3 / 5)
    assert scores["cer"] == pytest.approx(100 * (2 + 4) / 8)
    assert scores["exact_match"] == 0


def edits(output, reference):
    """Return the Levenshtein distance, row by row as in the textbook."""
    row = list(range(len(reference) + 1))
    for i, left in enumerate(output, 1):
        above, row = row, [i]
        for j, right in enumerate(reference, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (left != right)))
    return row[-1]


@settings(deadline=None, max_examples=100)
@given(corpora)
def test_the_sums_score_as_sacrebleu_and_the_definitions_say(corpus):
    """Empty outputs, empty references and Chinese included."""
    outputs, references = map(list, zip(*corpus, strict=True))
    theirs = {"bleu": BLEU(tokenize=bleu_tokenizer_for(references)), "tokenized_bleu": BLEU(tokenize="none")}
    theirs["chrf"], theirs["chrf++"] = CHRF(), CHRF(word_order=2)
    is_unspaced = bleu_tokenizer_for(references) != "13a"
    theirs["ter"] = TER(normalized=is_unspaced, asian_support=is_unspaced)
    expected = {name: metric.corpus_score(outputs, [references]).score for name, metric in theirs.items()}
    signatures = {name: str(metric.get_signature()) for name, metric in theirs.items()}
    expected["exact_match"] = 100 * sum(map(str.__eq__, outputs, references)) / len(references)
    expected["cer"] = 100 * sum(map(edits, outputs, references)) / max(1, sum(map(len, references)))
    words = [[text.split() for text in side] for side in (outputs, references)]
    expected["per"] = 100 * sum(map(edits, *words)) / max(1, sum(map(len, words[1])))
    expected["wer"] = 100 - expected["exact_match"] if are_phones(references) else expected["per"]
    found = {name: metric(outputs, references) for name, metric in METRICS.items()}
    assert {name: sums.value for name, sums in found.items()} == pytest.approx(expected, abs=1e-9)
    assert {name: found[name].signature for name in theirs} == signatures


@pytest.mark.parametrize("name", METRICS)
def test_each_is_a_metric_of_evaluate(name):
    (metric,) = get_metrics([name])
    assert isinstance(metric, evaluate.Metric)
    assert metric.description == inspect.getdoc(METRICS[name])
    metric.add_batch(predictions=["ein Hund"], references=["ein Hund"])
    metric.add(prediction="今天", reference="今天")
    assert metric.compute()[name] == METRICS[name](["ein Hund", "今天"], ["ein Hund", "今天"]).value


def test_bleu_says_how_it_was_measured():
    assert "tok:13a" in score(["a b c d e"], ["a b c d e"], ["bleu"])["bleu_signature"]
    assert "tok:zh" in score(["今天天气很好"], ["今天天气很好"], ["bleu"])["bleu_signature"]


def test_tokenised_text_is_scored_as_it_is():
    output, reference = ["ein Hund , grün und groß ."], ["ein Hund, grün und groß."]
    scores = score(output, reference, ["bleu", "tokenized_bleu"])
    assert "tok:none" in scores["tokenized_bleu_signature"]
    assert scores["tokenized_bleu"] < 50 < scores["bleu"] == pytest.approx(100)


def test_chinese_is_not_one_word_a_sentence():
    assert score(["今天的天气很好"], ["今天的天气很冷"], ["bleu"])["bleu"] > 50


@pytest.mark.parametrize(
    ("reference", "tokenizer"),
    [
        ("Das Wetter", "13a"),
        ("今天天气很好", "zh"),
        ("今日は天気がいい", "char"),
        ("오늘 날씨가 좋다", "13a"),
        ("อากาศ", "char"),
        ("42", "13a"),
    ],
)
def test_the_tokeniser_follows_the_script(reference, tokenizer):
    assert bleu_tokenizer_for([reference]) == tokenizer


@pytest.mark.parametrize("rare", ["奶の茶", "ein langer deutscher Satz", "k aː v eː"])
def test_how_it_is_measured_does_not_depend_on_the_order(rare):
    """So that a score, its interval and another command agree, whatever stands among the first lines."""
    for common in ("我们今天去学校看书", "ɒ bː ɒ"):
        forth = [common] * 4500 + [rare] * 4500
        names = ["bleu", "ter", "wer"]
        assert score(forth, forth, names) == score(forth[::-1], forth[::-1], names)


def test_chinese_with_a_kana_is_no_japanese():
    assert bleu_tokenizer_for(["鲜の每日很好喝", *["这家店的奶茶很好喝，我们昨天去了三次。"] * 9]) == "zh"


def test_an_unknown_metric_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="metric 'blue' is unknown; did you mean 'bleu'"):
        get_metrics(["blue"])


PHONE_TARGETS = ["ɒ bː ɒ", "ɒ bː ɒ n", "k aː v eː"]


def test_word_error_rate_is_what_the_field_calls_so():
    """Over phones an output is a word, and any wrong phone makes it wrong; over sentences words are counted."""
    phones = score(["ɒ bː ɒ", "ɒ b ɒ n", "k aː v eː"], PHONE_TARGETS, ["wer", "per", "exact_match"])
    assert phones["wer"] == pytest.approx(100 / 3) == pytest.approx(100 - phones["exact_match"])
    assert phones["per"] == pytest.approx(100 / 11)
    assert phones["wer_signature"] == "counts:outputs with any wrong phone"
    sentences = score(["the small house stands"], ["the small mouse stands here"], ["wer"])
    assert sentences == {"wer": pytest.approx(40), "wer_signature": "counts:edits of words"}


def test_any_of_several_references_is_right():
    """As sacreBLEU has them, some sentences with fewer; edits are counted to the nearest, over its length."""
    outputs = ["ein Hund läuft dort", "zwei Katzen"]
    references = [["der Hund rennt dort", "ein Hund läuft dort"], ["zwei Kater sitzen"]]
    scores = score(outputs, references, ["exact_match", "wer", "cer", "bleu", "ter", "chrf++"])
    assert scores["exact_match"] == 50
    assert scores["wer"] == pytest.approx(100 * 2 / 7)
    assert scores["cer"] == pytest.approx(100 * edits("zwei Katzen", "zwei Kater sitzen") / (19 + 17))
    streams = [["der Hund rennt dort", "zwei Kater sitzen"], ["ein Hund läuft dort", None]]
    for name, metric in (("bleu", BLEU()), ("ter", TER()), ("chrf++", CHRF(word_order=2))):
        assert scores[name] == pytest.approx(metric.corpus_score(outputs, streams).score, abs=1e-9), name
