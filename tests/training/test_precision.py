"""The format of numbers: named in three ways, or timed; kept with the run, whatever a later stopwatch would say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

import seqloom
from seqloom.configuration.recipe import Recipe, RecipeError
from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.training import precision, train
from seqloom.training.batching import BatchSettings
from seqloom.training.precision import Timing, can_choose, choose_precision, time_formats, usual_micro_batches
from seqloom.training.settings import training_arguments
from tests.toy import write_reversals

BATCH = {"input_ids": torch.tensor([[5, 6, 2], [7, 2, 0]]), "labels": torch.tensor([[5, 2], [6, 2]])}


def recipe_with(**keys: Any) -> Recipe:
    return resolve_recipe(None, {"train": ["a", "b"], **keys})


@pytest.mark.parametrize(
    ("keys", "meant"),
    [
        ({}, "auto"),
        ({"bf16": True}, "bf16"),
        ({"fp16": "yes"}, "fp16"),
        ({"bf16": False}, "fp32"),
        ({"precision": "bf16"}, "bf16"),
        ({"precision": "auto", "bf16": True}, "bf16"),
        ({"precision": "fp32", "bf16": False}, "fp32"),
    ],
)
def test_a_format_is_named_in_three_ways(keys: dict[str, Any], meant: str, tmp_path: Path) -> None:
    recipe = recipe_with(**keys)
    assert recipe.precision == meant
    on = {name for name in ("bf16", "fp16") if recipe.training_arguments.get(name)}
    assert on == {meant} & {"bf16", "fp16"}
    recipe.save(tmp_path / "recipe.yaml")
    assert resolve_recipe(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"precision": "fp32", "bf16": True}, "precision=fp32 and bf16=true are two answers to one question; leave bf"),
        ({"precision": "bf16", "bf16": False}, "precision=bf16 and bf16=false are two answers"),
        ({"bf16": True, "fp16": True}, "precision=bf16 and fp16=true are two answers"),
        ({"precision": "fp8"}, "precision=fp8 must be one of auto, fp32, bf16, fp16"),
    ],
)
def test_two_answers_are_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        recipe_with(**keys)


def test_only_an_open_question_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def asks(**keys: Any) -> bool:
        recipe = recipe_with(**keys)
        return can_choose(recipe, training_arguments(recipe))

    assert asks()
    assert not asks(bf16=True)
    assert not asks(precision="fp32")
    assert not asks(packing=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # accelerate launch --mixed_precision bf16
    assert not asks()
    assert training_arguments(recipe_with()).mixed_precision == "bf16"
    assert training_arguments(recipe_with(precision="fp32")).mixed_precision == "no"


@pytest.fixture
def model(tiny_config: Any) -> Any:
    return seqloom.SeqloomForConditionalGeneration(tiny_config(dropout=0.1))


def encoded(num: int) -> Dataset:
    rows = [[5 + i % 9] * (1 + i % 13) + [2] for i in range(num)]
    return Dataset.from_dict({"input_ids": rows, "labels": rows})


def test_timing_leaves_the_model_as_it_was(model: Any) -> None:
    model.eval()
    before, state = {n: p.clone() for n, p in model.named_parameters()}, torch.get_rng_state()
    timings = time_formats(model, {"fp32": [BATCH, BATCH], "bf16": [BATCH]})
    assert [each.precision for each in timings] == ["fp32", "bf16"]
    assert all(each.pace > 0 for each in timings)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert model.config._attn_implementation == "sdpa"
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_what_costs_more_is_cut_into_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = BatchSettings(512)
    (cheap, *_), (dear, *_) = (usual_micro_batches(encoded(400), settings, overhead) for overhead in (1, 4096))
    assert len(cheap) < len(dear)
    assert {"input_ids", "labels"} == set(dear[0])
    monkeypatch.setattr(precision, "MOST_TOKENS_TIMED", 40)  # nobody knows yet what fits into memory
    few, *_ = usual_micro_batches(encoded(400), settings, 4096)
    assert len(few) < len(dear)
    assert sum(len(row["input_ids"]) + len(row["labels"]) for row in few) <= 40


def test_what_cannot_be_cut_is_refused_elsewhere(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `accumulation_steps`, on every process; this one would be alone."""
    monkeypatch.setattr(precision, "WORTH_IT", 0.0)
    assert choose_precision(model, encoded(40), BatchSettings(100, 2), 0)[0] == "fp32"


@pytest.mark.parametrize(
    ("products", "batches", "chosen", "said"),
    [
        ((1.0, 2.0), None, "fp32", "fp32, for bf16 multiplies no faster on this processor (0.5 times the speed)"),
        ((3.0, 1.0), (0.4, 0.4), "fp32", "fp32; bf16 was tried and is no faster here (100 tokens/s against 100)"),
        ((3.0, 1.0), (0.4, 0.2), "bf16", "bf16, 2.0 times as fast as fp32 on this processor (200 tokens/s"),
    ],
)
def test_the_faster_is_chosen(
    model: Any, monkeypatch: pytest.MonkeyPatch, products: Any, batches: Any, chosen: str, said: str
) -> None:
    def timed(model: Any, given: dict[str, Any]) -> list[Timing]:
        assert batches, "where products are no faster nothing else is tried"
        return [Timing(name, seconds / 40) for name, seconds in zip(given, batches, strict=True)]

    times = dict(zip(("fp32", "bf16"), products, strict=True))
    monkeypatch.setattr(precision, "WORTH_IT", 1.15)
    monkeypatch.setattr(precision, "time_of_products", lambda width, name: times[name])
    monkeypatch.setattr(precision, "time_formats", timed)
    found, why = choose_precision(model, encoded(40), BatchSettings(100), 0)
    assert found == chosen
    assert why.startswith(said)


def test_kernels_made_for_each_new_shape_are_counted(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as fast in bf16 where a shape comes back, and half as fast where it is new, as nearly all of a run are."""
    seen = set()

    def seconds(work: Any) -> float:
        _, batch, name = work.args
        shape = name, batch["input_ids"].shape, batch["labels"].shape
        pace = 1.0 if name == "fp32" else 0.5 if shape in seen else 2.0
        seen.add(shape)
        return pace * (batch["input_ids"].numel() + batch["labels"].numel())

    monkeypatch.setattr(precision, "WORTH_IT", 1.15)
    monkeypatch.setattr(precision, "time_of_products", lambda width, name: 1.0 if name == "bf16" else 3.0)
    monkeypatch.setattr(precision, "_seconds", seconds)
    monkeypatch.setattr(precision, "ENOUGH", 1e9)
    assert choose_precision(model, encoded(4000), BatchSettings(512), 0)[0] == "fp32"
    assert len(seen) > 6
    seen.clear()
    rows = [[5, 6, 7, 2]] * 4000  # of one shape: a kernel is made once
    of_one_length = Dataset.from_dict({"input_ids": rows, "labels": rows})
    assert choose_precision(model, of_one_length, BatchSettings(512), 0)[0] == "bf16"


@pytest.fixture
def command(tmp_path: Path) -> dict[str, Any]:
    write_reversals(tmp_path, train=60, valid=4, test=4)
    files = {
        split: [str(tmp_path / f"{split}.{side}") for side in ("src", "tgt")] for split in ("train", "valid", "test")
    }
    shape = {"preset": "demo", "d_model": 16, "tokenizer": "char", "vocab_size": 300, "tokens_per_update": 512}
    schedule = {"max_steps": 2, "save_steps": 2, "eval_steps": 2, "disable_tqdm": True}
    return {**files, **shape, **schedule, "output": str(tmp_path / "run")}


def test_the_choice_is_kept_with_the_run(
    command: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(train, "choose_precision", lambda *_: ("bf16", "bf16, said the stopwatch"))
    train.train(resolve_recipe(None, command))
    assert "numbers   bf16, said the stopwatch" in capsys.readouterr().out
    kept = resolve_recipe(tmp_path / "run" / "run" / "recipe.yaml")
    assert (kept.precision, kept.training_arguments["bf16"]) == ("bf16", True)

    def never(*_: Any) -> Any:
        raise AssertionError("a run that goes on is not timed again")

    monkeypatch.setattr(train, "choose_precision", never)
    train.train(resolve_recipe(None, command))
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(ValueError, match="precision=bf16, and precision=fp32"):
        train.train(resolve_recipe(None, {**command, "precision": "fp32"}))
    results = train.train(resolve_recipe(None, {**command, "max_steps": 4, "bf16": True}))
    assert results["updates"] == 4


@pytest.mark.parametrize(("launched", "later", "packing"), [("bf16", "no", False), ("no", "bf16", True)])
def test_what_a_launcher_has_named_is_kept_with_the_run(
    command: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, launched: str, later: str, packing: bool
) -> None:
    """Packed, a CPU is no more timed than a GPU."""
    command["packing"] = packing
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    train.train(resolve_recipe(None, command))
    seen = []
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", later)
    build = train.build_trainer
    monkeypatch.setattr(train, "build_trainer", lambda *args: seen.append(args[1].mixed_precision) or build(*args))
    train.train(resolve_recipe(None, {**command, "max_steps": 4}))
    assert seen == [launched]
    kept = resolve_recipe(tmp_path / "run" / "run" / "recipe.yaml")
    assert kept.precision == {"no": "fp32"}.get(launched, launched)


def test_a_run_of_an_older_release_stays_in_fp32(
    command: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train.train(resolve_recipe(None, command))
    file = tmp_path / "run" / "run" / "recipe.yaml"
    file.write_text("".join(line for line in file.open() if "precision:" not in line))
    monkeypatch.setattr(train, "choose_precision", lambda *_: ("bf16", "bf16, said the stopwatch"))
    train.train(resolve_recipe(None, {**command, "max_steps": 4}))
    kept = resolve_recipe(file)
    assert kept == replace(kept, precision="auto")
    assert not kept.training_arguments.get("bf16")
