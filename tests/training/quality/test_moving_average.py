"""EMA: the average follows the formula, is what gets evaluated, and comes back from a checkpoint to the bit."""

import pytest
import torch
from transformers import TrainerCallback

from seqloom.training.quality.moving_average import MovingAverage
from tests.tiny_trainer import tiny_trainer

RUN = {"max_steps": 6, "save_steps": 3, "learning_rate": 0.01, "ema_decay": 0.5}


class Weights(TrainerCallback):
    """Remembers the raw weights after each update."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.seen.append([parameter.detach().double().clone() for parameter in model.parameters()])


def averages(trainer):
    return [parameter.detach().clone() for parameter in trainer.moving_average.averaged.module.parameters()]


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_average_follows_the_formula_once_an_update(tmp_path, accumulation):
    weights = Weights()
    trainer = tiny_trainer(tmp_path, gradient_accumulation_steps=accumulation, **RUN)
    trainer.add_callback(weights)
    trainer.train()
    expected = weights.seen[0]
    for n, current in enumerate(weights.seen[1:], start=1):
        decay = min(0.5, (1 + n) / (10 + n))
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, current)]
    assert trainer.moving_average.num_updates == len(weights.seen) == 6
    for ours, theirs in zip(averages(trainer), expected):
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-7)


def test_evaluation_sees_the_average_and_training_its_own_weights(tmp_path):
    trainer = tiny_trainer(tmp_path, **RUN)
    trainer.train()
    raw = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    loss = trainer.evaluate()["eval_loss"]
    assert all(torch.equal(a, b) for a, b in zip(raw, trainer.model.parameters()))
    trainer.use_moving_average()
    assert trainer.moving_average is None
    assert not all(torch.equal(a, b) for a, b in zip(raw, trainer.model.parameters()))
    assert trainer.evaluate()["eval_loss"] == loss


def test_evaluating_in_between_changes_nothing(tmp_path):
    quiet, watched = (
        tiny_trainer(tmp_path / name, eval_strategy=strategy, eval_steps=1, **RUN)
        for name, strategy in (("quiet", "no"), ("watched", "steps"))
    )
    for trainer in (quiet, watched):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(averages(quiet), averages(watched)))


def test_it_is_resumed_to_the_bit(tmp_path):
    whole = tiny_trainer(tmp_path / "whole", **RUN)
    whole.train()
    rest = tiny_trainer(tmp_path / "rest", **RUN)
    rest.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert rest.moving_average.num_updates == 6
    assert all(torch.equal(a, b) for a, b in zip(averages(whole), averages(rest)))
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), rest.model.parameters()))


def test_the_best_checkpoint_brings_its_average(tmp_path):
    keys = {"eval_strategy": "steps", "eval_steps": 3, "load_best_model_at_end": True, "greater_is_better": True}
    trainer = tiny_trainer(tmp_path, metric_for_best_model="loss", **{**RUN, **keys})  # the highest: an early one
    trainer.train()
    assert trainer.state.best_global_step == 3
    trainer.use_moving_average()
    kept = trainer.evaluate()["eval_loss"]
    history = trainer.state.log_history
    assert kept == next(row["eval_loss"] for row in history if row["step"] == 3 and "eval_loss" in row)


def test_a_checkpoint_without_average_is_refused(tmp_path):
    average = MovingAverage(torch.nn.Linear(2, 2), 0.9)
    with pytest.raises(ValueError, match=r"has no moving_average.safetensors, which ema_decay=0.9 goes on from; start"):
        average.load_part(tmp_path)
