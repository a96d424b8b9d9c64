"""Two machines of one process each, on gloo: the first works first, what it fails at ends both, their folder is one."""

import contextlib
import os
import signal
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import PartialState
from accelerate.state import AcceleratorState

import seqloom.training.train as train_module
from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.training.fault_tolerance import together
from seqloom.training.fault_tolerance.run_folder import RunFolder
from seqloom.training.fault_tolerance.run_health import TrainingError
from seqloom.training.fault_tolerance.together import from_main_process, main_process_first
from seqloom.training.train import main, noted_end
from seqloom_cli.command import StoppedError, run_command
from tests.toy import SMALL_RUN, write_reversals

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks")


def on_two_machines(command, *folders):
    """Return exit code and stderr of a command on each of two machines, which starts in a folder of its own.

    They are forks of a process that has imported everything, for a start costs seconds.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    try:
        children = [fork(command, rank, folder) for rank, folder in enumerate(folders)]
    finally:
        for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            del os.environ[name]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return [
        (code, Path(folder, f"stderr-{rank}").read_text()) for rank, (code, folder) in enumerate(zip(codes, folders))
    ]


def fork(command, rank, folder):
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.chdir(folder)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0"}
        sys.stdout, sys.stderr = open("stdout", "a"), open(f"stderr-{rank}", "w")  # noqa: SIM115
        AcceleratorState._reset_state(reset_partial_state=True)  # of the tests before
        together._waiting_group.cache_clear()
        code = run_command(lambda: command(rank))
    except SystemExit as end:
        code = int(end.code)
    finally:
        sys.stderr.flush()
        os._exit(code)


def test_the_first_of_all_processes_works_first(tmp_path):
    def command(rank):
        PartialState(cpu=True)
        with main_process_first():
            if rank == 0:
                time.sleep(2)
                Path("vocabulary").write_text("")
            assert Path("vocabulary").is_file(), "it was the other's turn"

    assert on_two_machines(command, tmp_path, tmp_path) == [(0, ""), (0, "")]


def refuse():
    raise ValueError("columns a and b are unclear")


def in_turn():
    with main_process_first():
        refuse()


@pytest.mark.parametrize("work", [lambda: from_main_process(refuse), in_turn], ids=["from", "first"])
def test_what_the_first_process_fails_at_ends_both_and_it_alone_says_why(tmp_path, work):
    def command(rank):
        PartialState(cpu=True)
        work()

    assert on_two_machines(command, tmp_path, tmp_path) == [(1, "columns a and b are unclear\n"), (1, "")]


def test_a_process_that_has_gone_is_noticed(tmp_path):
    def command(rank):
        PartialState(cpu=True)
        from_main_process(lambda: os._exit(3))

    first, second = on_two_machines(command, tmp_path, tmp_path)
    assert (first[0], second[0]) == (3, 1)
    assert second[1].endswith("the others cannot go on without it; its own message says why.\n")


def test_the_first_process_may_take_longer_than_a_gradient(monkeypatch):
    made = []
    monkeypatch.setattr(together, "PartialState", lambda: SimpleNamespace(num_processes=2))
    monkeypatch.setattr(together.distributed, "new_group", lambda **how: made.append(how))
    together._waiting_group.__wrapped__()
    assert made == [{"backend": "gloo", "timeout": together.PATIENCE}]


def test_alone_nothing_is_shared():
    assert from_main_process(lambda: 5) == 5
    with pytest.raises(ValueError, match="wrong"), main_process_first():
        raise ValueError("wrong")


# Whole runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_reversals(tmp_path_factory.mktemp("corpus"), train=120, valid=8)


def keys(corpus, **others):
    named = {**SMALL_RUN, "precision": "fp32", "max_steps": 2, "dataloader_num_workers": 0, "output": "run", **others}
    return [word for key, value in named.items() for word in (f"--{key}", str(value))] + ["--train", *corpus["train"]]


def test_a_run_on_two_machines_has_one_vocabulary(corpus, tmp_path, monkeypatch):
    """Not the one that a run before has left in the folder."""
    monkeypatch.chdir(tmp_path)
    assert main(keys(corpus, vocab_size=270)) == 0
    again = keys(corpus, vocab_size=280, tokenizer="bpe", resume="never", overwrite="true")
    ends = on_two_machines(lambda rank: main(again), tmp_path, tmp_path)
    assert [code for code, _ in ends] == [0, 0], ends
    assert not (tmp_path / "run" / "_saving").exists()


def test_machines_without_a_common_disk_are_told(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(together, "LATE", 0.1)
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    first, second = on_two_machines(lambda rank: main(keys(corpus)), *folders)
    here = socket.gethostname()
    said = (
        f"output=run is another folder on {here} than on {here}, where the first process writes; put it on a disk that"
    )
    assert said in first[1]
    assert (first[0], second[0]) == (1, 1)
    assert not any((folder / "run").exists() for folder in folders), "a refused start leaves nothing behind"


def test_a_failure_on_another_process_is_no_stop(corpus, tmp_path, monkeypatch):
    """A launcher ends the first process with SIGTERM, as if the run had been asked to stop."""

    def fail_or_be_ended(*args):
        if os.environ["RANK"] == "1":
            raise ValueError("this machine has another library")
        while not Path("ended").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(train_module, "prepare", fail_or_be_ended)

    def command(rank):
        try:
            return main(keys(corpus))
        finally:
            if rank:
                Path("ended").touch()

    first, second = on_two_machines(command, tmp_path, tmp_path)
    assert (first[0], second[0]) == (75, 1)
    assert not (tmp_path / "run" / "run" / "stopped.json").exists()
    assert second[1] == "this machine has another library\n"


def test_a_run_that_fails_while_it_stops_leaves_no_note(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with contextlib.suppress(ValueError), folder.hold(), noted_end(folder, resolve_recipe(None, {}), is_main=True):
        folder.note_stop("Stopping by SIGTERM after update 7.")
        raise ValueError("the disk is full")
    assert not folder.stop_file.exists()


@pytest.mark.parametrize("error", [StoppedError("Stopped; it goes on."), TrainingError("no memory; it goes on.")])
def test_a_run_that_starts_over_is_not_told_that_it_goes_on(tmp_path, monkeypatch, capsys, error):
    monkeypatch.setattr(RunFolder, "has_checkpoint", True)
    for resume in ("auto", "never"):
        folder = RunFolder(tmp_path / resume)

        def end(folder: RunFolder = folder, resume: str = resume) -> None:
            with folder.hold(), noted_end(folder, resolve_recipe(None, {"resume": resume}), is_main=True):
                raise type(error)(str(error))

        run_command(end)
        said = capsys.readouterr().err.strip()
        starts_over = " The command says --resume never: leave that out (and --overwrite), or it starts over."
        assert said == f"{error}{starts_over if resume == 'never' else ''}"
