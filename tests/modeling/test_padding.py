"""Padding is invisible: a sentence gives the same numbers and words alone, left- and right-padded in any batch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.toy import padded, toy_pairs

POSITIONS = ["sinusoidal", "learned", "rotary"]
BACKENDS = ["eager", "sdpa"]
SIDES = ["left", "right"]

SOURCES = [[*range(4, 4 + length), 2] for length in (5, 1, 11, 3, 8, 2, 7, 4)]
TARGETS = [[1, *range(30, 30 + length)] for length in (3, 7, 1, 0, 5, 2, 9, 4)]
"""Eight sentences, eight lengths on either side, the longest at different places."""


@pytest.fixture(params=[(positions, norm) for positions in POSITIONS for norm in ("post", "pre")], ids="-".join)
def model(request: pytest.FixtureRequest, tiny_model: Callable[..., Any]) -> Any:
    positions, norm = request.param
    return tiny_model(position_embedding_type=positions, norm_position=norm)


def alone(model: Any, row: int) -> torch.Tensor:
    """Logits of one unpadded pair, without any mask; (T, V)."""
    source, target = torch.tensor([SOURCES[row]]), torch.tensor([TARGETS[row]])
    return model(input_ids=source, decoder_input_ids=target).logits[0]


@torch.no_grad()
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("target_side", SIDES)
@pytest.mark.parametrize("source_side", SIDES)
def test_logits_alone_and_in_a_batch_of_eight(model: Any, source_side: str, target_side: str, backend: str) -> None:
    model.set_attn_implementation(backend)
    source, source_mask = padded(SOURCES, source_side)
    target, target_mask = padded(TARGETS, target_side)
    logits = model(
        input_ids=source, attention_mask=source_mask, decoder_input_ids=target, decoder_attention_mask=target_mask
    ).logits
    assert logits.isfinite().all(), "padding may be anything but not NaN"
    for row in range(len(SOURCES)):
        difference = logits[row, target_mask[row].bool()] - alone(model, row)
        assert difference.abs().max() <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("side", SIDES)
def test_the_dtype_of_the_mask_does_not_matter(model: Any, side: str) -> None:
    source, mask = padded(SOURCES, side)
    target = torch.ones(8, 1, dtype=torch.long)
    logits = [
        model(input_ids=source, attention_mask=mask.to(dtype), decoder_input_ids=target).logits
        for dtype in (torch.long, torch.bool, torch.float32)
    ]
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


@torch.no_grad()
@pytest.mark.parametrize("side", SIDES)
def test_what_stands_under_the_mask_does_not_matter(model: Any, side: str) -> None:
    source, mask = padded(SOURCES, side)
    target = torch.ones(8, 1, dtype=torch.long)
    garbage = torch.where(mask == 1, source, 39)
    first, second = (
        model(input_ids=ids, attention_mask=mask, decoder_input_ids=target).logits for ids in (source, garbage)
    )
    torch.testing.assert_close(first, second)


@torch.no_grad()
@pytest.mark.parametrize("side", SIDES)
def test_embeddings_instead_of_ids(model: Any, side: str) -> None:
    source, source_mask = padded(SOURCES, side)
    target, target_mask = padded(TARGETS, side)
    masks = {"attention_mask": source_mask, "decoder_attention_mask": target_mask}
    from_ids = model(input_ids=source, decoder_input_ids=target, **masks).logits
    from_vectors = model(
        inputs_embeds=model.get_input_embeddings()(source),
        decoder_inputs_embeds=model.get_decoder().get_input_embeddings()(target),
        **masks,
    ).logits
    torch.testing.assert_close(from_vectors, from_ids, rtol=0, atol=0)


@torch.no_grad()
def test_a_hole_in_the_middle_closes(model: Any) -> None:
    """Positions are counted from the mask, so a masked word inside a sentence leaves no trace either."""
    target = torch.tensor([[1, 30, 31]])
    whole = model(input_ids=torch.tensor([[5, 6, 7, 2]]), decoder_input_ids=target).logits
    holed = model(
        input_ids=torch.tensor([[5, 9, 6, 9, 9, 7, 2]]),
        attention_mask=torch.tensor([[1, 0, 1, 0, 0, 1, 1]]),
        decoder_input_ids=target,
    ).logits
    torch.testing.assert_close(holed, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_left_padded_batches_are_those_of_the_sentences(model: Any, backend: str) -> None:
    model.set_attn_implementation(backend)
    gradients = []
    for side in SIDES:
        source, source_mask = padded(SOURCES, side)
        target, target_mask = padded(TARGETS, side)
        model.zero_grad()
        logits = model(
            input_ids=source, attention_mask=source_mask, decoder_input_ids=target, decoder_attention_mask=target_mask
        ).logits
        logits[target_mask.bool()].square().sum().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    model.zero_grad()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-3, msg=name)


def without_padding(sequence: torch.Tensor) -> list[int]:
    """Cut what generate fills up behind the end of the sentence."""
    ids = sequence.tolist()
    return ids[: ids.index(2) + 1] if 2 in ids else ids


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 3, "length_penalty": 0.6, "early_stopping": True},
        {"use_cache": False},
        {"cache_implementation": "static"},
    ],
    ids=["greedy", "beam", "beam-early", "no-cache", "static"],
)
def test_generated_words(taught_model: Callable[..., Any], positions: str, options: dict[str, Any]) -> None:
    model = taught_model(position_embedding_type=positions)
    source, mask, _ = toy_pairs(8, seed=77)
    sentences = [row[keep].tolist() for row, keep in zip(source, mask.bool(), strict=True)]
    options = {"max_new_tokens": 11, **options}
    expected = [without_padding(model.generate(torch.tensor([ids]), **options)[0]) for ids in sentences]
    assert len({len(words) for words in expected}) > 2, "the sentences should end at different places"
    for side in SIDES:
        ids, mask = padded(sentences, side)
        written = model.generate(ids, attention_mask=mask, **options)
        assert [without_padding(row) for row in written] == expected


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("side", SIDES)
def test_sampled_words(taught_model: Callable[..., Any], positions: str, side: str) -> None:
    """One sentence alone and the same among longer ones: with one row of random numbers each, the same draw."""
    model = taught_model(position_embedding_type=positions)
    short, long = [5, 9, 2], [8, 7, 12, 4, 15, 6, 2]
    ids, mask = padded([short, long], side)
    options: dict[str, Any] = {"do_sample": True, "top_k": 0, "max_new_tokens": 9}
    torch.manual_seed(5)
    in_batch = model.generate(ids[:1], attention_mask=mask[:1], **options)
    torch.manual_seed(5)
    by_itself = model.generate(torch.tensor([short]), **options)
    assert torch.equal(in_batch, by_itself)
    draws = []
    for some_side in SIDES:
        ids, mask = padded([short, long], some_side)
        torch.manual_seed(6)
        draws.append(model.generate(ids, attention_mask=mask, **options))
    assert torch.equal(*draws)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(
    "options", [{}, {"use_cache": False}, {"num_beams": 2}, {"cache_implementation": "static"}], ids=str
)
def test_generate_goes_on_from_left_padded_beginnings(
    taught_model: Callable[..., Any], positions: str, options: dict[str, Any]
) -> None:
    model = taught_model(position_embedding_type=positions)
    source = torch.tensor([[5, 9, 13, 4, 2], [8, 7, 12, 15, 2], [6, 6, 10, 11, 2]])
    beginnings = [[1, 25, 29], [1], [1, 26]]
    options = {"max_new_tokens": 6, **options}
    ids, mask = padded(beginnings, "left")
    written = model.generate(source, decoder_input_ids=ids, decoder_attention_mask=mask, **options)
    for row, beginning in enumerate(beginnings):
        expected = model.generate(source[row : row + 1], decoder_input_ids=torch.tensor([beginning]), **options)
        assert without_padding(written[row, ids.shape[1] :]) == without_padding(expected[0, len(beginning) :])


@pytest.mark.parametrize("positions", POSITIONS)
def test_generate_from_embeddings(taught_model: Callable[..., Any], positions: str) -> None:
    model = taught_model(position_embedding_type=positions)
    source, mask, _ = toy_pairs(8, seed=77)
    vectors = model.get_input_embeddings()(source)
    expected = model.generate(source, attention_mask=mask, max_new_tokens=8)
    assert torch.equal(model.generate(inputs_embeds=vectors, attention_mask=mask, max_new_tokens=8), expected)


# ---- a batch without a mask ------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("side", SIDES)
def test_padding_without_a_mask_is_seen(model: Any, side: str) -> None:
    source, mask = padded(SOURCES, side)
    target = torch.ones(8, 1, dtype=torch.long)
    told, untold = (model(input_ids=source, attention_mask=m, decoder_input_ids=target).logits for m in (mask, None))
    assert torch.equal(told, untold)
    base = model.model
    told, untold = (base(input_ids=source, attention_mask=m, decoder_input_ids=target)[0] for m in (mask, None))
    assert torch.equal(told, untold)
    told, untold = (model.get_encoder()(source, m).last_hidden_state[mask.bool()] for m in (mask, None))
    assert torch.equal(told, untold)
    labels = torch.full((8, 3), 5)
    assert torch.equal(model(source, labels=labels).loss, model(source, attention_mask=mask, labels=labels).loss)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"cache_implementation": "static"}])
@pytest.mark.parametrize("side", SIDES)
def test_padding_without_a_mask_changes_no_word(model: Any, side: str, options: dict[str, Any]) -> None:
    source, mask = padded(SOURCES, side)
    expected = model.generate(source, attention_mask=mask, max_new_tokens=8, **options)
    assert torch.equal(model.generate(source, max_new_tokens=8, **options), expected)
    assert torch.equal(model.generate(input_ids=source, max_new_tokens=8, **options), expected)
    causal = model.as_causal_lm()
    expected = causal.generate(source, attention_mask=mask, max_new_tokens=8, **options)
    assert torch.equal(causal.generate(source, max_new_tokens=8, **options), expected)


@torch.no_grad()
def test_padding_that_ends_sentences_too_is_asked_about(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(pad_token_id=2)
    one, two = torch.tensor([[5, 6, 2]]), torch.tensor([[5, 6, 2], [7, 2, 2]])
    decoder_input_ids = torch.ones(2, 1, dtype=torch.long)
    assert model(one, decoder_input_ids=decoder_input_ids[:1]).logits.isfinite().all(), "one end is no padding"
    for ask in (lambda: model(two, decoder_input_ids=decoder_input_ids), lambda: model.generate(two, max_new_tokens=3)):
        with pytest.raises(ValueError, match=r"attention_mask is missing, and pad_token_id=2 is the end of sequence t"):
            ask()
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    assert model(two, attention_mask=mask, decoder_input_ids=decoder_input_ids).logits.isfinite().all()


@torch.no_grad()
def test_a_row_of_nothing_but_padding_is_no_nan(model: Any) -> None:
    source = torch.tensor([[5, 2], [0, 0]])
    assert model(source, decoder_input_ids=torch.ones(2, 1, dtype=torch.long)).logits.isfinite().all()


@torch.no_grad()
def test_no_mask_is_one_graph(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(encoder_layers=1, decoder_layers=1)
    source, _ = padded(SOURCES)
    batch = {"input_ids": source, "decoder_input_ids": torch.ones(8, 1, dtype=torch.long)}
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits)
