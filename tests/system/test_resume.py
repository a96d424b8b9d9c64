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

from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom_cli.command import EXIT_INTERRUPTED, EXIT_STOPPED
from tests.toy import SMALL_RUN, write_reversals

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks and kills")

TRAIN = Path(__file__).parents[2] / "training" / "train.py"
ONE = [sys.executable]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]

# 4 updates an epoch, saved after each second or third: checkpoints lie inside epochs and at their ends.
KEYS = {
    **SMALL_RUN,
    "encoder_layers": 1,
    "decoder_layers": 1,
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
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Words and their reversals, for training and validation."""
    return write_reversals(tmp_path_factory.mktemp("corpus"), train=160, valid=8)


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
            if not any(
                isinstance(each, str | os.PathLike) and os.fspath(each).startswith(folder) for each in arguments
            ):
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

    def recipe(output):
        return resolve_recipe(None, {**KEYS, "train": corpus["train"], "output": str(output)})

    def whole_weights():
        if not whole:
            whole["operations"] = run_forked(recipe(folder / "whole"), folder / "whole")
            whole["weights"] = weights(folder / "whole")
        return whole["weights"]

    def compare(name, kills):
        whole_weights()
        output, killed = folder / name, 0
        for share in kills:
            killed += run_forked(recipe(output), output, kill_at=max(1, int(share * whole["operations"]))) is None
            assert not (is_finished(output) and killed == 0)
        run_forked(recipe(output), output)
        assert is_finished(output)
        assert weights(output) == whole_weights()
        assert not list(output.glob("_*"))
        return killed

    compare.whole_weights = whole_weights
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
    "spelled words": {"tokenizer": "word", "bpe_dropout": 0.3},
    "early stopping": {"early_stopping_patience": 1, "eval_steps": 3, "learning_rate": 0.3, "valid": "valid"},
    "data workers": {"dataloader_num_workers": 2},
    "no checkpoints": {"save_strategy": "no"},
    "bf16": {"bf16": True},
    "muon": {"muon": True},
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


# Real processes -------------------------------------------------------------------------------------------------------

LONGER = {**KEYS, "max_steps": 60, "save_steps": 2}  # enough for a kill to find it at work


def flags(keys):
    texts = (["--" + key, *(value if isinstance(value, list) else [str(value)])] for key, value in keys.items())
    return [text for pair in texts for text in pair]


@contextlib.contextmanager
def started(launcher, output, keys):
    """Start the command in a session of its own, as a scheduler would, and leave nothing of it behind."""
    process = subprocess.Popen(
        [*launcher, str(TRAIN), *flags(keys), "--output", str(output)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    workers = []
    process.workers = lambda: workers or workers.extend(children_of(process.pid)) or workers
    try:
        yield process
    finally:
        for pid in {process.pid, *children_of(process.pid), *workers}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def children_of(pid):
    """Return the direct children of a process; torchrun gives each worker a session of its own."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def finish(launcher, output, keys):
    with started(launcher, output, keys) as process:
        _, error = process.communicate(timeout=600)
    assert process.returncode == 0, error[-3000:]
    return error


def wait_until(process, condition):
    """Wait for a sign of the run; return whether it came before the run's end."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.002)
    return False


def newest(output):
    return max((int(path.name.partition("-")[2]) for path in output.glob("checkpoint-*")), default=0)


def kill_once(launcher, output, keys, rng, victims):
    """Start a run and kill it at a random moment of its training, often inside a save; return whether it was alive."""
    is_saving = rng.random() < 0.5
    update = newest(output) + rng.randint(0, 12)
    with started(launcher, output, keys) as process:
        if is_saving:  # any checkpoint that is being written from that update on
            sign = lambda: newest(output) >= update - 2 and any((output / "_saving").glob("checkpoint-*"))  # noqa: E731
        else:
            sign = lambda: newest(output) >= update  # noqa: E731
        if not wait_until(process, sign):
            return False
        time.sleep(rng.random() * (0.02 if is_saving else 0.2))
        for pid in victims(process):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if process.pid not in victims(process):
            process.wait(timeout=120)  # the launcher notices, or has nothing left to launch
        return True


def everyone(process):
    return [process.pid, *process.workers()]


VICTIMS = {
    "all": everyone,
    "the first process": lambda process: process.workers()[:1],
    "the second process": lambda process: process.workers()[1:],
}


def test_a_real_process_killed_inside_a_save(corpus, forked, tmp_path):
    """One kill, one restart; the run left alone is the forked one."""
    keys = {**KEYS, "train": corpus["train"]}
    output = tmp_path / "run"
    with started(ONE, output, keys) as process:
        assert wait_until(process, lambda: newest(output) and any((output / "_saving").glob("checkpoint-*")))
        process.kill()
        process.wait()
    assert not is_finished(output)
    finish(ONE, output, keys)
    assert weights(output) == forked.whole_weights()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_one_process_killed_at_random_times(corpus, tmp_path, seed):
    keys = {**LONGER, "train": corpus["train"]}
    finish(ONE, tmp_path / "whole", keys)
    rng = random.Random(seed)
    kills = sum(kill_once(ONE, tmp_path / "run", keys, rng, lambda process: [process.pid]) for _ in range(6))
    finish(ONE, tmp_path / "run", keys)
    print(f"one process: {kills} kills")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert kills >= 3


@pytest.mark.slow
def test_two_processes_killed_at_random_times(corpus, tmp_path):
    keys = {**LONGER, "train": corpus["train"]}
    finish(TWO, tmp_path / "whole", keys)
    rng, kills = random.Random(0), []
    for victims in [*VICTIMS, *VICTIMS]:
        if kill_once(TWO, tmp_path / "run", keys, rng, VICTIMS[victims]):
            kills.append(victims)
    finish(TWO, tmp_path / "run", keys)
    print(f"two processes: killed {', '.join(kills)}")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert len(kills) >= 3


@pytest.mark.slow
def test_three_processes_add_gradients_in_the_same_order_after_a_resume(corpus, tmp_path):
    """Two add in any order alike; from three on, what DDP packs together decides about the rounding."""
    three = [*TWO[:-1], "3"]
    keys = {**LONGER, "train": corpus["train"], "max_steps": 24}
    finish(three, tmp_path / "whole", keys)
    assert kill_once(three, tmp_path / "run", keys, random.Random(1), everyone)
    assert 0 < newest(tmp_path / "run") < 24
    finish(three, tmp_path / "run", keys)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_launcher_leaves_nobody_who_trains_on(corpus, tmp_path):
    keys = {**LONGER, "train": corpus["train"], "max_steps": 2000, "save_steps": 1000}
    with started(TWO, tmp_path / "run", keys) as process:
        assert wait_until(process, (tmp_path / "run" / "run" / "data.json").is_file)
        time.sleep(3)
        workers = list(process.workers())
        assert len(workers) == 2
        process.kill()
        deadline = time.monotonic() + 120
        while newest(tmp_path / "run") == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        stopped_at = newest(tmp_path / "run")
        assert 0 < stopped_at < 1000
        time.sleep(5)
        assert newest(tmp_path / "run") == stopped_at


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(TWO, ONE), (ONE, TWO)])
def test_resume_on_another_number_of_processes(corpus, tmp_path, before, after):
    keys = {**KEYS, "train": corpus["train"], "dropout": 0.0}
    finish(ONE, tmp_path / "whole", keys)
    with started(before, tmp_path / "run", keys) as process:
        assert wait_until(process, lambda: newest(tmp_path / "run") >= 6)
        for pid in everyone(process):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    resumed_at = newest(tmp_path / "run")
    assert 6 <= resumed_at < 14
    finish(after, tmp_path / "run", keys)
    results = json.loads((tmp_path / "run" / "run" / "results.json").read_text())
    assert (results["updates"], results["resumed_at"]) == (14, resumed_at)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    for name in whole:
        # A key's bias moves all scores of a query alike and softmax forgets it: Adam only amplifies rounding there.
        if not name.endswith("k_proj.bias"):
            np.testing.assert_allclose(whole[name], parts[name], atol=2e-4, err_msg=name)


STOPS = {
    "SIGTERM": (signal.SIGTERM, EXIT_STOPPED),
    "SIGUSR1": (signal.SIGUSR1, EXIT_STOPPED),
    "Ctrl-C": (signal.SIGINT, EXIT_INTERRUPTED),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STOPS)
def test_a_signal_saves_and_ends_with_its_own_exit_code(corpus, tmp_path, name):
    keys = {**LONGER, "train": corpus["train"]}
    finish(ONE, tmp_path / "whole", keys)
    number, code = STOPS[name]
    with started(ONE, tmp_path / "run", keys) as process:
        assert wait_until(process, lambda: newest(tmp_path / "run") >= 5)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    assert process.returncode == code
    update = newest(tmp_path / "run")
    assert (
        f"Stopped by {name} after update {update} of 60, saved in {tmp_path / 'run' / f'checkpoint-{update}'}" in error
    )
    assert "Traceback" not in error
    finish(ONE, tmp_path / "run", keys)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both(corpus, tmp_path):
    keys = {**LONGER, "train": corpus["train"]}
    finish(TWO, tmp_path / "whole", keys)
    with started(TWO, tmp_path / "run", keys) as process:
        assert wait_until(process, lambda: newest(tmp_path / "run") >= 5)
        os.kill(process.workers()[1], signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    update = newest(tmp_path / "run")
    assert error.count(f"Stopped by SIGTERM after update {update} of 60") == 1
    assert update < 60
    finish(TWO, tmp_path / "run", keys)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs to mount a small disk")
def test_a_full_disk(corpus, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    keys = {**KEYS, "train": corpus["train"], "save_total_limit": 50}
    try:
        with started(ONE, disk / "run", keys) as process:
            _, error = process.communicate(timeout=120)
        assert process.returncode == 1, error[-3000:]
        last = newest(disk / "run")
        assert last > 0
        assert f"checkpoint-{last + 3} could not be written: " in error
        assert "No space left on device" in error
        assert f"The last good checkpoint, {disk / 'run' / f'checkpoint-{last}'}, is kept. Make room" in error
        assert "Traceback" not in error
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        finish(ONE, disk / "run", keys)
        finish(ONE, tmp_path / "whole", keys)
        assert weights(disk / "run") == weights(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(disk)], check=False)
