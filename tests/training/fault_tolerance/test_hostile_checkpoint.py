"""A checkpoint from a stranger: its pickles are read as data, and nothing in them is run."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch

from tests.exploit import Exploit
from tests.tiny_trainer import tiny_trainer

STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that has stopped after its first update."""
    path = tmp_path_factory.mktemp("run")
    tiny_trainer(path, max_steps=1, save_steps=1).train()
    return path


@pytest.mark.parametrize("name", STATE)
def test_a_state_that_would_run_something_ends_the_run_and_runs_nothing(
    output: Path, tmp_path: Path, name: str
) -> None:
    run = Path(shutil.copytree(output, tmp_path / "run"))
    trace = tmp_path / "trace"
    torch.save(Exploit(trace), run / "checkpoint-1" / name)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        tiny_trainer(run, max_steps=2).train(resume_from_checkpoint=str(run / "checkpoint-1"))
    assert not trace.exists()
    torch.load(run / "checkpoint-1" / name, weights_only=False)
    assert trace.exists(), "the exploit is one"


def test_the_weights_are_safetensors_and_no_pickle_stands_in_for_them(output: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(output, tmp_path / "run"))
    trace = tmp_path / "trace"
    torch.save({"lm_head.weight": Exploit(trace)}, run / "checkpoint-1" / "pytorch_model.bin")
    torch.save(Exploit(trace), run / "checkpoint-1" / "training_args.bin")
    tiny_trainer(run, max_steps=2).train(resume_from_checkpoint=str(run / "checkpoint-1"))
    (run / "checkpoint-1" / "model.safetensors").unlink()
    with pytest.raises((pickle.UnpicklingError, OSError, ValueError)):
        tiny_trainer(run, max_steps=2).train(resume_from_checkpoint=str(run / "checkpoint-1"))
    assert not trace.exists()
