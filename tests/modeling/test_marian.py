"""Marian, which nobody here wrote, is a post-norm sinusoidal Seqloom: same weights in, same logits and words out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import MarianConfig, MarianMTModel

from tests.toy import toy_pairs

SHARED_FIELDS = (
    "vocab_size",
    "d_model",
    "encoder_layers",
    "decoder_layers",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "max_position_embeddings",
    "activation_function",
    "scale_embedding",
    "pad_token_id",
    "eos_token_id",
    "decoder_start_token_id",
)


def marian_twin(ours: Any) -> MarianMTModel:
    """Make a Marian with the weights of a Seqloom."""
    fields = {name: getattr(ours.config, name) for name in SHARED_FIELDS}
    marian = MarianMTModel(MarianConfig(**fields, forced_eos_token_id=None)).eval()
    weights = {"model.shared.weight": ours.get_input_embeddings().weight, **ours.state_dict()}
    report = marian.load_state_dict(weights, strict=False)
    assert not report.unexpected_keys
    assert set(report.missing_keys) <= {
        "final_logits_bias",
        "model.encoder.embed_positions.weight",
        "model.decoder.embed_positions.weight",
    }
    return marian


@pytest.fixture(params=["relu", "silu"])
def twins(request: pytest.FixtureRequest, tiny_model: Callable[..., Any]) -> tuple[Any, MarianMTModel]:
    """A Seqloom and its Marian."""
    ours = tiny_model(activation_function=request.param, max_position_embeddings=1024)
    return ours, marian_twin(ours)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Four right-padded sources (Marian knows no other side) and targets."""
    torch.manual_seed(0)
    mask = torch.arange(9)[None] < torch.tensor([9, 3, 1, 6])[:, None]
    source = torch.randint(4, 40, (4, 9)).masked_fill(~mask, 0)
    return {"input_ids": source, "attention_mask": mask.long()}


def test_same_logits(twins: tuple[Any, MarianMTModel], batch: dict[str, torch.Tensor]) -> None:
    ours, marian = twins
    target = torch.randint(4, 40, (4, 7))
    target[:, 0] = 1
    with torch.no_grad():
        difference = ours(**batch, decoder_input_ids=target).logits - marian(**batch, decoder_input_ids=target).logits
    assert difference.abs().max() <= 1e-5


def test_same_loss(twins: tuple[Any, MarianMTModel], batch: dict[str, torch.Tensor]) -> None:
    ours, marian = twins
    labels = torch.randint(4, 40, (4, 7))
    labels[1, 3:] = -100
    with torch.no_grad():
        torch.testing.assert_close(ours(**batch, labels=labels).loss, marian(**batch, labels=labels).loss)


def test_same_logits_far_from_the_start(twins: tuple[Any, MarianMTModel]) -> None:
    """Marian's table is rounded from float64; computed sinusoids must not drift from it."""
    longest = twins[0].config.max_position_embeddings
    source, target = torch.randint(4, 40, (1, longest)), torch.randint(4, 40, (1, longest))
    with torch.no_grad():
        first, second = (model(input_ids=source, decoder_input_ids=target).logits for model in twins)
    assert (first - second).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 4, "length_penalty": 0.6},
        {"do_sample": True, "top_k": 5},
    ],
    ids=["greedy", "beam", "n-best", "sample"],
)
def test_same_words(taught_model: Callable[..., Any], options: dict[str, Any]) -> None:
    ours = taught_model()
    source, mask, _ = toy_pairs(8, seed=1000)
    written = []
    for model in (ours, marian_twin(ours)):
        torch.manual_seed(1)
        written.append(model.generate(input_ids=source, attention_mask=mask, max_new_tokens=12, **options))
    torch.testing.assert_close(*written)
    assert written[0].unique().numel() > 8, "the test is worth little when the model repeats one word"
