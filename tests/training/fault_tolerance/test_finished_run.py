"""A finished folder says no to what it cannot do, yes to what it can, and nothing to the same command."""

import json
from dataclasses import asdict

import pytest
from transformers.trainer_callback import TrainerState

from seqloom.configuration.automatic import Choice, choose
from seqloom.configuration.recipe_layers import fit_recipe, resolve_recipe
from seqloom.configuration.task_kind import Looks
from seqloom.hub.files import sha256_of
from seqloom.training.fault_tolerance.checkpoints import seal, write_json
from seqloom.training.fault_tolerance.finished_run import Asked, asked_of_finished
from seqloom.training.fault_tolerance.run_folder import RunFolder
from seqloom.training.fault_tolerance.run_health import TrainingError

COMMAND = {"max_steps": 30, "seed": 1}
CHOICE = choose(resolve_recipe(None, {"train": ["a", "b"]}), 20, Looks.of(["ablak"] * 20, ["ɒ b l ɒ k"] * 20))


@pytest.fixture
def finished(tmp_path):
    """A folder as a run of 30 updates leaves it, but for the model; and its command."""
    for name in ("train.de", "train.en", "test.de", "test.en"):
        (tmp_path / name).write_text(f"{name}\n" * 20)
    command = {split: [str(tmp_path / f"{split}.{side}") for side in ("de", "en")] for split in ("train", "test")}
    command |= {**COMMAND, "output": str(tmp_path / "run")}
    folder = RunFolder(tmp_path / "run")
    folder.open(fitted(command))
    files = {
        split: [
            {
                "path": path,
                "num_bytes": len(path) and (tmp_path / path).stat().st_size,
                "sha256": sha256_of(tmp_path / path),
            }
            for path in command[split]
        ]
        for split in ("train", "test")
    }
    facts = {split: {"num_rows": 20, "files": files[split]} for split in files}
    facts["train"]["auto"] = asdict(CHOICE)
    folder.write_data_facts(facts)
    folder.begin()
    write_json(folder.records / "results.json", {"updates": 30, "epochs": 3.0})
    checkpoint = folder.path / "checkpoint-30"
    checkpoint.mkdir()
    (checkpoint / "optimizer.pt").write_text("o")
    seal(checkpoint)
    return folder, command


def fitted(command):
    """What auto makes of 20 examples, as the recipe that is kept spells it out."""
    return fit_recipe(resolve_recipe(None, command), CHOICE)


def ask(finished, **changes):
    folder, command = finished
    return asked_of_finished(folder, resolve_recipe(None, {**command, **changes}))


def test_what_auto_chose_stays_chosen(finished):
    """By a newer version, that would choose otherwise, and of a run of an older one, that recorded no choice."""
    folder, command = finished
    file = folder.records / "data.json"
    facts = json.loads(file.read_text())
    chosen = facts["train"].pop("auto")
    write_json(file, facts)
    assert ask(finished) == Asked.NOTHING
    changed = {**chosen, "settings": {**chosen["settings"], "learning_rate": 0.5}, "tokenizers": ["char", "char"]}
    write_json(file, {**facts, "train": {**facts["train"], "auto": changed}})
    folder.recipe_file.write_text(fit_recipe(resolve_recipe(None, command), Choice(**changed)).to_file())
    assert ask(finished) == Asked.NOTHING
    with pytest.raises(TrainingError, match=r"learning_rate=0\.5, and learning_rate=0\.1"):
        ask(finished, learning_rate=0.1)
    with pytest.raises(TrainingError, match="tokenizer=char, and tokenizer=bpe"):
        ask(finished, tokenizer="bpe")


def test_the_same_command_asks_for_nothing(finished, tmp_path):
    assert ask(finished) == Asked.NOTHING
    assert ask(finished, max_grad_norm=1.0, load_best_model_at_end=False) == Asked.NOTHING, "defaults spelled out"
    assert ask(finished, num_proc=2, report_to="none", save_steps=9, tokens_per_device=99) == Asked.NOTHING
    (tmp_path / "train.de").unlink()
    assert ask(finished) == Asked.NOTHING, "text that is gone is no other text"


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({"license": "mit"}, Asked.CARD),
        ({"num_beams": 2}, Asked.SCORES),
        ({"test": []}, Asked.SCORES),
        ({"max_steps": 31}, Asked.LONGER),
        ({"max_steps": 40, "num_beams": 2}, Asked.LONGER),
    ],
)
def test_what_can_be_done_is_done(finished, changes, asked):
    assert ask(finished, **changes) == asked


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": ["a.tsv"]}, r"trained with train=\S+train.de \S+train.en, and train=a.tsv is asked for now"),
        ({"columns": ["x", "y"], "train": ["a.tsv"]}, r"columns=null, and columns=x y \(and 1 more: train\) is asked"),
        ({"learning_rate": 0.5}, "learning_rate=0.0025, and learning_rate=0.5 is asked for now"),
        ({"max_steps": 29}, "max_steps=29 is less than the 30 that it has had"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_ways_out(finished, changes, said):
    with pytest.raises(TrainingError, match=f"holds a finished run of 30 updates, .*{said}") as refusal:
        ask(finished, **changes)
    for way in ("--max_steps above 30 goes on", "another --output", "--resume never --overwrite"):
        assert way in str(refusal.value)
    assert ask(finished, max_steps=31) == Asked.LONGER, "the first way out is one"


@pytest.mark.parametrize("key", ["load_best_model_at_end", "early_stopping_patience", "metric_for_best_model"])
def test_which_model_is_kept_was_decided(finished, key):
    asked = {"load_best_model_at_end": True, "early_stopping_patience": 3, "metric_for_best_model": "loss"}[key]
    with pytest.raises(TrainingError, match=r"says which of its models is kept: that is decided. Nothing was changed"):
        ask(finished, **{key: asked})
    assert ask(finished, max_steps=31, **{key: asked}) == Asked.LONGER


def test_a_run_that_stopped_early_is_not_made_longer_and_no_way_says_so(finished):
    folder, _ = finished
    stopped = {"TrainerControl": {"args": {"should_training_stop": True}, "attributes": {}}}
    state = TrainerState(global_step=30, max_steps=60, stateful_callbacks=stopped)
    state.save_to_json(str(folder.path / "checkpoint-30" / "trainer_state.json"))
    (folder.path / "checkpoint-30" / "checkpoint_manifest.json").unlink()
    seal(folder.path / "checkpoint-30")
    assert ask(finished) == Asked.NOTHING
    with pytest.raises(TrainingError, match="stopped early, for its score no longer improved") as refusal:
        ask(finished, max_steps=90)
    assert "goes on;" not in str(refusal.value)
    assert "--init_from" in str(refusal.value)


def test_text_that_was_edited_is_other_text(finished, tmp_path):
    (tmp_path / "test.en").write_text("other\n" * 20)
    assert ask(finished) == Asked.SCORES
    (tmp_path / "train.en").write_text("other.en\n" * 20)
    with pytest.raises(TrainingError, match=r"and \S+train.en is another text since"):
        ask(finished)


def test_without_a_checkpoint_nothing_goes_on(finished):
    folder, _ = finished
    (folder.path / "checkpoint-30" / "optimizer.pt").unlink()
    assert ask(finished) == Asked.NOTHING
    with pytest.raises(TrainingError, match="without a whole checkpoint left to go on from") as refusal:
        ask(finished, max_steps=40)
    assert "goes on;" not in str(refusal.value), "no way that does not exist"


@pytest.mark.parametrize(
    ("asked", "settled", "now", "outcome"),
    [
        ({"valid": "auto"}, {"valid": ["75"], "metrics": ["per"]}, {"valid": ["auto"]}, Asked.NOTHING),
        ({"valid": "auto"}, {"valid": [], "eval_strategy": "no"}, {"valid": ["auto"]}, Asked.NOTHING),
        ({"valid": "0.05"}, {"valid": ["75"]}, {"valid": ["0.05"]}, Asked.NOTHING),
        ({"valid": "auto"}, {"valid": ["75"]}, {"valid": ["75"]}, Asked.NOTHING),
        ({"valid": "auto"}, {"valid": ["75"]}, {"valid": ["90"]}, "valid=75, and valid=90 is asked for now"),
        ({"valid": "auto"}, {"valid": ["75"]}, {"valid": []}, "valid=75, and valid="),
        ({"test": "100"}, {"test": ["100"]}, {"test": ["100"]}, Asked.NOTHING),
        ({"test": "100"}, {"test": ["100"]}, {"test": ["200"]}, "test=100, and test=200 is asked for now"),
        ({"test": "100"}, {"test": ["100"]}, {"test": ["other.tsv"]}, "test=100, and test=other.tsv is asked for"),
    ],
)
def test_what_the_data_had_decided_is_no_change(finished, tmp_path, asked, settled, now, outcome):
    """The same command as the user types it; another share is another training text."""
    _, command = finished
    plain = {**command, "valid": ["none"], "test": [], "output": str(tmp_path / "held")}
    folder = RunFolder(tmp_path / "held")
    folder.open(fitted({**plain, **settled}))
    facts = {"num_rows": 20, "files": [], "asked": asked, "auto": asdict(CHOICE)}
    folder.write_data_facts({"train": facts})
    folder.begin()
    write_json(folder.records / "results.json", {"updates": 30, "epochs": 3.0})
    again = resolve_recipe(None, {**plain, **now})
    if not isinstance(outcome, Asked):
        with pytest.raises(TrainingError, match=outcome):
            asked_of_finished(folder, again)
    else:
        assert asked_of_finished(folder, again) == outcome
