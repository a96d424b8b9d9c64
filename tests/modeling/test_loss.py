"""The loss is exact: the paper's formula, and the same number and gradient however an update is cut into pieces."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers.utils.generic import find_labels

from tests.reference import smoothed_losses
from tests.toy import padded, toy_pairs

EPSILONS = [0.0, 0.1]


def gradient_norm(model: Any) -> float:
    """Return the length of the whole gradient, in float64."""
    gradients = [parameter.grad.double().flatten() for parameter in model.parameters() if parameter.grad is not None]
    return torch.cat(gradients).norm().item()


def update(model: Any, pieces: int, num_items: int | torch.Tensor | None = None) -> tuple[float, float]:
    """Run 32 examples in so many micro-batches; returns the summed loss and the norm of the summed gradient."""
    model.zero_grad()
    loss = 0.0
    for batch in zip(*(tensor.chunk(pieces) for tensor in toy_pairs(32, seed=5)), strict=True):
        source, mask, labels = batch
        longest = int(mask.sum(1).max())  # each micro-batch has its own padding, as a collator gives it
        piece = model(
            input_ids=source[:, :longest],
            attention_mask=mask[:, :longest],
            labels=labels[:, :longest],
            num_items_in_batch=num_items,
        ).loss
        piece.backward()
        loss += piece.item()
    return loss, gradient_norm(model)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_one_batch_of_32_equals_eight_of_4(tiny_model: Callable[..., Any], norm_position: str, epsilon: float) -> None:
    model = tiny_model(label_smoothing=epsilon, norm_position=norm_position).train()
    num_items = int((toy_pairs(32, seed=5)[2] != -100).sum())
    whole, pieces = update(model, 1, num_items), update(model, 8, num_items)
    assert pieces == pytest.approx(whole, rel=1e-6)
    assert update(model, 1) == pytest.approx(whole, rel=1e-6), "without num_items_in_batch the loss is the mean"


def test_num_items_may_be_a_number_or_a_tensor(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    expected = update(model, 2, 150)
    for num_items in (torch.tensor(150), torch.tensor([150]), torch.tensor(150.0)):
        assert update(model, 2, num_items) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_it_is_torchs_cross_entropy_on_unshifted_labels(tiny_model: Callable[..., Any], epsilon: float) -> None:
    model = tiny_model(label_smoothing=epsilon)
    source, mask, labels = toy_pairs(8)
    output = model(input_ids=source, attention_mask=mask, labels=labels)
    expected = functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten(), label_smoothing=epsilon)
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_it_is_the_papers_sum(tiny_model: Callable[..., Any], epsilon: float) -> None:
    model = tiny_model(label_smoothing=epsilon).double()
    source, mask, labels = toy_pairs(8)
    with torch.no_grad():
        output = model(input_ids=source, attention_mask=mask, labels=labels, num_items_in_batch=11)
    losses = [
        loss
        for logits, row in zip(output.logits.numpy(), labels.tolist(), strict=True)
        for loss in smoothed_losses(logits, row, epsilon)
    ]
    assert output.loss.item() == pytest.approx(sum(losses) / 11, rel=1e-10)


def test_the_decoder_reads_the_labels_behind_the_start_token(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    labels = torch.tensor([[21, 22, 2, -100], [23, 2, -100, -100]])
    shifted = model.prepare_decoder_input_ids_from_labels(labels)
    assert shifted.tolist() == [[1, 21, 22, 2], [1, 23, 2, 0]]
    assert labels.tolist() == [[21, 22, 2, -100], [23, 2, -100, -100]], "the caller's labels stay as they are"
    source = torch.tensor([[5, 6, 2], [7, 8, 2]])
    given = model(input_ids=source, decoder_input_ids=shifted, labels=labels)
    derived = model(input_ids=source, labels=labels)
    assert torch.equal(given.loss, derived.loss)
    assert torch.equal(given.logits, derived.logits)


def test_without_a_padding_token_the_decoder_reads_what_it_is_given(tiny_model: Callable[..., Any]) -> None:
    batch = {"input_ids": torch.tensor([[5, 6, 2]]), "labels": torch.tensor([[21, 22, 2]])}
    without, with_one = tiny_model(pad_token_id=None), tiny_model()
    without.load_state_dict(with_one.state_dict())
    with pytest.raises(ValueError, match=r"pad_token_id=None .* give decoder_input_ids"):
        without(**batch)
    batch["decoder_input_ids"] = torch.tensor([[1, 21, 22]])
    assert torch.equal(without(**batch).loss, with_one(**batch).loss)


def test_ignored_labels_change_nothing(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    source, mask, labels = toy_pairs(4)
    loss = model(input_ids=source, attention_mask=mask, labels=labels).loss
    wider = functional.pad(labels, (0, 5), value=-100)
    torch.testing.assert_close(model(input_ids=source, attention_mask=mask, labels=wider).loss, loss)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_left_padded_labels_give_the_same_loss(tiny_model: Callable[..., Any], epsilon: float) -> None:
    """DataCollatorForSeq2Seq pads labels on the tokenizer's side, and text-generation turns that to the left."""
    model = tiny_model(label_smoothing=epsilon)
    sources, targets = [[5, 6, 7, 2], [8, 2]], [[21, 2], [22, 23, 24, 2]]
    losses = []
    for side in ("right", "left"):
        ids, mask = padded(sources, side)
        labels, _ = padded(targets, side, pad=-100)
        losses.append(model(input_ids=ids, attention_mask=mask, labels=labels).loss)
        shifted = model.prepare_decoder_input_ids_from_labels(labels)  # as the collator makes them, without a mask
        losses.append(model(input_ids=ids, attention_mask=mask, labels=labels, decoder_input_ids=shifted).loss)
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0])


@pytest.mark.parametrize("num_items", [None, 7, 0, torch.tensor(0)])
def test_nothing_to_predict_costs_nothing(tiny_model: Callable[..., Any], num_items: int | torch.Tensor | None) -> None:
    model = tiny_model(label_smoothing=0.1)
    source, mask, labels = toy_pairs(2)
    labels = torch.full_like(labels, -100)
    loss = model(input_ids=source, attention_mask=mask, labels=labels, num_items_in_batch=num_items).loss
    loss.backward()
    assert loss.item() == 0.0
    assert gradient_norm(model) == 0.0


def test_evaluation_and_training_agree_without_dropout(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(label_smoothing=0.1)
    source, mask, labels = toy_pairs(4)
    losses = [
        getattr(model, mode)()(input_ids=source, attention_mask=mask, labels=labels).loss for mode in ("train", "eval")
    ]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)


def test_low_precision_weights_have_a_float32_loss(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    source, mask, labels = toy_pairs(8)
    exact = model(input_ids=source, attention_mask=mask, labels=labels).loss
    coarse = model.to(torch.bfloat16)(input_ids=source, attention_mask=mask, labels=labels).loss
    assert coarse.dtype == torch.float32
    assert coarse.item() == pytest.approx(exact.item(), rel=0.05)


def test_dropout_is_off_in_eval_and_on_in_train(tiny_model: Callable[..., Any]) -> None:
    for kind in ("dropout", "attention_dropout", "activation_dropout"):
        model = tiny_model(**{"dropout": 0.0, kind: 0.5})
        source, mask, labels = toy_pairs(4)
        batch = {"input_ids": source, "attention_mask": mask, "labels": labels}
        assert torch.equal(model(**batch).loss, model(**batch).loss)
        model.train()
        assert not torch.equal(model(**batch).loss, model(**batch).loss), f"{kind} drops nothing"


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
def test_labels_are_read_behind_what_a_cache_holds(tiny_model: Callable[..., Any], positions: str, side: str) -> None:
    """As prefix tuning gives it: keys and values before the target, and labels of the target alone."""
    model = tiny_model(position_embedding_type=positions)
    source = torch.tensor([[5, 6, 7, 2]])

    def prefix(rows: int) -> Any:
        start = torch.tensor([[1, 8, 9]] * rows)
        return model(source.expand(rows, -1), decoder_input_ids=start, use_cache=True).cache

    alone = []
    for labels in ([12, 13, 14, 2], [15, 2]):
        read = torch.tensor([[1, *labels[:-1]]])
        logits = model(source, decoder_input_ids=read, cache=prefix(1)).logits[0]
        alone.append(functional.cross_entropy(logits, torch.tensor(labels), reduction="sum"))
    labels, _ = padded([[12, 13, 14, 2], [15, 2]], side, pad=-100)
    together = model(source.expand(2, -1), labels=labels, cache=prefix(2), num_items_in_batch=1).loss
    torch.testing.assert_close(together, sum(alone))


def test_trainer_finds_labels_and_nothing_else_to_compare_with(tiny_model: Callable[..., Any]) -> None:
    """It evaluates a loss only where a batch has all that the forward names "...label..."."""
    assert find_labels(type(tiny_model())) == ["labels"]
