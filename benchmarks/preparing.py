"""What it costs to count the characters of a corpus and to cut its text into ids: transformers' way and ours.

    python benchmarks/preparing.py SOURCE TARGET [--pairs 100000] [--rounds 5]

Two line-aligned files, plain or .gz. Tidy rows on stdout: each round does everything once in each way, one after the
other, and a row has the CPU-seconds and the seconds of one of them for so many pairs; with `threads` the tokenizers use
all cores. The medians of the rounds and their ratios follow on stderr.
"""

import argparse
import csv
import os
import resource
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from datasets import Dataset, concatenate_datasets, disable_progress_bars

from seqloom.training.preparation import encode
from seqloom.training.reading.corpus import load_corpus
from seqloom.training.tokenizer import SeqloomTokenizers, train_tokenizer
from seqloom.training.vocabulary import Options, _read_text, normalize_text

Ways = dict[tuple[str, str], Callable[[], Any]]


def ways_of(pairs: Dataset, tokenizers: SeqloomTokenizers) -> Ways:
    """Return what is timed, by step and way."""
    options = Options("bpe", 10_000, "nfc", None, 1.0, False, False)

    def counted() -> None:
        characters: Counter[str] = Counter()
        for side in ("source", "target"):
            for text in pairs[side]:
                characters.update(text if text.isascii() else normalize_text(text, "nfc"))

    def called(batch: dict[str, list[str]]) -> dict[str, Any]:
        return {
            "input_ids": tokenizers.source(batch["source"], return_attention_mask=False).input_ids,
            "labels": tokenizers.target(batch["target"], return_attention_mask=False).input_ids,
        }

    return {
        ("characters", "Counter"): counted,
        ("characters", "arrays"): lambda: _read_text("training", [pairs["source"], pairs["target"]], options),
        ("ids", "tokenizer()"): lambda: pairs.map(called, batched=True, load_from_cache_file=False),
        ("ids", "one thread"): lambda: _encoded(pairs, tokenizers, "false"),
        ("ids", "threads"): lambda: _encoded(pairs, tokenizers, "true"),
    }


def _encoded(pairs: Dataset, tokenizers: SeqloomTokenizers, threads: str) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = threads
    encode(pairs, tokenizers, "train", load_from_cache_file=False)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def main() -> None:
    """Time everything, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    disable_progress_bars()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    corpus = load_corpus([options.source, options.target]).dataset
    times = -(-options.pairs // len(corpus))
    pairs = concatenate_datasets([corpus] * times).select(range(options.pairs))
    sides = corpus["source"], corpus["target"]
    tokenizers = train_tokenizer(*sides, kind="bpe", vocab_size=10_000, show_progress=False)
    found: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    writer = csv.writer(sys.stdout)
    writer.writerow(["step", "way", "round", "pairs", "cpu_seconds", "seconds"])
    for number in range(options.rounds):
        for (step, way), run in ways_of(pairs, tokenizers).items():
            usage, clock = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
            run()
            after, seconds = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - clock
            spent = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
            found[step, way].append((spent, seconds))
            writer.writerow([step, way, number, options.pairs, f"{spent:.3f}", f"{seconds:.3f}"])
            sys.stdout.flush()
    first: dict[str, tuple[float, float]] = {}
    for (step, way), rounds in found.items():
        cpu, seconds = (statistics.median(values) for values in zip(*rounds, strict=True))
        first.setdefault(step, (cpu, seconds))
        gain = f"{first[step][0] / cpu:.1f}x a CPU-second, {first[step][1] / seconds:.1f}x a second"
        print(f"{step:11} {way:12} {cpu:7.2f} CPU-s {seconds:7.2f} s  {gain}", file=sys.stderr)


if __name__ == "__main__":
    main()
