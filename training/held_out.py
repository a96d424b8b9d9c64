"""No run without a judge: validation and test examples that are held out of the training text.

Whole sources are held out, so that no validation source is a training source as well; texts that differ in spaces or
letter case alone count as one. Which ones is decided by a hash of text and seed: a run started again, another order of
the lines and another number of processes hold out the same.

A corpus that is named with a tag beside others without one is what its tag says, such as back-translated, and no judge:
only the others give examples, and what it has of their sources leaves the training text.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from seqloom.configuration.data_names import data_name
from seqloom.configuration.recipe import HOLD_OUT, Recipe, RecipeError
from seqloom.training.reading.sources import Extra

LEAST_EXAMPLES = 500
"""Smaller corpora are held whole unless a share is named: a tenth of them says little, and they need it to learn."""
FEWEST, MOST = 50, 1000
"""Examples held out where nobody names a number: a twentieth, but no fewer and no more. With 1,000 a share of right
outputs is known to 3 points, with 50 to 14."""


LEFT_OUT = "source held out"
"""The reason for which rows of a corpus that is no judge leave the training text."""


def judges_of(dataset: Dataset, names: Sequence[str]) -> np.ndarray:
    """Return which rows may be held out, (rows,): all, or those of corpora without a tag where there are any.

    Args:
        dataset: rows of all corpora.
        names: of the corpora, as a recipe has them.
    """
    tags = [data_name(name).tag for name in names]
    if all(tags) or not any(tags):
        return np.ones(len(dataset), bool)
    begins = f"^({'|'.join(re.escape(tag) for tag in set(tags) if tag)})"
    tables = dataset.select_columns([Extra.TAGS]).with_format("arrow").iter(batch_size=10_000)
    return ~np.concatenate([pc.match_substring_regex(table[Extra.TAGS], begins).to_numpy() for table in tables])


def shares_of(recipe: Recipe, num_rows: int) -> dict[str, int]:
    """Return how many examples a recipe wants to be held out of a training text, by split, "test" first.

    Args:
        recipe: `valid` and `test` may be a number of examples, a share of them, or `valid` "auto".
        num_rows: examples, or documents, of the training text that may be held out.

    Raises:
        RecipeError: when more than half would be held out.
    """
    counts = {}
    for split, name in (("test", "test"), ("validation", "valid")):
        share = recipe.share_of(name)
        if share == HOLD_OUT:
            counts[split] = min(MOST, max(FEWEST, num_rows // 20)) if num_rows >= LEAST_EXAMPLES else 0
        elif share is not None:
            number = float(share)
            counts[split] = max(1, round(number * num_rows)) if number < 1 else round(number)
    if sum(counts.values()) * 2 > num_rows:
        asked = " and ".join(f"{name}={recipe.share_of(name)}" for name in ("valid", "test") if recipe.share_of(name))
        raise RecipeError(
            f"{asked} would hold out {sum(counts.values()):,} of {num_rows:,} training examples to choose from, "
            f"more than half; name fewer, a share such as 0.05, or files of their own."
        )
    return {split: count for split, count in counts.items() if count}


def hold_out(
    dataset: Dataset, shares: Mapping[str, int], *, seed: int, judges: np.ndarray | None = None
) -> dict[str, Dataset]:
    """Split a training text; the rows of each part keep their order.

    Args:
        dataset: rows, the first column is the source, or the document.
        shares: what to hold out, of `shares_of`.
        seed: of the choice.
        judges: of `judges_of`; None: all rows.

    Returns:
        "train", and a part for each split of `shares`.

    Raises:
        RecipeError: when the text has too few different sources.
    """
    keys = _keys(dataset, seed)
    judges = np.ones(len(keys), bool) if judges is None else judges
    groups, members = np.unique(keys, return_inverse=True)  # in the order of the hashes
    sizes = np.bincount(members[judges], minlength=len(groups))
    taken = np.where(sizes, 0, -1)
    for number, (split, wanted) in enumerate(shares.items(), start=1):
        left = wanted
        for group in np.flatnonzero(taken == 0):
            if sizes[group] <= left:
                taken[group] = number
                left -= int(sizes[group])
            if not left:
                break
        if left == wanted or not (taken == 0).any():
            raise RecipeError(
                f"{(sizes > 0).sum():,} different sources are too few to hold out {wanted:,} of {judges.sum():,} "
                f"examples for the {split} set; name fewer, give files of their own, or none: "
                f"--{'valid' if split == 'validation' else 'test'} none."
            )
    rows = {"train": taken[members] <= 0}
    rows |= {split: (taken[members] == number) & judges for number, split in enumerate(shares, start=1)}
    return {split: dataset.select(np.flatnonzero(chosen)) for split, chosen in rows.items()}


def held_facts(
    facts: Mapping[str, Any], parts: Mapping[str, Dataset], shares: Mapping[str, int], num_judges: int
) -> dict[str, dict[str, Any]]:
    """Return what is known of each part of a training text, as data.json keeps it.

    Args:
        facts: of the whole text.
        parts: as `hold_out` made them.
        shares: what was asked for; with it the fingerprints change.
        num_judges: rows of the whole text that might have been held out.
    """
    of = [num_judges] if num_judges < facts["num_rows"] else []
    key = json.dumps([facts["fingerprint"], *shares.items(), *of])
    fingerprint = hashlib.sha256(key.encode()).hexdigest()[:32]
    held = {f"held out for {split}": len(rows) for split, rows in parts.items() if split != "train"}
    if of:
        held[LEFT_OUT] = facts["num_rows"] - sum(map(len, parts.values()))
    known = {"train": {**facts, "fingerprint": fingerprint, "num_rows": len(parts["train"])}}
    known["train"]["num_dropped"] = {**facts.get("num_dropped", {}), **held}
    for split in shares:
        name = f"held out of {facts['name']}"
        known[split] = {"name": name, "num_rows": len(parts[split]), "fingerprint": f"{fingerprint}/{split}"}
    return known


def found_in(training: Dataset, sources: Sequence[str]) -> set[str]:
    """Return those of some sources that are sources of the training text as well, letter for letter."""
    wanted, found = pa.array(list(sources), pa.string()), set()
    for table in training.select_columns(["source"]).with_format("arrow").iter(batch_size=10_000):
        column = table["source"]
        found |= set(column.filter(pc.is_in(column, value_set=wanted)).to_pylist())
    return found


def same_source(text: str) -> str:
    """Return what two sources have in common that differ in spaces and letter case alone."""
    return " ".join(text.casefold().split())


def _keys(dataset: Dataset, seed: int) -> np.ndarray:
    """Return a hash of each row's source; (rows,)."""
    column = dataset.column_names[0]
    keys = np.empty(len(dataset), dtype=np.uint64)
    start = 0
    for batch in dataset.select_columns([column]).iter(batch_size=10_000):
        for text in batch[column]:
            digest = hashlib.blake2b(f"{seed}\n{same_source(text)}".encode(), digest_size=8).digest()
            keys[start] = int.from_bytes(digest, "little")
            start += 1
    return keys


__all__ = ["LEFT_OUT", "found_in", "held_facts", "hold_out", "judges_of", "same_source", "shares_of"]
