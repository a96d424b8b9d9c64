"""Packed sentences give what padded ones give: states, loss and gradients, for every switch of the model."""

from types import SimpleNamespace

import pytest
import torch

import seqloom
from seqloom.modeling import packing
from seqloom.modeling.packing import PackedMask, Packing, has_kernel, packed_attention
from tests.toy import TINY, padded

SOURCES = [[5, 6, 7, 2], [8, 2], [9, 10, 11, 12, 13, 2], [14, 2]]
TARGETS = [[15, 2], [16, 17, 18, 19, 2], [20, 2], [21, 22, 23, 2]]

SWITCHES = [
    {},
    {"norm_position": "pre", "position_embedding_type": "rotary"},
    {"position_embedding_type": "learned", "norm_type": "rmsnorm"},
    {"num_key_value_heads": 2, "use_gated_ffn": True, "activation_function": "silu"},
    {"tie_word_embeddings": False, "scale_embedding": False},
]


def make_model(**switches):
    torch.manual_seed(0)
    return seqloom.SeqloomForConditionalGeneration(seqloom.SeqloomConfig(**{**TINY, **switches})).double()


def batch(side="right"):
    ids, mask = padded(SOURCES, side)
    return {"input_ids": ids, "attention_mask": mask, "labels": padded(TARGETS, side, pad=-100)[0]}


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda switches: "-".join(map(str, switches.values())) or "paper")
@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_states_and_gradients_are_those_of_the_padded_batch(switches, side):
    model, inputs = make_model(**switches), batch(side)
    results = []
    for packed in (False, True):
        model.zero_grad()
        outputs = model(**inputs, packed=packed, label_smoothing=0.1)
        outputs.loss.backward()
        gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
        results.append((outputs, gradients))
    (plain, expected), (packed, found) = results
    torch.testing.assert_close(packed.loss, plain.loss, rtol=1e-9, atol=0)
    real = inputs["labels"] != -100
    tolerance = 1e-5 if "rotary" in switches.values() else 1e-9  # rotary frequencies are float32
    torch.testing.assert_close(packed.logits[real], plain.logits[real], rtol=0, atol=tolerance)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=tolerance, msg=name)


def test_the_loss_without_logits_is_the_same():
    model, inputs = make_model(), batch()
    expected = model(**inputs, num_items_in_batch=7).loss
    torch.testing.assert_close(model(**inputs, packed=True, skip_logits=True, num_items_in_batch=7).loss, expected)


def test_labels_ignored_in_the_middle_stay_part_of_the_target():
    model, inputs = make_model(), batch()
    inputs["labels"][1, 2] = -100
    torch.testing.assert_close(model(**inputs, packed=True).loss, model(**inputs).loss)


def test_a_sentence_does_not_see_its_neighbours():
    model = make_model()
    alone = {name: value[:1] for name, value in batch().items()}
    together = model(**batch(), packed=True).logits[:1, :2]
    torch.testing.assert_close(together, model(**alone).logits[:, :2], rtol=0, atol=1e-9)


def test_gradient_checkpointing_works_on_packed_rows():
    model, inputs = make_model().train(), batch()
    expected = model(**inputs).loss
    model.gradient_checkpointing_enable()
    loss = model(**inputs, packed=True).loss
    loss.backward()
    torch.testing.assert_close(loss, expected)


def test_nothing_is_computed_for_padding():
    model, seen = make_model(), []
    model.model.encoder.layers[0].fc1.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    model(**batch(), packed=True)
    assert seen == [(1, sum(map(len, SOURCES)), TINY["encoder_ffn_dim"])]


def test_packing_and_unpacking_are_inverse():
    states = torch.randn(4, 6, 3)
    mask = padded(SOURCES, "left")[1]
    rows = Packing.of(mask, states)
    assert rows.pack(states).shape == (1, 14, 3)
    assert rows.ends.tolist() == [0, 4, 6, 12, 14]
    torch.testing.assert_close(rows.unpack(rows.pack(states)), states * mask[..., None])
    assert Packing.of(None, states).pack(states).shape == (1, 24, 3)


def test_attention_dropout_is_refused():
    model = make_model(attention_dropout=0.1).train()
    with pytest.raises(ValueError, match=r"attention_dropout=0\.1 has no kernel for packed sentences; set it to 0"):
        model(**batch(), packed=True)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("is_causal", [False, True])
def test_the_kernel_for_variable_lengths_is_called_as_it_wants_to_be(groups, is_causal, monkeypatch):
    """Tensors without content run torch's own checks of the call and of its backward pass, where no GPU is."""
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    calls = []
    kernel = varlen.varlen_attn

    def spy(*args, **kwargs):
        calls.append((args[3:], kwargs["window_size"]))
        return kernel(*args, **kwargs)

    monkeypatch.setattr(varlen, "varlen_attn", spy)
    monkeypatch.setattr(packing, "has_kernel", lambda query: True)
    narrow = {"dtype": torch.bfloat16, "device": "meta", "requires_grad": True}
    query = torch.empty(1, 4, 11, 32, **narrow)
    key, value = (torch.empty(1, 4 // groups, 9, 32, **narrow) for _ in range(2))
    places, lengths = (torch.empty(count, dtype=torch.long, device="meta") for count in (11, 3))
    mask = PackedMask(Packing((3, 5), places, lengths), Packing((3, 4), places[:9], lengths))
    mixed, weights = packed_attention(SimpleNamespace(is_causal=is_causal), query, key, value, mask, 0.2, dropout=0.0)
    mixed.sum().backward()
    assert mixed.shape == (1, 11, 4, 32)
    assert weights is None
    assert (query.grad.shape, key.grad.shape) == (query.shape, key.shape)
    ((query_ends, key_ends, longest_query, longest_key), window) = calls[0]
    assert (query_ends.dtype, query_ends.shape, key_ends.shape) == (torch.int32, (4,), (4,))
    assert (longest_query, longest_key, window) == (5, 4, (-1, 0) if is_causal else (-1, -1))


def test_a_processor_has_no_such_kernel():
    assert not has_kernel(torch.empty(1, 1, 1, 1, dtype=torch.bfloat16))
