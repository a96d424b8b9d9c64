"""The oracle can see: for each way of breaking the model, the comparison with the paper must fail.

Without this file, a test that compares nothing would look the same as a test that finds nothing.
"""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seqloom.modeling import modeling_seqloom
from seqloom.modeling.modeling_seqloom import SeqloomSinusoidalPositions
from tests.bent import forget_padding
from tests.modeling.test_paper import assert_equals_the_paper
from tests.reference import PaperTransformer

Mutation = Callable[[Any, pytest.MonkeyPatch], None]


def drop_the_causal_mask(model: Any, patch: pytest.MonkeyPatch) -> None:
    bidirectional = modeling_seqloom.create_bidirectional_mask
    patch.setattr(
        modeling_seqloom,
        "create_causal_mask",
        lambda config, embeds, mask, *_, **__: bidirectional(config, embeds, mask),
    )
    for layer in model.model.decoder.layers:
        layer.self_attn.is_causal = False


def drop_the_source_padding_mask(model: Any, patch: pytest.MonkeyPatch) -> None:
    forget_padding(patch)


def drop_a_residual(model: Any, patch: pytest.MonkeyPatch) -> None:
    layer = model.model.encoder.layers[1]
    leave = layer.leave
    patch.setattr(layer, "leave", lambda norm, residual, output: leave(norm, torch.zeros_like(residual), output))


def drop_the_cross_attention(model: Any, patch: pytest.MonkeyPatch) -> None:
    attention = model.model.decoder.layers[0].encoder_attn
    patch.setattr(attention, "forward", lambda hidden_states, *_, **__: (torch.zeros_like(hidden_states), None))


def drop_the_embedding_scale(model: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(model.model.decoder, "embed_scale", 1.0)


def drop_the_positions(model: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SeqloomSinusoidalPositions, "forward", lambda self, hidden_states, position_ids: hidden_states)


def shift_positions(side: str) -> Mutation:
    def mutate(model: Any, patch: pytest.MonkeyPatch) -> None:
        positions = getattr(model.model, side).embed_positions
        forward = positions.forward
        patch.setattr(
            positions, "forward", lambda hidden_states, position_ids: forward(hidden_states, position_ids + 1)
        )

    return mutate


def swap_sines_and_cosines(model: Any, patch: pytest.MonkeyPatch) -> None:
    positions = model.model.encoder.embed_positions
    forward = positions.forward

    def swapped(hidden_states: Tensor, position_ids: Tensor) -> Tensor:
        added = forward(torch.zeros_like(hidden_states), position_ids)
        return hidden_states + added.roll(added.shape[-1] // 2, dims=-1)

    patch.setattr(positions, "forward", swapped)


def ignore_the_mask_in_positions(model: Any, patch: pytest.MonkeyPatch) -> None:
    count = modeling_seqloom.count_positions
    patch.setattr(modeling_seqloom, "count_positions", lambda mask, embeds, past=None: count(None, embeds, past))


def swap_pre_and_post_norm(model: Any, patch: pytest.MonkeyPatch) -> None:
    for layer in (*model.model.encoder.layers, *model.model.decoder.layers):
        patch.setattr(layer, "is_pre_norm", not layer.is_pre_norm)


def drop_the_attention_scale(model: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(model.model.decoder.layers[1].self_attn, "scaling", 1.0)


def drop_a_bias(model: Any, patch: pytest.MonkeyPatch) -> None:
    fc1 = model.model.encoder.layers[0].fc1
    patch.setattr(fc1, "forward", lambda hidden_states: nn.functional.linear(hidden_states, fc1.weight))


def change_the_activation(model: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(model.model.decoder.layers[1], "activation", nn.GELU())


def change_the_epsilon(model: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(model.model.decoder.layers[1].final_layer_norm, "eps", 1e-6)


def swap_two_norms(model: Any, patch: pytest.MonkeyPatch) -> None:
    layer = model.model.encoder.layers[0]
    layer.self_attn_layer_norm, layer.final_layer_norm = layer.final_layer_norm, layer.self_attn_layer_norm


MUTATIONS: list[Mutation] = [
    drop_the_causal_mask,
    drop_the_source_padding_mask,
    drop_a_residual,
    drop_the_cross_attention,
    drop_the_embedding_scale,
    drop_the_positions,
    swap_sines_and_cosines,
    swap_pre_and_post_norm,
    drop_the_attention_scale,
    drop_a_bias,
    change_the_activation,
    change_the_epsilon,
    swap_two_norms,
]


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_a_broken_model_is_not_the_paper(
    tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, mutate: Mutation
) -> None:
    model = tiny_model().double()
    paper = PaperTransformer.of(model)
    assert_equals_the_paper(model, paper=paper)
    mutate(model, monkeypatch)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_equals_the_paper(model, paper=paper)


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_positions_off_by_one_on_one_side(
    tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    model = tiny_model().double()
    shift_positions(side)(model, monkeypatch)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_equals_the_paper(model)


def test_positions_that_count_the_padding(tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Invisible with padding on the right, which is why the left side is tested everywhere."""
    model = tiny_model().double()
    ignore_the_mask_in_positions(model, monkeypatch)
    assert_equals_the_paper(model, side="right")
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_equals_the_paper(model, side="left")


def test_rotary_positions_off_by_one_between_queries_and_keys(
    tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turning both by one more step changes nothing, by design; turning the queries only must be seen."""
    model = tiny_model(position_embedding_type="rotary").double()
    rotary, rotate, calls = model.model.encoder.rotary_emb, modeling_seqloom.rotate, itertools.count()
    forward = rotary.forward
    with monkeypatch.context() as patch:
        patch.setattr(rotary, "forward", lambda states, position_ids: forward(states, position_ids + 1))
        assert_equals_the_paper(model)
    one_step = forward(torch.zeros(1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.long))

    def turn_queries_once_more(states: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        turned = rotate(states, rotation)
        return rotate(turned, one_step) if next(calls) % 2 == 0 else turned

    monkeypatch.setattr(modeling_seqloom, "rotate", turn_queries_once_more)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_equals_the_paper(model)


def test_shared_key_value_heads_in_another_order(
    tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Query heads 0 and 1 share the first key/value head, not 0 and 2."""
    model = tiny_model(num_key_value_heads=2).double()
    model.set_attn_implementation("eager")
    assert_equals_the_paper(model)

    def interleaved(states: Tensor, count: int, dim: int) -> Tensor:
        return torch.cat([states] * count, dim=dim)

    monkeypatch.setattr(Tensor, "repeat_interleave", interleaved)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_equals_the_paper(model)
