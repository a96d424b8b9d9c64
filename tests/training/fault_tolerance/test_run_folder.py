"""The run folder: records that are whole, a recipe that stays the same, and one run at a time."""

import json
import multiprocessing
import os
import signal
import sys
import time

import pytest

from seqloom.configuration.recipe import RecipeError
from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.training.fault_tolerance import run_folder
from seqloom.training.fault_tolerance.run_folder import RunFolder

FACTS = {"train": {"num_rows": 10, "fingerprint": "a"}, "test": {"num_rows": 3, "fingerprint": "b"}}


def open_folder(path, **keys):
    folder = RunFolder(path)
    folder.open(resolve_recipe(None, {"output": str(path), **keys}))
    return folder


def test_the_recipe_that_is_kept_can_be_started_again(tmp_path):
    folder = open_folder(tmp_path / "run")
    assert resolve_recipe(folder.recipe_file) == resolve_recipe(None, {"output": str(tmp_path / "run")})
    assert [path.name for path in folder.records.iterdir() if path.name.startswith(".")] == []


def test_a_folder_killed_while_it_was_opened_is_opened_again(tmp_path, monkeypatch):
    """recipe.yaml is whole or not there, whatever call the kill comes at."""
    replace = os.replace
    for killed_at in range(8):
        path = tmp_path / str(killed_at)
        calls = iter(range(100))

        def dying(source, target, calls=calls, killed_at=killed_at):
            if next(calls) == killed_at:
                raise SystemExit
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying)
            try:
                open_folder(path)
                survived = True
            except SystemExit:
                survived = False
        assert RunFolder(path).recipe_file.is_file() == (survived or killed_at > 0)
        open_folder(path)
        assert resolve_recipe(path / "run" / "recipe.yaml")
        if survived:
            break
    assert killed_at > 0


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


def test_other_training_text_is_refused(tmp_path):
    folder = open_folder(tmp_path / "run")
    folder.write_data_facts(FACTS)
    folder.write_data_facts({**FACTS, "test": {"num_rows": 4, "fingerprint": "c"}})
    with pytest.raises(RecipeError, match=r"training text has changed since .* \(10 and 11 rows, then and now\)"):
        folder.write_data_facts({"train": {"num_rows": 11, "fingerprint": "z"}})
    assert json.loads((folder.records / "data.json").read_text())["train"]["num_rows"] == 10


def test_starting_over_forgets_that_the_run_was_finished_first(tmp_path, monkeypatch):
    folder = open_folder(tmp_path / "run")
    folder.write_results({})
    (folder.path / "checkpoint-5").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("seqloom.training.fault_tolerance.run_folder.discard", lambda *_: sys.exit())
        with pytest.raises(SystemExit):
            open_folder(folder.path, resume="never", overwrite=True)
    assert not folder.is_finished
    open_folder(folder.path, resume="never")
    assert not list(folder.path.glob("*checkpoint*"))


def test_a_run_removes_what_a_killed_one_left(tmp_path):
    folder = RunFolder(tmp_path / "run")
    (folder.path / "_saving" / "checkpoint-5").mkdir(parents=True)
    with folder.hold(is_main=False):
        assert (folder.path / "_saving").is_dir()
    with folder.hold(is_main=True):
        assert not (folder.path / "_saving").exists()


@pytest.mark.skipif(os.name != "posix", reason="folders are locked on POSIX systems")
def test_two_runs_do_not_share_a_folder(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(run_folder, "PATIENCE", 0.1)
    folder = RunFolder(tmp_path / "run")
    reader, writer = os.pipe()
    other = os.fork()
    if other == 0:
        try:
            os.setsid()
            with folder.hold(is_main=True):
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
            folder.hold(is_main=True),
        ):
            pass
        assert "waiting for its end" in caplog.text
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
        monkeypatch.setattr(run_folder, "PATIENCE", 5)
        with folder.hold(is_main=True):  # though the worker still lives
            pass
    finally:
        os.killpg(other, signal.SIGKILL)


def test_a_fork_does_not_take_the_folder_with_it(tmp_path):
    """What is closed in the child is what was held at that time, not whatever has its number now."""
    with RunFolder(tmp_path).hold(is_main=True):
        pass
    with (tmp_path / "file").open("w") as file:
        child = multiprocessing.get_context("fork").Process(target=os.fstat, args=(file.fileno(),))
        child.start()
        child.join()
        assert child.exitcode == 0
