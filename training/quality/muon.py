"""Muon for the layers' matrices, and the run's own optimizer for all else.

Adam scales each number of a gradient by itself. Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) takes a
matrix as a whole: it keeps a momentum M = U S V' and moves the weights along U V', as far in the directions that few
examples ask for as in those that all ask for. The step is as large as Adam's usually are (Liu et al. 2025,
arXiv:2502.16982, equation 4), so that one learning rate serves both.

Embeddings, which are looked up and not multiplied, the LM head, norms and biases stay with the other optimizer.

torch.optim.Muon, since torch 2.9, always multiplies in bf16: on a processor without bf16 one step of `tiny` takes it a
second and this one 0.08 (LOG: Muon).
"""

from collections import defaultdict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

MOMENTUM = 0.95
"""Share of the momentum that a step keeps, as published."""

COEFFICIENTS, STEPS = (3.4445, -4.7750, 2.0315), 5
"""Of x, x x' x and x x' x x' x in each Newton-Schulz step, as published: singular values end between 0.7 and 1.2."""

SIZE = 0.2
"""Root mean square of a step's numbers, as a share of the learning rate."""


class Muon(Optimizer):
    """Learns matrices (out, in) by the momentum of their gradients, its singular values evened out."""

    def __init__(self, matrices: list[Tensor], *, lr: float, weight_decay: float, dtype: torch.dtype) -> None:
        """Take the matrices.

        Args:
            matrices: (out, in) each.
            lr: learning rate, of Adam's scale.
            weight_decay: share of the weights times `lr` that a step takes off, as in AdamW.
            dtype: in which singular values are evened out; bf16 where it is fast.
        """
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient; those of one shape together."""
        for group in self.param_groups:
            alike: dict[torch.Size, dict[Tensor, Tensor]] = defaultdict(dict)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[matrix.shape][matrix] = self._direction(matrix, matrix.grad)
            for shape, directions in alike.items():
                evened = evened_out(torch.stack(list(directions.values())), self._dtype)
                for matrix, direction in zip(directions, evened, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.add_(direction, alpha=-group["lr"] * SIZE * max(shape) ** 0.5)

    def _direction(self, matrix: Tensor, gradient: Tensor) -> Tensor:
        """Take a gradient into the momentum, and return that as one more gradient like it would leave it (Nesterov)."""
        state = self.state[matrix]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(matrix)
        momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(momentum, MOMENTUM)


class WithMuon(Optimizer):
    """Two optimizers that look like one to schedules, checkpoints and accelerate.

    The first group of `param_groups` is Muon's. State and groups are held here, and lent to the two at each step, for
    loading a checkpoint puts others in their place.
    """

    def __init__(self, other: Optimizer, matrices: set[Tensor], dtype: torch.dtype = torch.float32) -> None:
        """Take the matrices away from an optimizer that has not made a step yet.

        Args:
            other: what learns all parameters so far; the group of the matrices says their rate and weight decay.
            matrices: (out, in) each; those that `other` does not know are frozen, and stay so.
            dtype: see `Muon`.
        """
        group, *_ = [group for group in other.param_groups if not matrices.isdisjoint(group["params"])]
        chosen = [each for each in group["params"] if each in matrices]
        group["params"] = [each for each in group["params"] if each not in matrices]
        self._muon = Muon(chosen, lr=group["lr"], weight_decay=group["weight_decay"], dtype=dtype)
        self._other = other
        super().__init__([*self._muon.param_groups, *filter(lambda group: group["params"], other.param_groups)], {})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move all parameters once."""
        for optimizer, groups in ((self._muon, self.param_groups[:1]), (self._other, self.param_groups[1:])):
            optimizer.param_groups, optimizer.state = groups, self.state
            optimizer.step()


def matrices_of(model: PreTrainedModel) -> set[Tensor]:
    """Return the weights (out, in) of a model's linear maps, but for the LM head, which may be the embedding, too."""
    head = model.get_output_embeddings()
    linear = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
    return {module.weight for module in linear}


def evened_out(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Return U V' of each matrix U S V', roughly.

    Args:
        matrices: (N, out, in).
        dtype: in which they are multiplied.

    Returns:
        (N, out, in), singular values between 0.7 and 1.2 where they were no less than a hundredth of the norm.
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if is_tall else matrices).to(dtype)
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    first, third, fifth = COEFFICIENTS
    for _ in range(STEPS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=third, alpha=fifth), x, beta=first)
    return (x.mT if is_tall else x).to(matrices.dtype)
