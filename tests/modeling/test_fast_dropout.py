"""Dropout drops the share it is asked for, keeps the expectation, and is torch's own wherever that is faster."""

import pytest
import torch

from seqloom.modeling.fast_dropout import dropout


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.5, 0.999])
def test_share_and_expectation(probability: float) -> None:
    torch.manual_seed(0)
    dropped = dropout(torch.ones(1_000_003), probability, training=True)
    share = (dropped == 0).double().mean().item()
    assert share == pytest.approx(probability, abs=4 * (probability * (1 - probability) / 1e6) ** 0.5)
    assert dropped.double().mean().item() == pytest.approx(1, abs=4 * (probability / (1 - probability) / 1e6) ** 0.5)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / (1 - probability)], rel=0.02)


def test_each_element_is_on_its_own() -> None:
    torch.manual_seed(0)
    zeros = (dropout(torch.ones(250_000, 4), 0.5, training=True) == 0).double()
    assert zeros.mean(0).tolist() == pytest.approx([0.5] * 4, abs=0.005)
    together = torch.corrcoef(zeros.T).abs().fill_diagonal_(0).max().item()
    neighbours = torch.corrcoef(torch.stack([zeros[1:, 0], zeros[:-1, 3]]))[0, 1].abs().item()
    assert max(together, neighbours) < 0.01


def test_the_gradient_passes_where_the_value_did() -> None:
    values = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    dropped = dropout(values, 0.4, training=True)
    dropped.sum().backward()
    torch.testing.assert_close(values.grad * values.detach(), dropped.detach())


def test_the_seed_decides() -> None:
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(dropout(torch.ones(100), 0.5, training=True))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_type_and_shape_stay(dtype: torch.dtype) -> None:
    dropped = dropout(torch.ones(3, 5, dtype=dtype).T, 0.5, training=True)
    assert (dropped.dtype, dropped.shape) == (dtype, (5, 3))


def test_nothing_and_everything() -> None:
    values = torch.randn(9)
    assert dropout(values, 0.5, training=False) is values or torch.equal(dropout(values, 0.5, training=False), values)
    assert torch.equal(dropout(values, 0.0, training=True), values)
    assert not dropout(values, 1.0, training=True).any()
    assert dropout(torch.empty(0, 3), 0.5, training=True).shape == (0, 3)
    assert dropout(values.to("meta"), 0.5, training=True).device.type == "meta"


def test_a_compiled_graph_uses_torchs_own() -> None:
    compiled = torch.compile(lambda x: dropout(x, 0.5, True), fullgraph=True, backend="aot_eager")
    assert set(compiled(torch.ones(64)).tolist()) == {0.0, 2.0}
