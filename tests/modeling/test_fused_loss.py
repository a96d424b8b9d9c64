"""The loss without logits is the loss with logits: value, gradients, autocast, compiled, and nothing kept."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor
from torch.nn import functional

from seqloom.modeling import fused_loss
from seqloom.modeling.fused_loss import linear_cross_entropy
from tests.toy import toy_pairs

N, D, V = 37, 12, 50


@pytest.fixture(autouse=True)
def few_rows(monkeypatch) -> None:
    """Several blocks, the last one smaller."""
    monkeypatch.setattr(fused_loss, "CPU_ROWS", 8)


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, dtype=dtype, generator=generator).requires_grad_()
    weight = torch.randn(V, D, dtype=dtype, generator=generator).requires_grad_()
    labels = torch.randint(V, (N,), generator=generator)
    labels[[0, 9, 36]] = -100
    return hidden, weight, labels


def plain(hidden: Tensor, weight: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    return functional.cross_entropy(hidden @ weight.T, labels, reduction="sum", label_smoothing=epsilon)


def with_gradients(
    loss: Callable[..., Tensor], epsilon: float, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, ...]:
    hidden, weight, labels = problem(dtype)
    total = loss(hidden, weight, labels, epsilon)
    (total / 7).backward()
    return total.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.9])
def test_value_and_gradients_are_those_of_cross_entropy(epsilon: float) -> None:
    for fused, expected in zip(with_gradients(linear_cross_entropy, epsilon), with_gradients(plain, epsilon)):
        torch.testing.assert_close(fused, expected, rtol=1e-12, atol=1e-13)


def test_the_gradient_is_that_of_finite_differences() -> None:
    hidden, weight, labels = problem()
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, labels, 0.1), (hidden, weight))


def test_confident_and_hopeless_scores_stay_finite() -> None:
    weight = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    hidden = torch.ones(2, 1, requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert weight.grad.tolist() == [[1.0], [-1.0]]


def test_batches_and_no_targets() -> None:
    hidden, weight, labels = problem()
    expected = linear_cross_entropy(hidden, weight, labels)
    assert torch.equal(linear_cross_entropy(hidden[None], weight, labels[None]), expected)
    nothing = linear_cross_entropy(hidden, weight, torch.full_like(labels, -100))
    nothing.backward()
    assert nothing.item() == 0
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_only_one_of_them_may_want_a_gradient() -> None:
    hidden, weight, labels = problem()
    _, hidden_grad, weight_grad = with_gradients(linear_cross_entropy, 0.1)
    linear_cross_entropy(hidden, weight.detach(), labels, 0.1).backward()
    torch.testing.assert_close(hidden.grad / 7, hidden_grad)
    linear_cross_entropy(hidden.detach(), weight, labels, 0.1).backward()
    torch.testing.assert_close(weight.grad / 7, weight_grad)


def test_without_gradients_only_the_value_is_made() -> None:
    hidden, weight, labels = problem()
    with torch.no_grad():
        total = linear_cross_entropy(hidden, weight, labels, 0.1)
    assert not total.requires_grad
    torch.testing.assert_close(total, plain(hidden, weight, labels, 0.1).detach())


def test_bfloat16_has_a_float32_loss() -> None:
    hidden, weight, labels = problem(torch.float32)
    narrow = [x.detach().bfloat16().requires_grad_() for x in (hidden, weight)]
    wide = [x.detach().float().requires_grad_() for x in narrow]
    losses = [loss(*x, labels, 0.1) for loss, x in ((linear_cross_entropy, narrow), (plain, wide))]
    for loss in losses:
        loss.backward()
    assert losses[0].dtype == torch.float32
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=0.01)
    for coarse, exact in zip(narrow, wide):
        assert coarse.grad.dtype == torch.bfloat16
        torch.testing.assert_close(coarse.grad.float(), exact.grad, rtol=0.05, atol=0.05)


def test_autocast_multiplies_in_its_type_and_keeps_the_weights_type() -> None:
    hidden, weight, labels = problem(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        total = linear_cross_entropy(hidden, weight, labels, 0.1)
    total.backward()
    narrow = [x.detach().bfloat16() for x in (hidden, weight)]
    assert torch.equal(total.detach(), linear_cross_entropy(*narrow, labels, 0.1))
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32


def test_no_matrix_of_all_logits_is_made() -> None:
    hidden, weight, labels = problem()
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        linear_cross_entropy(hidden, weight, labels, 0.1).backward()
    assert largest <= max(8 * V, V * D, N * D) < N * V


@pytest.mark.parametrize("epsilon", [None, 0.0, 0.1])
@pytest.mark.parametrize("tied", [True, False])
def test_the_model_learns_the_same_without_logits(
    tiny_model: Callable[..., Any], epsilon: float | None, tied: bool
) -> None:
    model = tiny_model(label_smoothing=0.2, tie_word_embeddings=tied).double()
    source, mask, labels = toy_pairs(8)
    results = []
    for skip in (False, True):
        model.zero_grad()
        output = model(
            input_ids=source,
            attention_mask=mask,
            labels=labels,
            smoothing=epsilon,
            num_items_in_batch=100,
            skip_logits=skip,
        )
        output.loss.backward()
        results.append((output.loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}))
        assert (output.logits is None) == skip
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-12, atol=0)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-9, atol=1e-12)


def test_the_model_says_what_skipping_needs(tiny_model: Callable[..., Any]) -> None:
    ids = torch.tensor([[5, 2]])
    with pytest.raises(ValueError, match=r"skip_logits=True .* without labels"):
        tiny_model()(input_ids=ids, decoder_input_ids=ids, skip_logits=True)


def test_an_offloaded_head_has_the_same_loss(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(label_smoothing=0.1).eval()
    source, mask, labels = toy_pairs(8)
    batch = {"input_ids": source, "attention_mask": mask, "labels": labels, "skip_logits": True}
    expected = model(**batch).loss
    cpu_offload(model, execution_device="cpu")
    assert model.lm_head.weight.is_meta
    torch.testing.assert_close(model(**batch).loss, expected)


def test_the_compiled_model_has_no_graph_break(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(label_smoothing=0.1)
    source, mask, labels = toy_pairs(8)
    batch = {"input_ids": source, "attention_mask": mask, "labels": labels, "skip_logits": True}
    expected = model(**batch).loss
    expected.backward()
    gradient = model.get_input_embeddings().weight.grad.clone()
    model.zero_grad()
    loss = torch.compile(model, fullgraph=True, backend="aot_eager")(**batch).loss
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(model.get_input_embeddings().weight.grad, gradient, rtol=1e-4, atol=1e-6)
