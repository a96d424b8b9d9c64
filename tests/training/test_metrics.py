"""Scores: known values, the tokeniser that fits the script, and names that do not exist."""

import pytest

from seqloom.training.metrics import METRICS, bleu_tokenizer_for, get_metrics, score


def test_identical_texts_score_perfectly():
    texts = ["ein Mann mit einem orangefarbenen Hut", "das Wetter ist heute sehr schön"]
    scores = score(texts, texts, list(METRICS))
    assert scores["bleu"] == pytest.approx(100)
    assert scores["chrf"] == pytest.approx(100)
    assert scores["tokenized_bleu"] == pytest.approx(100)
    assert scores["exact_match"] == 100
    assert scores["cer"] == scores["wer"] == 0


def test_error_rates_count_edits_over_the_reference():
    scores = score(["a b c", "x"], ["a c", "x y z"], ["wer", "cer", "exact_match"])
    assert scores["wer"] == pytest.approx(100 * 3 / 5)
    assert scores["cer"] == pytest.approx(100 * (2 + 4) / 8)
    assert scores["exact_match"] == 0


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


def test_an_unknown_metric_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="metric 'blue' is unknown; did you mean 'bleu'"):
        get_metrics(["blue"])
