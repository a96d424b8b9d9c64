"""With every quality tool on, two processes end with the weights of one: the same pieces, average and checkpoints."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from seqloom.training.monitoring.gradient_flow import gradient_rows

TRAIN = Path(__file__).parents[2] / "training" / "train.py"
KEYS = """
--preset demo --d_model 16 --tokenizer bpe --vocab_size 400 --dropout 0 --tokens_per_update 1024 --max_steps 16
--save_steps 4 --eval_steps 4 --logging_steps 4 --max_new_tokens 12 --num_beams 1 --num_sample_outputs 0
--bpe_dropout 0.2 --rdrop_alpha 2 --log_gradient_flow --train train.src train.tgt --valid valid.src valid.tgt
"""


@pytest.fixture
def corpus(tmp_path):
    """Sentences of one to five words, and their reversals."""
    rng = random.Random(0)
    for split, count in (("train", 300), ("valid", 10)):
        words = ["".join(rng.choices("abcde", k=rng.randint(2, 5))) for _ in range(50)]
        lines = [" ".join(rng.choices(words, k=rng.randint(1, 5))) for _ in range(count)]
        (tmp_path / f"{split}.src").write_text("".join(line + "\n" for line in lines))
        (tmp_path / f"{split}.tgt").write_text("".join(line[::-1] + "\n" for line in lines))
    return tmp_path


def run(corpus, output, processes, tool):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [*launcher, str(TRAIN), *KEYS.split(), *tool.split(), "--output", output]
    done = subprocess.run(command, cwd=corpus, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    records = corpus / output / "run"
    rows = [json.loads(line) for line in (records / "history.jsonl").read_text().splitlines()]
    gradients = gradient_rows({**row, "step": row["update"]} for row in rows)
    return (
        load_file(corpus / output / "model.safetensors"),
        json.loads((records / "results.json").read_text()),
        gradients,
    )


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["--ema_decay 0.9", "--average_checkpoints 3 --average_by best", "--muon"])
def test_two_processes_are_one(corpus, tool):
    one, two = (run(corpus, f"run-{processes}", processes, tool) for processes in (1, 2))
    for name, weight in one[0].items():
        if not name.endswith("k_proj.bias"):  # softmax forgets it, and Adam amplifies its rounding
            np.testing.assert_allclose(weight, two[0][name], atol=1e-4, err_msg=name)
    assert one[1].get("averaged_updates") == two[1].get("averaged_updates")
    assert one[1]["validation_loss"] == pytest.approx(two[1]["validation_loss"], rel=1e-4)
    for ours, theirs in zip(one[2], two[2], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-2)
