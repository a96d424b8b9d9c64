"""The LM head and the label-smoothed loss in one step, so that no [tokens, vocabulary] matrix is kept.

For training, logits are a detour: 8,000 targets x 10,000 words are 320 MB in float32, and their gradient as much again.
Here a few rows of logits are made, turned into their loss and into their gradient, and forgotten. The gradients of
hidden states and weights are ready when the forward pass ends, for the gradient of cross entropy is known in closed
form: with p = softmax(z),

    loss   = logsumexp(z) - (1 - epsilon) * z[label] - epsilon * mean(z)
    d loss / d z = p - (1 - epsilon) * onehot(label) - epsilon / V

torch's `linear_cross_entropy` does the same only without label smoothing. Liger's kernel, which needs a GPU, had the
idea first: https://arxiv.org/abs/2410.10989
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CPU_ROWS = 128
"""Targets at a time on a CPU: their logits should fit its cache, and each block costs a pass over the LM head."""
GPU_LOGITS = 1 << 26
"""Logits at a time on a GPU, 256 MB: it wants large products."""


def linear_cross_entropy(hidden_states: Tensor, weight: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the summed, label-smoothed cross entropy of `hidden_states @ weight.T`.

    Under autocast the products are made in its type; losses and sums are float32 or wider. It can be differentiated
    once.

    Args:
        hidden_states: (..., D) what the LM head reads.
        weight: (V, D) of the LM head.
        labels: (...) ids; -100 where there is nothing to predict.
        label_smoothing: epsilon.

    Returns:
        The sum over all targets, a scalar; what it is divided by is the caller's.
    """
    hidden_states, labels = hidden_states.flatten(0, -2), labels.flatten().to(hidden_states.device)
    is_target = labels != -100
    if not torch.compiler.is_compiling():  # a compiled graph has fixed shapes: there the others are masked
        hidden_states, labels, is_target = (x[is_target] for x in (hidden_states, labels, is_target))
    device = hidden_states.device.type
    if torch.is_autocast_enabled(device):
        narrow = torch.get_autocast_dtype(device)
        hidden_states, weight = hidden_states.to(narrow), weight.to(narrow)
    with torch.autocast(device, enabled=False):
        return _LinearCrossEntropy.apply(
            hidden_states, weight, labels, is_target, label_smoothing, torch.is_grad_enabled()
        )


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of losses; the gradients are made on the way and wait for `backward`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: Tensor,
        weight: Tensor,
        labels: Tensor,
        is_target: Tensor,
        label_smoothing: float,
        needs_gradient: bool,
    ) -> Tensor:
        """(N, D), (V, D), (N), (N) -> scalar."""
        wide = torch.promote_types(hidden_states.dtype, torch.float32)
        total = hidden_states.new_zeros((), dtype=wide)
        is_target, label_ids = is_target[:, None], labels.clamp(min=0)[:, None]  # (N, 1)
        # epsilon * mean(z) needs no pass over logits: it is the score of the mean word, and its gradient is uniform
        mean_word = label_smoothing * weight.to(wide).mean(0)  # (D)
        uniform = -label_smoothing / weight.shape[0] * (hidden_states * is_target).sum(0, dtype=wide)  # (D)
        grad_hidden, grad_weight = torch.empty_like(hidden_states), uniform.repeat(weight.shape[0], 1)
        blocks = (x.split(rows_at_a_time(weight)) for x in (hidden_states, label_ids, is_target, grad_hidden))
        for hidden, label_id, is_real, grad_block in zip(*blocks, strict=True):
            logits = (hidden @ weight.T).to(wide)  # (rows, V)
            probs = logits.softmax(-1)
            log_norm = logits.amax(-1, keepdim=True) - probs.amax(-1, keepdim=True).log()  # logsumexp, (rows, 1)
            hit = (1 - label_smoothing) * logits.gather(1, label_id) + (hidden.to(wide) @ mean_word)[:, None]
            total += ((log_norm - hit) * is_real).sum()
            if needs_gradient:
                grad = probs.scatter_add_(1, label_id, torch.full_like(hit, label_smoothing - 1)).to(hidden.dtype)
                grad_block.copy_((grad @ weight - mean_word) * is_real)
                _add_product(grad_weight, grad.T, hidden * is_real)
        if needs_gradient:
            ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients that `forward` has made."""
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_output, grad_weight * grad_output, None, None, None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left @ right` to `total`, which may be wider than they are."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def rows_at_a_time(weight: Tensor) -> int:
    """Return how many rows of logits are made at a time for an LM head (V, D)."""
    return CPU_ROWS if weight.device.type == "cpu" else max(1, GPU_LOGITS // weight.shape[0])
