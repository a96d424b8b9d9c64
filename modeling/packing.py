"""Packed sentences: the real tokens of a padded batch in one row, so that nothing is computed for padding.

A batch of B sentences, padded to length L, becomes one row of its N real tokens. Everything in a Transformer but
attention looks at one token at a time and does not notice. Attention is told where the sentences begin and end:
kernels for variable lengths read that (torch's, on a GPU, with 16-bit numbers); elsewhere each sentence is attended to
on its own, which is right and slow.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn

HAS_VARLEN = find_spec("torch.nn.attention.varlen") is not None
"""Since torch 2.10."""


def places_of(is_real: Tensor) -> Tensor:
    """Return where the real tokens stand among all places of a padded batch, sentence after sentence.

    How many there are is known only when they are counted, for which a GPU would have to be waited for, and which
    `torch.compile` cannot follow. So this is done where the batch is made.

    Args:
        is_real: (B, L), nonzero at real tokens, padding on whichever side.

    Returns:
        (N,) numbers below B * L.
    """
    return is_real.flatten().nonzero().squeeze(1)


@dataclass(frozen=True)
class Packing:
    """Where the real tokens of a padded batch stand, and where its sentences end in the packed row."""

    places: Tensor
    """(N,) of each real token among the B * L, sentence after sentence."""
    ends: Tensor
    """(B + 1,) int32: 0, then where each sentence ends, as kernels for variable lengths read it."""
    shape: tuple[int, int]
    """B and L of the padded batch."""

    @classmethod
    def of(cls, places: Tensor, attention_mask: Tensor | None, states: Tensor) -> "Packing":
        """Read a mask.

        Args:
            places: (N,) of its real tokens, `places_of(attention_mask)`.
            attention_mask: (B, L), nonzero at real tokens; None: all are real.
            states: (B, L, ...), read for shape and device only.
        """
        mask = torch.ones(states.shape[:2], device=states.device) if attention_mask is None else attention_mask
        ends = nn.functional.pad((mask != 0).sum(1).cumsum(0, dtype=torch.int32), (1, 0))
        return cls(places, ends, (states.shape[0], states.shape[1]))

    def pack(self, states: Tensor) -> Tensor:
        """(B, L, ...) -> (1, N, ...); one row that all sentences share, (1, L, ...), is repeated."""
        states = states.expand(*self.shape, *states.shape[2:])
        return states.flatten(0, 1)[self.places][None]

    def unpack(self, states: Tensor) -> Tensor:
        """(1, N, ...) -> (B, L, ...), with zeros at padding."""
        padded = states.new_zeros(self.shape[0] * self.shape[1], *states.shape[2:])
        return padded.index_copy(0, self.places, states[0]).unflatten(0, self.shape)


@dataclass(frozen=True)
class PackedMask:
    """Who may look at whom among packed sentences; stands where a padded batch has its mask."""

    queries: Packing
    """Of the tokens that ask."""
    keys: Packing
    """Of the tokens that answer; a sentence asks the sentence of the same number."""


def packed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: PackedMask, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:
    """softmax(Q K^T / sqrt(H)) V within each sentence.

    Args:
        module: the attention that asks; `is_causal`: a token sees only itself and what came before.
        query: (1, N, T, H), T tokens of all sentences.
        key: (1, G, S, H).
        value: (1, G, S, H).
        mask: where the sentences end on both sides.
        scaling: 1 / sqrt(H).
        **kwargs: `dropout`, which has to be 0.

    Returns:
        The mixed values (1, T, N, H), and no weights.

    Raises:
        ValueError: for dropout of attention weights, which kernels for variable lengths do not have.
    """
    if kwargs.get("dropout"):
        raise ValueError(
            f"attention_dropout={kwargs['dropout']} has no kernel for packed sentences; set it to 0, or do not pack."
        )
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast, rotation has widened them
    attend = _attend_in_one_kernel if has_kernel(query) else _attend_one_by_one
    return attend(module, query, key, value, mask, scaling), None


def has_kernel(query: Tensor) -> bool:
    """Return whether torch has a kernel for variable lengths here: CUDA, 16-bit numbers, torch 2.10."""
    is_narrow = query.dtype in (torch.bfloat16, torch.float16)
    return query.device.type == "cuda" and is_narrow and HAS_VARLEN


def _attend_in_one_kernel(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: PackedMask, scaling: float
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    asking, answering, values = (states[0].transpose(0, 1).contiguous() for states in (query, key, value))
    mixed = varlen_attn(  # (T, N, H)
        asking,
        answering,
        values,
        mask.queries.ends,
        mask.keys.ends,
        mask.queries.shape[1],
        mask.keys.shape[1],
        scale=scaling,
        window_size=(-1, 0) if module.is_causal else (-1, -1),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return cast("Tensor", mixed)[None]


def _attend_one_by_one(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: PackedMask, scaling: float
) -> Tensor:
    asking, answering = mask.queries.ends.diff().tolist(), mask.keys.ends.diff().tolist()
    sentences = zip(query.split(asking, dim=2), key.split(answering, dim=2), value.split(answering, dim=2), strict=True)
    mixed = [
        nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=bool(module.is_causal), scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        )
        for q, k, v in sentences
    ]
    return torch.cat(mixed, dim=2).transpose(1, 2)


__all__ = ["PackedMask", "Packing", "has_kernel", "packed_attention", "places_of"]
