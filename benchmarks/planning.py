"""How long an epoch takes to plan, and how much memory beyond the lengths, by number of examples.

    python benchmarks/planning.py [--examples 10000000] [--tokens_per_update 16384]

Lengths are drawn as text has them (a log-normal, both sides alike), as int32, 8 bytes an example. Each size is planned
in a process of its own, so that its peak is its own. Tidy rows on stdout; the clock counts CPU-seconds.
"""

import argparse
import csv
import multiprocessing
import resource
import sys
import time

import numpy as np

from seqloom.training.batching import BatchSettings, UpdateSampler, accumulation_steps

SIZES = (1_000_000, 10_000_000, 100_000_000)
CHUNK = 1_000_000


def draw_lengths(count: int) -> np.ndarray:
    """Return (count, 2) lengths with a median of 20 and a long tail, at most 250."""
    lengths = np.empty((count, 2), dtype=np.int32)
    rng = np.random.default_rng(0)
    for start in range(0, count, CHUNK):
        rows = lengths[start : start + CHUNK]
        source = np.exp(rng.normal(3.0, 0.6, len(rows)))
        rows[:, 0] = source.clip(2, 250)
        rows[:, 1] = (source * np.exp(rng.normal(0.0, 0.2, len(rows)))).clip(2, 250)
    return lengths


def peak() -> int:
    """Return the most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(count: int, tokens_per_update: int) -> list[object]:
    """Return a row: time and memory of setting up and planning one epoch."""
    lengths = draw_lengths(count)
    before, started = peak(), time.process_time()
    steps = accumulation_steps(lengths, BatchSettings(tokens_per_update, 8192))
    sampler = UpdateSampler(lengths, BatchSettings(tokens_per_update, seed=1, accumulation_steps=steps))
    set_up = time.process_time()
    updates = sampler.plan(0)
    planned = time.process_time()
    assert len(updates) * steps == len(sampler)
    seconds = [f"{set_up - started:.2f}", f"{planned - set_up:.2f}"]
    full = float(lengths.sum(dtype=np.int64)) / len(updates) / tokens_per_update
    return [count, tokens_per_update, len(updates), *seconds, (peak() - before) // 2**20, f"{full:.3f}"]


def main() -> None:
    """Print one row for each number of examples."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--examples", type=int, nargs="+", default=SIZES)
    parser.add_argument("--tokens_per_update", type=int, default=16_384)
    arguments = parser.parse_args()
    rows = csv.writer(sys.stdout)
    rows.writerow(["examples", "tokens_per_update", "updates", "set_up_s", "plan_s", "peak_above_input_mib", "fill"])
    processes = multiprocessing.get_context("spawn")
    for count in arguments.examples:
        with processes.Pool(1) as pool:
            rows.writerow(pool.apply(measure, (count, arguments.tokens_per_update)))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
