"""Explanations against what the model itself says: its own scores, its own attentions, step by step."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from seqloom.hub.page import explain_figures
from seqloom.hub.page.explain import Candidate, Explanation, Step, explain
from seqloom.hub.page.explain_figures import alignment_figure, attention_figure, next_word_figure
from seqloom.hub.word_alignment import middle_layer

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


@pytest.fixture
def explanation():
    steps = [
        Step("$b", 0.75, [Candidate("$b", 0.75), Candidate(" ", 0.125)]),
        Step("\n", 0.25, [Candidate("x", 0.5), Candidate("\n", 0.25)]),
    ]
    attention = [[[[0.9, 0.1], [0.25, 0.75]]], [[[0.1, 0.9], [0.7, 0.3]]]]
    return Explanation("s", "o", ["今", " y"], steps, attention)


def test_alignment_reads_a_step_later(explanation):
    assert explanation.alignment() == [1, None]
    assert explanation.alignment(shift=False) == [0, 1]
    assert explanation.alignment(layer=1) == [0, None]
    assert [middle_layer(n) for n in (1, 2, 4, 6)] == [0, 0, 1, 2]


def test_a_causal_lm_is_explained_too(taught_model, model, tokenizer):
    causal = taught_model("SeqloomForCausalLM")
    causal.generation_config.update(max_new_tokens=9)
    assert explain(causal, tokenizer, "abc") == explain(model, tokenizer, "abc")


def test_figures_show_the_numbers(explanation, tmp_path):
    figure = attention_figure(explanation, layer=0, head=0)
    (image,) = figure.axes[0].images
    assert image.get_array().ravel().tolist() == pytest.approx([0.9, 0.1, 0.25, 0.75])
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [r"\$b", "⏎"]
    figure.savefig(tmp_path / "attention.png")
    assert figure._repr_png_().startswith(b"\x89PNG"), "a notebook shows it"
    mean = attention_figure(explanation).axes[0].images[0].get_array()
    torch.testing.assert_close(
        torch.tensor(mean), torch.tensor(explanation.cross_attention).mean((0, 1)), check_dtype=False
    )
    lines = alignment_figure(explanation, shift=False).axes[0].lines
    assert [line.get_ydata().tolist() for line in lines] == [[0, 0], [1, 1]]
    bars = next_word_figure(explanation, 1).axes[0].patches
    assert [bar.get_width() for bar in bars] == [0.5, 0.25]
    assert bars[0].get_facecolor() != bars[1].get_facecolor(), "green: what was written"


def test_figures_take_fonts_that_have_the_characters_and_name_those_that_none_has(monkeypatch, caplog):
    from matplotlib import font_manager

    everywhere = {"b", "今"}  # characters of two fonts
    fonts = {"DejaVu Sans": "dejavu", "Some Serif": "serif", "Some Sans": "sans", "Last Resort": "boxes"}
    entries = [SimpleNamespace(name=name, fname=file) for name, file in fonts.items()]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", entries)
    monkeypatch.setattr(font_manager.fontManager, "addfont", entries.append)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: ["new-Bold", "new-Regular"])
    has = {"dejavu": "b", "serif": "今", "sans": "今", "boxes": "b今سß", "new-Regular": "س", "new-Bold": "س"}

    def get_font(file):
        return SimpleNamespace(family_name=file, get_char_index=lambda code: chr(code) in has[file])

    monkeypatch.setattr(font_manager, "get_font", get_font)
    assert explain_figures._fonts_for(everywhere) == ["DejaVu Sans", "Some Sans"]
    assert not caplog.records
    assert explain_figures._fonts_for({*everywhere, "س", "ß"}) == ["DejaVu Sans", "Some Sans", "new-Regular"]
    (record,) = caplog.records
    assert record.getMessage().startswith("no installed font has 'ß', and the figure shows boxes there; install")


def test_figures_need_matplotlib(explanation, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'seqloom\[plots\]'"):
        attention_figure(explanation)


def test_the_model_comes_first(model, tokenizer):
    with pytest.raises(TypeError, match=r"is no network; the model comes first, then its tokenizer, the text\."):
        explain(tokenizer, model, "abc")
