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


@pytest.mark.slow
def test_the_demo_learns_dates_it_has_not_seen(tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", str(TRAIN)]
    run = subprocess.run(launch, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-3000:]
    results = json.loads((tmp_path / "seqloom-demo" / "run" / "results.json").read_text())
    assert results["test_exact_match"] >= 99.5
    for example in DEMO_EXAMPLES:
        assert f"{example}  ->  {DEMO_TARGET}" in run.stdout

    write = pipeline("text-generation", model=str(tmp_path / "seqloom-demo"))
    for batch_size in (1, 8):
        answers = write(list(DEMO_EXAMPLES), return_full_text=False, batch_size=batch_size)
        assert [answer[0]["generated_text"] for answer in answers] == [DEMO_TARGET] * len(DEMO_EXAMPLES)
    chat = write([{"role": "user", "content": DEMO_EXAMPLES[0]}])
    assert chat[0]["generated_text"][-1] == {"role": "assistant", "content": DEMO_TARGET}
