"""How much of a planned epoch is padding, by size of the update and number of its micro-batches.

    python benchmarks/padding.py SOURCE TARGET

Two line-aligned files, plain or .gz; lengths are counted in words + 2, so no vocabulary is needed. Tidy rows on stdout.
"""

import argparse
import csv
import gzip
import sys

import numpy as np

from seqloom.training.batching import cut_update, plan_updates

BUDGETS = (8192, 16_384, 65_536)
PIECES = (1, 2, 4, 8, 16)


def count_words(path: str) -> list[int]:
    """Return the number of words + 2 in each line."""
    with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
        return [len(line.split()) + 2 for line in file]


def padding_share(updates: list[np.ndarray], lengths: np.ndarray, pieces: int) -> float:
    """Return padded places / all places over an epoch."""
    parts = [part for update in updates for part in cut_update(update, lengths, pieces)]
    places = sum(len(part) * int(lengths[part].max(axis=0).sum()) for part in parts)
    return 1 - lengths.sum() / places


def main() -> None:
    """Print one row for each budget and number of pieces."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("source")
    parser.add_argument("target")
    arguments = parser.parse_args()
    lengths = np.stack([count_words(arguments.source), count_words(arguments.target)], axis=1)
    rows = csv.writer(sys.stdout)
    rows.writerow(["examples", "tokens_per_update", "updates", "pieces", "padding_share"])
    for budget in BUDGETS:
        updates = plan_updates(lengths, tokens_per_update=budget, seed=1, epoch=0)
        for pieces in PIECES:
            share = padding_share(updates, lengths, pieces)
            rows.writerow([len(lengths), budget, len(updates), pieces, f"{share:.4f}"])


if __name__ == "__main__":
    main()
