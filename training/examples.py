"""Examples: which columns the model reads, how long they are, and in which order they are decoded."""

from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

MODEL_COLUMNS = ("input_ids", "labels")
"""Source and target ids; what else a row holds is for people and metrics."""


def lengths_of(dataset: Dataset) -> np.ndarray:
    """Return (examples, 2) source and target lengths in tokens, read from the Arrow offsets without loading the ids."""
    return np.stack([_list_lengths(dataset, column) for column in MODEL_COLUMNS], axis=1)


def _list_lengths(dataset: Dataset, column: str) -> np.ndarray:
    flat = dataset.flatten_indices() if dataset._indices is not None else dataset
    return pc.list_value_length(flat.data.column(column)).to_numpy().astype(np.int32)


def weights_of(dataset: Dataset) -> np.ndarray | None:
    """Return (examples,) how often an epoch holds each; None: once."""
    if "weight" not in dataset.column_names:
        return None
    flat = dataset.flatten_indices() if dataset._indices is not None else dataset
    return pc.cast(flat.data.column("weight"), "double").to_numpy()


def longest_first(dataset: Dataset) -> Dataset:
    """Return the set sorted by source length, with each row's `position`: less padding, and memory runs out early."""
    order = np.argsort(-lengths_of(dataset)[:, 0], kind="stable")
    return dataset.add_column("position", np.arange(len(dataset))).select(order)


def in_original_order(outputs: Sequence[str], positions: Sequence[int]) -> list[str]:
    """Undo `longest_first` for what the model wrote."""
    return [output for _, output in sorted(zip(positions, outputs, strict=True), key=lambda pair: pair[0])]
