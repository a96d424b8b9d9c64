"""Faults of a library that several tests let happen: each bends what of it a model calls."""

from typing import Any

import pytest
from transformers.cache_utils import EncoderDecoderCache

from seqloom.modeling import modeling_seqloom


def forget_padding(patch: pytest.MonkeyPatch) -> None:
    """Let every token of a source be seen, the padding too."""
    make = modeling_seqloom.create_bidirectional_mask

    def all_seen(config: Any, embeddings: Any, mask: Any = None, *rest: Any, **keys: Any) -> Any:
        return make(config, embeddings, None, *rest, **keys)

    patch.setattr(modeling_seqloom, "create_bidirectional_mask", all_seen)


def mix_up_beams(patch: pytest.MonkeyPatch) -> None:
    """Leave every beam with the cache of another."""
    patch.setattr(EncoderDecoderCache, "reorder_cache", lambda self, beam_idx: None)
