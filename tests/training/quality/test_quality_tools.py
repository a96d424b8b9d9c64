"""The quality tools in whole runs, from recipe keys to the folder: each does what it says, and after a resume too."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from seqloom.configuration.recipe import RecipeError
from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.training.monitoring.gradient_flow import gradient_rows
from seqloom.training.train import add_quality_tools, main, train
from tests.toy import write_reversals

SMALL = {"preset": "demo", "d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
QUICK = {"vocab_size": 300, "tokens_per_update": 1024, "max_new_tokens": 12, "num_beams": 1, "num_sample_outputs": 0}
SCHEDULE = {"max_steps": 8, "eval_steps": 2, "save_steps": 2, "logging_steps": 2, "warmup_steps": 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Words and their reversals, as line-aligned files."""
    return write_reversals(tmp_path_factory.mktemp("corpus"), train=120, valid=6)


@pytest.fixture
def recipe(files, tmp_path):
    def build(output="run", **overrides):
        keys = {**files, **SMALL, "tokenizer": "char", "dropout": 0.1, **QUICK, **SCHEDULE, "disable_tqdm": True}
        return resolve_recipe(None, {**keys, "output": str(tmp_path / output), **overrides})

    return build


def weights(folder):
    return load_file(folder / "model.safetensors")


def history(folder, update):
    return json.loads((folder / f"checkpoint-{update}" / "trainer_state.json").read_text())["log_history"]


def forget_the_end(folder):
    """Leave a run as it was before its last checkpoints, as if it had been killed there."""
    import shutil

    (folder / "run" / "results.json").unlink()
    for update in (6, 8):
        shutil.rmtree(folder / f"checkpoint-{update}", ignore_errors=True)


# Schedules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("inverse_sqrt", [0.5, 1, (3 / 2) ** -0.5, 2**-0.5, (5 / 2) ** -0.5]),
        ("cosine", [0.5, 1, 0.9330127, 0.75, 0.5]),
        ("linear", [0.5, 1, 5 / 6, 4 / 6, 3 / 6]),
    ],
)
def test_schedules_from_the_command_line(files, tmp_path, name, rates):
    """Half of the rate after one of two warm-up updates, all of it after both, then each schedule's own formula."""
    flags = [f"--{key}={value}" for key, value in {**SMALL, **QUICK, **SCHEDULE}.items()]
    flags += ["--tokenizer=char", f"--lr_scheduler_type={name}", "--learning_rate=0.01", "--logging_steps=1"]
    flags += ["--eval_strategy=no", "--save_steps=8", f"--output={tmp_path / 'run'}", "--train", *files["train"]]
    assert main(flags) == 0
    scheduler = torch.load(tmp_path / "run" / "checkpoint-8" / "scheduler.pt", weights_only=True)
    assert scheduler["last_epoch"] == 8
    logged = [row["learning_rate"] for row in history(tmp_path / "run", 8) if "loss" in row]
    expected = [0.0, *(0.01 * rate for rate in rates)]  # what an update was made with is the rate after the one before
    assert logged[:6] == pytest.approx(expected, rel=1e-5)


# Defaults that depend on the data ------------------------------------------------------------------------------------


def test_without_a_preset_the_data_decides_and_a_resume_agrees(recipe, files, tmp_path, capsys):
    keys = {**files, "output": str(tmp_path / "run"), "max_steps": 4, "save_steps": 2, "disable_tqdm": True}
    keys |= {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "eval_strategy": "no", "max_new_tokens": 4}
    train(resolve_recipe(None, keys))
    printed = capsys.readouterr().out
    assert "auto      letters -> letters, for the targets are short strings, 6 characters on average" in printed
    assert "preset tiny for 120 examples, few strings want a small model" in printed
    assert "dropout 0.3, learning rate 0.0025, 437 tokens an update" in printed
    kept = resolve_recipe(tmp_path / "run" / "run" / "recipe.yaml")
    assert (kept.preset, kept.tokenizer, kept.tokens_per_update) == ("tiny", "char", 437)
    assert kept.training_arguments["learning_rate"] == 0.0025
    assert (kept.model["dropout"], kept.model["d_model"], kept.model["encoder_layers"]) == (0.3, 16, 4)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["dropout"], config["encoder_layers"]) == (0.3, 4)

    (tmp_path / "run" / "run" / "results.json").unlink()
    assert train(resolve_recipe(None, {**keys, "max_steps": 6}))["updates"] == 6
    assert resolve_recipe(tmp_path / "run" / "run" / "recipe.yaml").preset == "tiny"


# Averaging -----------------------------------------------------------------------------------------------------------


def test_the_folder_holds_the_mean_of_the_last_checkpoints(recipe, tmp_path, capsys):
    results = train(recipe(average_checkpoints=3))
    folder = tmp_path / "run"
    assert results["averaged_updates"] == [4, 6, 8]
    files = [weights(folder / f"checkpoint-{update}") for update in (4, 6, 8)]
    final = weights(folder)
    assert final.keys() == files[0].keys()
    for name, weight in final.items():
        assert torch.equal(weight, (sum(file[name].double() for file in files) / 3).float()), name
    assert results["validation_loss"] == pytest.approx(results["averaged_loss"], rel=1e-6)
    assert {"single_cer", "averaged_cer", "single_loss"} <= set(results)
    assert "average   3 checkpoints averaged, updates 4, 6, 8; against update 8 alone: loss" in capsys.readouterr().out


def test_the_best_checkpoints_are_kept_and_averaged_after_a_resume_too(recipe, tmp_path):
    keys = {"average_checkpoints": 2, "average_by": "best", "metric_for_best_model": "loss", "learning_rate": 1e-3}
    whole = train(recipe("whole", **keys))
    scores = {row["step"]: row["eval_loss"] for row in history(tmp_path / "whole", 8) if "eval_loss" in row}
    assert whole["averaged_updates"] == sorted(sorted(scores, key=scores.get)[:2])
    assert len(list((tmp_path / "whole").glob("checkpoint-*"))) <= 3
    train(recipe("parts", **keys, max_steps=4))
    (tmp_path / "parts" / "run" / "results.json").unlink()
    parts = train(recipe("parts", **keys))
    assert parts["averaged_updates"] == whole["averaged_updates"]
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_averaging_may_be_asked_for_when_a_run_goes_on(recipe, tmp_path):
    train(recipe(max_steps=4, save_total_limit=9))
    (tmp_path / "run" / "run" / "results.json").unlink()
    assert train(recipe(average_checkpoints=3))["averaged_updates"] == [4, 6, 8]


# Shards --------------------------------------------------------------------------------------------------------------


def shell_of_trainer(**fields):
    """Return what `add_quality_tools` asks of a trainer."""
    plain = {"is_fsdp_enabled": False, "is_deepspeed_enabled": False, "args": None, "has_muon": True}
    return SimpleNamespace(**{**plain, "is_world_process_zero": lambda: True, **fields})


@pytest.mark.parametrize("shards", [{"is_fsdp_enabled": True}, {"is_deepspeed_enabled": True}])
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"muon": True}, r"muon takes whole matrices, and FSDP and DeepSpeed shard them"),
        ({"ema_decay": 0.9}, r"ema_decay averages whole weights, and FSDP and DeepSpeed shard them"),
        ({"average_checkpoints": 3}, r"average_checkpoints averages whole weights, and FSDP"),
    ],
)
def test_what_needs_whole_weights_is_refused_where_they_are_sharded(recipe, tmp_path, shards, keys, message):
    with pytest.raises(RecipeError, match=message):
        add_quality_tools(shell_of_trainer(**shards), recipe(**keys), None)


@pytest.mark.parametrize("shards", [{"is_fsdp_enabled": True}, {"is_deepspeed_enabled": True}])
def test_what_auto_chose_is_left_out_where_weights_are_sharded_and_said(recipe, shards, caplog):
    trainer = shell_of_trainer(**shards)
    chosen = replace(recipe(muon=True, average_checkpoints=3), named=frozenset())
    add_quality_tools(trainer, chosen, None)
    assert not trainer.has_muon
    assert "muon, which auto chose, takes whole matrices" in caplog.text
    assert "average_checkpoints, which auto chose, averages whole weights" in caplog.text


def test_gradients_that_deepspeed_keeps_are_not_logged(recipe):
    with pytest.raises(RecipeError, match=r"log_gradient_flow reads the gradient of each weight, and DeepSpeed keeps"):
        add_quality_tools(shell_of_trainer(is_deepspeed_enabled=True), recipe(log_gradient_flow=True), None)


def test_muon_is_warned_of_where_it_unlearns_a_parent(recipe, caplog):
    trainer = shell_of_trainer()
    add_quality_tools(trainer, recipe(muon=True), None)
    assert not caplog.text
    add_quality_tools(trainer, replace(recipe(muon=True), init_from="parent"), None)
    assert "muon unlearns much of what init_from brings" in caplog.text


# EMA -----------------------------------------------------------------------------------------------------------------


def test_the_folder_holds_the_moving_average_and_checkpoints_hold_both(recipe, tmp_path):
    results = train(recipe(ema_decay=0.9))
    folder = tmp_path / "run"
    average, raw = load_file(folder / "checkpoint-8" / "moving_average.safetensors"), weights(folder / "checkpoint-8")
    assert average.pop("num_updates").item() == 8
    final = weights(folder)
    assert all(torch.equal(final[name], average[name]) for name in final)
    assert not any(torch.equal(final[name], raw[name]) for name in final if name.endswith("fc1.weight"))
    last = next(row for row in history(folder, 8) if row["step"] == 8 and "eval_loss" in row)
    assert results["validation_loss"] == pytest.approx(last["eval_loss"], rel=1e-6)


def test_a_stopped_run_with_every_tool_goes_on_to_the_same_weights(recipe, tmp_path):
    keys = {"ema_decay": 0.9, "rdrop_alpha": 2.0, "tokenizer": "bpe", "bpe_dropout": 0.2, "log_gradient_flow": True}
    keys["muon"] = True
    train(recipe("whole", **keys))
    train(recipe("parts", **keys))
    forget_the_end(tmp_path / "parts")
    train(recipe("parts", **keys))
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    lines = [(tmp_path / name / "run" / "history.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    tables = [gradient_rows({**row, "step": row["update"]} for row in map(json.loads, table)) for table in lines]
    assert tables[0] == tables[1]
    assert [row["update"] for row in tables[0]] == [2, 4, 6, 8]
    assert (tmp_path / "whole" / "run" / "gradient_flow.png").is_file()


# Early stopping ------------------------------------------------------------------------------------------------------


def test_a_run_stops_when_the_decoded_score_no_longer_improves_and_keeps_the_best(recipe, tmp_path):
    results = train(recipe(early_stopping_patience=2, metric_for_best_model="cer", learning_rate=0.0, max_steps=40))
    assert results["updates"] == 6  # the first score, and two that are no better
    folder = tmp_path / "run"
    best, final = weights(folder / "checkpoint-2"), weights(folder)
    assert all(torch.equal(best[name], final[name]) for name in final)


def test_patience_is_not_forgotten_in_a_resume(recipe, tmp_path):
    keys = {"early_stopping_patience": 3, "metric_for_best_model": "exact_match", "learning_rate": 0.0}
    train(recipe(**keys, max_steps=4))
    (tmp_path / "run" / "run" / "results.json").unlink()
    assert train(recipe(**keys, max_steps=40))["updates"] == 8


def test_an_unknown_metric_is_refused_before_data_is_read(recipe):
    with pytest.raises(ValueError, match="metric_for_best_model=beu is not among the scores of this run; did you mean"):
        train(recipe(early_stopping_patience=2, metric_for_best_model="beu", train=["nowhere.a", "nowhere.b"]))
