"""Presets: the parameter counts follow from the paper's formulas, and each preset is a model that can be built."""

import pytest
import torch

from seqloom.configuration.configuration_seqloom import SeqloomConfig
from seqloom.configuration.presets import PRESETS, get_preset
from seqloom.modeling.modeling_seqloom import SeqloomForConditionalGeneration


def paper_count(vocab: int, width: int, ffn: int, encoder_layers: int, decoder_layers: int) -> int:
    """Weights and biases of the paper's post-norm model with one embedding matrix; section 3."""
    attention = 4 * (width * width + width)  # query, key, value and output projections
    feed_forward = width * ffn + ffn + ffn * width + width
    norm = 2 * width
    encoder_layer = attention + feed_forward + 2 * norm
    decoder_layer = 2 * attention + feed_forward + 3 * norm
    return vocab * width + encoder_layers * encoder_layer + decoder_layers * decoder_layer


def modern_count(vocab: int, width: int, ffn: int, layers: int) -> int:
    """The same with a third feed-forward matrix, norms without a shift, and a last norm at either end."""
    attention = 4 * (width * width + width)
    feed_forward = 2 * (width * ffn + ffn) + ffn * width + width
    norm = width
    encoder_layer = attention + feed_forward + 2 * norm
    decoder_layer = 2 * attention + feed_forward + 3 * norm
    return vocab * width + layers * (encoder_layer + decoder_layer) + 2 * norm


def config_of(name: str, **fields: int) -> SeqloomConfig:
    return SeqloomConfig(**{**get_preset(name).model, **fields})


def real_count(name: str, vocab: int) -> int:
    with torch.device("meta"):
        model = SeqloomForConditionalGeneration(config_of(name, vocab_size=vocab))
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "expected", "stated"),
    [
        ("tiny", paper_count(10_000, 128, 256, 4, 4) + 2 * 2 * 128, 2_605_568),  # pre-norm: a last norm at either end
        ("small", paper_count(8_000, 256, 1024, 3, 3), 7_577_600),
        ("medium", paper_count(10_000, 512, 1024, 6, 6), 36_663_296),
        ("base", paper_count(37_000, 512, 2048, 6, 6), 63_082_496),  # the paper's table 3 rounds to 65 million
        ("big", paper_count(37_000, 1024, 4096, 6, 6), 214_245_376),  # and to 213 million
        ("modern", modern_count(37_000, 512, 1344, 6), 62_682_624),
        ("deep-encoder-shallow-decoder", paper_count(37_000, 512, 2048, 12, 1), 60_976_640),
    ],
)
def test_parameters_as_the_formula_says(name: str, expected: int, stated: int) -> None:
    vocab = {"tiny": 10_000, "small": 8_000, "medium": 10_000}.get(name, 37_000)
    assert real_count(name, vocab) == expected == stated


def test_demo_is_small() -> None:
    assert real_count("demo", 1000) < 1_000_000


def test_base_is_the_default_config() -> None:
    assert config_of("base").to_dict() == SeqloomConfig().to_dict()


def test_modern_feed_forward_is_two_thirds_rounded_to_64() -> None:
    config = config_of("modern")
    assert config.encoder_ffn_dim == config.decoder_ffn_dim == round(2048 * 2 / 3 / 64) * 64
    assert (config.norm_position, config.norm_type, config.position_embedding_type) == ("pre", "rmsnorm", "rotary")


@pytest.mark.parametrize(("name", "d_model", "rate"), [("base", 512, 7e-4), ("big", 1024, 5e-4)])
def test_learning_rate_is_the_peak_of_the_papers_schedule(name: str, d_model: int, rate: float) -> None:
    assert PRESETS[name].training["learning_rate"] == rate
    assert rate == pytest.approx((d_model * PRESETS[name].training["warmup_steps"]) ** -0.5, rel=0.02)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains_with_its_own_rate(name: str) -> None:
    preset = get_preset(name)
    assert preset.name == name
    assert {"learning_rate", "warmup_steps", "tokens_per_update"} <= set(preset.training)
    assert preset.description


def test_unknown_preset_is_answered_with_the_list() -> None:
    with pytest.raises(
        ValueError, match=r"preset='smal' is unknown; did you mean small\? use one of demo, tiny, small"
    ):
        get_preset("smal")
    with pytest.raises(ValueError, match=r"preset='xyzzy' is unknown; use one of demo, tiny"):
        get_preset("xyzzy")
