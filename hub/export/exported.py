"""An export, loaded: the engine's words for ids, and its scores."""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch

TOKENS_PER_PASS = 2048
"""Padded tokens of a pass that scores."""


class Exported:
    """CTranslate2's translator, which speaks in names of tokens."""

    def __init__(self, folder: str | PathLike[str], names: Sequence[str], **options: Any) -> None:
        """Load an export.

        Args:
            folder: of the export.
            names: of every id.
            options: of `ctranslate2.Translator`; one batch at a time, on all of torch's threads, where none is given.
        """
        import ctranslate2

        self.translator = ctranslate2.Translator(str(folder), **{"intra_threads": torch.get_num_threads(), **options})
        self.names, self.ids = names, {name: index for index, name in enumerate(names)}

    def spell(self, sequences: Sequence[Sequence[int]]) -> list[list[str]]:
        """Return sequences of ids in the engine's words."""
        return [[self.names[index] for index in ids] for ids in sequences]

    def read(self, names: Sequence[str]) -> list[int]:
        """Return the ids of what the engine says."""
        return [self.ids[name] for name in names]

    def score(self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return the log-probability of each token of each target, of the end of sequence too, which is not given."""
        results = self.translator.score_batch(
            self.spell(sources),
            self.spell(targets),
            max_input_length=0,  # else 1,024: longer sources are cut in silence
            max_batch_size=TOKENS_PER_PASS,
            batch_type="tokens",
        )
        return [result.log_probs for result in results]


__all__ = ["Exported"]
