"""SeqloomConfig: the paper's numbers by default, a readable refusal for what cannot work, and nothing lost in JSON."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from seqloom.configuration.configuration_seqloom import SeqloomConfig


def test_defaults_are_the_papers_base_model() -> None:
    config = SeqloomConfig()
    assert (config.d_model, config.encoder_layers, config.decoder_layers) == (512, 6, 6)
    assert (config.encoder_attention_heads, config.decoder_attention_heads) == (8, 8)
    assert (config.encoder_ffn_dim, config.decoder_ffn_dim, config.activation_function) == (2048, 2048, "relu")
    assert (config.norm_position, config.norm_type, config.position_embedding_type) == (
        "post",
        "layernorm",
        "sinusoidal",
    )
    assert (config.dropout, config.attention_dropout, config.activation_dropout) == (0.1, 0.0, 0.0)
    assert config.scale_embedding
    assert config.tie_word_embeddings
    assert not config.use_gated_ffn
    assert config.num_key_value_heads is None
    assert config.vocab_size == 37000


def test_special_tokens_and_roles() -> None:
    config = SeqloomConfig()
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id, config.decoder_start_token_id) == (
        0,
        1,
        2,
        1,
    )
    assert config.is_encoder_decoder
    assert not config.is_decoder
    assert config.use_cache
    assert config.model_type == "seqloom"


@pytest.mark.parametrize(
    ("canonical", "ours"),
    [
        ("hidden_size", "d_model"),
        ("num_attention_heads", "encoder_attention_heads"),
        ("num_hidden_layers", "encoder_layers"),
    ],
)
def test_canonical_names_read_write_and_construct(canonical: str, ours: str) -> None:
    config = SeqloomConfig(**{canonical: 16})
    assert getattr(config, ours) == getattr(config, canonical) == 16
    setattr(config, canonical, 32)
    assert getattr(config, ours) == 32
    assert canonical not in config.to_dict()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"encoder_attention_heads": 7},
            "encoder_attention_heads=7 does not divide d_model=512; use one of 1, 2, 4, 8, 16,",
        ),
        (
            {"decoder_attention_heads": 3, "d_model": 16},
            "decoder_attention_heads=3 does not divide d_model=16; use one of 1, 2, 4, 8, 16.",
        ),
        ({"decoder_attention_heads": 0}, "decoder_attention_heads=0 does not divide d_model=512"),
        (
            {"num_key_value_heads": 3},
            "num_key_value_heads=3 does not divide encoder_attention_heads=8; use a divisor of it, or None",
        ),
        (
            {"num_key_value_heads": 4, "decoder_attention_heads": 2},
            "num_key_value_heads=4 does not divide decoder_attention_heads=2",
        ),
        ({"num_key_value_heads": 0}, "num_key_value_heads=0 does not divide encoder_attention_heads=8"),
        (
            {"activation_function": "reluu"},
            "activation_function='reluu' is unknown; did you mean 'relu'? use one of gelu,",
        ),
        ({"activation_function": "zzz"}, "activation_function='zzz' is unknown; use one of gelu,"),
        ({"norm_position": "middle"}, "norm_position='middle' is unknown; use one of post, pre."),
        (
            {"norm_type": "rmsnrm"},
            "norm_type='rmsnrm' is unknown; did you mean 'rmsnorm'? use one of layernorm, rmsnorm.",
        ),
        (
            {"position_embedding_type": "rotery"},
            "position_embedding_type='rotery' is unknown; did you mean 'rotary'? use one of sinusoidal, learned, rota",
        ),
        (
            {"d_model": 15, "encoder_attention_heads": 3, "decoder_attention_heads": 3},
            "d_model=15 is odd, and sinusoids come in sine/cosine pairs; use an even d_model or position_embedding_t",
        ),
        (
            {"d_model": 24, "position_embedding_type": "rotary"},
            "encoder_attention_heads=8 gives heads of d_model/heads=3 dimensions, and rotary positions turn pairs",
        ),
        ({"dropout": 1.0}, "dropout=1.0 is outside [0, 1); it is a share, e.g. 0.1."),
        ({"dropout": -0.1}, "dropout=-0.1 is outside [0, 1)"),
        ({"attention_dropout": 2}, "attention_dropout=2 is outside [0, 1)"),
        ({"activation_dropout": 1.5}, "activation_dropout=1.5 is outside [0, 1)"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0 is outside [0, 1)"),
        ({"label_smoothing": -0.2}, "label_smoothing=-0.2 is outside [0, 1)"),
        ({"vocab_size": 0}, "vocab_size=0 must be at least 1."),
        ({"encoder_layers": 0}, "encoder_layers=0 must be at least 1."),
        ({"decoder_ffn_dim": -5}, "decoder_ffn_dim=-5 must be at least 1."),
        ({"max_position_embeddings": 0}, "max_position_embeddings=0 must be at least 1."),
        ({"eos_token_id": 37000}, "eos_token_id=37000 is outside the vocabulary; with vocab_size=37000 ids run from 0"),
        ({"eos_token_id": [2, -1]}, "eos_token_id=-1 is outside the vocabulary"),
        (
            {"position_embedding_type": "rotary", "rope_parameters": {"partial_rotary_factor": 0.5}},
            "partial_rotary_factor=0.5 turns a part of each head, and Seqloom turns whole heads; leave it out of rope_",
        ),
        (
            {"position_embedding_type": "rotary", "partial_rotary_factor": 0.5},
            "partial_rotary_factor=0.5 turns a part of each head",
        ),
        ({"norm_eps": -1.0}, "norm_eps=-1.0"),
        ({"init_std": -1.0}, "init_std=-1.0"),
    ],
)
def test_contradictions_are_refused_in_one_readable_line(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole sentence is compared below
        SeqloomConfig(**fields)
    assert str(caught.value).startswith(sentence), str(caught.value)


def test_every_kind_of_position_has_its_own_needs() -> None:
    odd = {"d_model": 15, "encoder_attention_heads": 3, "decoder_attention_heads": 3}
    assert SeqloomConfig(**odd, position_embedding_type="learned").d_model == 15
    even_heads = {"d_model": 24, "encoder_attention_heads": 6, "decoder_attention_heads": 12}
    assert SeqloomConfig(**even_heads, position_embedding_type="rotary").rope_parameters is not None


@pytest.mark.parametrize(
    ("typo", "field"),
    [
        ("encoder_layer", "encoder_layers"),
        ("decoder_attention_head", "decoder_attention_heads"),
        ("vocabsize", "vocab_size"),
        ("tie_word_embedings", "tie_word_embeddings"),
        ("label_smooting", "label_smoothing"),
        ("drop_out", "dropout"),
        ("norm_positon", "norm_position"),
    ],
)
def test_a_near_miss_is_refused_and_names_the_field(typo: str, field: str) -> None:
    with pytest.raises(ValueError, match=rf"^{typo}=3 is not a field of SeqloomConfig; did you mean {field}\?$"):
        SeqloomConfig(**{typo: 3})


def test_a_foreign_key_is_kept_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        config = SeqloomConfig(project_note="run 7")
    assert config.project_note == "run 7"
    assert config.to_dict()["project_note"] == "run 7"
    assert "project_note='run 7' is not a field of SeqloomConfig; it is kept and has no effect." in caplog.text


@pytest.mark.parametrize(
    "fields",
    [
        # What transformers' own configuration test hands to every configuration (config_common_kwargs) ...
        {
            "return_dict": False,
            "output_hidden_states": True,
            "output_attentions": True,
            "dtype": "float16",
            "chunk_size_feed_forward": 5,
            "architectures": ["BertModel"],
            "id2label": {0: "label"},
            "label2id": {"label": "0"},
            "problem_type": "regression",
        },
        # ... and what older config.json files, the Hub and other tools of the field leave in one.
        {"tie_encoder_decoder": False},
        {"sep_token_id": 2},
        {"cls_token_id": 1},
        {"unk_token_id": 3},
        {"torch_dtype": "bfloat16"},
        {"forced_eos_token_id": 2, "num_beams": 4, "max_length": 20},
        {"auto_map": {"AutoConfig": "configuration_seqloom.SeqloomConfig"}, "_name_or_path": "x"},
        {"add_cross_attention": True, "task_specific_params": None},
    ],
)
def test_keys_of_the_wider_world_are_no_typos(fields: dict[str, Any]) -> None:
    config = SeqloomConfig(**fields)
    assert config.d_model == 512


def test_rope_parameters_are_ignored_aloud_without_rotary(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        config = SeqloomConfig(rope_parameters={"rope_theta": 500.0, "rope_type": "default"})
    assert not hasattr(config, "rope_parameters")
    assert "rope_parameters: ignored, only position_embedding_type='rotary' reads it." in caplog.text


def test_rotary_has_the_usual_base_and_reads_scaling() -> None:
    assert SeqloomConfig(position_embedding_type="rotary").rope_parameters == {
        "rope_theta": 10000.0,
        "rope_type": "default",
    }
    scaled = SeqloomConfig(position_embedding_type="rotary", rope_parameters={"rope_type": "linear", "factor": 2.0})
    assert scaled.rope_parameters == {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0}
    SeqloomConfig(position_embedding_type="rotary", rope_parameters={"partial_rotary_factor": 1.0})


def test_a_wrong_type_is_refused_by_name() -> None:
    with pytest.raises(Exception, match="Field 'd_model' expected int, got str"):
        SeqloomConfig(d_model="wide")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"position_embedding_type": "rotary", "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}},
        {"norm_position": "pre", "norm_type": "rmsnorm", "use_gated_ffn": True, "activation_function": "silu"},
        {
            "num_key_value_heads": 2,
            "dropout": 0,
            "label_smoothing": 0.1,
            "init_std": 0.02,
            "tie_word_embeddings": False,
        },
        {"eos_token_id": [2, 3], "pad_token_id": None},
    ],
)
def test_json_round_trip(
    fields: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SeqloomConfig, "after_save", None)
    config = SeqloomConfig(**fields)
    config.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        again = SeqloomConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert SeqloomConfig.from_dict(json.loads(config.to_json_string(use_diff=False))).to_dict() == config.to_dict()
    assert not caplog.records, "our own file must not warn"


def test_heads_that_are_no_number_are_left_out() -> None:
    """PEFT multiplies by the key/value heads of a dictionary that has them."""
    assert "num_key_value_heads" not in SeqloomConfig().to_dict()
    assert SeqloomConfig(num_key_value_heads=2).to_dict()["num_key_value_heads"] == 2
    older = {**SeqloomConfig().to_dict(), "num_key_value_heads": None}
    assert SeqloomConfig.from_dict(older).num_key_value_heads is None


def test_a_misspelt_key_in_a_file_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "seqloom", "encoder_layer": 3}))
    with pytest.raises(ValueError, match="did you mean encoder_layers"):
        SeqloomConfig.from_pretrained(tmp_path)


def test_after_save_is_called_with_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(SeqloomConfig, "after_save", staticmethod(lambda folder: seen.append(str(folder))))
    SeqloomConfig().save_pretrained(tmp_path)
    assert seen == [str(tmp_path)]
    assert (tmp_path / "config.json").exists()
    assert "after_save" not in json.loads((tmp_path / "config.json").read_text())


def test_a_folders_pipelines_know_language_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder's copy of this file nothing is plugged into `after_save`; there transformers looks tasks up."""
    tasks = {"translation": {"impl": "a.B"}, "rhyme": {"impl": "c.D"}}
    assert not hasattr(SeqloomConfig(custom_pipelines=tasks), "custom_pipelines")
    monkeypatch.setattr(SeqloomConfig, "after_save", None)
    known = SeqloomConfig(custom_pipelines=tasks).custom_pipelines
    assert known == tasks
    assert "translation_en_to_de" in known
    assert known["translation_en_to_de"] is known["translation"]
    for task in ("translation_en_de", "translation_en_to_", "summarization"):
        assert task not in known
        with pytest.raises(KeyError, match=task):
            known[task]
    alone = SeqloomConfig(custom_pipelines={"rhyme": {"impl": "c.D"}})
    assert "translation_en_to_de" not in alone.custom_pipelines
    assert alone.to_dict()["custom_pipelines"] == {"rhyme": {"impl": "c.D"}}
