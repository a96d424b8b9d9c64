"""What it costs to be sure of what a model writes: the checks of a run, and the canary of a folder.

    python benchmarks/listening.py [PRESET ...]

Tidy rows on stdout, in CPU-seconds of one thread. A run checks its mouth before the first update and reads some outputs
again in each evaluation. A canary is written with every folder, and is heard at the first answer under a library that
the folder does not name; under one that it names, asking is all.
"""

import csv
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from seqloom import SeqloomForConditionalGeneration
from seqloom.configuration.recipe import Recipe
from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.modeling.canary import CANARY_NAME, check_once, sample_weights, write_canary
from seqloom.training.demo import build_demo
from seqloom.training.mouth import READ_AGAIN, check_mouth, misread_in
from seqloom.training.preparation import encode
from seqloom.training.settings import generation_config
from seqloom.training.tokenizer import SeqloomTokenizers, train_tokenizer


def main(presets: list[str]) -> None:
    """Print one row a preset."""
    pairs = build_demo()["train"].select(range(2000))
    tokenizers = train_tokenizer(pairs["source"], pairs["target"], kind="bpe", vocab_size=1000, show_progress=False)
    torch.set_num_threads(1)
    writer = csv.writer(sys.stdout)
    writer.writerow(["preset", "task", "cpu_seconds", "bytes"])
    for preset in presets:
        for task, cpu_seconds, size in measure(preset, pairs, tokenizers):
            writer.writerow([preset, task, f"{cpu_seconds:.6f}", size])


def measure(preset: str, pairs: Dataset, tokenizers: SeqloomTokenizers) -> Iterator[tuple[str, float, int | str]]:
    """Yield what was done with a model of one preset, the seconds that took, and the bytes that it left."""
    model, _ = make_model(preset, tokenizers)
    encoded = encode(pairs, tokenizers, "train")
    with tempfile.TemporaryDirectory() as folder:
        yield "before the first update", seconds(lambda: check_mouth(model, tokenizers, encoded, Path(folder))), ""
    batch = tokenizers.source(pairs["source"][:READ_AGAIN], padding=True, return_tensors="pt")
    ids = model.eval().generate(**batch, num_beams=1, max_new_tokens=40)
    yield "in an evaluation", seconds(lambda: misread_in(model, batch, ids, most=40, is_exact=True)), ""
    with tempfile.TemporaryDirectory() as folder:
        written = seconds(lambda: write_canary(model, folder))
        yield "canary written", written, (Path(folder) / CANARY_NAME).stat().st_size
        model.save_pretrained(folder)
        loaded = SeqloomForConditionalGeneration.from_pretrained(folder)
    yield "first answer, tested library", seconds(lambda: check_once(loaded)), ""
    yield "every later answer", seconds(lambda: check_once(loaded)), ""
    loaded._canary.tested, loaded._canary_has_sung = [], False
    loaded._canary_weights = sample_weights(loaded)
    yield "first answer, another library", seconds(lambda: check_once(loaded)), ""


def make_model(preset: str, tokenizers: SeqloomTokenizers) -> tuple[SeqloomForConditionalGeneration, Recipe]:
    """Return a fresh model of a preset, and its recipe."""
    recipe = resolve_recipe(None, {"preset": preset})
    torch.manual_seed(0)
    model = SeqloomForConditionalGeneration(recipe.model_config(vocab_size=tokenizers.vocab_size))
    model.generation_config = generation_config(recipe, tokenizers)
    return model, recipe


def seconds(work: Callable[[], Any]) -> float:
    """Return the CPU-seconds of a piece of work."""
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main(sys.argv[1:] or ["demo", "tiny", "small", "base"])
