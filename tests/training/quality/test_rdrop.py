"""R-Drop: the loss is the paper's, and its exactness over the cut of an update is the plain loss's."""

import numpy as np
import pytest
import torch

from seqloom.training.collator import SeqloomCollator
from seqloom.training.quality.rdrop import disagreement, twice
from tests.tiny_trainer import tiny_trainer
from tests.toy import toy_pairs


def symmetric_divergence(p: np.ndarray, q: np.ndarray) -> float:
    """1/2 (KL(p || q) + KL(q || p)), as the paper writes it, in float64."""
    return float(((p * np.log(p / q)).sum() + (q * np.log(q / p)).sum()) / 2)


def test_disagreement_is_the_papers_and_skips_padding():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 7, generator=generator)
    labels = torch.tensor([[5, 6, -100], [2, -100, -100]])
    p = torch.softmax(logits.double(), -1).numpy()
    expected = sum(symmetric_divergence(p[b, t], p[b + 2, t]) for b, t in [(0, 0), (0, 1), (1, 0)])
    assert disagreement(logits, labels).item() == pytest.approx(expected, rel=1e-5)
    assert disagreement(logits[:2].repeat(2, 1, 1), labels).item() == 0


def test_disagreement_pulls_both_passes():
    logits = torch.randn(2, 1, 5, requires_grad=True)
    disagreement(logits, torch.tensor([[3]])).backward()
    assert logits.grad is not None
    assert (logits.grad.abs().sum(-1) > 0).all()


def test_twice_doubles_what_has_a_batch():
    inputs = twice({"input_ids": torch.arange(6).view(2, 3), "smoothing": 0.1, "count": torch.tensor(5)})
    assert inputs["input_ids"].tolist() == [[0, 1, 2], [3, 4, 5], [0, 1, 2], [3, 4, 5]]
    assert (inputs["smoothing"], inputs["count"].item()) == (0.1, 5)


def test_twice_packs_the_second_half_behind_the_first():
    examples = [{"input_ids": [5, 6, 2], "labels": [7, 2]}, {"input_ids": [5, 2], "labels": [8, 9, 7, 2]}]
    collate = SeqloomCollator(pad_token_id=0, decoder_start_token_id=1, packs=True)
    both, expected = twice(collate(examples)), collate(examples * 2)
    assert both.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(torch.as_tensor(both[name]), torch.as_tensor(value)), name


def test_the_loss_of_a_step_is_equation_four(tmp_path, tiny_model):
    """Half of the paper's sum, against its formula on the logits of the same two dropout masks."""
    alpha, smoothing = 3.0, 0.1
    trainer = tiny_trainer(tmp_path, rdrop_alpha=alpha, label_smoothing_factor=smoothing)
    source, mask, labels = toy_pairs(6, seed=1)
    model = tiny_model(vocab_size=trainer.model.config.vocab_size, dropout=0.3).train()
    inputs = {"input_ids": source, "attention_mask": mask, "labels": labels}
    num_items = int((labels != -100).sum()) * 2  # as if the update had another micro-batch of as many targets

    torch.manual_seed(7)
    loss = trainer.compute_loss(model, dict(inputs), num_items_in_batch=torch.tensor(num_items)).item()
    torch.manual_seed(7)
    with torch.no_grad():
        logits = model(**twice(inputs), smoothing=0.0, skip_logits=False).logits.double()
    log_p = torch.log_softmax(logits, -1).numpy()
    vocab = log_p.shape[-1]
    total = 0.0
    for b, t in zip(*np.nonzero(labels.numpy() != -100)):
        y = int(labels[b, t])
        for row in (log_p[b, t], log_p[b + 6, t]):
            total += -(1 - smoothing) * row[y] - smoothing / vocab * row.sum()
        total += alpha * symmetric_divergence(np.exp(log_p[b, t]), np.exp(log_p[b + 6, t]))
    assert loss == pytest.approx(total / 2 / num_items, rel=1e-5)


def test_without_dropout_it_is_the_plain_loss(tmp_path):
    source, mask, labels = toy_pairs(4, seed=2)
    inputs = {"input_ids": source, "attention_mask": mask, "labels": labels}
    losses = []
    for alpha in (0.0, 5.0):
        trainer = tiny_trainer(tmp_path, rdrop_alpha=alpha, label_smoothing_factor=0.1)
        trainer.model.train()
        losses.append(trainer.compute_loss(trainer.model, dict(inputs), num_items_in_batch=torch.tensor(50)).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_it_does_not_depend_on_accumulation(tmp_path):
    logged = []
    for steps in (1, 8):
        trainer = tiny_trainer(tmp_path, rdrop_alpha=5.0, gradient_accumulation_steps=steps, max_steps=3)
        trainer.train()
        logged.append([(row["loss"], row["grad_norm"]) for row in trainer.state.log_history if "loss" in row])
    np.testing.assert_allclose(logged[0], logged[1], rtol=1e-5)


def test_processes_scale_both_terms_alike(tmp_path, monkeypatch):
    """Gradients of processes are averaged, so each one's loss counts as often as there are processes."""
    source, mask, labels = toy_pairs(4, seed=2)
    losses = []
    for processes in (1, 2):
        trainer = tiny_trainer(tmp_path, rdrop_alpha=5.0, model={"dropout": 0.3})
        monkeypatch.setattr(type(trainer.accelerator), "num_processes", property(lambda self, count=processes: count))
        trainer.model.train()
        torch.manual_seed(0)
        inputs = {"input_ids": source, "attention_mask": mask, "labels": labels}
        losses.append(trainer.compute_loss(trainer.model, inputs, num_items_in_batch=torch.tensor(50)).item())
    assert losses[1] == pytest.approx(2 * losses[0], rel=1e-6)


def test_evaluation_has_one_pass(tmp_path):
    plain, both = (tiny_trainer(tmp_path, rdrop_alpha=alpha).evaluate()["eval_loss"] for alpha in (0.0, 5.0))
    assert plain == both
