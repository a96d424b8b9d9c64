"""The model equals the paper's formulas in float64, in every combination of its switches, in padded batches.

The oracle (tests/reference.py) sees one sentence at a time and no padding; the model sees all of them in one batch.
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.reference import PaperTransformer, smoothed_losses
from tests.toy import padded

SOURCES = [[5, 9, 13, 4, 30, 2], [7, 2], [11, 6, 39, 2]]
TARGETS = [[1, 8, 21], [1, 17, 4, 33, 12], [1]]
"""Three sentence pairs; the longest source does not have the longest target."""

SWITCHES = list(
    itertools.product(
        ("post", "pre"), ("layernorm", "rmsnorm"), (False, True), ("sinusoidal", "learned", "rotary"), (None, 2, 1)
    )
)
SWITCH_NAMES = ("norm_position", "norm_type", "use_gated_ffn", "position_embedding_type", "num_key_value_heads")


def assert_equals_the_paper(model: Any, side: str = "right", paper: PaperTransformer | None = None) -> None:
    """Compare logits and every residual stream of a float64 model with the oracle, sentence by sentence."""
    paper = paper or PaperTransformer.of(model)
    # The rotary frequencies of transformers are float32 by convention, whatever the dtype of the model.
    tolerance = 1e-6 if model.config.position_embedding_type == "rotary" else 1e-10
    source, source_mask = padded(SOURCES, side)
    target, target_mask = padded(TARGETS, side)
    with torch.no_grad():
        output = model(
            input_ids=source,
            attention_mask=source_mask,
            decoder_input_ids=target,
            decoder_attention_mask=target_mask,
            output_hidden_states=True,
        )
    for row, (source_ids, target_ids) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        source_rows, target_rows = source_mask[row].bool(), target_mask[row].bool()
        memories = paper.encode(source_ids)
        states = paper.decode(target_ids, memories[-1])
        for mine, theirs in zip(memories, output.encoder_hidden_states, strict=True):
            np.testing.assert_allclose(theirs[row, source_rows].numpy(), mine, rtol=0, atol=tolerance)
        for mine, theirs in zip(states, output.decoder_hidden_states, strict=True):
            np.testing.assert_allclose(theirs[row, target_rows].numpy(), mine, rtol=0, atol=tolerance)
        logits = paper.logits(source_ids, target_ids)
        np.testing.assert_allclose(output.logits[row, target_rows].numpy(), logits, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("values", SWITCHES, ids=lambda values: "-".join(map(str, values)))
def test_every_combination_of_switches(tiny_model: Callable[..., Any], values: tuple[Any, ...]) -> None:
    fields = dict(zip(SWITCH_NAMES, values, strict=True))
    activation = "silu" if fields["use_gated_ffn"] else "relu"
    assert_equals_the_paper(tiny_model(**fields, activation_function=activation).double())


@pytest.mark.parametrize(
    "fields",
    [
        {"scale_embedding": False},
        {"tie_word_embeddings": False},
        {"activation_function": "gelu"},
        {"norm_eps": 0.1},
        {"encoder_layers": 3, "decoder_layers": 1},
        {"encoder_attention_heads": 2, "decoder_attention_heads": 8},
        {"encoder_attention_heads": 2, "decoder_attention_heads": 8, "num_key_value_heads": 2},
        {"encoder_attention_heads": 2, "decoder_attention_heads": 8, "position_embedding_type": "rotary"},
        {"position_embedding_type": "rotary", "rope_parameters": {"rope_theta": 50.0, "rope_type": "default"}},
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_the_other_switches(tiny_model: Callable[..., Any], fields: dict[str, Any], backend: str) -> None:
    model = tiny_model(**fields).double()
    model.set_attn_implementation(backend)
    assert_equals_the_paper(model)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary"])
def test_left_padded_on_both_sides(tiny_model: Callable[..., Any], positions: str, backend: str) -> None:
    model = tiny_model(position_embedding_type=positions).double()
    model.set_attn_implementation(backend)
    assert_equals_the_paper(model, side="left")


def test_single_precision_is_close(tiny_model: Callable[..., Any]) -> None:
    """Float32 positions are as exact as float32 can be, also far from the start."""
    model = tiny_model()
    source, target = torch.randint(4, 40, (1, 300)), torch.randint(4, 40, (1, 5))
    with torch.no_grad():
        logits = model(input_ids=source, decoder_input_ids=target).logits[0].numpy()
    expected = PaperTransformer.of(model).logits(source[0].tolist(), target[0].tolist())
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_the_loss_is_the_papers(tiny_model: Callable[..., Any], epsilon: float) -> None:
    model = tiny_model(label_smoothing=epsilon).double()
    paper = PaperTransformer.of(model)
    source, mask = padded(SOURCES, "right")
    wanted = [[8, 21, 2], [17, 4, 33, 12, 2], [2]]  # TARGETS is this, shifted right behind <s>
    labels, _ = padded(wanted, "right", pad=-100)
    losses = [
        loss
        for source_ids, target_ids, label_ids in zip(SOURCES, TARGETS, wanted, strict=True)
        for loss in smoothed_losses(paper.logits(source_ids, target_ids), label_ids, epsilon)
    ]
    with torch.no_grad():
        mean = model(input_ids=source, attention_mask=mask, labels=labels).loss
        summed = model(input_ids=source, attention_mask=mask, labels=labels, num_items_in_batch=4).loss
    assert mean.item() == pytest.approx(sum(losses) / len(losses), rel=1e-9)
    assert summed.item() == pytest.approx(sum(losses) / 4, rel=1e-9)
