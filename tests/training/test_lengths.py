"""How long outputs may be is settled before the first update, from the data; what is cut is counted; advice works."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from seqloom.configuration.recipe import Recipe, RecipeError
from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.training import train as training
from seqloom.training.batching import BatchSettings, UpdateSampler, accumulation_steps
from seqloom.training.preparation import epoch_encodings, fit_output_length, leave_out_long
from seqloom.training.trainer import SeqloomTrainer
from seqloom_cli.command import run_command
from tests.toy import SMALL_RUN, write_reversals

SMALL: dict[str, Any] = {
    **SMALL_RUN,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "tokens_per_update": 1024,
    "logging_steps": 5,
    "max_steps": 4,
    "eval_steps": 4,
    "save_steps": 4,
    "warmup_steps": 2,
    "num_beams": 1,
    "num_sample_outputs": 1,
}

Run = Callable[..., int]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, list[str]]:
    return write_reversals(tmp_path, train=60, valid=6, test=5)


@pytest.fixture
def run(files: dict[str, list[str]], tmp_path: Path) -> Run:
    """Return a function that trains a few updates, to the command's exit code."""

    def train(**overrides: Any) -> int:
        recipe = resolve_recipe(None, {**files, **SMALL, "output": str(tmp_path / "run"), **overrides})
        return run_command(lambda: bool(training.train(recipe)) and 0)

    return train


def results(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "run" / "run" / "results.json").read_text())


def lengthen(file: str, words: int, letters: int) -> None:
    """Put long lines in the place of a file's first ones."""
    lines = Path(file).read_text().splitlines()
    Path(file).write_text("\n".join(["a" * letters] * words + lines[words:]) + "\n")


def encoded(**splits: list[tuple[int, int]]) -> DatasetDict:
    """Return splits with sources and targets of these lengths."""
    return DatasetDict(
        {
            name: Dataset.from_dict(
                {
                    "input_ids": [[4] * source for source, _ in rows],
                    "labels": [[4] * target for _, target in rows],
                    "source": ["x" * source for source, _ in rows],
                    "target": ["x" * target for _, target in rows],
                }
            )
            for name, rows in splits.items()
        }
    )


def recipe_with(**keys: Any) -> Recipe:
    return resolve_recipe(None, {"train": ["a.tsv"], "preset": "demo", **keys})


def flags_in(text: str) -> dict[str, str]:
    """Return what a message advises: each --key value."""
    return dict(re.findall(r"--(\w+) (\w+)", text))


# How long outputs may be ----------------------------------------------------------------------------------------------


def test_the_limit_is_chosen_from_the_longest_target_of_all_splits() -> None:
    data = encoded(train=[(5, 6)], validation=[(900, 300)], test=[(3, 40)])
    recipe, line = fit_output_length(recipe_with(), data)
    assert recipe.max_new_tokens == 300 + 75 + 10
    assert line == "at most 385 tokens, chosen from the longest target, which has 300"


def test_a_named_limit_stands_and_says_what_it_cuts(caplog: pytest.LogCaptureFixture) -> None:
    data = encoded(train=[(5, 300)], validation=[(9, 9), (9, 30), (9, 31)], test=[(3, 8)])
    recipe, line = fit_output_length(recipe_with(max_new_tokens=29), data)
    assert recipe.max_new_tokens == 29
    assert line == "at most 29 tokens; the longest target has 300"
    [record] = caplog.records
    assert record.getMessage() == (
        "2 of 3 validation targets are longer than max_new_tokens=29: their outputs will be cut, and scored as they "
        "are then. Left out, or null, it is chosen from the data: 385."
    )


def test_targets_of_300_characters_are_written_whole(
    run: Run, files: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "valid", "test"):
        lengthen(files[split][1], 5, 300)
    assert run() == 0
    said = capsys.readouterr().out
    assert "outputs   at most 386 tokens, chosen from the longest target, which has 301" in said
    settings = json.loads((tmp_path / "run" / "generation_config.json").read_text())
    assert (settings["max_new_tokens"], settings["longest_trained_source"]) == (386, 10)


def test_what_is_cut_is_counted_and_marked(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """After one update the model knows no end."""
    with caplog.at_level(logging.WARNING):
        assert run(max_new_tokens=2, max_steps=1, eval_steps=1, save_steps=1) == 0
    assert "6 of 6 validation targets are longer than max_new_tokens=2: their outputs will be cut" in caplog.text
    assert "5 of 5 test targets are longer than max_new_tokens=2" in caplog.text
    found = results(tmp_path)
    assert (found["validation_truncated"], found["test_truncated"]) == (6, 5)
    said = capsys.readouterr().out
    assert said.count("[cut after 2 tokens]") == 1 + 3, "a sample of the evaluation, and three at the end"
    history = json.loads((tmp_path / "run" / "checkpoint-1" / "trainer_state.json").read_text())["log_history"]
    assert [row["eval_truncated"] for row in history if "eval_truncated" in row] == [6]
    assert "5 outputs of the test set were cut before their end" in (tmp_path / "run" / "README.md").read_text()


# Learned positions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "side"), [("train", 0), ("valid", 0), ("test", 1)])
def test_what_learned_positions_cannot_read_is_refused_before_training(
    run: Run, files: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str, side: int
) -> None:
    lengthen(files[split][side], 1, 40)
    learned = {"position_embedding_type": "learned", "max_position_embeddings": 32}
    assert run(**learned) == 1
    said = capsys.readouterr().err
    name = {"train": "1 of 60 train", "valid": "1 of 6 validation", "test": "1 of 5 test"}[split]
    assert f"{name} examples have more tokens on a side than max_position_embeddings=32 learned positions; the" in said
    assert "the longest has 41. Use --max_position_embeddings 41, or --position_embedding_type sinusoidal" in said
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    advice = flags_in(said)
    assert ("max_source_length" in advice) == (split == "train")
    if split == "train":
        dropped = {key: advice[key] for key in ("max_source_length", "max_target_length")}
        assert run(**learned, **dropped, output=str(tmp_path / "dropped")) == 0
    elif split == "test":
        assert run(**learned | {"max_position_embeddings": 41}, output=str(tmp_path / "longer")) == 0
    else:
        assert run(position_embedding_type="sinusoidal", output=str(tmp_path / "sinusoidal")) == 0


def test_a_table_shorter_than_the_limit_shortens_it(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert run(position_embedding_type="learned", max_position_embeddings=16, max_new_tokens=300) == 0
    assert "max_new_tokens=300 is lowered to the max_position_embeddings=16 learned positions that there" in caplog.text
    assert json.loads((tmp_path / "run" / "generation_config.json").read_text())["max_new_tokens"] == 16


def test_bpe_dropout_cuts_no_example_beyond_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr("seqloom.training.preparation.EpochEncodings", lambda *args, **keys: seen.update(keys))
    learned = {"position_embedding_type": "learned", "max_position_embeddings": 64, "bpe_dropout": 0.1}
    epoch_encodings(None, None, recipe_with(**learned), BatchSettings(1000))  # type: ignore[arg-type]
    assert (seen["limits"].source, seen["limits"].target) == (64, 64)


# What a final test cannot do ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["test", "samples"])
def test_what_the_end_cannot_do_loses_nothing_else(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    evaluate = SeqloomTrainer.evaluate

    def fails(self: Any, dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        if metric_key_prefix == what:
            raise RuntimeError("the tape is torn")
        return evaluate(self, dataset, ignore_keys, metric_key_prefix)

    def mute(self: Any, sources: Any) -> Any:
        raise RuntimeError("the tape is torn")

    with monkeypatch.context() as patch:
        if what == "samples":
            patch.setattr(SeqloomTrainer, "write_texts", mute)
        else:
            patch.setattr(SeqloomTrainer, "evaluate", fails)
        assert run(num_sample_outputs=0) == 1
    name = what if what == "samples" else f"{what} set"
    seen = capsys.readouterr()
    assert f"failed    {name}: RuntimeError: the tape is torn" in seen.out
    assert f"results but for what failed ({name}: RuntimeError: the tape is torn" in seen.err
    found = results(tmp_path)
    assert list(found["errors"]) == [name]
    assert ("test_exact_match" in found, "validation_exact_match" in found) == (what != "test", what != "validation")
    assert (tmp_path / "run" / "README.md").is_file()
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()

    assert run(num_sample_outputs=0) == 0, "the remedy works"
    assert "errors" not in results(tmp_path)
    assert {"test_exact_match", "validation_exact_match"} <= results(tmp_path).keys()
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("keys", [{"save_strategy": "no"}, {"save_only_model": True}])
def test_a_model_without_a_checkpoint_to_score_from_is_not_trained_away(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any]
) -> None:
    def mute(self: Any, sources: Any) -> Any:
        raise RuntimeError("the tape is torn")

    with monkeypatch.context() as patch:
        patch.setattr(SeqloomTrainer, "write_texts", mute)
        assert run(num_sample_outputs=0, **keys) == 1
    said = capsys.readouterr().err
    assert "But that needs a checkpoint, and none is whole: seqloom evaluate" in said
    weights = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    assert run(num_sample_outputs=0, **keys) == 1
    again = capsys.readouterr().err
    assert again[again.index(str(tmp_path / "run")) :] == said[said.index(str(tmp_path / "run")) :]
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == weights
    assert run(num_sample_outputs=0, resume="never", overwrite=True, **keys) == 0, "the remedy works"


# Advice, followed -----------------------------------------------------------------------------------------------------


def lines_of(kind: str) -> np.ndarray:
    """Return lengths that ask too much of a micro-batch."""
    rng = np.random.default_rng(0)
    common = rng.integers(5, 40, (400, 2))
    outliers = {"few": 3, "some": 40, "many": 380}[kind]
    common[:outliers] = rng.integers(400, 900, (outliers, 2))
    return common


@pytest.mark.parametrize("num_passes", [1, 2])
@pytest.mark.parametrize("kind", ["few", "some", "many"])
@pytest.mark.parametrize("tokens_per_device", [300, 1100, 2100])
def test_budgets_that_are_too_small_are_raised_in_the_users_own_unit(
    kind: str, tokens_per_device: int, num_passes: int
) -> None:
    lengths = lines_of(kind)
    settings = BatchSettings(2048, tokens_per_device, num_passes=num_passes)
    try:
        steps = accumulation_steps(lengths, settings)
    except ValueError as error:
        text = str(error)
    else:
        UpdateSampler(lengths, BatchSettings(2048, tokens_per_device, accumulation_steps=steps, num_passes=num_passes))
        return
    assert f"tokens_per_device={tokens_per_device} is too small" in text
    assert ("counted in 2 passes" in text) == (num_passes == 2)
    raised = int(re.search(r"raise tokens_per_device to (\d+)", text)[1])
    assert raised > tokens_per_device
    assert accumulation_steps(lengths, BatchSettings(2048, raised, num_passes=num_passes))
    if found := re.search(
        r"max_source_length=(\d+) and max_target_length=(\d+), which leaves out ([\d,]+) of 400", text
    ):
        kept = lengths[(lengths <= (int(found[1]), int(found[2]))).all(axis=1)]
        assert len(kept) == 400 - int(found[3])
        assert accumulation_steps(kept, settings)
    elif kind == "few":
        pytest.fail("three lines of 400 are to blame, and nobody says so")


def test_with_rdrop_the_advice_is_in_the_unit_of_the_key(run: Run, tmp_path: Path, capsys: Any) -> None:
    assert run(rdrop_alpha=1.0, tokens_per_device=20) == 1
    said = capsys.readouterr().err
    assert "tokens_per_device=20 is too small" in said
    raised = int(re.search(r"raise tokens_per_device to (\d+)", said)[1])
    assert run(rdrop_alpha=1.0, tokens_per_device=raised) == 0


@pytest.mark.parametrize(
    "limits",
    [
        {"max_source_length": 3},
        {"max_target_length": 2, "max_source_length": 2},
        {"tokens_per_update": 8, "tokens_per_device": 4},
        {"tokens_per_update": 8, "tokens_per_device": 20, "rdrop_alpha": 1.0},
    ],
)
def test_limits_that_leave_nothing_say_what_keeps_something(limits: dict[str, Any]) -> None:
    data = encoded(train=[(5, 6), (8, 9), (70, 80)])["train"]
    with pytest.raises(RecipeError, match="no training example is left: all 3 are longer than") as caught:
        leave_out_long(data, recipe_with(**limits), {})
    text = str(caught.value)
    assert "An example of middle length has 8 + 9 tokens; --" in text
    assert "None" not in text
    better = recipe_with(**limits | flags_in(text))
    kept, _ = leave_out_long(data, better, {})
    assert len(kept) == 2
    lengths = np.array([[5, 6], [8, 9]])
    passes = BatchSettings(better.tokens_per_update, better.tokens_per_device, num_passes=better.num_passes)
    assert accumulation_steps(lengths, passes)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"max_new_tokens": 10**9}, "max_new_tokens=1000000000 is more than 131,072, the most that is tried; lower it"),
        ({"num_beams": 10**6}, "num_beams=1000000 is more than 1,000, the most that is tried; lower it"),
    ],
)
def test_absurd_recipes_are_refused(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        recipe_with(**keys)
