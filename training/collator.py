"""Lists of token ids become padded tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from seqloom.modeling.modeling_seqloom import is_up_to_last_target
from seqloom.modeling.packing import places_of

IGNORED_LABEL = -100


@dataclass(frozen=True)
class SeqloomCollator:
    """Pad a micro-batch on the right to its longest source and its longest target.

    The model shifts the labels to get the decoder's input, so there is nothing else to prepare.
    """

    pad_token_id: int
    """Fills the source; the attention mask hides it."""
    packs: bool = False
    """Also say where the real tokens stand, so that the model packs them."""

    def __call__(self, examples: Sequence[dict[str, Sequence[int]]]) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask` (B, S), and `labels` (B, T) with -100 where there is no target.

        A collator that `packs` adds `source_places` (N,) and `target_places` (M,), see `modeling.packing`.
        """
        sources = [example["input_ids"] for example in examples]
        batch = {
            "input_ids": pad(sources, self.pad_token_id),
            "attention_mask": pad([[1] * len(s) for s in sources], 0),
        }
        if "labels" in examples[0]:
            batch["labels"] = pad([example["labels"] for example in examples], IGNORED_LABEL)
        if self.packs:
            batch["source_places"] = places_of(batch["attention_mask"])
            batch["target_places"] = places_of(is_up_to_last_target(batch["labels"]))
        return batch


def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Return the rows as one (rows, longest) tensor, filled up on the right with `value`."""
    padded = np.full((len(rows), max(map(len, rows))), value, dtype=np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return torch.from_numpy(padded)
