"""`preset: auto`: which model, size of vocabulary, dropout and length of run suit how many training examples.

Trained on little data, a large model overfits and a large vocabulary has entries that are hardly ever seen; a small
model cannot use much data. The tables below have a row for each range of sizes, with published settings; which table,
and what else a corpus decides, `task_kind` and `automatic` say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from seqloom.configuration.presets import Preset, get_preset

AUTO: Final = "auto"
"""The value of `preset`, `tokenizer` and `metrics` with which the training text decides."""


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


# Short strings teach far less each than sentences. Wu et al. 2021 (arXiv:2005.10213) train them 20,000 updates of 400
# with 4+4 layers of 256 and dropout 0.3; what a core reaches with less: (LOG: kinds of task). Pre-norm and rotary
# positions throughout, with which small models learn several times as fast (LOG: positions of strings, Chinese). With
# Muon half to two thirds of the epochs reach the same end, or a better one (LOG: Muon, whole runs, strings by `auto`).
_FAST = {"norm_position": "pre", "position_embedding_type": "rotary"}
_FALLING = {"lr_scheduler_type": "cosine"}
_FEW = {**_FALLING, "learning_rate": 2.5e-3, "warmup_steps": 0.1}
_WHY_FEW = "few strings want a small model, and many epochs of updates as large as those of Wu et al. 2021"

STRING_SIZES = (
    # Updates of so few strings take less time than a step of Muon.
    DataSize(
        4_000,
        "tiny",
        {**_FEW, "num_train_epochs": 200},
        _WHY_FEW,
    ),
    DataSize(
        15_000,
        "tiny",
        {**_FEW, "muon": True, "num_train_epochs": 100},
        _WHY_FEW,
    ),
    DataSize(
        60_000,
        "tiny",
        {**_FALLING, "muon": True, "num_train_epochs": 40},
        "strings want a small model, and updates as large as those of Wu et al. 2021",
    ),
    # 3 layers of 256, as g2p-seq2seq took for CMUdict's 107,000 words; our recipe of that name.
    DataSize(
        1_500_000,
        "small",
        {**_FAST, **_FALLING, "muon": True, "learning_rate": 1.5e-3, "dropout": 0.2, "num_train_epochs": 20},
        "3 layers of 256, as published for CMUdict's 107,000 words",
    ),
    # Nobody's published setting: the same model, for which so many strings are no longer little data.
    DataSize(
        float("inf"),
        "small",
        {**_FAST, **_FALLING, "num_train_epochs": 10},
        "so many strings need no more than a small model",
    ),
)
"""The same for words, names, dates and formulas, counted in examples."""


CLOSED_SIZES = (
    *SIZES[:2],
    # Labels, tags and commands want no larger model than strings do: tiny has all of SCAN right and 99.3 of COGS. An
    # epoch of them is short, and so is the run.
    *(
        replace(size, settings={**size.settings, "vocab_size": 10_000, "warmup_steps": 0.1})
        for size in STRING_SIZES[3:]
    ),
)
"""The same for targets of a closed set of words."""


def size_for(num_examples: int, sizes: Sequence[DataSize] = SIZES) -> DataSize:
    """Return the row for a corpus of this many training examples."""
    return next(size for size in sizes if num_examples < size.below)


def settings_of(size: DataSize) -> dict[str, Any]:
    """Return every recipe key that a row decides, `preset` first."""
    preset = get_preset(size.preset)
    return {"preset": size.preset, **preset.model, **preset.training, **size.settings}


def starting_preset(name: str) -> Preset:
    """Return the preset of this name; for `auto` a small one.

    It stands in until the data has been read and decides, so that a model that cannot be built is refused before.

    Raises:
        ValueError: for an unknown name.
    """
    return get_preset("small" if name == AUTO else name)


__all__ = ["AUTO", "CLOSED_SIZES", "SIZES", "STRING_SIZES", "DataSize", "settings_of", "size_for", "starting_preset"]
