"""Lists of token ids become tensors: padded, or packed end to end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

IGNORED_LABEL = -100


@dataclass(frozen=True)
class SeqloomCollator:
    """Make a micro-batch of examples.

    Padded on the right to its longest source and its longest target, the model shifts the labels to get the decoder's
    input, so there is nothing else to prepare. Packed, each side is one row, and each sentence is shifted here.
    """

    pad_token_id: int
    """Fills the source; the attention mask hides it."""
    decoder_start_token_id: int | None
    """What the decoder reads first; only packing has to know."""
    packs: bool = False
    """Lay the sentences end to end, see `modeling.packing`."""

    def __call__(self, examples: Sequence[dict[str, Sequence[int]]]) -> dict[str, Any]:
        """Return what the model takes.

        Padded: `input_ids` and `attention_mask` (B, S), and `labels` (B, T) with -100 where there is no target.
        Packed: `input_ids` and `position_ids` (1, S), `decoder_input_ids`, `decoder_position_ids` and `labels` (1, T),
        and where each sentence ends, see `modeling.packing`.
        """
        sources = [example["input_ids"] for example in examples]
        targets = [example["labels"] for example in examples if "labels" in example]
        if self.packs:
            return self._pack(sources, targets)
        batch = {
            "input_ids": pad(sources, self.pad_token_id),
            "attention_mask": pad([[1] * len(s) for s in sources], 0),
        }
        return {**batch, "labels": pad(targets, IGNORED_LABEL)} if targets else batch

    def _pack(self, sources: list[Sequence[int]], targets: list[Sequence[int]]) -> dict[str, Any]:
        assert self.decoder_start_token_id is not None, "a configuration without it cannot train at all"
        read = [[self.decoder_start_token_id, *self._readable(target)[:-1]] for target in targets]
        return {
            "input_ids": flat(sources),
            "position_ids": flat([range(len(source)) for source in sources]),
            "decoder_input_ids": flat(read),
            "decoder_position_ids": flat([range(len(target)) for target in targets]),
            "labels": flat(targets),
            "cu_seq_lens_q": ends(targets),
            "cu_seq_lens_k": ends(sources),
            "max_length_q": max(map(len, targets)),
            "max_length_k": max(map(len, sources)),
        }

    def _readable(self, target: Sequence[int]) -> list[int]:
        return [self.pad_token_id if token == IGNORED_LABEL else token for token in target]


def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Return the rows as one (rows, longest) tensor, filled up on the right with `value`."""
    padded = np.full((len(rows), max(map(len, rows))), value, dtype=np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return torch.from_numpy(padded)


def flat(rows: Sequence[Sequence[int]]) -> Tensor:
    """Return the rows end to end, (1, tokens)."""
    return torch.from_numpy(np.concatenate([np.asarray(row, dtype=np.int64) for row in rows]))[None]


def ends(rows: Sequence[Sequence[int]]) -> Tensor:
    """Return 0, then where each row ends among all tokens, (rows + 1) int32."""
    return torch.tensor([0, *np.cumsum([len(row) for row in rows])], dtype=torch.int32)
