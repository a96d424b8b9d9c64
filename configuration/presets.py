"""Presets: named geometries, each with the training values that belong to its size.

A preset is the second layer of a recipe (defaults < preset < recipe file < command line): it says how wide and deep the
network is, and which learning rate, warm-up and update size such a network was trained with. Everything in it can be
overridden. The numbers come from the papers named in each entry; `python -m pytest tests/configuration/test_presets.py`
derives the parameter counts from the formulas of the paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from seqloom.configuration.suggestion import did_you_mean


@dataclass(frozen=True)
class Preset:
    """A named geometry."""

    name: str
    """What `--preset` calls it."""
    description: str
    """One line: what it is and where it comes from."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `SeqloomConfig` that differ from the paper's base model."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Recipe keys outside the model that belong to this size: learning_rate, warmup_steps, tokens_per_update."""


def _geometry(layers: tuple[int, int], width: int, ffn: int, heads: int, **others: Any) -> dict[str, Any]:
    """Spell one symmetric geometry in `SeqloomConfig`'s names."""
    return {
        "d_model": width,
        "encoder_layers": layers[0],
        "decoder_layers": layers[1],
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": ffn,
        "decoder_ffn_dim": ffn,
        **others,
    }


# The paper's updates hold about 25,000 source and 25,000 target tokens (section 5.1); its schedule, section 5.3,
# d_model^-0.5 * warmup^-0.5 at warm-up 4,000, peaks at 6.99e-4 for d_model 512 and at 4.94e-4 for d_model 1024.
_PAPER_BASE = {"learning_rate": 7e-4, "warmup_steps": 4000, "tokens_per_update": 50_000}
_PAPER_BIG = {"learning_rate": 5e-4, "warmup_steps": 4000, "tokens_per_update": 50_000}

_ALL = (
    Preset(
        "demo",
        "the built-in date demo: characters in, ISO dates out, well under a million weights",
        # Rotary: after 300 updates 94 % of the dates were right, with sinusoids 79 % (LOG: dates).
        _geometry((2, 2), 64, 128, 4, dropout=0.0, norm_position="pre", position_embedding_type="rotary"),
        {"learning_rate": 3e-3, "warmup_steps": 50, "tokens_per_update": 512},
    ),
    Preset(
        "tiny",
        "4+4 layers of 128: the published Transformer-tiny for Multi30k (Wu et al. 2021), made for some 30,000 pairs",
        # Published with norms behind the residuals, 5e-3 and updates four times as large. In front of them it learns
        # several times as fast: Multi30k, and COGS, of which it had none right where this had 76 % (LOG: pre-norm).
        # With rotary positions it learns faster still, strings by far (LOG: positions of strings).
        _geometry((4, 4), 128, 256, 4, dropout=0.3, norm_position="pre", position_embedding_type="rotary"),
        {"learning_rate": 3e-3, "warmup_steps": 1000, "tokens_per_update": 4096},
    ),
    Preset(
        "small",
        "3+3 layers of 256: learns from 10,000 to 300,000 examples in minutes on a CPU",
        _geometry((3, 3), 256, 1024, 4, dropout=0.1),
        {"learning_rate": 1e-3, "warmup_steps": 1000, "tokens_per_update": 8192},
    ),
    Preset(
        "medium",
        "6+6 layers of 512, narrow feed-forward, much dropout: fairseq's transformer_iwslt_de_en, for 160,000 pairs",
        # Its command: lr 5e-4, warm-up 4,000, 4,096 tokens an update, counted on the target side: twice that on both.
        # Its weight decay, 1e-4, is left out: it was made for Adam with L2, and AdamW's is another thing.
        _geometry((6, 6), 512, 1024, 4, dropout=0.3),
        {"learning_rate": 5e-4, "warmup_steps": 4000, "tokens_per_update": 8192},
    ),
    Preset("base", "6+6 layers of 512: the paper's base model (Vaswani et al. 2017)", {}, _PAPER_BASE),
    Preset(
        "big",
        "6+6 layers of 1024, 16 heads: the paper's big model, for millions of pairs and a GPU",
        _geometry((6, 6), 1024, 4096, 16, dropout=0.3),
        _PAPER_BIG,
    ),
    Preset(
        "modern",
        "the base size with today's parts: pre-norm, RMSNorm, rotary positions, SwiGLU",
        {
            # A gated feed-forward has three matrices instead of two: 2/3 of 2,048 = 1,365 keeps its size; 21 * 64.
            **_geometry((6, 6), 512, 1344, 8),
            "norm_position": "pre",
            "norm_type": "rmsnorm",
            "position_embedding_type": "rotary",
            "activation_function": "silu",
            "use_gated_ffn": True,
        },
        _PAPER_BASE,
    ),
    Preset(
        "deep-encoder-shallow-decoder",
        "12+1 layers of 512: base quality at several times the decoding speed (Kasai et al. 2021)",
        _geometry((12, 1), 512, 2048, 8),
        _PAPER_BASE,
    ),
)

PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ALL}
"""Every preset by name, smallest first."""


def get_preset(name: str) -> Preset:
    """Look a preset up by name.

    Raises:
        ValueError: if there is none of that name; the message lists them and guesses the one that was meant.
    """
    if name in PRESETS:
        return PRESETS[name]
    raise ValueError(f"preset={name!r} is unknown; {did_you_mean(name, PRESETS)}use one of {', '.join(PRESETS)}.")


__all__ = ["PRESETS", "Preset", "get_preset"]
