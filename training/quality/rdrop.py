"""R-Drop: the same sentences twice through dropout, and the two answers must agree.

Liang et al. 2021, arXiv:2106.14448, equation 4. Dropout makes of one network many; trained only on the targets, they
may disagree with each other, and the one without dropout that decodes has never been trained. With P1 and P2 the
distributions of the two passes, the loss of a target y is

    1/2 * [ -log P1(y) - log P2(y) + alpha * 1/2 * (KL(P1 || P2) + KL(P2 || P1)) ]

with label smoothing in the log terms. The 1/2 in front is ours: the loss then reads as it does without R-Drop, and
`max_grad_norm` means the same. `alpha` is the paper's.
"""

from typing import Any

import torch
from torch import Tensor

from seqloom.training.collator import IGNORED_LABEL


def twice(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return a batch with every sentence twice, all and all again; dropout falls differently on the two halves."""
    dim = 1 if "cu_seq_lens_q" in inputs else 0  # packed sentences stand in one row
    return {name: _again(name, value, dim) for name, value in inputs.items()}


def _again(name: str, value: Any, dim: int) -> Any:
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    if name.startswith("cu_seq_lens"):
        return torch.cat([value, value[1:] + value[-1]])  # the second half stands behind the first
    return torch.cat([value, value], dim=dim)


def disagreement(logits: Tensor, labels: Tensor) -> Tensor:
    """Return how far the two passes are apart: 1/2 (KL(P1 || P2) + KL(P2 || P1)), summed over real targets.

    Args:
        logits: (B + B, T, V), the first pass and then the second; packed (1, T + T, V).
        labels: (B, T), -100 where there is no target; packed (1, T).

    Returns:
        A scalar in float32 or wider, not divided by anything.
    """
    is_target = labels.flatten() != IGNORED_LABEL
    first, second = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1).chunk(2)
    log_p1, log_p2 = first[is_target].log_softmax(-1), second[is_target].log_softmax(-1)  # (targets, V)
    # KL(P1 || P2) + KL(P2 || P1) = sum (P1 - P2) (log P1 - log P2); gradients flow into both, as in the authors' code
    return ((log_p1.exp() - log_p2.exp()) * (log_p1 - log_p2)).sum() / 2
