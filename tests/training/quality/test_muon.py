"""Muon: which parameters it has, and what a step of it is."""

from statistics import median

import pytest
import torch
from torch import nn

import seqloom
from seqloom.training.quality.muon import Muon, WithMuon, evened_out, matrices_of
from tests.tiny_trainer import tiny_trainer
from tests.toy import TINY

RUN = {"max_steps": 1, "learning_rate": 0.01, "lr_scheduler_type": "constant", "save_strategy": "no"}


def moved(folder, **keys):
    """Return how far one update has moved each weight, by name, and the trainer."""
    trainer = tiny_trainer(folder, **{**RUN, **keys})
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    return {name: weight.detach() - before[name] for name, weight in trainer.model.named_parameters()}, trainer


def evenness(matrix):
    """Return what the middle one of the singular values is of the largest."""
    values = torch.linalg.svdvals(matrix)
    return (values[len(values) // 2] / values[0]).item()


@pytest.mark.parametrize("tied", [True, False])
def test_muon_has_the_matrices_of_the_layers_and_neither_tables_nor_the_head(tied):
    config = seqloom.SeqloomConfig(**{**TINY, "tie_word_embeddings": tied, "position_embedding_type": "learned"})
    model = seqloom.SeqloomForConditionalGeneration(config)
    chosen = matrices_of(model)
    names = {name for name, weight in model.named_parameters() if weight in chosen}
    tables = {each.weight for each in model.modules() if isinstance(each, nn.Embedding)}
    assert names == {
        name
        for name, weight in model.named_parameters()
        if ".layers." in name and weight.ndim == 2 and weight not in tables
    }
    assert tables
    assert not chosen & tables


def test_a_step_goes_as_far_in_all_directions_of_a_matrix_and_elsewhere_as_without_muon(tmp_path):
    (adam, _), (muon, trainer) = (moved(tmp_path / str(flag), has_muon=flag) for flag in (False, True))
    chosen = matrices_of(trainer.model)
    matrices = [name for name, weight in trainer.model.named_parameters() if weight in chosen]
    assert all(torch.equal(adam[name], muon[name]) for name in adam.keys() - set(matrices))
    assert median(evenness(muon[name]) for name in matrices) > 0.5
    assert median(evenness(adam[name]) for name in matrices) < 0.1
    sizes = [muon[name].square().mean().sqrt().item() / RUN["learning_rate"] for name in matrices]
    assert 0.1 < min(sizes) < max(sizes) < 0.3  # 0.2 where all directions count alike, as Adam's usually are


def test_weight_decay_and_schedule_reach_both(tmp_path):
    _, trainer = moved(tmp_path, has_muon=True, weight_decay=0.5, warmup_steps=10, lr_scheduler_type="linear")
    muon, *others = trainer.optimizer.param_groups
    assert muon["weight_decay"] == 0.5
    assert {group["weight_decay"] for group in others} == {0.0, 0.5}
    assert len({group["lr"] for group in (muon, *others)}) == 1


def test_state_that_was_saved_goes_on_to_the_same_weights():
    def fresh():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4))
        other = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        return model, WithMuon(other, {model[0].weight})

    def learn(model, optimizer, updates):
        for update in updates:
            torch.manual_seed(update)
            optimizer.zero_grad()
            model(torch.randn(3, 6)).square().sum().backward()
            optimizer.step()

    whole, optimizer = fresh()
    learn(whole, optimizer, range(6))
    first, optimizer = fresh()
    learn(first, optimizer, range(3))
    second, resumed = fresh()
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    learn(second, resumed, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("shape", [(4, 4), (3, 8), (8, 3)])
def test_directions_are_kept_and_evened_out(shape):
    torch.manual_seed(0)
    matrices = torch.randn(2, *shape)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    even = evened_out(matrices, torch.float32)
    stretch = left.mT @ even @ right.mT
    assert ((stretch.diagonal(dim1=-2, dim2=-1) > 0.6) & (stretch.diagonal(dim1=-2, dim2=-1) < 1.3)).all()
    assert torch.allclose(even, left @ torch.diag_embed(stretch.diagonal(dim1=-2, dim2=-1)) @ right, atol=1e-5)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has none to compare with")
def test_steps_are_those_of_torch():
    torch.manual_seed(0)
    ours, theirs = ([nn.Parameter(torch.ones(4, 6)), nn.Parameter(torch.ones(6, 6))] for _ in range(2))
    muon = Muon(ours, lr=0.1, weight_decay=0.2, dtype=torch.bfloat16)
    known = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.2, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = b.grad = torch.randn_like(a)
        muon.step()
        known.step()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=3e-3)  # of steps of 0.04 each, in bf16
