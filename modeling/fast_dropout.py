"""Dropout that does not wait for random numbers.

On a CPU torch draws one random number for each element, which in a small Transformer takes a tenth of the training
time. Sixteen bits decide as well: four elements share a draw of 64, and the probability is met to 1/65,536. GPUs and
compiled graphs have fused kernels of their own and keep them.
"""

import torch
from torch import Tensor, nn

STEPS = 1 << 16
"""Numbers that 16 bits hold."""


def dropout(hidden_states: Tensor, probability: float, training: bool) -> Tensor:
    """Set elements to zero with this probability and scale up the others, so that the expectation stays.

    Args:
        hidden_states: any shape.
        probability: 0 to 1.
        training: off, nothing happens.

    Returns:
        The same shape and type.
    """
    if not training or not 0 < probability < 1 or hidden_states.device.type != "cpu" or torch.compiler.is_compiling():
        return nn.functional.dropout(hidden_states, probability, training)
    dropped = round(probability * STEPS)  # of the 16-bit numbers, those that mean zero
    return hidden_states * keep_mask(hidden_states, dropped).mul_(STEPS / max(1, STEPS - dropped))


def keep_mask(like: Tensor, dropped: int) -> Tensor:
    """Return 1 where a random 16-bit number is none of the `dropped` lowest, else 0."""
    count = like.numel()
    numbers = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(1 << 63), None).view(torch.int16)
    return (numbers[:count].view(like.shape) >= dropped - STEPS // 2).to(like.dtype)
