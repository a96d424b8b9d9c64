"""One run from text to folder: what it leaves, how it goes on, and what it refuses."""

import json
import re
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.training.batching import BatchSettings
from seqloom.training.settings import seed_of, training_arguments
from seqloom.training.train import main, train
from tests.toy import write_reversals

GEOMETRY = {"preset": "demo", "d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 2}
QUICK = {"tokenizer": "char", "vocab_size": 300, "tokens_per_update": 1024, "max_new_tokens": 12, "logging_steps": 5}
SCHEDULE = {"max_steps": 10, "eval_steps": 5, "save_steps": 5, "warmup_steps": 5, "disable_tqdm": True}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Words and their reversals, as line-aligned files; and the words as one text."""
    folder = tmp_path_factory.mktemp("corpus")
    write_reversals(folder, train=120, valid=6, test=7)
    return folder


@pytest.fixture
def recipe(corpus, tmp_path):
    def build(**overrides):
        files = {
            split: [str(corpus / f"{split}.{side}") for side in ("src", "tgt")] for split in ("train", "valid", "test")
        }
        keys = {**files, **GEOMETRY, "decoder_attention_heads": 2, **QUICK, **SCHEDULE, "output": str(tmp_path / "run")}
        return resolve_recipe(None, {**keys, **overrides})

    return build


def weights(folder):
    return AutoModelForSeq2SeqLM.from_pretrained(folder).state_dict()


def test_a_run_leaves_a_folder_that_answers_and_its_records(recipe, tmp_path, corpus, capsys):
    results = train(recipe())
    folder = tmp_path / "run"
    assert results["updates"] == 10
    assert {"validation_loss", "test_exact_match", "test_cer", "test_in_training", "seconds"} <= set(results)

    records = {path.name for path in (folder / "run").iterdir()}
    assert {
        "recipe.yaml",
        "environment.json",
        "results.json",
        "data.json",
        "test_outputs.jsonl",
        "tokenizer",
    } <= records
    decided = {"metrics": ["exact_match", "cer"], "precision": "fp32"}  # by the kind of the targets, and a stopwatch
    assert resolve_recipe(folder / "run" / "recipe.yaml") == replace(recipe(), **decided)
    rows = [json.loads(line) for line in (folder / "run" / "test_outputs.jsonl").read_text().splitlines()]
    assert [row["source"] for row in rows] == (corpus / "test.src").read_text().split()
    assert json.loads((folder / "run" / "data.json").read_text())["train"]["num_rows"] == 120

    assert not list(folder.glob("*.bin"))
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    output = model.generate(**tokenizer(rows[0]["source"], return_tensors="pt"))
    assert tokenizer.decode(output[0], skip_special_tokens=True) == rows[0]["output"]
    written = pipeline("text-generation", model=str(folder))(rows[0]["source"], return_full_text=False)
    assert written[0]["generated_text"] == rows[0]["output"]

    printed = capsys.readouterr().out
    for part in ("reference", "exact_match", f"seqloom generate {folder}", 'pipeline("text-generation"'):
        assert part in printed


def test_a_finished_run_is_not_run_again(recipe, tmp_path, capsys):
    first = train(recipe())
    before = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    assert train(recipe()) == first
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == before
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(ValueError, match="holds a finished run and resume=never would replace it"):
        train(recipe(resume="never"))
    assert train(recipe(resume="never", overwrite=True))["test_loss"] == pytest.approx(first["test_loss"])


def test_a_finished_run_goes_on_longer_to_the_weights_of_a_long_one(recipe, tmp_path, capsys):
    long = train(recipe(output=str(tmp_path / "long")))
    train(recipe(max_steps=5))
    with pytest.raises(ValueError, match=r"trained with seed=42, and seed=7 is asked for now\. Nothing was changed"):
        train(recipe(seed=7))
    capsys.readouterr()
    before = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    assert train(recipe(), dry_run=True) == {}
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == before
    results = train(recipe())  # ten updates, inverse_sqrt: as if it had been planned so
    printed = capsys.readouterr().out
    assert (
        "Going on from update 5.\nIt was planned for 5 updates and has 10 now; its learning rate is the one" in printed
    )
    assert results["train_loss"] == pytest.approx(long["train_loss"])
    whole, longer = weights(tmp_path / "long"), weights(tmp_path / "run")
    assert all(torch.equal(whole[name], longer[name]) for name in whole)
    assert "was trained from random weights" in (tmp_path / "run" / "README.md").read_text(), "the card knows the run"
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-10"], "as many as needed"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"report_to": "no_tracker"}, "report_to=no_tracker is unknown; "),
        ({"report_to": "wandb"}, "report_to=wandb needs a package that is not installed: pip install wandb"),
        ({"vocab_size": 259}, "vocab_size"),
        ({"long_examples": "refuse", "max_source_length": 5}, "long_examples=refuse"),
    ],
)
def test_a_refused_start_leaves_nothing_behind(recipe, tmp_path, keys, said):
    with pytest.raises(ValueError, match=said):
        train(recipe(output=str(tmp_path / "new" / "run"), **keys))
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_everything_and_leaves_nothing(recipe, tmp_path, capsys):
    assert train(recipe(output=str(tmp_path / "new" / "run")), dry_run=True) == {}
    printed = capsys.readouterr().out
    assert all(f"\n{subject:10}" in printed for subject in ("model", "data", "memory", "disk", "mouth"))
    assert "Nothing was trained, and " in printed
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_run_goes_on_to_the_same_weights(recipe, tmp_path):
    in_one_go = train(recipe(output=str(tmp_path / "whole")))
    train(recipe(output=str(tmp_path / "parts"), max_steps=5))
    (tmp_path / "parts" / "run" / "results.json").unlink()  # as if it had been stopped before its end
    resumed = train(recipe(output=str(tmp_path / "parts"), save_total_limit=2))
    assert resumed["updates"] == in_one_go["updates"] == 10
    assert resumed["train_loss"] == pytest.approx(in_one_go["train_loss"]), "also of the updates before the stop"
    state = json.loads((tmp_path / "parts" / "checkpoint-5" / "trainer_state.json").read_text())
    assert resumed["seconds"] > state["stateful_callbacks"]["RunClock"]["args"]["earlier"] > 0
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_run_goes_on_with_its_own_recipe_only(recipe, tmp_path):
    train(recipe(max_steps=5))
    (tmp_path / "run" / "run" / "results.json").unlink()
    with pytest.raises(
        ValueError, match=r"was started with learning_rate=.* and is now asked to go on with learning_rate=0\.5"
    ):
        train(recipe(learning_rate=0.5))


def test_the_same_seed_gives_the_same_weights(recipe, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(recipe(output=str(tmp_path / name), seed=seed, max_steps=3))
    a, b, c = (weights(tmp_path / name)["lm_head.weight"] for name in "abc")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_tracker_gets_one_run_with_one_name(recipe, tmp_path):
    """A name that it makes up would be another one for the scores at the end, and after each resume."""
    assert training_arguments(recipe(output=str(tmp_path / "hungarian"))).run_name == "hungarian"
    assert training_arguments(recipe(output=str(tmp_path / "hungarian"), run_name="first")).run_name == "first"


@pytest.mark.parametrize(("keys", "seed"), [({}, 42), ({"seed": 3}, 3), ({"seed": 3, "data_seed": 4}, 4)])
def test_cut_points_and_order_have_one_seed(recipe, keys, seed):
    assert seed_of(recipe(**keys)) == BatchSettings(1).in_run(training_arguments(recipe(**keys))).seed == seed


def test_separate_vocabularies_survive_the_journey(recipe, tmp_path):
    train(recipe(target_tokenizer="word"))
    source = AutoTokenizer.from_pretrained(tmp_path / "run")
    target = AutoTokenizer.from_pretrained(tmp_path / "run", subfolder="target")
    assert set(source("abc").input_ids).isdisjoint(set(target("abc").input_ids) - {2})
    assert source.decode(target("abc").input_ids, skip_special_tokens=True) == "abc"


def test_continuation_learns_from_one_text(recipe, corpus, tmp_path):
    text = {split: [str(corpus / f"{split}.src")] for split in ("train", "valid", "test")}
    results = train(recipe(task="continuation", **text))
    assert {"test_perplexity", "test_token_accuracy"} <= set(results)
    assert "test_bleu" not in results
    written = pipeline("text-generation", model=str(tmp_path / "run"))("ab", max_new_tokens=3)
    assert written[0]["generated_text"].startswith("ab")


def test_long_examples_are_left_out_counted_and_named_in_the_records(recipe, tmp_path, caplog):
    train(recipe(max_source_length=6, max_steps=2))
    assert "Left out" in caplog.text
    assert "of 120 training examples" in caplog.text
    assert re.search(r"The longest is row \d+ of those read, \d+ \+ \d+ tokens, '[a-e]+'", caplog.text)
    facts = json.loads((tmp_path / "run" / "run" / "data.json").read_text())["train"]
    assert facts["num_too_long"] > 0
    assert facts["longest"]["row"] >= 1
    assert facts["longest"]["tokens"][0] > 6
    assert facts["longest"]["source"]


def test_long_examples_are_refused_on_request(recipe):
    with pytest.raises(ValueError, match=r"long_examples=refuse, and there are \d+ of 120 .* row \d+ .* or take drop"):
        train(recipe(max_source_length=6, long_examples="refuse"))


def test_no_example_left_is_an_error(recipe):
    with pytest.raises(ValueError, match="no training example is left"):
        train(recipe(max_source_length=1))


def test_without_validation_nothing_is_evaluated(recipe):
    assert "validation_loss" not in train(recipe(valid=[], test=[], max_steps=2))


def test_tensorboard_gets_the_numbers_where_the_readme_looks_for_them(recipe, tmp_path):
    pytest.importorskip("tensorboard")
    train(recipe(valid=[], test=[], max_steps=2, logging_steps=1, report_to=["tensorboard"]))
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))


def test_the_command_line_says_what_is_wrong_in_one_paragraph(tmp_path, capsys):
    assert main(["--train", str(tmp_path / "no.de"), str(tmp_path / "no.en"), "--output", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert "no.de" in error
    assert "Traceback" not in error
    assert main(["--learning_rat", "0.1"]) == 1
    assert "learning_rate" in capsys.readouterr().err
