"""Gradient flow: the norms are those of autograd before clipping, whatever the cut; and what residuals are good for."""

import math

import numpy as np
import pytest
import torch

from seqloom.training.lessons.lesson import without_residuals
from seqloom.training.monitoring import gradient_flow
from seqloom.training.monitoring.gradient_flow import GradientFlow, draw, gradient_rows, parameters_by_layer, ratio
from tests.tiny_trainer import tiny_trainer
from tests.toy import toy_pairs

LAYERS = ["encoder.0", "encoder.1", "decoder.0", "decoder.1", "embeddings"]


def gradients_of(model):
    """Return the norm of each layer's gradient on a batch, layer by layer with plain autograd."""
    source, mask, labels = toy_pairs(16, seed=3)
    model.zero_grad()
    model(input_ids=source, attention_mask=mask, labels=labels).loss.backward()
    return {
        f"{side}.{i}": math.sqrt(sum(float(p.grad.double().pow(2).sum()) for p in layer.parameters()))
        for side in ("encoder", "decoder")
        for i, layer in enumerate(getattr(model.model, side).layers)
    }


def test_every_parameter_of_a_layer_belongs_to_it(tiny_model):
    layers = parameters_by_layer(tiny_model())
    assert sorted(layers) == sorted(LAYERS)
    assert len(layers["embeddings"]) == 1
    separate = parameters_by_layer(tiny_model(tie_word_embeddings=False))
    assert len(separate["embeddings"]) == 2


@pytest.mark.parametrize("max_norm", [0.0, 1e-3])
def test_norms_are_of_the_whole_update_and_before_clipping(tmp_path, max_norm):
    readings = []
    for steps in (1, 4):
        trainer = tiny_trainer(tmp_path, max_steps=3, gradient_accumulation_steps=steps, max_grad_norm=max_norm)
        trainer.watch_gradients(tmp_path)
        trainer.train()
        rows = gradient_rows(trainer.state.log_history)
        totals = [row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row]
        assert [row["update"] for row in rows] == [1, 2, 3]
        assert set(rows[0]) == {"update", *LAYERS}
        for row, total in zip(rows, totals, strict=True):  # a post-norm model has no weights but those of the layers
            assert math.hypot(*(row[name] for name in LAYERS)) == pytest.approx(total, rel=1e-4)
        readings.append([[row[name] for name in LAYERS] for row in rows])
    np.testing.assert_allclose(readings[0], readings[1], rtol=1e-4)


def test_trackers_see_them_and_a_resumed_run_goes_on_with_them(tmp_path):
    def run(**keys):
        trainer = tiny_trainer(tmp_path, max_steps=4, save_steps=2, learning_rate=0.01, **keys)
        trainer.watch_gradients(tmp_path)
        return trainer

    trainer = run()
    trainer.train()
    table = gradient_rows(trainer.state.log_history)
    assert all("gradient_norm/encoder.0" in row for row in trainer.state.log_history if "loss" in row)
    resumed = run()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert gradient_rows(resumed.state.log_history) == table
    assert (tmp_path / "gradient_flow.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_numbers_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(gradient_flow, "can_draw", lambda: False)
    trainer = tiny_trainer(tmp_path, max_steps=1)
    trainer.watch_gradients(tmp_path)
    trainer.train()
    assert len(gradient_rows(trainer.state.log_history)) == 1
    assert not (tmp_path / "gradient_flow.png").exists()
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"the picture needs matplotlib; pip install 'seqloom\[plots\]'"):
        draw([], tmp_path / "x.png")


def test_ratio_is_the_median():
    rows = [{"a": 1.0, "b": 2.0}, {"a": 9.0, "b": 1.0}, {"a": 3.0, "b": 3.0}, {"a": 1.0, "b": 0.0}]
    assert ratio(rows, "a", "b") == 1.0
    assert math.isnan(ratio([], "a", "b"))


@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_residuals_keep_the_gradient_alive(tiny_model, norm_position):
    """Six fresh layers: with residuals the first of the decoder hears what the last one hears, without them nothing."""
    deep = {"encoder_layers": 6, "decoder_layers": 6, "norm_position": norm_position, "noise": 0}
    with_residuals = gradients_of(tiny_model(**deep))
    model = tiny_model(**deep)
    without_residuals(model)
    without = gradients_of(model)
    assert 0.05 < with_residuals["decoder.0"] / with_residuals["decoder.5"] < 20
    assert without["decoder.4"] < 1e-4 * without["decoder.5"]
    assert without["decoder.0"] < 1e-12 * without["decoder.5"]
    assert without["encoder.0"] > 0.05 * without["encoder.5"]  # the norms keep the size there


def test_the_watcher_reads_what_autograd_says(tmp_path, tiny_model):
    model = tiny_model()
    expected = gradients_of(model)
    watcher = GradientFlow(model, tmp_path)
    total = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    watcher.measure(total, 0.01)
    read = watcher.read()
    for name, norm in expected.items():
        assert read[f"gradient_norm/{name}"] == pytest.approx(norm, rel=1e-4)


def test_the_parameters_are_those_that_are_trained(tiny_model, tmp_path):
    """FSDP puts shards in the place of those that were there when the trainer was built."""
    flow, trained = GradientFlow(tiny_model(), tmp_path), tiny_model()
    flow.on_train_begin(None, None, None, model=trained)
    gradients = gradients_of(trained)
    flow.measure(1.0, 0.0)
    for name, norm in gradients.items():
        assert flow.read()[f"gradient_norm/{name}"] == pytest.approx(norm)
