"""Each write of a run is refused in turn: the error names file and remedy, and the remedy, followed, works.

A hook of the interpreter refuses to open a file whose path holds a certain text. What the libraries write from Rust or
C++ does not pass there: test_run_health.py has their errors, and tests/system/test_resume.py a disk that is full.
"""

import errno
import os
import sys
from importlib.util import find_spec

import pytest

from seqloom.training.train import main
from tests.toy import write_reversals

WRITES = {
    "recipe": "/.recipe.yaml",
    "environment": "/.environment.json",
    "cache of texts": "/.part-",
    "vocabulary": "/tokenizer/tokenizer_config.json",
    "facts of the data": "/.data.json",
    "check": "/.check.json",
    "history": "/history.jsonl",
    "checkpoint": "/checkpoint-2/trainer_state.json",
    "seal": "/checkpoint-2/checkpoint_manifest.json",
    "model": "/_saving/model/config.json",
    "canary": "/.seqloom_canary.json",
    "its manifest": "/.model_manifest.json",
    "test outputs": "/.test_outputs.jsonl",
    "report": "/.report.html",
    "results": "/.results.json",
    "facts of the weights": "/.weights.json",
    "card": "/.README.md",
}
if find_spec("matplotlib"):
    WRITES["picture"] = "/gradient_flow.png"

refused: list[str] = []
"""What a path must not hold; nothing most of the time."""


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    if refused and event == "open" and isinstance(arguments[0], str) and refused[0] in arguments[0]:
        mode, flags = arguments[1:3]
        if set(mode or "") & set("wax+") or int(flags or 0) & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), arguments[0])


sys.addaudithook(_refuse)


@pytest.mark.parametrize("write", WRITES)
def test_a_write_that_is_refused_is_named_and_the_same_command_goes_on(write, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    files = write_reversals(tmp_path, train=40, valid=3)
    output = tmp_path / "out"
    command = f"--preset demo --d_model 16 --encoder_layers 1 --decoder_layers 1 --tokenizer char --vocab_size 300 \
        --max_steps 2 --save_steps 1 --logging_steps 1 --max_new_tokens 4 --num_beams 1 --disable_tqdm true \
        --log_gradient_flow true --output {output} --train {' '.join(files['train'])} --test {' '.join(files['valid'])}"
    refused.append(WRITES[write])
    try:
        assert main(command.split()) == 1
    finally:
        refused.clear()
    error = capsys.readouterr().err
    assert "could not be written: No space left on device (" in error, error[-2000:]
    assert "MB are free on that disk" in error
    assert "then start the same command again" in error
    assert "Traceback" not in error
    assert ("HF_HOME" in error) == (write == "cache of texts")
    assert not (output / "_saving").exists()
    assert main(command.split()) == 0, capsys.readouterr().err[-2000:]
    left = {path.name for path in output.iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "checkpoint-2"} <= left
    assert "test_outputs.jsonl" in {path.name for path in (output / "run").iterdir()}
