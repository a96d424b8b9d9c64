"""`preset: auto`: which model, vocabulary, dropout and length of run suit how many training examples.

Trained on little data, a large model overfits and a large vocabulary has entries that are hardly ever seen; a small
model cannot use much data. The table below has a row for each range of sizes, with published settings. The row is
looked up when the corpus has been read; whatever the recipe or the command line names wins over it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from seqloom.configuration.presets import Preset, get_preset

AUTO = "auto"
"""The value of `preset` with which the number of training examples decides."""

SUBWORD_KINDS = ("bpe", "unigram")
"""Kinds of tokenizer for which the table chooses `vocab_size`; characters and words are as many as the text has."""


@dataclass(frozen=True)
class DataSize:
    """A range of corpus sizes, and settings with which models were trained well on data of that size."""

    below: float
    """The row is for fewer training examples than this."""
    preset: str
    """The preset to start from."""
    settings: Mapping[str, Any]
    """Recipe keys that differ from the preset and the defaults."""
    source: str
    """Where the numbers come from, in words for the screen."""


SIZES = (
    # Few examples want few merges, small updates and much dropout (Sennrich & Zhang 2019, arXiv:1905.11901; for
    # Transformers Araabi & Monz 2020, arXiv:2011.02266). Rate: the schedule of Vaswani et al., section 5.3, peaks at
    # 2.6e-3 for width 128 and the 1,200 updates that a tenth of this run has; a share, so that it fits smaller corpora.
    DataSize(
        15_000,
        "tiny",
        {
            "vocab_size": 4000,
            "tokens_per_update": 4096,
            "learning_rate": 2.5e-3,
            "warmup_steps": 0.1,
            "num_train_epochs": 200,
        },
        "little data wants a small model, vocabulary and update (Araabi & Monz 2020)",
    ),
    # Wu et al. 2021 (arXiv:2105.14462), Multi30k, 29,000 pairs: 41.0 BLEU after 150 epochs of large updates; ours, a
    # quarter as large, reached it after 46 (LOG: Multi30k).
    DataSize(
        60_000,
        "tiny",
        {"vocab_size": 10_000, "num_train_epochs": 60},
        "with a quarter of the tokens an update that were published for Multi30k's 29,000 pairs (Wu et al. 2021)",
    ),
    # fairseq's recipe for IWSLT14 German-English, 160,000 pairs: its example README trains some 50 epochs.
    DataSize(
        500_000,
        "medium",
        {"vocab_size": 10_000, "num_train_epochs": 50},
        "as fairseq trains the 160,000 pairs of IWSLT14",
    ),
    # Between the rows around it; nobody's published setting.
    DataSize(
        1_500_000,
        "base",
        {"vocab_size": 20_000, "dropout": 0.2, "num_train_epochs": 40},
        "between IWSLT and WMT: the paper's base model with more dropout",
    ),
    # Vaswani et al. 2017, WMT14 English-German, 4.5 million pairs, 37,000 entries: 100,000 updates are 20 epochs.
    DataSize(
        10_000_000,
        "base",
        {"vocab_size": 37_000, "dropout": 0.1, "num_train_epochs": 20},
        "as published for the 4.5 million pairs of WMT14 (Vaswani et al. 2017)",
    ),
    # The same, English-French, 36 million pairs, 32,000 entries, dropout 0.1: 300,000 updates are 7 epochs.
    DataSize(
        float("inf"),
        "big",
        {"vocab_size": 32_000, "dropout": 0.1, "num_train_epochs": 7},
        "as published for 36 million pairs (Vaswani et al. 2017)",
    ),
)
"""Smallest first."""


def size_for(num_examples: int) -> DataSize:
    """Return the row for a corpus of this many training examples."""
    return next(size for size in SIZES if num_examples < size.below)


def settings_for(num_examples: int, *, tokenizer: str) -> dict[str, Any]:
    """Return every recipe key that the size of the data decides, `preset` first.

    Args:
        num_examples: training examples, counted after reading.
        tokenizer: kind of vocabulary; only for subwords `vocab_size` is chosen.
    """
    size = size_for(num_examples)
    preset = get_preset(size.preset)
    settings = {"preset": size.preset, **preset.model, **preset.training, **size.settings}
    if tokenizer not in SUBWORD_KINDS:
        del settings["vocab_size"]
    return settings


def explain_choice(num_examples: int, values: Mapping[str, Any], named: frozenset[str]) -> str:
    """Say in one line what was chosen for how many examples, and why.

    Args:
        num_examples: training examples.
        values: every key of the fitted recipe.
        named: keys that the recipe's author named; the line leaves them out.
    """
    size = size_for(num_examples)
    shown = {
        "vocab_size": "vocabulary {:,}",
        "dropout": "dropout {}",
        "learning_rate": "learning rate {}",
        "tokens_per_update": "{:,} tokens an update",
        "num_train_epochs": "{:g} epochs",
    }
    hidden = named | ({"num_train_epochs"} if values.get("max_steps", -1) > 0 else frozenset())
    hidden |= frozenset() if values["tokenizer"] in SUBWORD_KINDS else {"vocab_size"}
    chosen = [text.format(values[key]) for key, text in shown.items() if key not in hidden]
    what = ", ".join(chosen) or "all else as named"
    return f"preset {size.preset} for {num_examples:,} examples, {size.source}: {what}"


def starting_preset(name: str) -> Preset:
    """Return the preset of this name; for `auto` a small one.

    It stands in until the data has been read and decides, so that a model that cannot be built is refused before.

    Raises:
        ValueError: for an unknown name.
    """
    return get_preset("small" if name == AUTO else name)


__all__ = ["AUTO", "SIZES", "DataSize", "explain_choice", "settings_for", "size_for", "starting_preset"]
