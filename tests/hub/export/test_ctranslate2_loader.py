"""Every switch that the engine can do, against torch: forced log-probabilities in float32; the others are refused."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from transformers.activations import ACT2FN

from seqloom.hub.export import ctranslate2_loader as loader
from seqloom.hub.export.ctranslate2_loader import ConversionError, SeqloomLoader, build_spec, vocabulary_of
from seqloom.hub.export.engine_parity import Engine, force
from tests.toy import MODERN

pytest.importorskip("ctranslate2")

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"  # with four special tokens 40, as many as the tiny model has
ROTARY = {"position_embedding_type": "rotary"}

SWITCHES = {
    "paper": {},
    "modern": MODERN,
    "pre-norm": {"norm_position": "pre"},
    "rmsnorm": {"norm_type": "rmsnorm"},
    "eps": {"norm_eps": 1e-2},
    "eps of rmsnorm": {"norm_eps": 1e-2, "norm_type": "rmsnorm", "norm_position": "pre"},
    "learned": {"position_embedding_type": "learned"},
    "rotary": ROTARY,
    "rotary, another base": ROTARY | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "rotary, linear": ROTARY | {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "grouped queries": {"num_key_value_heads": 2},
    "one key": {"num_key_value_heads": 1},
    "as many keys": {"num_key_value_heads": 4},
    "gated": {"use_gated_ffn": True},
    "untied": {"tie_word_embeddings": False},
    "no scale": {"scale_embedding": False},
    "two sides": {"encoder_attention_heads": 8, "decoder_attention_heads": 2, "encoder_layers": 3, "decoder_layers": 1},
    "two sides, shared keys": ROTARY
    | {"encoder_attention_heads": 2, "decoder_attention_heads": 4, "num_key_value_heads": 2},
    "suppressed": {"suppress_tokens": [0, 1, 3]},
    **{f"act {name}": {"activation_function": name, "use_gated_ffn": True} for name in loader.ACTIVATIONS},
}


def difference(model, tokenizer, folder):
    """Convert and return by how much a forced log-probability differs at most."""
    spec = build_spec(model, tokenizer)
    spec.validate()
    spec.optimize(quantization="float32")
    folder.mkdir()
    spec.save(str(folder))
    engine = Engine(str(folder), vocabulary_of(tokenizer, 40), {})
    generator = torch.Generator().manual_seed(1)
    apart = 0.0
    for source_length, target_length in ((5, 7), (33, 20), (1, 1), (7, 0)):
        source = [*torch.randint(4, 40, (source_length,), generator=generator).tolist(), 2]
        target = torch.randint(4, 40, (target_length,), generator=generator).tolist()
        claimed = torch.tensor(engine.score([source], [target])[0])
        apart = max(apart, float((claimed - force(model, source, target)).abs().max()))
    return apart


@pytest.mark.parametrize("name", SWITCHES)
def test_the_engine_computes_what_torch_computes(name, tiny_model, char_tokenizer, tmp_path):
    fields = dict(SWITCHES[name])
    suppressed = fields.pop("suppress_tokens", None)
    model = tiny_model(**fields)
    model.generation_config.suppress_tokens = suppressed
    assert difference(model, char_tokenizer(CHARACTERS), tmp_path / "ct2") < 1e-4


def test_the_measure_notices_another_model(tiny_model, char_tokenizer, tmp_path, monkeypatch):
    """Linear scaling told by its factor alone, which the engine ignores."""
    build = loader._rotary
    monkeypatch.setattr(loader, "_rotary", lambda *a: {k: v for k, v in build(*a).items() if "scaling_type" not in k})
    model = tiny_model(**SWITCHES["rotary, linear"])
    assert difference(model, char_tokenizer(CHARACTERS), tmp_path / "ct2") > 1e-2


def test_the_model_keeps_its_weights_while_the_engine_quantises_in_place(tiny_model, char_tokenizer):
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    spec = build_spec(model, char_tokenizer(CHARACTERS))
    spec.validate()
    spec.optimize(quantization="int8")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", sorted(set(ACT2FN) - set(loader.ACTIVATIONS) - {"prelu", "xielu"}))
def test_other_activations_are_refused_with_the_nearest(name, tiny_model, char_tokenizer):
    near = {"gelu_10": "gelu", "mish": "silu", "leaky_relu": "relu", "relu6": "relu", "relu2": "relu"}.get(name, "relu")
    text = rf"activation_function='{name}' is none of CTranslate2's .*; train with activation_function='{near}', which"
    with pytest.raises(ConversionError, match=text):
        build_spec(tiny_model(activation_function=name), char_tokenizer(CHARACTERS))


@pytest.mark.parametrize("kind", ["dynamic", "yarn", "llama3"])
def test_other_rotary_scalings_are_refused_with_the_nearest(kind, tiny_model, char_tokenizer):
    rope = {"rope_type": kind, "rope_theta": 100.0, "factor": 2.0, "original_max_position_embeddings": 32}
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    model = tiny_model(**ROTARY, rope_parameters=rope)
    with pytest.raises(ConversionError, match=rf"rope_type='{kind}' is none .* 'linear' with the same factor is near"):
        build_spec(model, char_tokenizer(CHARACTERS))


def test_a_vocabulary_that_does_not_fit(tiny_model, char_tokenizer):
    assert vocabulary_of(char_tokenizer("ab"), 8)[4:] == ["a", "b", "<unnamed_6>", "<unnamed_7>"]
    with pytest.raises(ConversionError, match=r"has 41 ids and the model's vocab_size is 40; call model.resize_token"):
        build_spec(tiny_model(), char_tokenizer(CHARACTERS + "!"))


def test_a_model_without_an_end_is_refused(tiny_model, char_tokenizer):
    model = tiny_model(eos_token_id=None)
    model.generation_config.eos_token_id = None
    with pytest.raises(ConversionError, match=r"eos_token_id=None and decoder_start_token_id=1: CTranslate2 has"):
        build_spec(model, char_tokenizer(CHARACTERS))


def test_an_old_engine_is_refused(monkeypatch):
    for installed in ("4.6.2", "4.5.0", "3.24.0"):
        monkeypatch.setattr(loader, "version", lambda name, installed=installed: installed)
        with pytest.raises(ImportError, match=rf"ctranslate2 {installed} is too old .* 'ctranslate2>=4.6.3'"):
            loader.refuse_old_engine()
    for installed in ("4.6.3", "4.10.0", "5.0.0rc1"):
        monkeypatch.setattr(loader, "version", lambda name, installed=installed: installed)
        loader.refuse_old_engine()


@pytest.mark.parametrize("name", [loader.CONVERTER, "__main__"])
def test_the_loader_is_offered_to_a_converter_that_is_loaded_before_or_after(name, monkeypatch, tiny_config):
    for module in (loader.CONVERTER, "__main__"):
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
    tiny_config()  # no converter: nothing happens
    offered = {}
    converter = ModuleType(name)
    converter.__spec__ = SimpleNamespace(name=loader.CONVERTER)
    converter.register_loader = lambda config: lambda cls: offered.setdefault(config, cls)
    monkeypatch.setitem(sys.modules, name, converter)
    tiny_config()
    assert offered == {"SeqloomConfig": SeqloomLoader}
