"""How much of a planned epoch is padding, by size of the update and number of its micro-batches, and what it costs.

    python benchmarks/padding.py SOURCE TARGET [--vocab_size 10000]

Two line-aligned files, plain or .gz. Lengths are counted in words + 2; with --vocab_size, in the tokens of a joint BPE
vocabulary that is trained first, as in a run. Tidy rows on stdout. `micro_batches` is "auto" where it is the number
that a run on a CPU chooses. `repeats` is how much more often than by chance two examples of one update meet again in
the next epoch.
"""

import argparse
import csv
import gzip
import itertools
import sys

import numpy as np

from seqloom.training.batching import BatchSettings, accumulation_steps, cut_update, padded_tokens, plan_updates
from seqloom.training.tokenizer import train_tokenizer

BUDGETS = (8192, 16_384, 50_000, 65_536)
NUM_MICRO_BATCHES = (1, 2, 4, 8, 16)
TOKENS_PER_DEVICE = 8192
PAIRS = 1_000_000


def read_lines(path: str) -> list[str]:
    """Return the lines of a file, plain or .gz."""
    with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
        return file.read().decode("utf-8").splitlines()


def count_tokens(sources: list[str], targets: list[str], vocab_size: int) -> np.ndarray:
    """Return (examples, 2) lengths: words + 2, or tokens of a vocabulary trained on the texts."""
    if not vocab_size:
        return np.array([[len(line.split()) + 2 for line in side] for side in (sources, targets)]).T
    tokenizers = train_tokenizer(sources, targets, kind="bpe", vocab_size=vocab_size, show_progress=False)
    sides = (tokenizers.source(sources).input_ids, tokenizers.target(targets).input_ids)
    return np.array([[len(ids) for ids in side] for side in sides]).T


def padding_share(updates: list[np.ndarray], lengths: np.ndarray, num_micro_batches: int) -> float:
    """Return the share of an epoch's padded tokens that are padding."""
    micro_batches = itertools.chain(*(cut_update(update, lengths, num_micro_batches) for update in updates))
    return 1 - lengths.sum() / sum(padded_tokens(lengths[micro_batch]) for micro_batch in micro_batches)


def repeats(lengths: np.ndarray, budget: int) -> float:
    """Return how often pairs of examples that share an update share the next epoch's, relative to chance."""
    owners = []
    for epoch in (0, 1):
        updates = plan_updates(lengths, tokens_per_update=budget, seed=1, epoch=epoch)
        owners.append(np.empty(len(lengths), dtype=int))
        for number, update in enumerate(updates):
            owners[-1][update] = number
    one, other = np.random.default_rng(0).integers(0, len(lengths), (2, PAIRS))
    shared = (owners[0][one] == owners[0][other]) & (one != other)
    return float((owners[1][one] == owners[1][other])[shared].mean() * len(updates))


def main() -> None:
    """Print one row for each budget and number of micro-batches."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--vocab_size", type=int, default=0)
    arguments = parser.parse_args()
    lengths = count_tokens(read_lines(arguments.source), read_lines(arguments.target), arguments.vocab_size)
    unit = f"bpe {arguments.vocab_size}" if arguments.vocab_size else "words + 2"
    rows = csv.writer(sys.stdout)
    rows.writerow(["examples", "unit", "tokens_per_update", "updates", "micro_batches", "padding_share", "repeats"])
    for budget in BUDGETS:
        updates = plan_updates(lengths, tokens_per_update=budget, seed=1, epoch=0)
        again = f"{repeats(lengths, budget):.2f}"
        auto = accumulation_steps(lengths, BatchSettings(budget, TOKENS_PER_DEVICE))
        for name, count in (*zip(NUM_MICRO_BATCHES, NUM_MICRO_BATCHES), (f"auto ({auto})", auto)):
            share = padding_share(updates, lengths, count)
            rows.writerow([len(lengths), unit, budget, len(updates), name, f"{share:.4f}", again])


if __name__ == "__main__":
    main()
