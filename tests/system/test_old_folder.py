"""A folder of commit 8d00292, opened by its own code where Seqloom is missing.

It is wrong on a library that this code does not know, and right after `seqloom upgrade`.
Right means: every token that greedy search writes, with its cache, is the arg max of a forced pass without one. What
runs outside stands here as a function whose source is handed over (see tests/outside.py).
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from seqloom.modeling.library import CACHE
from tests.old_folder import unpack_old_folder
from tests.outside import run_outside

SOURCES = ["a", "bcd", "hgfedcba", "mnop"]
KNOWS_THIS_LIBRARY = CACHE == "past_key_values"
"""The old code knew transformers 5.23 and older."""


def write_and_read_again(folder, sources):
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True).eval()
    batch = tokenizer(sources, padding=True, return_tensors="pt")
    sequences = model.generate(**batch)
    with torch.no_grad():
        read = model(**batch, decoder_input_ids=sequences[:, :-1], use_cache=False).logits.argmax(-1)
    write = pipeline("text-generation", model=folder, trust_remote_code=True)
    return {
        "module": type(model).__module__,
        "written": sequences[:, 1:].tolist(),
        "forced": [
            [token if token_written else 0 for token, token_written in zip(row, written, strict=True)]
            for row, written in zip(read.tolist(), sequences[:, 1:].tolist(), strict=True)
        ],
        "text": tokenizer.batch_decode(sequences, skip_special_tokens=True),
        "piped": [answer[0]["generated_text"] for answer in write(sources, return_full_text=False)],
    }


@pytest.fixture(scope="module")
def folders(taught_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return an old folder, and a copy that the command has upgraded."""
    root = tmp_path_factory.mktemp("old")
    folder = unpack_old_folder(root / "before" / "dates", taught_model())
    copy = Path(shutil.copytree(folder, root / "after" / "dates"))
    command = [sys.executable, "-m", "seqloom_cli", "upgrade", str(copy)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "and answers rightly under" in done.stdout
    return {"before": folder, "after": copy}


@pytest.fixture(scope="module")
def outside(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what the folders' own code says."""
    said = {}
    for name, folder in folders.items():
        cache = tmp_path_factory.mktemp("cache")
        said[name], _ = run_outside(write_and_read_again, cache, folder=str(folder), sources=SOURCES)
        assert said[name]["module"].startswith("transformers_modules."), "the folder's own code ran"
    return said


def test_before_it_is_right_only_on_a_library_that_its_code_knows(outside: dict[str, Any]) -> None:
    """On a newer one its forced passes are right and what it writes is not: nobody reads the new name of the cache."""
    before = outside["before"]
    assert (before["written"] == before["forced"]) is KNOWS_THIS_LIBRARY


def test_afterwards_it_is_right(outside: dict[str, Any], taught_model: Callable[..., Any]) -> None:
    after = outside["after"]
    assert after["written"] == after["forced"]
    assert after["piped"] == after["text"]
    assert len(set(after["text"])) == len(SOURCES)
    if KNOWS_THIS_LIBRARY:
        assert after["text"] == outside["before"]["text"]


def test_with_seqloom_it_says_the_same_before_and_after(folders: dict[str, Path], outside: dict[str, Any]) -> None:
    """The installed classes answer in place of the folder's."""
    for folder in folders.values():
        tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
        assert type(model).__module__ == "seqloom.modeling.modeling_seqloom"
        with torch.no_grad():
            sequences = model.generate(**tokenizer(SOURCES, padding=True, return_tensors="pt"))
        assert tokenizer.batch_decode(sequences, skip_special_tokens=True) == outside["after"]["text"]
