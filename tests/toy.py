"""The toy language of the tests: a model of a few thousand weights, and sentences it learns within seconds."""

import json
import random
from pathlib import Path
from typing import Any

import torch

TINY: dict[str, Any] = {
    "vocab_size": 40,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 64,
    "dropout": 0.0,
}
"""Every width differs from every other, so that a transposed or swapped matrix cannot go unnoticed."""

MODERN = {
    "norm_position": "pre",
    "norm_type": "rmsnorm",
    "position_embedding_type": "rotary",
    "use_gated_ffn": True,
    "activation_function": "silu",
    "num_key_value_heads": 2,
}
"""Every switch away from the paper's side."""


SMALL_RUN: dict[str, Any] = {
    "preset": "demo",
    "d_model": 16,
    "tokenizer": "char",
    "vocab_size": 300,
    "disable_tqdm": True,
}
"""Recipe keys of a run that takes a second."""


def padded(sentences: list[list[int]], side: str = "right", pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack sentences of different lengths.

    Args:
        sentences: token ids.
        side: "left" or "right".
        pad: the id that fills the gap, 0 for ids and -100 for labels.

    Returns:
        Ids and attention mask, (B, L) each.
    """
    length = max(map(len, sentences))
    rows, masks = [], []
    for sentence in sentences:
        gap, real = length - len(sentence), [1] * len(sentence)
        rows.append([pad] * gap + sentence if side == "left" else sentence + [pad] * gap)
        masks.append([0] * gap + real if side == "left" else real + [0] * gap)
    return torch.tensor(rows), torch.tensor(masks)


def toy_pairs(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Make sentences of 1 to 8 words, right-padded, whose translation is every word + 20.

    Returns:
        Source ids, attention mask and labels, (count, 9) each.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (count, 1), generator=generator)
    source = torch.randint(4, 20, (count, 9), generator=generator)
    column = torch.arange(9)[None]
    source[column == lengths] = 2
    mask = column <= lengths
    source = source.masked_fill(~mask, 0)
    return source, mask.long(), torch.where(source > 3, source + 20, source).masked_fill(~mask, -100)


def write_reversals(folder: Path, **counts: int) -> dict[str, list[str]]:
    """Write words and their reversals as line-aligned files: train=120, valid=6.

    Returns:
        Source and target file of each split, as a recipe names them.
    """
    rng = random.Random(0)
    files = {}
    for split, count in counts.items():
        words = ["".join(rng.choices("abcde", k=rng.randint(3, 9))) for _ in range(count)]
        source, target = folder / f"{split}.src", folder / f"{split}.tgt"
        source.write_text("".join(word + "\n" for word in words))
        target.write_text("".join(word[::-1] + "\n" for word in words))
        files[split] = [str(source), str(target)]
    return files


def edit(path: Path, **entries: Any) -> None:
    """Replace some entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
