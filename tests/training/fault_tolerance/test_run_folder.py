"""The run folder: records that are whole, a recipe that stays the same, and one run at a time."""

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time

import pytest

from seqloom.configuration.recipe import RecipeError
from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.training.fault_tolerance import run_folder
from seqloom.training.fault_tolerance.checkpoints import clear_staging, file_facts, seal
from seqloom.training.fault_tolerance.ownership import refuse_foreign
from seqloom.training.fault_tolerance.run_folder import RunFolder

FACTS = {"train": {"num_rows": 10, "fingerprint": "a"}, "test": {"num_rows": 3, "fingerprint": "b"}}


def open_folder(path, **keys):
    folder = RunFolder(path)
    folder.open(resolve_recipe(None, {"output": str(path), **keys}))
    return folder


def begin_folder(path, **keys):
    """Start a run as far as its first update."""
    folder = open_folder(path, **keys)
    home = folder.prepared / "tokenizer"
    if not home.is_dir():
        home.mkdir()
        (home / "tokenizer.json").write_text("{}")
    folder.begin()
    return folder


def save_checkpoint(folder, update=5):
    checkpoint = folder.path / f"checkpoint-{update}"
    checkpoint.mkdir()
    (checkpoint / "optimizer.pt").write_text("o")
    seal(checkpoint)


def test_the_recipe_that_is_kept_can_be_started_again(tmp_path):
    folder = begin_folder(tmp_path / "run")
    assert resolve_recipe(folder.recipe_file) == resolve_recipe(None, {"output": str(tmp_path / "run")})
    assert [path.name for path in folder.records.iterdir() if path.name.startswith(".")] == []


def test_the_recipe_that_is_kept_goes_on_and_replaces_nothing(tmp_path):
    """However the run was started: its own header says `seqloom train --recipe`."""
    keys = {"resume": "never", "overwrite": True}
    folder = open_folder(tmp_path / "run", **keys)
    for note in (lambda: None, lambda: folder.note_choice(resolve_recipe(None, {"output": "run", **keys}))):
        note()
        kept = resolve_recipe(folder.prepared / "recipe.yaml")
        assert (kept.resume, kept.overwrite) == ("auto", False)


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


def dying(original, calls, killed_at):
    def call(*args, **kwargs):
        if next(calls) == killed_at:
            raise Killed
        return original(*args, **kwargs)

    return call


def test_killed_at_any_call_of_its_start_a_run_starts_again(tmp_path, monkeypatch):
    """Also where it replaces an earlier run: the folder stays ours, and the user's own files stay."""
    functions = ("rename", "replace", "fsync", "unlink", "mkdir", "rmdir")
    for again in (False, True):
        for killed_at in range(200):
            path = tmp_path / f"{again}-{killed_at}"
            if again:
                folder = begin_folder(path)
                save_checkpoint(folder)
                folder.write_results({})
                (folder.records / "notes.txt").write_text("mine")
            keys = {"resume": "never", "overwrite": True} if again else {}
            calls = iter(range(10**6))
            with monkeypatch.context() as patch:
                for name in functions:
                    patch.setattr(os, name, dying(getattr(os, name), calls, killed_at))
                try:
                    refuse_foreign(path)
                    path.mkdir(exist_ok=True)
                    clear_staging(path)
                    begin_folder(path, **keys)
                    survived = True
                except Killed:
                    survived = False
            with RunFolder(path).hold():
                begin_folder(path, **keys)
            assert resolve_recipe(path / "run" / "recipe.yaml")
            assert not again or (path / "run" / "notes.txt").read_text() == "mine"
            assert sorted(each.name for each in path.iterdir()) == ["run"]
            if survived:
                break
        assert killed_at > 10


def test_a_value_that_is_refused_does_not_pin_the_folder(tmp_path):
    for keys in ({"vocab_size": 200}, {"vocab_size": 300}):
        folder = RunFolder(tmp_path / "deep" / "run")
        with contextlib.suppress(ValueError), folder.hold():
            open_folder(folder.path, **keys)
            raise ValueError("refused")
        assert not list(tmp_path.iterdir()), "not even an empty folder"


def test_a_run_without_a_checkpoint_takes_another_recipe_and_another_text(tmp_path):
    folder = begin_folder(tmp_path / "run", vocab_size=300)
    folder.write_data_facts(FACTS)
    folder = open_folder(folder.path, vocab_size=400)
    folder.write_data_facts({"train": {"num_rows": 11, "fingerprint": "z"}})
    folder.begin()
    assert resolve_recipe(folder.recipe_file).vocab_size == 400
    assert json.loads((folder.records / "data.json").read_text())["train"]["fingerprint"] == "z"
    assert not (folder.records / "tokenizer").exists(), "the vocabulary of the other recipe"
    save_checkpoint(folder)
    with pytest.raises(
        RecipeError, match="was started with vocab_size=400 and is now asked to go on with vocab_size=5"
    ):
        open_folder(folder.path, vocab_size=500)


def test_a_refused_start_over_loses_nothing(tmp_path):
    """A run is replaced when its successor trains, not when it is asked for."""
    folder = begin_folder(tmp_path / "run")
    save_checkpoint(folder)
    with contextlib.suppress(ValueError), folder.hold():
        open_folder(folder.path, resume="never", vocab_size=200)
        assert folder.last_checkpoint() is None
        raise ValueError("refused")
    assert folder.last_checkpoint() == str(folder.path / "checkpoint-5")
    assert resolve_recipe(folder.recipe_file).vocab_size != 200


def test_another_vocabulary_is_noticed(tmp_path):
    folder = begin_folder(tmp_path / "run")
    save_checkpoint(folder)
    open_folder(folder.path)
    file = folder.records / "tokenizer" / "tokenizer.json"
    file.write_text("[]")
    with pytest.raises(
        RecipeError, match=r"tokenizer is not the vocabulary .*: tokenizer.json is damaged .* Bring the"
    ):
        open_folder(folder.path)
    file.write_text("{}")
    open_folder(folder.path)
    shutil.rmtree(file.parent)
    with pytest.raises(RecipeError, match="not the vocabulary that the run was started with: it is missing"):
        open_folder(folder.path)
    open_folder(folder.path, resume="never").begin()


def test_a_tokenizer_is_there_or_not(tmp_path):
    folder = RunFolder(tmp_path)
    home = tmp_path / "run" / "tokenizer"
    home.parent.mkdir()

    def save(staged, text):
        staged.mkdir()
        (staged / "tokenizer.json").write_text(text)
        if text == "half":
            raise SystemExit

    with pytest.raises(SystemExit), folder.staged(home) as staged:
        save(staged, "half")
    assert not home.exists()
    with folder.staged(home) as staged:
        save(staged, "whole")
    assert (home / "tokenizer.json").read_text() == "whole"


def test_other_training_or_validation_text_is_refused_and_another_test_told(tmp_path, caplog):
    folder = begin_folder(tmp_path / "run")
    save_checkpoint(folder)
    facts = {**FACTS, "validation": {"num_rows": 5, "fingerprint": "v"}}
    folder.write_data_facts(facts)
    folder.begin()
    for split, words in (("train", "training"), ("validation", "validation")):
        changed = {"num_rows": 11, "fingerprint": "z"}
        with pytest.raises(
            RecipeError, match=rf"the {words} text has changed since .* \(\d+ and 11 rows, then and now\)"
        ):
            folder.write_data_facts({**facts, split: changed})
    assert not caplog.text
    folder.write_data_facts({**facts, "test": {"num_rows": 4, "fingerprint": "c"}})
    assert "The test text has changed since" in caplog.text
    assert json.loads((folder.records / "data.json").read_text()) == facts, "nothing changes before the run begins"
    folder.begin()
    kept = json.loads((folder.records / "data.json").read_text())
    assert [kept[split]["num_rows"] for split in ("train", "validation", "test")] == [10, 5, 4]


def test_other_rows_that_clean_leaves_out_are_blamed_on_the_test_text(tmp_path):
    folder = begin_folder(tmp_path / "run")
    save_checkpoint(folder)

    def facts(fingerprint, test, reason="clean: leak"):
        train = {"num_rows": 10, "num_dropped": {reason: 1}, "fingerprint": fingerprint, "files": ({"path": "a"},)}
        return {"train": train, "test": {"num_rows": 3, "fingerprint": test, "files": ({"path": test},)}}

    folder.write_data_facts(facts("x", "one"))
    folder.begin()
    blamed = r"\(10 and 10 rows, then and now\): with another test text clean leaves out other rows, so it cannot go on"
    with pytest.raises(RecipeError, match=blamed):
        folder.write_data_facts(facts("y", "two"))
    for changed in (facts("y", "one"), facts("y", "two", "blank")):
        with pytest.raises(RecipeError, match=r"then and now\), so it cannot go on"):
            folder.write_data_facts(changed)


def test_damaged_records_are_not_taken_for_none(tmp_path):
    folder = begin_folder(tmp_path / "run")
    save_checkpoint(folder)
    (folder.records / "data.json").write_text('{"train": ')
    with pytest.raises(RecipeError, match=r"data.json cannot be read; .* Delete it if the text is still the same, or"):
        folder.write_data_facts(FACTS)
    (folder.records / "data.json").unlink()
    folder.write_data_facts(FACTS)
    (folder.records / "results.json").write_text('{"test_')
    assert not folder.is_finished


def test_starting_over_forgets_that_the_run_was_finished_first(tmp_path, monkeypatch):
    folder = begin_folder(tmp_path / "run")
    folder.write_results({})
    save_checkpoint(folder)
    with pytest.raises(RecipeError, match="holds a finished run and resume=never would replace it"):
        open_folder(folder.path, resume="never")
    with monkeypatch.context() as patch:
        patch.setattr("seqloom.training.fault_tolerance.run_folder.discard", lambda *_: sys.exit())
        with pytest.raises(SystemExit):
            begin_folder(folder.path, resume="never", overwrite=True)
    assert not folder.is_finished
    begin_folder(folder.path, resume="never")
    assert not list(folder.path.glob("*checkpoint*"))


def test_starting_over_leaves_the_users_own_files(tmp_path):
    folder = begin_folder(tmp_path / "run")
    own = [folder.records / "notes.txt", folder.records / "tokenizer" / "why.txt", folder.path / "data.tsv"]
    for path in own:
        path.write_text("mine")
    begin_folder(folder.path, resume="never")
    assert [path.read_text() for path in own] == ["mine"] * 3


MODEL = {
    "model.safetensors": "w",
    "config.json": "{}",
    "tokenizer.json": "{}",
    "a.py": "pass",
    "chat_template.jinja": "x",
}
CODE = {"sha256": {"a.py": hashlib.sha256(b"pass").hexdigest()}}


def test_what_is_about_speed_alone_may_change(tmp_path):
    folder = begin_folder(tmp_path / "run")
    save_checkpoint(folder)
    faster = {"ddp_timeout": 7200, "ddp_backend": "gloo", "ddp_bucket_cap_mb": 50, "dataloader_pin_memory": False}
    open_folder(folder.path, **faster, dataloader_prefetch_factor=4, dataloader_num_workers=1)


@pytest.fixture
def finished(tmp_path):
    """A finished run with its model."""
    folder = begin_folder(tmp_path / "run")
    for name, text in {**MODEL, "seqloom_manifest.json": json.dumps(CODE), "generation_config.json": "{}"}.items():
        (folder.path / name).write_text(text)
    facts = {path.name: file_facts(folder.path)[path.name] for path in folder.path.iterdir() if path.is_file()}
    folder.write_model_facts(facts)
    (folder.path / "README.md").write_text("# Mine")
    assert folder.model_faults() == {}
    return folder


@pytest.mark.parametrize("name", [*MODEL, "seqloom_manifest.json", "generation_config.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_file_of_the_model_that_is_missing_or_truncated_is_found(finished, name, damage):
    if damage == "missing":
        (finished.path / name).unlink()
    else:
        (finished.path / name).write_text((finished.path / name).read_text()[:-1])
    assert name in finished.model_faults()


def test_what_people_edit_is_no_damage(finished):
    (finished.path / "README.md").write_text("# Other")
    (finished.path / "generation_config.json").write_text('{"num_beams": 2}')
    (finished.path / "chat_template.jinja").write_text("y")
    (finished.path / "seqloom_manifest.json").write_text(json.dumps({"sha256": {}}))  # upgraded: a.py is no more
    (finished.path / "a.py").unlink()
    assert finished.model_faults() == {}
    assert sorted(finished.edited_files()) == ["chat_template.jinja", "generation_config.json"]


def test_a_run_removes_what_a_killed_one_left(tmp_path):
    folder = begin_folder(tmp_path / "run")
    (folder.path / "_saving" / "checkpoint-5").mkdir(parents=True)
    folder.note_stop("Stopped.")
    with folder.hold():
        assert not (folder.path / "_saving").exists()
        assert not folder.stop_file.exists()


def test_a_stop_before_the_first_update_is_noted_and_in_nobodys_way(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.note_stop("Stopped by SIGTERM.")
    assert json.loads(folder.stop_file.read_text()) == {"stopped": "Stopped by SIGTERM."}
    with folder.hold():
        assert not folder.stop_file.exists()
    (tmp_path / "foreign" / "run").mkdir(parents=True)
    (tmp_path / "foreign" / "run" / "mine").write_text("")
    RunFolder(tmp_path / "foreign").note_stop("Stopped by SIGTERM.")
    assert [path.name for path in (tmp_path / "foreign" / "run").iterdir()] == ["mine"]


@pytest.mark.skipif(os.name != "posix", reason="folders are locked on POSIX systems")
def test_two_runs_do_not_share_a_folder(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(run_folder, "PATIENCE", 0.1)
    folder = RunFolder(tmp_path / "run")
    reader, writer = os.pipe()
    other = os.fork()
    if other == 0:
        try:
            os.setsid()
            with folder.hold():
                if os.fork() == 0:
                    time.sleep(60)  # a data worker that outlives its run
                os.write(writer, b"held")
                time.sleep(60)
        finally:
            os._exit(1)
    try:
        assert os.read(reader, 4) == b"held"
        with (
            pytest.raises(RecipeError, match=r"another run is still writing to .*; wait for its end, stop it, or"),
            folder.hold(),
        ):
            pass
        assert "waiting for its end" in caplog.text
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
        monkeypatch.setattr(run_folder, "PATIENCE", 5)
        with folder.hold():  # though the worker still lives
            pass
    finally:
        os.killpg(other, signal.SIGKILL)


def test_a_fork_does_not_take_the_folder_with_it(tmp_path):
    """What is closed in the child is what was held at that time, not whatever has its number now."""
    with RunFolder(tmp_path).hold():
        pass
    with (tmp_path / "file").open("w") as file:
        child = multiprocessing.get_context("fork").Process(target=os.fstat, args=(file.fileno(),))
        child.start()
        child.join()
        assert child.exitcode == 0
