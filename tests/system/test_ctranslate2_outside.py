"""CTranslate2 where Seqloom cannot be imported: its own converter on a folder, and an export used as its card says.

What runs outside stands here as a function whose source is handed over (see tests/outside.py).
"""

import json
import re

import pytest
import torch

from seqloom.hub.export.ctranslate2_export import export_ctranslate2
from tests.outside import run_outside
from tests.toy import MODERN

pytest.importorskip("ctranslate2")

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
LINES = ["abc", "hello", "z9", "thequickbrownfox"]


@pytest.fixture(scope="module", params=[pytest.param("paper", marks=pytest.mark.slow), "modern"])
def folder(request, tiny_model, char_tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "model"
    model = tiny_model(**(MODERN if request.param == "modern" else {}))
    model.generation_config.update(max_new_tokens=10, num_beams=1, suppress_tokens=[0, 1, 3])
    model.save_pretrained(path)
    char_tokenizer(CHARACTERS).save_pretrained(path)
    return path


def answers_of(folder):
    """What the folder itself writes."""
    from seqloom.hub.loading import load_folder

    model, tokenizer = load_folder(folder)
    with torch.inference_mode():
        ids = [model.generate(**tokenizer([line], return_tensors="pt"), do_sample=False) for line in LINES]
    return [tokenizer.decode(row[0], skip_special_tokens=True) for row in ids]


def convert_and_answer(folder, output, lines, before):
    """Convert as `ct2-transformers-converter` does; `before`: the folder was opened before the converter was loaded."""
    import sys

    if before:
        from transformers import AutoModelForSeq2SeqLM

        AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
        assert not any(name.startswith("ctranslate2.") for name in sys.modules)
    import ctranslate2
    from ctranslate2.converters.transformers import main
    from transformers import AutoTokenizer

    line = ["ct2-transformers-converter", "--model", folder, "--trust_remote_code", "--output_dir", output]
    sys.argv, own = line, sys.argv
    main()
    sys.argv = own
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    translator = ctranslate2.Translator(output)
    tokens = [tokenizer.convert_ids_to_tokens(ids) for ids in tokenizer(lines).input_ids]
    results = translator.translate_batch(tokens, beam_size=1, max_decoding_length=10, min_decoding_length=0)
    written = [tokenizer.decode(tokenizer.convert_tokens_to_ids(result.hypotheses[0])) for result in results]
    return [written, sorted(name for name in sys.modules if name.partition(".")[0] == "seqloom")]


@pytest.mark.parametrize("before", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_stock_converter_converts_a_folder(folder, before, tmp_path):
    output = str(tmp_path / "ct2")
    result, _ = run_outside(convert_and_answer, tmp_path, folder=str(folder), output=output, lines=LINES, before=before)
    assert result == [answers_of(folder), []]


def run_code(code, folder):
    import contextlib
    import io
    import os

    os.chdir(folder)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    return printed.getvalue()


def test_an_export_is_used_as_its_card_says(folder, tmp_path):
    """The card's code with one of our lines in it, below the folder in which the export lies."""
    export_ctranslate2(folder, tmp_path / "my export")
    card = (tmp_path / "my export" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len([line for line in code.split("\n") if line.strip()]) == 6
    expected = answers_of(folder)
    assert '"Your text here."' in code
    asked = code.replace('"Your text here."', json.dumps(LINES[-1]))
    cache = tmp_path / "cache"
    cache.mkdir()
    result, _ = run_outside(run_code, cache, code=asked, folder=str(tmp_path))
    assert result == expected[-1] + "\n"
