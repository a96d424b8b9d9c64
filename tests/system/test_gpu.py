"""On a GPU the same is learned as on a CPU, with every switch for speed: CUDA_VISIBLE_DEVICES=0 pytest -m gpu.

The other tests hide GPUs, so these are skipped unless one is named.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.toy import write_reversals

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is visible")]

TRAIN = Path(__file__).parents[2] / "training" / "train.py"
KEYS = "--preset demo --tokenizer char --vocab_size 300 --dropout 0 --tokens_per_update 2048 --tokens_per_device 2048"
KEYS += " --metrics exact_match --max_steps 200 --eval_steps 100 --save_steps 100 --num_beams 2 --max_new_tokens 12"


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Return a function that trains to reverse words and returns the results."""
    home = tmp_path_factory.mktemp("gpu", numbered=False)
    files = write_reversals(home, train=600, valid=40, test=40)

    def run(name, keys):
        command = [sys.executable, str(TRAIN), "--output", name, *KEYS.split(), *keys.split()]
        for split, pair in files.items():
            command += [f"--{split}", *pair]
        done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads((home / name / "run" / "results.json").read_text())

    return run


@pytest.fixture(scope="module")
def on_cpu(train):
    return train("cpu", "--use_cpu true")


@pytest.mark.parametrize(
    ("keys", "tolerance"),
    [
        ("", 0.01),
        ("--torch_compile true", 0.01),
        ("--bf16 true", 0.05),
        ("--bf16 true --torch_compile true", 0.05),
        ("--bf16 true --packing true", 0.05),
        ("--bf16 true --packing true --torch_compile true", 0.05),
        ("--bf16 true --packing true --activation_checkpointing true", 0.05),
    ],
)
def test_the_loss_and_the_answers_are_those_of_a_cpu(train, on_cpu, keys, tolerance):
    results = train("-".join(["gpu", *keys.split()[::2]]), keys)
    assert results["train_loss"] == pytest.approx(on_cpu["train_loss"], rel=tolerance)
    assert results["test_exact_match"] == pytest.approx(on_cpu["test_exact_match"], abs=10)


def test_a_run_goes_on_from_its_checkpoint(train, tmp_path_factory):
    """Close, not the same to the bit: on a GPU the gradient of an embedding table is added up in any order."""
    keys = "--bf16 true --packing true --dropout 0.1"
    whole = train("resumed", keys)
    folder = tmp_path_factory.getbasetemp() / "gpu" / "resumed"
    shutil.rmtree(folder / "checkpoint-200")
    (folder / "run" / "results.json").unlink()
    resumed = train("resumed", keys)
    assert resumed["resumed_at"] == 100
    assert resumed["train_loss"] == pytest.approx(whole["train_loss"], rel=0.01)
