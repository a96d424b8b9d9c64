"""What the library calls otherwise: both names of the cache work, and no keyword is swallowed."""

import inspect
import warnings

import pytest
import torch
import transformers
from transformers import DynamicCache, EncoderDecoderCache, GenerationMixin

from seqloom.modeling import library
from seqloom.modeling.library import (
    CACHE,
    TESTED,
    TESTED_TORCH,
    UnknownKeywordError,
    by_one_name,
    running_library,
)
from seqloom.modeling.modeling_seqloom import SeqloomForConditionalGeneration

BATCH = {"input_ids": torch.tensor([[5, 6, 7, 2]]), "decoder_input_ids": torch.tensor([[1, 8, 9]])}


# Keywords ------------------------------------------------------------------------------------------------------------


def modules_with_keywords(model):
    """Return every module whose forward takes whatever else it is given."""
    kinds = {type(module): module for module in model.modules()}
    return {
        kind.__name__: module
        for kind, module in kinds.items()
        if kind.__module__.startswith("seqloom.")
        and any(p.kind is p.VAR_KEYWORD for p in inspect.signature(kind.forward).parameters.values())
    }


def test_every_forward_that_takes_keywords_knows_them(tiny_model):
    found = modules_with_keywords(tiny_model(position_embedding_type="rotary"))
    assert found.keys() == {
        *("SeqloomForConditionalGeneration", "SeqloomModel", "SeqloomEncoder", "SeqloomDecoder"),
        *("SeqloomEncoderLayer", "SeqloomDecoderLayer", "SeqloomSelfAttention", "SeqloomCrossAttention"),
    }
    for name, module in found.items():
        with pytest.raises(UnknownKeywordError, match=rf"^{name}\.forward does not know the keyword source_mask"):
            module(torch.zeros(1), source_mask=torch.ones(1))


def test_the_error_says_which_keyword_what_runs_what_was_tested_and_what_to_do(tiny_model, monkeypatch):
    running = {"transformers": "5.99.0", "digest": "no such", "torch": "2.99.0"}
    monkeypatch.setattr(library, "running_library", lambda: running)
    with pytest.raises(UnknownKeywordError) as error:
        tiny_model()(**BATCH, atention_mask=torch.ones(1, 4))
    assert str(error.value) == (
        "SeqloomForConditionalGeneration.forward does not know the keyword atention_mask, and would have answered "
        "without it; did you mean attention_mask? Running is transformers 5.99.0 and torch 2.99.0, tested was "
        f"transformers {', '.join(library.TESTED)} with torch {', '.join(library.TESTED_TORCH)}. If the keyword is "
        "yours, correct or remove it. If the library sent it, install a tested pair, as with pip install "
        f"transformers=={list(TESTED)[-1]} torch=={TESTED_TORCH[-1]}, or let a newer Seqloom renew the folder's code: "
        "pip install -U seqloom, then seqloom upgrade FOLDER."
    )


def test_a_keyword_without_a_value_asks_for_nothing(tiny_model):
    model = tiny_model()
    assert torch.equal(model(**BATCH, head_mask=None).logits, model(**BATCH).logits)


@pytest.mark.parametrize("harmless", [{}, {"trust_remote_code": True}], ids=["alone", "beside a known one"])
def test_generate_names_an_unknown_keyword(tiny_model, harmless):
    with pytest.raises(UnknownKeywordError, match=r"^generate does not know the keyword num_beam, .* num_beams\?"):
        tiny_model().generate(BATCH["input_ids"], **harmless, num_beam=3)


@pytest.mark.parametrize("harmless", [{}, {"trust_remote_code": True}], ids=["alone", "beside a known one"])
def test_generate_leaves_other_refusals_to_the_library(tiny_model, harmless):
    with pytest.raises(ValueError, match="num_return_sequences"):
        tiny_model().generate(BATCH["input_ids"], **harmless, num_beams=2, num_return_sequences=3)


def test_what_is_handed_to_the_preparation_of_a_step_is_refused_by_the_step(tiny_model):
    model = tiny_model()
    inputs = model.prepare_inputs_for_generation(BATCH["decoder_input_ids"], source_mask=torch.ones(1, 4))
    with pytest.raises(UnknownKeywordError, match=r"forward does not know the keyword source_mask"):
        model(BATCH["input_ids"], **inputs)


@pytest.mark.parametrize("name", ["source_mask", "kv_store"])
def test_what_the_library_renames_on_the_way_is_refused(tiny_model, monkeypatch, name):
    """As 5.24 did with the cache: the same thing, under a name that nobody reads."""
    model, old = tiny_model(), {"source_mask": "attention_mask", "kv_store": CACHE}[name]
    prepare = GenerationMixin.prepare_inputs_for_generation

    def renamed(self, *args, **kwargs):
        inputs = prepare(self, *args, **kwargs)
        return {name if key == old else key: value for key, value in inputs.items()}

    monkeypatch.setattr(GenerationMixin, "prepare_inputs_for_generation", renamed)
    with pytest.raises(UnknownKeywordError, match=name):
        model.generate(BATCH["input_ids"], attention_mask=torch.ones(1, 4, dtype=torch.long), max_new_tokens=3)


# Both names of the cache ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_outputs_answer_to_both_names(tiny_model):
    model = tiny_model()
    encoded = model.get_encoder()(BATCH["input_ids"])
    decoded = model.get_decoder()(BATCH["decoder_input_ids"], encoder_hidden_states=encoded.last_hidden_state)
    for output in (model(**BATCH), model.model(**BATCH), decoded):
        assert isinstance(output.cache, EncoderDecoderCache)
        assert output.cache is output.past_key_values is output["cache"] is output["past_key_values"]
        assert list(output).count("cache") + list(output).count("past_key_values") == 1


@torch.no_grad()
@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_callers_may_use_either_name(tiny_model, name):
    model = tiny_model()
    whole = model(**BATCH).logits
    first = model(**{**BATCH, "decoder_input_ids": BATCH["decoder_input_ids"][:, :2]})
    rest = {"decoder_input_ids": BATCH["decoder_input_ids"][:, 2:], name: first.cache}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.testing.assert_close(model(**{**BATCH, **rest}).logits, whole[:, 2:])
    is_old_name = name != CACHE == "cache"
    assert any("`past_key_values` is deprecated" in str(warning.message) for warning in caught) == is_old_name


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_generate_goes_on_from_a_cache_by_either_name(tiny_model, name):
    model = tiny_model()
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "return_dict_in_generate": True}
    whole = model.generate(BATCH["input_ids"], **options)
    assert whole.cache is whole.past_key_values
    half = model.generate(BATCH["input_ids"], **{**options, "max_new_tokens": 3, "min_new_tokens": 3})
    rest = {"decoder_input_ids": half.sequences, "max_new_tokens": 3, "min_new_tokens": 3}
    went_on = model.generate(BATCH["input_ids"], **{**options, **rest, name: half.cache})
    assert torch.equal(went_on.sequences, whole.sequences)


def test_two_caches_at_once_are_refused(tiny_model):
    cache = tiny_model()(**BATCH).cache
    with pytest.raises(ValueError, match="two names of one thing, and both were given; give one"):
        tiny_model()(**BATCH, cache=cache, past_key_values=cache)
    assert by_one_name({"cache": None, "past_key_values": 1, "x": 2}, "cache") == {"x": 2, "cache": 1}


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_inputs_of_a_step_have_one_cache_by_either_name(tiny_model, name):
    """PEFT looks for it, and puts another in its place."""
    model = tiny_model()
    cache = model(**BATCH).cache
    inputs = model.prepare_inputs_for_generation(BATCH["decoder_input_ids"], **{name: cache})
    assert inputs.get("cache") is inputs.get("past_key_values") is cache
    assert inputs.get("attention_mask", 1) == 1
    inputs[name] = None
    assert {*inputs} == {"decoder_input_ids", CACHE}
    assert inputs[CACHE] is None


def test_gradient_checkpointing_leaves_the_cache_out_whatever_it_is_called(tiny_model):
    """A layer that is computed again on the way back would write into the cache twice."""
    model = tiny_model().train()
    model.gradient_checkpointing_enable()
    cache = EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config))
    model(**BATCH, cache=cache).logits.sum().backward()
    assert cache.get_seq_length() == 0


# Which library this is -----------------------------------------------------------------------------------------------


def test_the_installed_library_is_known_by_its_text():
    """A listed release is the text it was; one that is not listed yet passes here, and the others judge it."""
    running = running_library()
    assert running["transformers"] == transformers.__version__
    if running["transformers"] in TESTED:
        assert TESTED[running["transformers"]] == running["digest"]
    assert list(TESTED) == sorted(TESTED, key=lambda version: tuple(map(int, version.split("."))))


def test_a_patched_copy_is_another_library(tmp_path, monkeypatch):
    (tmp_path / "generation").mkdir()
    (tmp_path / "generation" / "utils.py").write_text("def generate(): pass\n")
    (tmp_path / "__init__.py").touch()
    monkeypatch.setattr(library.transformers, "__file__", str(tmp_path / "__init__.py"))
    before = running_library.__wrapped__()
    (tmp_path / "generation" / "utils.py").write_text("def generate(): return 1\n")
    after = running_library.__wrapped__()
    assert before["transformers"] == after["transformers"]
    assert before["digest"] != after["digest"]


def test_a_patched_release_is_called_so(monkeypatch):
    monkeypatch.setattr(
        library, "running_library", lambda: {"transformers": list(library.TESTED)[-1], "digest": "0", "torch": "2.13.0"}
    )
    assert (
        library.describe_running()
        == f"transformers {list(library.TESTED)[-1]} (not as it was released) and torch 2.13.0"
    )
    assert not library.is_tested()


def test_the_model_has_the_librarys_direct_base():
    """transformers asks `__bases__` for GenerationMixin, not the whole line of ancestors."""
    assert GenerationMixin in SeqloomForConditionalGeneration.__bases__
