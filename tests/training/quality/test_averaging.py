"""Checkpoint averaging: the mean is right to the last bit, the right checkpoints are taken and kept."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.trainer_callback import TrainerState

from seqloom.training.fault_tolerance.checkpoints import seal
from seqloom.training.finish import average_run, describe_average
from seqloom.training.quality.averaging import (
    KeepBestCheckpoints,
    average_weights,
    load_weights,
    updates_to_average,
)
from tests.tiny_trainer import tiny_trainer


def checkpoint(folder, update, **tensors):
    path = folder / f"checkpoint-{update}"
    path.mkdir(parents=True)
    save_file(tensors or {"w": torch.tensor([float(update)])}, path / "model.safetensors")
    seal(path)
    return path


def state(global_step, **losses):
    rows = [{"step": int(update[1:]), "eval_loss": loss} for update, loss in losses.items()]
    return TrainerState(global_step=global_step, log_history=rows)


def test_the_mean_is_taken_in_float64(tmp_path):
    values = [torch.randn(50, generator=torch.Generator().manual_seed(i)) * 10.0**i for i in range(-3, 4)]
    folders = [checkpoint(tmp_path, i, w=value) for i, value in enumerate(values)]
    mean = average_weights(folders)["w"]
    assert mean.dtype == torch.float32
    assert torch.equal(mean, (sum(value.double() for value in values) / len(values)).float())


def test_half_precision_weights_keep_their_type(tmp_path):
    folders = [checkpoint(tmp_path, i, w=torch.full((2,), 1.0 + i, dtype=torch.bfloat16)) for i in range(2)]
    mean = average_weights(folders)["w"]
    assert (mean.dtype, mean.tolist()) == (torch.bfloat16, [1.5, 1.5])


def test_checkpoints_of_two_models_are_refused(tmp_path):
    folders = [checkpoint(tmp_path, 1, w=torch.zeros(1)), checkpoint(tmp_path, 2, v=torch.zeros(1))]
    with pytest.raises(ValueError, match=r"checkpoint-2 and .*checkpoint-1 hold different weights; average check"):
        average_weights(folders)


def test_last_and_best_checkpoints_are_chosen(tmp_path):
    for update in (100, 200, 300, 400, 1000):
        checkpoint(tmp_path, update)
    (tmp_path / "checkpoint-500").mkdir()  # without weights
    (tmp_path / "_broken-checkpoint-600").mkdir()
    run = state(900, u100=1.0, u200=3.0, u300=2.0, u700=0.1)
    assert updates_to_average(tmp_path, run, 2, by="last") == ([300, 400], [])
    assert updates_to_average(tmp_path, run, 9, by="last") == ([100, 200, 300, 400], [])
    assert updates_to_average(tmp_path, run, 2, by="best") == ([100, 300], [])
    assert updates_to_average(tmp_path, run, 2, by="best", higher=True) == ([200, 300], [])


def test_a_checkpoint_that_is_gone_is_told_and_not_replaced(tmp_path):
    for update in (100, 200, 400):
        checkpoint(tmp_path, update)
    run, saved = state(400, u100=1.0, u200=3.0, u300=2.0, u400=4.0), [100, 200, 300, 400]
    assert updates_to_average(tmp_path, run, 3, by="last", saved=saved) == ([200, 400], [300])
    assert updates_to_average(tmp_path, run, 2, by="best", saved=saved) == ([100], [300])


DAMAGES = {
    "changed": lambda path: (path / "model.safetensors").write_bytes(
        (path / "model.safetensors").read_bytes()[:-1] + b"!"
    ),
    "truncated": lambda path: (path / "model.safetensors").write_bytes(b""),
    "another file": lambda path: (path / "config.json").write_text("{}"),
    "no seal": lambda path: (path / "checkpoint_manifest.json").unlink(),
    "another seal": lambda path: (path / "checkpoint_manifest.json").write_text('{"files": {}}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_not_averaged_and_the_remedy_works(tmp_path, damage):
    """Also an older one; moved away as the error says, the others are averaged and it is told."""
    trainer = tiny_trainer(tmp_path, max_steps=6, save_steps=2, learning_rate=0.01)
    trainer.train()
    DAMAGES[damage](tmp_path / "checkpoint-2")
    with pytest.raises(ValueError, match=r"checkpoint-2 is to be averaged, but .*\. Bring it back as it was, or move"):
        average_run(trainer, 3, "last")
    (tmp_path / "checkpoint-2").rename(tmp_path / "moved-away")
    results = average_run(trainer, 3, "last")
    assert (results["averaged_updates"], results["averaged_wanted"], results["averaged_missing"]) == ([4, 6], 3, [2])
    assert describe_average(results).startswith("2 of 3 asked checkpoints averaged, updates 4, 6; gone are those of")


def test_nothing_to_average_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint to average; lower save_steps and eval_steps, or leave"):
        updates_to_average(tmp_path, state(9), 2, by="last")
    checkpoint(tmp_path, 5)
    with pytest.raises(ValueError, match="holds no scored checkpoint to average"):
        updates_to_average(tmp_path, state(9), 2, by="best")


def test_the_best_and_the_newest_are_kept(tmp_path):
    trainer = tiny_trainer(tmp_path)
    keep = KeepBestCheckpoints(2, "loss", higher=False)
    scores, left = {}, []
    for update, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 4.0), (5, 0.5)):
        checkpoint(tmp_path, update)
        scores[f"u{update}"] = loss
        keep.on_save(trainer.args, state(update, **scores), None)
        left.append(sorted(path.name[-1] for path in tmp_path.glob("checkpoint-*")))
    assert left == [["1"], ["1", "2"], ["2", "3"], ["2", "3", "4"], ["2", "5"]]


def test_of_equals_that_of_trainer_is_kept_too(tmp_path):
    """Trainer loads the first of them at the end, and the last are averaged."""
    trainer = tiny_trainer(tmp_path)
    keep, scores = KeepBestCheckpoints(2, "loss", higher=False), {}
    for update in (1, 2, 3, 4):
        checkpoint(tmp_path, update)
        scores[f"u{update}"] = 1.0
        now = state(update, **scores)
        now.best_model_checkpoint = str(tmp_path / "checkpoint-1")
        keep.on_save(trainer.args, now, None)
    assert sorted(path.name[-1] for path in tmp_path.glob("checkpoint-*")) == ["1", "3", "4"]


@pytest.mark.parametrize("tied", [True, False])
def test_a_run_ends_with_the_mean(tmp_path, tied):
    trainer = tiny_trainer(
        tmp_path,
        model={"tie_word_embeddings": tied},
        max_steps=6,
        save_steps=2,
        eval_steps=2,
        eval_strategy="steps",
        learning_rate=0.01,
    )
    trainer.train()
    files = [load_file(tmp_path / f"checkpoint-{update}" / "model.safetensors") for update in (4, 6)]
    results = average_run(trainer, 2, "last")
    assert results["averaged_updates"] == [4, 6]
    weights = trainer.model.state_dict()
    for name in files[0]:
        assert torch.equal(weights[name], ((files[0][name].double() + files[1][name].double()) / 2).float()), name
    assert (weights["lm_head.weight"].data_ptr() == weights["model.encoder.embed_tokens.weight"].data_ptr()) is tied

    last = next(row for row in trainer.state.log_history if row["step"] == 6 and "eval_loss" in row)
    assert (results["single_update"], results["single_loss"]) == (6, last["eval_loss"])
    assert results["averaged_loss"] == trainer.evaluate()["eval_loss"] != last["eval_loss"]
    line = describe_average(results)
    assert "averaged_wanted" not in results
    assert line.startswith("2 checkpoints averaged, updates 4, 6; against update 6 alone: loss ")
    assert f"-> {results['averaged_loss']:.4g}" in line


def test_anothers_weights_are_refused(tmp_path):
    trainer = tiny_trainer(tmp_path)
    with pytest.raises(ValueError, match=r"do not fit the model \(missing: .*lm_head.weight.*; unexpected: w\);"):
        load_weights(trainer.model, {"w": torch.zeros(1)})
