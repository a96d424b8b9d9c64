"""Explanations against what the model itself says: its own scores, its own attentions, step by step."""

import json
from html.parser import HTMLParser

import pytest
import torch

from seqloom.hub.page.explain import Candidate, Explanation, Step, explain
from seqloom.hub.page.explain_tables import attention_table, candidate_table

WORDS = "abcdefghijklmnop"


@pytest.fixture(scope="module")
def tokenizer(char_tokenizer):
    return char_tokenizer(WORDS + "0123" + WORDS.upper())


@pytest.fixture
def model(taught_model):
    model = taught_model()
    model.generation_config.update(max_new_tokens=9)
    return model


def test_the_output_is_what_generate_writes(model, tokenizer):
    for options in ({}, {"num_beams": 3}, {"max_new_tokens": 2}):
        batch = tokenizer(["abc"], return_tensors="pt")
        ids = model.generate(**batch, **options)[0]
        explanation = explain(model, tokenizer, "abc", **options)
        assert explanation.output == tokenizer.decode(ids, skip_special_tokens=True)
        assert [step.token for step in explanation.steps] == tokenizer.convert_ids_to_tokens(ids[1:].tolist())
    assert explanation.source_tokens == ["a", "b", "c", "</s>"]


def test_probabilities_are_those_of_every_single_step(model, tokenizer):
    """Step by step, with the cache and the model's own kernel, as `generate` computes them."""
    explanation = explain(model, tokenizer, "bacd")
    batch = tokenizer(["bacd"], return_tensors="pt")
    scored = model.generate(**batch, output_logits=True, return_dict_in_generate=True)
    assert len(explanation.steps) == len(scored.logits)
    for step, logits, written in zip(explanation.steps, scored.logits, scored.sequences[0, 1:].tolist(), strict=True):
        probabilities = logits[0].softmax(-1)
        best = probabilities.topk(5)
        names = tokenizer.convert_ids_to_tokens(best.indices.tolist())
        assert [candidate.token for candidate in step.candidates] == names
        found = [candidate.probability for candidate in step.candidates]
        assert found == pytest.approx(best.values.tolist(), abs=1e-5)
        assert step.probability == pytest.approx(float(probabilities[written]), abs=1e-5)


def test_attention_is_that_of_every_single_step(model, tokenizer):
    explanation = explain(model, tokenizer, "bacd")
    model.set_attn_implementation("eager")
    batch = tokenizer(["bacd"], return_tensors="pt")
    stepwise = model.generate(**batch, output_attentions=True, return_dict_in_generate=True).cross_attentions
    expected = torch.cat([torch.stack(layers)[:, 0] for layers in stepwise], dim=2)  # (L, N, T, S)
    found = torch.tensor(explanation.cross_attention)
    assert found.shape == expected.shape
    assert expected.shape[2:] == (len(explanation.steps), len(explanation.source_tokens))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]))
    torch.testing.assert_close(torch.tensor(explanation.mean_attention()), expected.mean(dim=(0, 1)), atol=1e-5, rtol=0)


def test_a_given_target_is_explained_instead(model, tokenizer):
    explanation = explain(model, tokenizer, "abc", target="PPP")
    assert explanation.output == "PPP"
    assert [step.token for step in explanation.steps] == ["P", "P", "P", "</s>"]
    assert explanation.steps[0].probability < 0.5
    written = explain(model, tokenizer, "abc")
    again = explain(model, tokenizer, "abc", target=written.output)
    assert again.steps == written.steps


def test_the_model_is_left_as_it_was(model, tokenizer):
    before = model.config._attn_implementation
    explain(model, tokenizer, "abc")
    assert model.config._attn_implementation == before == "sdpa"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_it_is_plain_data(model, tokenizer):
    data = explain(model, tokenizer, "abc", num_candidates=2).to_dict()
    assert json.loads(json.dumps(data)) == data
    assert len(data["steps"][0]["candidates"]) == 2


def test_padding_after_the_end_is_no_step(model, tokenizer):
    """Beams of other lengths leave padding behind the best one."""
    for text in ("abc", "p", "hgfedcba", "mn"):
        steps = explain(model, tokenizer, text, num_beams=4).steps
        tokens = [step.token for step in steps]
        assert "<pad>" not in tokens
        assert "</s>" not in tokens[:-1]


def test_rows_of_the_table_without_a_token_are_numbered(model, char_tokenizer):
    explanation = explain(model, char_tokenizer(WORDS), "abc", num_candidates=100)
    names = {candidate.token for step in explanation.steps for candidate in step.candidates}
    assert {"a", "#20", f"#{model.config.vocab_size - 1}"} <= names


def test_no_candidate_is_refused(model, tokenizer):
    with pytest.raises(ValueError, match="num_candidates=0 leaves nothing to show; use 1 or more"):
        explain(model, tokenizer, "abc", num_candidates=0)


class _Cells(HTMLParser):
    """Collects the text of each row's cells."""

    def __init__(self, html):
        super().__init__()
        self.rows = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


@pytest.fixture
def explanation():
    steps = [
        Step("<b>", 0.75, [Candidate("<b>", 0.75), Candidate(" ", 0.125)]),
        Step("\n", 0.25, [Candidate("\n", 0.25), Candidate("x", 0.0001)]),
    ]
    attention = [[[[0.9, 0.1], [0.25, 0.75]]], [[[0.7, 0.3], [0.25, 0.75]]]]
    return Explanation("s", "o", ["&", " y"], steps, attention)


def test_the_heat_map_shows_the_mean_weights(explanation):
    html = attention_table(explanation)
    assert _Cells(html).rows == [["", "&", "␣y"], ["<b>", "80", "20"], ["⏎", "25", "75"]]
    assert "rgba(37, 99, 235, 0.800)" in html
    assert "<b>" not in html, "texts are escaped"


def test_the_candidates_are_shown_best_first(explanation):
    rows = _Cells(candidate_table(explanation)).rows
    assert rows == [["", "1", "2"], ["<b>", "<b> 75.0%", "␣ 12.5%"], ["⏎", "⏎ 25.0%", "x <0.1%"]]
    html = candidate_table(explanation)
    assert html.count("22, 163, 74") == 2, "green: what was written"


def test_an_empty_output_makes_an_empty_table():
    empty = Explanation("", "", ["</s>"], [], [[[]]])
    assert _Cells(candidate_table(empty)).rows == [[""]]
