"""What docs/RECIPES.md shows, run as it stands there."""

import re
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForSeq2SeqLM

PAGE = Path(__file__).parents[2] / "docs" / "RECIPES.md"
WORDS = "abcdefghijklmnop" + "0123" + "ABCDEFGHIJKLMNOP"


def test_every_block_of_python_runs(taught_model, char_tokenizer, tmp_path, monkeypatch):
    constants = pytest.importorskip("peft.utils.constants")
    places = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    monkeypatch.delitem(sys.modules, "peft.utils.constants")  # the page opens its model before it imports peft
    monkeypatch.delitem(places, "seqloom", raising=False)
    monkeypatch.chdir(tmp_path)
    taught_model().save_pretrained("my-folder")
    char_tokenizer(WORDS).save_pretrained("my-folder")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    code = "\n".join(blocks).replace('report_to="none")', 'report_to="none", use_cpu=True)')
    names: dict[str, object] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    assert len(names["answers"]) == 3
    for folder in ("tuned", "merged"):
        assert AutoModelForSeq2SeqLM.from_pretrained(folder).get_input_embeddings().weight.isfinite().all()
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
