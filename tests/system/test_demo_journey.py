"""The first thing a newcomer does: no arguments, a minute of training, a folder that answers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import pipeline

import seqloom  # noqa: F401  (makes the folder's classes known)
from seqloom.training.demo import DEMO_EXAMPLES, DEMO_TARGET

TRAIN = Path(__file__).parents[2] / "training" / "train.py"

SHORT = "--max_steps 250 --eval_steps 250 --save_steps 250 --warmup_steps 25 --per_device_eval_batch_size 500"
SHORT += " --tokens_per_update 1024 --tokens_per_device 1024 --learning_rate 0.005"
"""A tenth of the updates, twice as large; the data stay whole, for no key makes them smaller."""


def run_demo(folder, keys=""):
    """Start README's first command in a folder; return the scores and what it printed."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", str(TRAIN), *keys.split()]
    run = subprocess.run(launch, cwd=folder, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads((folder / "seqloom-demo" / "run" / "results.json").read_text()), run.stdout


def test_the_demo_shortened_writes_dates_it_has_not_seen(tmp_path):
    results, _ = run_demo(tmp_path, SHORT)
    # Four seeds reached 50 to 75 %. A model that scores well and writes garbage has 0: no date is right by chance.
    assert results["test_exact_match"] >= 20


@pytest.mark.slow
def test_the_demo_learns_dates_it_has_not_seen(tmp_path):
    results, printed = run_demo(tmp_path)
    assert results["test_exact_match"] >= 99.5
    for example in DEMO_EXAMPLES:
        assert f"{example}  ->  {DEMO_TARGET}" in printed

    write = pipeline("text-generation", model=str(tmp_path / "seqloom-demo"))
    for batch_size in (1, 8):
        answers = write(list(DEMO_EXAMPLES), return_full_text=False, batch_size=batch_size)
        assert [answer[0]["generated_text"] for answer in answers] == [DEMO_TARGET] * len(DEMO_EXAMPLES)
    chat = write([{"role": "user", "content": DEMO_EXAMPLES[0]}])
    assert chat[0]["generated_text"][-1] == {"role": "assistant", "content": DEMO_TARGET}
