"""Kill -9 at any moment, start the same command again: the final weights are those of a run that was left alone.

The quick tests kill at fixed points: a hook counts the file operations below the run's folder and kills the process at
the n-th. They fork a process that has imported everything, for a start costs seconds. The slow ones start real
processes, one and two, and kill them at random times, inside saves, one process of two, or the launcher alone.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from seqloom.configuration.command import EXIT_INTERRUPTED, EXIT_STOPPED
from seqloom.configuration.recipe import resolve_recipe

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks and kills")

TRAIN = Path(__file__).parents[2] / "training" / "train.py"
ONE = [sys.executable]
TWO = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]

# 4 updates an epoch, saved after each second or third: checkpoints lie inside epochs and at their ends.
KEYS = {
    "preset": "demo",
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "tokenizer": "char",
    "vocab_size": 300,
    "dropout": 0.1,
    "tokens_per_update": 700,
    "tokens_per_device": 350,
    "max_steps": 14,
    "save_steps": 3,
    "save_total_limit": 2,
    "logging_steps": 2,
    "max_new_tokens": 4,
    "num_beams": 1,
    "seed": 3,
    "disable_tqdm": True,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Words and their reversals, for training and validation."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    for split, count in (("train", 160), ("valid", 8)):
        words = ["".join(rng.choices("abcde", k=rng.randint(3, 9))) for _ in range(count)]
        (folder / f"{split}.src").write_text("".join(word + "\n" for word in words))
        (folder / f"{split}.tgt").write_text("".join(word[::-1] + "\n" for word in words))
    return {split: [str(folder / f"{split}.{side}") for side in ("src", "tgt")] for split in ("train", "valid")}


def weights(output):
    return (output / "model.safetensors").read_bytes()


def is_finished(output):
    return (output / "run" / "results.json").is_file()


# Forked runs that kill themselves -------------------------------------------------------------------------------------


def run_forked(recipe, output, kill_at=None):
    """Train in a child; return how many file operations below `output` it did, or None if it was killed."""
    from seqloom.training.train import train

    counter = output.with_name(f"{output.name}.count")
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            count_operations(str(output), counter, kill_at)
            train(recipe)
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return None
    assert os.WEXITSTATUS(status) == 0
    return counter.stat().st_size


def count_operations(folder, counter, kill_at):
    seen, log = 0, os.open(counter, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)

    def watch(event, arguments):
        nonlocal seen
        if event in {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}:
            if not any(isinstance(each, str | os.PathLike) and os.fspath(each).startswith(folder) for each in arguments):
                return
            seen += 1
            os.write(log, b".")
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


@pytest.fixture(scope="module")
def forked(corpus, tmp_path_factory):
    """Return a function that compares a run, killed at some operations and restarted, with one that was left alone."""
    folder = tmp_path_factory.mktemp("forked")
    whole = {}

    def compare(name, kills, **keys):
        def recipe(output):
            return resolve_recipe(None, {**KEYS, "train": corpus["train"], **keys, "output": str(output)})

        if not whole:
            whole["operations"] = run_forked(recipe(folder / "whole"), folder / "whole")
            whole["weights"] = weights(folder / "whole")
        output, killed = folder / name, 0
        for share in kills:
            killed += run_forked(recipe(output), output, kill_at=max(1, int(share * whole["operations"]))) is None
            assert not (is_finished(output) and killed == 0)
        run_forked(recipe(output), output)
        assert is_finished(output)
        assert weights(output) == whole["weights"]
        assert not list(output.glob("_*"))
        return killed

    return compare


@pytest.mark.parametrize("share", [0.01, 0.04, 0.35, 0.8, 0.97])
def test_killed_at_a_file_operation_the_weights_are_the_same(forked, share):
    assert forked(f"at-{share}", [share]) == 1


def test_killed_twice(forked):
    assert forked("twice", [0.5, 0.3]) == 2


@pytest.mark.slow
def test_killed_at_every_tenth_file_operation(forked):
    kills = [forked(f"sweep-{share:.3f}", [share]) for share in np.linspace(0.005, 0.995, 25)]
    print(f"{sum(kills)} kills, all {len(kills)} runs ended with the same weights")
    assert sum(kills) >= 24


# What decides about a stop or an average must survive, too ------------------------------------------------------------

VARIANTS = {
    "epochs, evaluated and saved": {"eval_strategy": "epoch", "save_strategy": "epoch", "valid": "valid"},
    "evaluated by epoch, saved by step": {"eval_strategy": "epoch", "save_steps": 2, "valid": "valid"},
    "best model": {"eval_steps": 3, "load_best_model_at_end": True, "save_total_limit": 1, "valid": "valid"},
    "moving average": {"ema_decay": 0.9, "eval_steps": 3, "valid": "valid"},
    "average of checkpoints": {"average_checkpoints": 2},
    "bpe dropout": {"tokenizer": "bpe", "bpe_dropout": 0.3},
    "early stopping": {"early_stopping_patience": 1, "eval_steps": 3, "learning_rate": 0.3, "valid": "valid"},
    "data workers": {"dataloader_num_workers": 2},
    "no checkpoints": {"save_strategy": "no"},
    "bf16": {"bf16": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_killed_at_random_operations(corpus, tmp_path, variant):
    keys = {**KEYS, "train": corpus["train"], **VARIANTS[variant]}
    if keys.get("valid"):
        keys["valid"] = corpus["valid"]
    rng = random.Random(variant)
    count = run_forked(resolve_recipe(None, {**keys, "output": str(tmp_path / "whole")}), tmp_path / "whole")
    killed = 0
    for name in ("a", "b", "c", "d"):
        recipe = resolve_recipe(None, {**keys, "output": str(tmp_path / name)})
        for _ in range(20):
            done = run_forked(recipe, tmp_path / name, kill_at=rng.randint(1, count))
            killed += done is None
            if done is not None:
                break
        run_forked(recipe, tmp_path / name)
        assert weights(tmp_path / name) == weights(tmp_path / "whole"), f"{name} after {killed} kills"
    print(f"{variant}: {killed} kills in 4 runs, the same weights")
    assert killed >= 4
