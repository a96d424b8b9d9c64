"""Where the time of `generate` goes in torch: in matrix products, in the rest of the network, or in the library's loop.

    python benchmarks/generating.py [--presets tiny base] [--beams 1 5] [--rounds 7]

Seqloom and transformers' Marian class with the same random weights, 32 sources of 15 tokens, outputs of 15, one thread.
Each round does all of them, one after the other. Tidy rows: medians in CPU-milliseconds of one `generate`, of the
network's calls in it, and of the matrix products in these.
"""

import argparse
import csv
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from answering import AS_MARIAN, BATCH, VOCABULARY, marian_twin
from torch.nn import functional

from seqloom.configuration.configuration_seqloom import SeqloomConfig
from seqloom.configuration.presets import get_preset
from seqloom.modeling.modeling_seqloom import SeqloomForConditionalGeneration

LENGTH = 15


@contextmanager
def timing(owner: Any, name: str) -> Iterator[list[float]]:
    """Add up the CPU-seconds of all calls of `owner.name` into the one number that is yielded."""
    total, called = [0.0], getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return called(*args, **kwargs)
        finally:
            total[0] += time.process_time() - start

    setattr(owner, name, timed)
    try:
        yield total
    finally:
        setattr(owner, name, called)


def models(preset: str) -> dict[str, Any]:
    """Return both models of a preset."""
    fields = {**get_preset(preset).model, **AS_MARIAN, "vocab_size": VOCABULARY, "dropout": 0.0}
    ours = SeqloomForConditionalGeneration(SeqloomConfig(**fields)).eval()
    both = {"seqloom": ours, "marian": marian_twin(ours)}
    for model in both.values():
        none = dict.fromkeys(("eos_token_id", "forced_eos_token_id", "bad_words_ids", "max_length"))
        model.generation_config.update(**none, max_new_tokens=LENGTH, do_sample=False)
    return both


def measure(model: Any, beams: int, sources: torch.Tensor) -> dict[str, float]:
    """Return the CPU-seconds of three runs, each of which times one thing."""

    def answer() -> None:
        with torch.inference_mode():
            model.generate(input_ids=sources, attention_mask=torch.ones_like(sources), num_beams=beams)

    def within(owner: Any, name: str, run: Callable[[], None]) -> float:
        with timing(owner, name) as total:
            run()
        return total[0]

    start = time.process_time()
    answer()
    whole = time.process_time() - start
    return {
        "generate": whole,
        "network": within(model, "forward", answer) + within(model.get_encoder(), "forward", answer),
        "products": within(functional, "linear", answer),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["tiny"])
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sources = torch.randint(4, VOCABULARY, (BATCH, LENGTH))
    found: dict[tuple[str, int, str], list[dict[str, float]]] = defaultdict(list)
    for preset in options.presets:
        both = models(preset)
        for number in range(options.rounds + 1):
            for beams in options.beams:
                for name, model in both.items():
                    seconds = measure(model, beams, sources)
                    if number:  # the first warms up
                        found[preset, beams, name].append(seconds)
    writer = csv.writer(sys.stdout, delimiter="\t", lineterminator="\n")
    writer.writerow("preset beams model generate_ms network_ms products_ms".split())
    for key, rounds in found.items():
        medians = [statistics.median(row[part] for row in rounds) for part in ("generate", "network", "products")]
        writer.writerow([*key, *(f"{1000 * seconds:.0f}" for seconds in medians)])


if __name__ == "__main__":
    main()
