"""Packed sentences: a micro-batch laid flat, one row without padding, so that nothing is computed for padding.

Everything in a Transformer but attention looks at one token at a time, and does not notice. So the collator lays the
sentences end to end, ids (1, S), and numbers each from 0 in `position_ids`; where they end travels in the keywords that
transformers has for it, the target's in `cu_seq_lens_q` and the source's in `cu_seq_lens_k`, since cross attention asks
from the one and is answered by the other. What reads them is an attention kernel of that name in transformers'
registry: torch's for variable lengths on a GPU, with 16-bit numbers; elsewhere each sentence is attended to on its own,
which is right and slow. A padded batch is attended to as by "sdpa", for a model is scored on those.

    B sentences    S source tokens of all of them    T target tokens of all    N query heads    G key/value heads
"""

from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from seqloom.modeling.modeling_seqloom import PACKED

HAS_VARLEN = find_spec("torch.nn.attention.varlen") is not None
"""Since torch 2.10."""


def attend_to_packed(model: Any) -> None:
    """Let a model read packed batches, and padded ones as before."""
    AttentionInterface.register(PACKED, packed_attention_forward)
    AttentionMaskInterface.register(PACKED, packed_mask)
    model.set_attn_implementation(PACKED)


def packed_mask(q_length: int, kv_length: int, *, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """Return no mask for a row without padding and without a past; else the one of "sdpa".

    Args:
        q_length: tokens that ask.
        kv_length: tokens that answer.
        attention_mask: (B, kv_length), 0 at padding.
        **kwargs: as transformers hands them to every mask function.
    """
    if attention_mask is None and q_length == kv_length:
        return None
    sdpa_mask = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
    return sdpa_mask(q_length=q_length, kv_length=kv_length, attention_mask=attention_mask, **kwargs)


def packed_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """softmax(Q K^T / sqrt(H)) V within each sentence.

    Args:
        module: the attention that asks; `is_causal`: a token sees only itself and what came before.
        query: (1, N, S or T, H), the tokens of all sentences.
        key: (1, G, S or T, H).
        value: as `key`.
        attention_mask: None; a padded batch may have one.
        scaling: 1 / sqrt(H).
        dropout: has to be 0.
        cu_seq_lens_q: (B + 1) int32: 0, then where each target ends; None: a padded batch.
        cu_seq_lens_k: (B + 1) int32 of the sources.
        max_length_q: tokens of the longest target.
        max_length_k: tokens of the longest source.
        **kwargs: not read.

    Returns:
        The mixed values (1, S or T, N, H), and no weights.

    Raises:
        ValueError: for dropout of attention weights, which kernels for variable lengths do not have.
    """
    if cu_seq_lens_q is None:
        attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return attend(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
    if dropout:
        raise ValueError(
            f"attention_dropout={dropout} has no kernel for packed sentences; set it to 0, or do not pack."
        )
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast, rotation has widened them
    target, source = (cu_seq_lens_q, max_length_q), (cu_seq_lens_k, max_length_k)
    asking = target if module.is_causal or module.is_cross_attention else source
    answering = target if module.is_causal else source
    kernel = _attend_in_one_kernel if has_kernel(query) else _attend_one_by_one
    return kernel(module, query, key, value, asking, answering, scaling), None


def has_kernel(query: Tensor) -> bool:
    """Return whether torch has a kernel for variable lengths here: CUDA, 16-bit numbers, torch 2.10."""
    is_narrow = query.dtype in (torch.bfloat16, torch.float16)
    return query.device.type == "cuda" and is_narrow and HAS_VARLEN


def _attend_in_one_kernel(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, asking: Any, answering: Any, scaling: float
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    (ends, longest), (key_ends, longest_key) = asking, answering
    queries, keys, values = (states[0].transpose(0, 1).contiguous() for states in (query, key, value))
    mixed = varlen_attn(  # (T, N, H)
        queries,
        keys,
        values,
        ends,
        key_ends,
        longest,
        longest_key,
        scale=scaling,
        window_size=(-1, 0) if module.is_causal else (-1, -1),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return cast("Tensor", mixed)[None]


def _attend_one_by_one(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, asking: Any, answering: Any, scaling: float
) -> Tensor:
    lengths, key_lengths = (ends.diff().tolist() for ends, _ in (asking, answering))
    sentences = zip(query.split(lengths, 2), key.split(key_lengths, 2), value.split(key_lengths, 2), strict=True)
    mixed = [
        nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=bool(module.is_causal), scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        )
        for q, k, v in sentences
    ]
    return torch.cat(mixed, dim=2).transpose(1, 2)
