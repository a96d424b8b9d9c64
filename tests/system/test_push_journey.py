"""From text to the Hub and back: train with --push_to_hub, load by name where Seqloom cannot be imported."""

import os
import subprocess
import sys

import pytest

from tests.loopback_hub import LoopbackHub, card_errors

TINY = "--preset demo --d_model 16 --encoder_ffn_dim 32 --decoder_ffn_dim 32 --tokenizer char --vocab_size 300"
QUICK = "--max_steps 4 --save_steps 4 --warmup_steps 1 --max_new_tokens 5 --languages la --license cc0-1.0"

DOWNLOAD = """
import sys
sys.modules["seqloom"] = None  # an import of it would fail
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, pipeline
for auto in (AutoModelForSeq2SeqLM, AutoModelForCausalLM, AutoTokenizer):
    auto.from_pretrained("alice/words", trust_remote_code=True)
write = pipeline("text-generation", model="alice/words", trust_remote_code=True)
print(write("abc", return_full_text=False)[0]["generated_text"])
"""


@pytest.mark.slow
def test_from_text_to_the_hub_and_back(tmp_path):
    rows = "".join(f"{word}\t{word[::-1]}\n" for word in ("abc", "de", "fgh", "bca", "hed", "cab") * 5)
    (tmp_path / "words.tsv").write_text(f"source\ttarget\n{rows}")
    with LoopbackHub() as hub:
        environment = {**os.environ, **hub.environment(), "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}

        def run(*command):
            return subprocess.run(
                [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
            )

        data = "--train words.tsv --test words.tsv --output words --push_to_hub --hub_model_id alice/words".split()
        trained = run("-m", "seqloom_cli", "train", *data, *TINY.split(), *QUICK.split())
        assert trained.returncode == 0, trained.stderr[-3000:]
        repository = hub.repositories["alice/words"]
        assert repository.private
        at_home = {path.name for path in (tmp_path / "words").iterdir() if path.is_file()}
        assert set(repository.files) == at_home | {".gitattributes"}
        card = repository.files["README.md"].decode()
        assert card_errors(card) == []
        assert "confidence_interval_95" in card

        loaded = run("-c", DOWNLOAD)
        assert loaded.returncode == 0, loaded.stderr[-3000:]

        pushed_again = run("-m", "seqloom_cli", "push", "words", "alice/words")
        assert pushed_again.returncode == 0, pushed_again.stderr[-3000:]
        assert "Updated" in pushed_again.stdout
        assert len(repository.commits) == 2, "what has not changed makes no new commit"

    here = run_here(tmp_path, environment)
    assert loaded.stdout == here


def run_here(folder, environment):
    """What the folder at home answers."""
    code = """
from transformers import pipeline
write = pipeline("text-generation", model="words", trust_remote_code=True)
print(write("abc", return_full_text=False)[0]["generated_text"])
"""
    offline = environment | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=offline, check=True, capture_output=True, text=True, timeout=300
    ).stdout
