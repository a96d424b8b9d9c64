"""What it costs that a run checks its own mouth: seconds before the first update, and in each evaluation.

python benchmarks/listening.py [PRESET ...]
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from seqloom import SeqloomForConditionalGeneration
from seqloom.configuration.recipe import resolve_recipe
from seqloom.training.demo import build_demo
from seqloom.training.mouth import READ_AGAIN, check_mouth, misread_in
from seqloom.training.preparation import encode
from seqloom.training.settings import generation_config
from seqloom.training.tokenizer import SeqloomTokenizers, train_tokenizer


def main(presets: list[str]) -> None:
    """Print one row a preset."""
    pairs = build_demo()["train"].select(range(2000))
    tokenizers = train_tokenizer(pairs["source"], pairs["target"], kind="bpe", vocab_size=1000, show_progress=False)
    print("preset   parameters   before the first update (wall, CPU s)   in an evaluation (wall, CPU s)")
    for preset in presets:
        measure(preset, pairs, tokenizers)


def measure(preset: str, pairs: Dataset, tokenizers: SeqloomTokenizers) -> None:
    """Print the row of one preset."""
    recipe = resolve_recipe(None, {"preset": preset})
    encoded = encode(pairs, tokenizers, recipe, "train")
    torch.manual_seed(0)
    model = SeqloomForConditionalGeneration(recipe.model_config(vocab_size=tokenizers.vocab_size))
    model.generation_config = generation_config(recipe, tokenizers)
    with tempfile.TemporaryDirectory() as folder:
        before = seconds(lambda: check_mouth(model, tokenizers, encoded, Path(folder)))
    batch = tokenizers.source(pairs["source"][:READ_AGAIN], padding=True, return_tensors="pt")
    ids = model.eval().generate(**batch, num_beams=1, max_new_tokens=40)
    during = seconds(lambda: misread_in(model, batch, ids, most=40, is_exact=True))
    print(f"{preset:8}{model.num_parameters():12,}   {before}   {during}")


def seconds(work: Callable[[], Any]) -> str:
    """Return wall and processor seconds of a piece of work."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return f"{time.perf_counter() - wall:.2f} {time.process_time() - processor:.2f}"


if __name__ == "__main__":
    main(sys.argv[1:] or ["demo", "tiny", "small", "base"])
