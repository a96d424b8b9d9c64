"""The oracle is held against torch's own layers before it judges anything."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.reference import (
    Array,
    PaperTransformer,
    Weights,
    attention,
    feed_forward,
    layer_norm,
    multi_head_attention,
    rms_norm,
    rotate,
    sinusoid_table,
    smoothed_losses,
)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(7)


def as_torch(x: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x))


def test_attention_is_torchs(random: np.random.Generator) -> None:
    query, key, value = (random.normal(size=(length, 8)) for length in (5, 7, 7))
    mask = random.random((5, 7)) < 0.7
    mask[:, 0] = True
    expected = functional.scaled_dot_product_attention(
        *map(as_torch, (query, key, value)), attn_mask=torch.tensor(mask)
    )
    np.testing.assert_allclose(attention(query, key, value, mask)[0], expected.numpy(), atol=1e-12)


def test_multi_head_attention_is_torchs(random: np.random.Generator) -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(12, 3, batch_first=True).double()
    nn.init.normal_(module.in_proj_bias)
    x, memory = random.normal(size=(4, 12)), random.normal(size=(6, 12))
    weights: dict[str, Array] = {}
    for name, weight, bias in zip("qkv", module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)):
        weights[f"{name}_proj.weight"], weights[f"{name}_proj.bias"] = weight.detach().numpy(), bias.detach().numpy()
    weights["out_proj.weight"] = module.out_proj.weight.detach().numpy()
    weights["out_proj.bias"] = module.out_proj.bias.detach().numpy()
    expected, maps = module(as_torch(x)[None], *[as_torch(memory)[None]] * 2, average_attn_weights=False)
    output, weight_maps = multi_head_attention(x, memory, weights, heads=3)
    np.testing.assert_allclose(output, expected[0].detach().numpy(), atol=1e-12)
    np.testing.assert_allclose(weight_maps, maps[0].detach().numpy(), atol=1e-12)


def test_norms_are_torchs(random: np.random.Generator) -> None:
    x, weight, bias = random.normal(size=(3, 10)), random.normal(size=10), random.normal(size=10)
    expected = functional.layer_norm(as_torch(x), (10,), as_torch(weight), as_torch(bias), 1e-5)
    np.testing.assert_allclose(layer_norm(x, {"weight": weight, "bias": bias}, 1e-5), expected.numpy(), atol=1e-12)
    expected = functional.rms_norm(as_torch(x), (10,), as_torch(weight), 1e-5)
    np.testing.assert_allclose(rms_norm(x, {"weight": weight}, 1e-5), expected.numpy(), atol=1e-12)


@pytest.mark.parametrize(
    ("name", "function"), [("relu", torch.relu), ("gelu", functional.gelu), ("silu", functional.silu)]
)
def test_feed_forward_is_torchs(
    random: np.random.Generator, name: str, function: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    x = random.normal(size=(3, 4))
    weights: Weights = {
        f"{layer}.{part}": random.normal(size=shape)
        for layer, rows, columns in (("fc1", 6, 4), ("fc3", 6, 4), ("fc2", 4, 6))
        for part, shape in (("weight", (rows, columns)), ("bias", (rows,)))
    }
    fc1, fc3 = (
        functional.linear(as_torch(x), as_torch(weights[f"{layer}.weight"]), as_torch(weights[f"{layer}.bias"]))
        for layer in ("fc1", "fc3")
    )
    for gated, hidden in ((False, function(fc1)), (True, function(fc1) * fc3)):
        expected = functional.linear(hidden, as_torch(weights["fc2.weight"]), as_torch(weights["fc2.bias"]))
        np.testing.assert_allclose(feed_forward(x, weights, name, gated), expected.numpy(), atol=1e-12)


def test_sinusoids_are_the_papers_numbers() -> None:
    table = sinusoid_table(50, 6)
    np.testing.assert_allclose(table[0], [0, 0, 0, 1, 1, 1])
    np.testing.assert_allclose(table[1, [0, 3]], [np.sin(1), np.cos(1)])
    # Section 3.5: PE(pos + k) is a linear function of PE(pos): each sin/cos pair is turned by a constant angle.
    sines, cosines = table[:, :3], table[:, 3:]
    angle = sines[4] * cosines[:-4] + cosines[4] * sines[:-4]
    np.testing.assert_allclose(sines[4:], angle, atol=1e-12)


def test_rotary_scores_depend_on_the_distance_only(random: np.random.Generator) -> None:
    query, key = random.normal(size=8), random.normal(size=8)
    scores = rotate(np.tile(query, (9, 1))) @ rotate(np.tile(key, (9, 1))).T
    for distance in range(-8, 9):
        np.testing.assert_allclose(np.diagonal(scores, distance), np.diagonal(scores, distance)[0], atol=1e-12)
    assert not np.allclose(scores[0, 0], scores[0, 1])
    np.testing.assert_allclose(scores[0, 0], query @ key)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5])
def test_label_smoothing_is_torchs(random: np.random.Generator, epsilon: float) -> None:
    logits, labels = random.normal(size=(5, 9)), [3, -100, 0, 8, 3]
    expected = functional.cross_entropy(
        as_torch(logits), torch.tensor(labels), label_smoothing=epsilon, reduction="none"
    ).numpy()
    np.testing.assert_allclose(smoothed_losses(logits, labels, epsilon), expected[expected != 0], atol=1e-12)


def rename(
    state: dict[str, torch.Tensor], prefix: str, attentions: Sequence[tuple[str, str]], norms: Sequence[str]
) -> Weights:
    """Give the weights of an `nn.Transformer*Layer` the names that the oracle reads."""
    weights: dict[str, Array] = {}
    for part in ("weight", "bias"):
        for theirs, ours in attentions:
            for letter, chunk in zip("qkv", state[f"{theirs}.in_proj_{part}"].chunk(3)):
                weights[f"{prefix}.{ours}.{letter}_proj.{part}"] = chunk.numpy()
            weights[f"{prefix}.{ours}.out_proj.{part}"] = state[f"{theirs}.out_proj.{part}"].numpy()
        for number, ours in enumerate(norms, 1):
            weights[f"{prefix}.{ours}.{part}"] = state[f"norm{number}.{part}"].numpy()
        for number in (1, 2):
            weights[f"{prefix}.fc{number}.{part}"] = state[f"linear{number}.{part}"].numpy()
    return weights


@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_layers_are_torchs(random: np.random.Generator, norm_position: str) -> None:
    torch.manual_seed(0)
    options = {"dim_feedforward": 10, "dropout": 0.0, "batch_first": True, "norm_first": norm_position == "pre"}
    encoder = nn.TransformerEncoderLayer(8, 2, **options).double()
    decoder = nn.TransformerDecoderLayer(8, 2, **options).double()
    for parameter in [*encoder.parameters(), *decoder.parameters()]:
        nn.init.normal_(parameter)
    norms = ["self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"]
    attentions = [("self_attn", "self_attn"), ("multihead_attn", "encoder_attn")]
    weights = {
        **rename(encoder.state_dict(), "e", attentions[:1], norms[::2]),
        **rename(decoder.state_dict(), "d", attentions, norms),
    }
    config = SimpleNamespace(
        norm_position=norm_position,
        norm_type="layernorm",
        norm_eps=1e-5,
        num_key_value_heads=None,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        activation_function="relu",
        use_gated_ffn=False,
        position_embedding_type="sinusoidal",
    )
    paper = PaperTransformer(weights, config)
    source, target = random.normal(size=(5, 8)), random.normal(size=(4, 8))
    with torch.no_grad():
        memory = encoder.train()(as_torch(source)[None])  # train() keeps torch off its fused path; there is no dropout
        causal = nn.Transformer.generate_square_subsequent_mask(4).double()
        output = decoder(as_torch(target)[None], memory, tgt_mask=causal)
    np.testing.assert_allclose(paper.encoder_layer(source, "e"), memory[0].numpy(), atol=1e-10)
    np.testing.assert_allclose(paper.decoder_layer(target, memory[0].numpy(), "d"), output[0].numpy(), atol=1e-10)
