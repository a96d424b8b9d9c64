"""Packed sentences give what padded ones give: states, loss and gradients, for every switch of the model."""

from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import seqloom
from seqloom.modeling import fused_loss, packing
from seqloom.modeling.packing import attend_to_packed, has_kernel, packed_attention_forward
from seqloom.training.collator import SeqloomCollator
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
    model = seqloom.SeqloomForConditionalGeneration(seqloom.SeqloomConfig(**{**TINY, **switches})).double()
    attend_to_packed(model)
    return model


def batch(side="right"):
    ids, mask = padded(SOURCES, side)
    return {"input_ids": ids, "attention_mask": mask, "labels": padded(TARGETS, side, pad=-100)[0]}


def packed_batch(sources=SOURCES, targets=TARGETS):
    collate = SeqloomCollator(pad_token_id=0, decoder_start_token_id=1, packs=True)
    return collate([{"input_ids": source, "labels": target} for source, target in zip(sources, targets, strict=True)])


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda switches: "-".join(map(str, switches.values())) or "paper")
@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_states_and_gradients_are_those_of_the_padded_batch(switches, side):
    model, inputs = make_model(**switches), batch(side)
    results = []
    for given in (inputs, packed_batch()):
        model.zero_grad()
        outputs = model(**given, smoothing=0.1)
        outputs.loss.backward()
        gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
        results.append((outputs, gradients))
    (plain, expected), (packed, found) = results
    torch.testing.assert_close(packed.loss, plain.loss, rtol=1e-9, atol=0)
    real = inputs["labels"] != -100
    tolerance = 1e-5 if "rotary" in switches.values() else 1e-9  # rotary frequencies are float32
    torch.testing.assert_close(packed.logits[0], plain.logits[real], rtol=0, atol=tolerance)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=tolerance, msg=name)


def test_the_loss_without_logits_is_the_same():
    model, inputs = make_model(), batch()
    expected = model(**inputs, num_items_in_batch=7).loss
    packed = model(**packed_batch(), skip_logits=True, num_items_in_batch=7)
    torch.testing.assert_close(packed.loss, expected)


def test_labels_ignored_in_the_middle_stay_part_of_the_target():
    model, inputs = make_model(), batch()
    inputs["labels"][1, 2] = -100
    targets = [list(target) for target in TARGETS]
    targets[1][2] = -100
    for skip_logits in (False, True):
        loss = model(**packed_batch(targets=targets), skip_logits=skip_logits).loss
        torch.testing.assert_close(loss, model(**inputs).loss)


def test_a_sentence_does_not_see_its_neighbours():
    model = make_model()
    alone = {name: value[:1] for name, value in batch().items()}
    together = model(**packed_batch()).logits[:, :2]
    torch.testing.assert_close(together, model(**alone).logits[:, :2], rtol=0, atol=1e-9)


def test_gradient_checkpointing_works_on_packed_rows():
    model, inputs = make_model().train(), batch()
    expected = model(**inputs).loss
    model.gradient_checkpointing_enable()
    loss = model(**packed_batch()).loss
    loss.backward()
    torch.testing.assert_close(loss, expected)


def test_nothing_is_computed_for_padding():
    model, seen = make_model(), []
    model.model.encoder.layers[0].fc1.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    model(**packed_batch())
    assert seen == [(1, sum(map(len, SOURCES)), TINY["encoder_ffn_dim"])]


def test_padded_batches_are_read_as_before():
    """Training packs; evaluation pads, and generates."""
    model, plain = make_model(), make_model()
    plain.set_attn_implementation("sdpa")
    torch.testing.assert_close(model(**batch("left")).logits, plain(**batch("left")).logits, rtol=0, atol=0)
    ids, mask = padded(SOURCES, "left")
    for options in ({}, {"num_beams": 3}, {"cache_implementation": "static"}):
        written = model.generate(ids, attention_mask=mask, max_new_tokens=9, **options)
        assert torch.equal(written, plain.generate(ids, attention_mask=mask, max_new_tokens=9, **options))


@pytest.mark.parametrize("part", ["model", "encoder"])
def test_a_kernel_that_reads_sentences_as_one_refuses_packed_ones(part):
    model, packed = make_model(), packed_batch()
    model.set_attn_implementation("sdpa")
    if part == "encoder":
        model, packed = (
            model.get_encoder(),
            {name: value for name, value in packed.items() if "label" not in name and "decoder" not in name},
        )
    with pytest.raises(ValueError, match=r"reads them as one.* call seqloom\.modeling\.packing\.attend_to_packed"):
        model(**packed)


def test_attention_dropout_is_refused():
    model = make_model(attention_dropout=0.1).train()
    with pytest.raises(ValueError, match=r"attention_dropout=0\.1 has no kernel for packed sentences; set it to 0"):
        model(**packed_batch())


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("side", ["encoder", "decoder", "cross"])
def test_the_kernel_for_variable_lengths_is_called_as_it_wants_to_be(groups, side, monkeypatch):
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
    target, source = (torch.empty(count, dtype=torch.int32, device="meta") for count in (4, 4))
    lengths = {"cu_seq_lens_q": target, "cu_seq_lens_k": source, "max_length_q": 5, "max_length_k": 4}
    module = SimpleNamespace(is_causal=side == "decoder", is_cross_attention=side == "cross")
    mixed, weights = packed_attention_forward(module, query, key, value, None, 0.2, **lengths)
    mixed.sum().backward()
    assert mixed.shape == (1, 11, 4, 32)
    assert weights is None
    assert (query.grad.shape, key.grad.shape) == (query.shape, key.shape)
    ((query_ends, key_ends, longest_query, longest_key), window) = calls[0]
    assert (query_ends.dtype, query_ends.shape, key_ends.shape) == (torch.int32, (4,), (4,))
    longest = {"encoder": (4, 4), "decoder": (5, 5), "cross": (5, 4)}
    assert (longest_query, longest_key) == longest[side]
    assert (query_ends is target, key_ends is source) == (side != "encoder", side != "decoder")
    assert window == ((-1, 0) if side == "decoder" else (-1, -1))


def test_a_processor_has_no_such_kernel():
    assert not has_kernel(torch.empty(1, 1, 1, 1, dtype=torch.bfloat16))


def dense_stand_in(query, key, value, query_ends, key_ends, *_, scale, window_size, enable_gqa):
    """What the kernel computes, from operations that every device and compiler has; (T, N, H) each."""

    def numbers(ends, count):  # the sentence of each token, and its place in it
        places = torch.arange(count)
        sentences = torch.searchsorted(ends[1:].long(), places, right=True)
        return sentences, places - ends[sentences]

    (asking, t), (answering, s) = numbers(query_ends, query.shape[0]), numbers(key_ends, key.shape[0])
    allowed = asking[:, None] == answering[None]
    if window_size[1] == 0:
        allowed = allowed & (s[None] <= t[:, None])
    states = (x.transpose(0, 1)[None] for x in (query, key, value))
    mixed = torch.nn.functional.scaled_dot_product_attention(*states, allowed, scale=scale, enable_gqa=enable_gqa)
    return mixed[0].transpose(0, 1)


@pytest.fixture
def kernel_without_gpu(monkeypatch):
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(varlen, "varlen_attn", dense_stand_in)
    monkeypatch.setattr(packing, "has_kernel", lambda query: True)


@pytest.mark.parametrize("switches", SWITCHES[:2], ids=["paper", "pre-rotary"])
def test_the_way_to_the_kernel_computes_the_same(switches, kernel_without_gpu):
    model, inputs = make_model(**switches), batch()
    torch.testing.assert_close(model(**packed_batch()).loss, model(**inputs).loss)


@pytest.mark.parametrize("switches", SWITCHES[:2], ids=["paper", "pre-rotary"])
@pytest.mark.parametrize("packs", [False, True])
def test_one_graph_serves_all_shapes(packs, switches, kernel_without_gpu, monkeypatch):
    """`fullgraph` refuses whatever would break the graph, as counting real tokens would."""
    monkeypatch.setattr(fused_loss, "CPU_ROWS", 1000)  # one block, as on a GPU
    torch._dynamo.reset()
    counter = CompileCounter()
    model = make_model(**switches).train()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for rows, longest in ((4, 6), (3, 5), (2, 4), (4, 4)):
        sources, targets = [row[-longest:] for row in SOURCES[-rows:]], [row[1 - longest :] for row in TARGETS[:rows]]
        ids, mask = padded(sources)
        inputs = {"input_ids": ids, "attention_mask": mask, "labels": padded(targets, pad=-100)[0]}
        keys = {"skip_logits": True, "smoothing": 0.1, "num_items_in_batch": torch.tensor(7)}
        loss = compiled(**(packed_batch(sources, targets) if packs else inputs), **keys).loss
        loss.backward()
        torch.testing.assert_close(loss, model(**inputs, **keys).loss)
    assert counter.frame_count == 2  # the first shape, then any
