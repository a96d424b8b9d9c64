"""Sequences of ids that a model computes together.

B sequences    S the longest of them
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor


def plan_batches(lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Group positions into batches of near-equal length, longest first.

    Padding then costs little, and what does not fit in memory shows at once.

    Args:
        lengths: tokens of each sequence.
        tokens_per_batch: most padded tokens (sequences x longest) of a batch; a longer sequence stands alone.
    """
    batches: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda position: -lengths[position]):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= tokens_per_batch:
            batches[-1].append(position)
        else:
            batches.append([position])
    return batches


def padded(
    sequences: Sequence[Sequence[int]], pad: int | None, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Return `input_ids` (B, S), padded on the right, and their `attention_mask`; no padding token: 0."""
    longest = max(map(len, sequences))
    ids = torch.tensor([[*sequence, *[pad or 0] * (longest - len(sequence))] for sequence in sequences])
    mask = torch.arange(longest) < torch.tensor([[len(sequence)] for sequence in sequences])
    return {"input_ids": ids.to(device), "attention_mask": mask.long().to(device)}


def before_end(ids: Sequence[int], ends: Collection[int]) -> list[int]:
    """Return what stands before the first end of sequence; all, where there is none."""
    first = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return list(ids[:first])


__all__ = ["before_end", "padded", "plan_batches"]
