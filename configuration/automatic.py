"""What `auto` chooses for a run: by the kind of task (`task_kind`) and the number of examples (`data_size`).

A choice is made once, from the training text alone, and recorded; a run that goes on takes the recorded one, so that no
later version chooses otherwise in the middle of it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from seqloom.configuration.data_size import AUTO, CLOSED_SIZES, SIZES, STRING_SIZES, settings_of, size_for
from seqloom.configuration.presets import PRESETS
from seqloom.configuration.recipe import CUT_ANEW, Recipe
from seqloom.configuration.task_kind import Looks, TaskKind, kind_of

SUBWORD_KINDS = ("bpe", "unigram")
"""Kinds of vocabulary whose size is chosen; characters and words are as many as the text has."""

MOST_SEQUENCES, LEAST_SEQUENCES, EXAMPLES_A_SEQUENCE = 256, 32, 32
"""Examples of an update of strings: as many as make 32 updates an epoch, from 32 to 256 (Wu et al. 2021 have 400)."""

MOST_TOKENS_AN_UPDATE = 5_000
"""However long the strings are: many small updates find what goes with what sooner (LOG: unseen corpora)."""

MOST_TOKENS_OF_LONG = 25_000
"""Of an update of long texts, of which it holds `LEAST_SEQUENCES` below that: as many as the sources of one of Vaswani
et al. 2017 have."""

SPREAD = 1.25
"""How many more tokens than the average a character may have in the longest texts."""

EPOCHS_WITHOUT_MUON = 1.5
"""How many times the epochs of a row that has Muon a run without it takes (LOG: strings by `auto`)."""

SHARES = {"keep": (0.2, 0.25), "new": (0.5, 0.5)}
"""By `init_vocabulary`: the share of the parent's learning rate, and of the epochs that a new model would be trained.

The rate of the usual schedule has come down to about a fifth when a training ends; with embeddings that are new it
takes more (LOG: parent and child)."""

AVERAGED, LATE = 5, 0.25
"""Checkpoints that are averaged (Vaswani et al. 2017, section 6.1), and the share of a run whose checkpoints are late
enough for it: earlier ones spoil the mean."""

OWN_ENDS = frozenset(
    {"average_by", "ema_decay", "early_stopping_patience", "load_best_model_at_end", "save_strategy"}
    | {"save_total_limit"}
)
"""Keys by which an author says how a run ends, or which checkpoints there are: nothing is averaged unasked then."""


@dataclass(frozen=True)
class Choice:
    """What `auto` stands for in one run."""

    task: str
    """What kind of task it is, and why, for the screen."""
    size: str
    """Which preset for how many examples, and why."""
    tokenizers: Sequence[str]
    """Kind of the source's and of the target's vocabulary."""
    metrics: Sequence[str]
    """Which scores."""
    settings: Mapping[str, Any]
    """Every other recipe key that is decided, and its value."""


def choose(recipe: Recipe, num_examples: int, looks: Looks) -> Choice:
    """Return what suits a training text.

    Args:
        recipe: with what is named, such as a kind of vocabulary, and what the choice has to go together with.
        num_examples: training examples.
        looks: of some of them.
    """
    kind = kind_of(looks)
    size = size_for(num_examples, kind.sizes)
    settings = settings_of(size)
    if settings.get("muon") and not _may_take_muon(recipe):
        del settings["muon"]
        settings["num_train_epochs"] *= EPOCHS_WITHOUT_MUON
    kinds = _tokenizers(recipe, kind, looks)
    subwords = set(kinds) & set(SUBWORD_KINDS)
    chosen_size = settings.pop("vocab_size", None)
    if chosen_size and subwords:  # one side's own vocabulary is smaller than that of both
        settings["vocab_size"] = chosen_size if kinds[0] == kinds[1] else max(4000, chosen_size // 2)
    tokens = looks.source.tokens(kinds[0]) + looks.target.tokens(kinds[1])
    if kind.counts_sequences:
        sequences = max(LEAST_SEQUENCES, min(MOST_SEQUENCES, num_examples // EXAMPLES_A_SEQUENCE))
        settings["tokens_per_update"] = min(MOST_TOKENS_AN_UPDATE, round(sequences * tokens))
    if "tokens_per_update" not in recipe.named:
        _fit_to_length(settings, tokens, looks.longest)
    if subwords and looks.source.is_numeric and "word" not in kinds:  # in words AH0 and I_1 are one
        settings["split_digits"] = True
    if kinds[0] == "char" and kind.reads_letters_of_syllables(looks) and "joint_vocabulary" not in recipe.named:
        settings["normalization"] = "nfd"
    settings["average_checkpoints"] = _num_averaged(recipe, settings, num_examples * tokens)
    task = f"{kind.name}, for {kind.why.format(looks=looks)}"
    return Choice(
        task, f"preset {size.preset} for {num_examples:,} examples, {size.source}", kinds, kind.scores(looks), settings
    )


def with_room(choice: Choice, num_entries: int) -> Choice:
    """Raise a chosen size of vocabulary until half of it is left for longer pieces.

    Args:
        choice: as it was made.
        num_entries: that come first, all characters of the training text among them.
    """
    size = choice.settings.get("vocab_size", Recipe.vocab_size)
    if num_entries <= size // 2:
        return choice
    return replace(choice, settings={**choice.settings, "vocab_size": math.ceil((num_entries + size // 2) / 100) * 100})


def _fit_to_length(settings: dict[str, Any], tokens: float, longest: float) -> None:
    """Let an update hold enough examples where they are long, each of them whole; the epochs become fewer by as much.

    Args:
        settings: that are changed.
        tokens: of an example, on average.
        longest: of 99 in 100 examples, as a multiple of that.
    """
    wanted = min(MOST_TOKENS_OF_LONG, max(LEAST_SEQUENCES, SPREAD * longest) * tokens)
    if (factor := wanted / settings["tokens_per_update"]) <= 1:
        return
    settings["tokens_per_update"] = round(wanted)
    settings["tokens_per_device"] = max(Recipe.tokens_per_device, round(wanted))  # for the longest that is learned from
    settings["num_train_epochs"] = max(1, round(settings["num_train_epochs"] / factor))


def _may_take_muon(recipe: Recipe) -> bool:
    """Return what was named, or whether there is neither a parent, which Muon unlearns, nor another optimizer."""
    if "muon" in recipe.named:
        return recipe.muon
    return recipe.init_from is None and "optim" not in recipe.named


def _tokenizers(recipe: Recipe, kind: TaskKind, looks: Looks) -> tuple[str, str]:
    """Return the kinds of the two vocabularies: named, or such that they go with what else is named."""
    kinds = kind.vocabularies(looks)
    if recipe.bpe_dropout and not set(recipe.tokenizers_or(kinds)) <= set(CUT_ANEW):
        kinds = "bpe", "bpe"
    elif kinds[0] != kinds[1] and recipe.joint_vocabulary and "joint_vocabulary" in recipe.named:
        kinds = ("bpe", "bpe") if "bpe" in kinds else ("char", "char")
    return recipe.tokenizers_or(kinds)


def _num_averaged(recipe: Recipe, settings: Mapping[str, Any], tokens_an_epoch: float) -> int:
    """Return how many checkpoints lie in the last part of a run, about; at most `AVERAGED`, and none where few do."""
    if recipe.named & OWN_ENDS:
        return 0
    flat = {**settings, **{key: value for key, value in recipe.flat().items() if key in recipe.named}}
    updates = flat.get("max_steps", -1)
    if updates <= 0:
        updates = flat["num_train_epochs"] * tokens_an_epoch / flat["tokens_per_update"]
        if recipe.init_from is not None and "num_train_epochs" not in recipe.named:
            updates *= SHARES[recipe.init_vocabulary][1]
    every = recipe.training_arguments.get("save_steps", 500)
    late = int(LATE * updates / (every if every >= 1 else every * updates))
    return min(AVERAGED, late) if late > 1 else 0


def choice_of_old(recorded: Recipe) -> Choice:
    """Return what an older version chose, which recorded no choice, only the recipe that came of it.

    Args:
        recorded: the recipe of its run.
    """
    owners = [
        *(each for preset in PRESETS.values() for each in (preset.model, preset.training)),
        *map(settings_of, (*SIZES, *STRING_SIZES, *CLOSED_SIZES)),
    ]
    keys = {"preset", "average_checkpoints"}.union(*owners)
    settings = {key: value for key, value in recorded.flat().items() if key in keys}
    task = "as this run was started, with an older version"
    return Choice(task, f"preset {recorded.preset}", recorded.tokenizers, recorded.metrics, settings)


def explain(choice: Choice, recipe: Recipe, fitted: Recipe) -> str:
    """Say in one line what was chosen and why; "": all was named.

    Args:
        choice: as it was made.
        recipe: before.
        fitted: after it, with its scores.
    """
    parts = []
    if AUTO in recipe.tokenizers:
        kinds = fitted.tokenizers
        parts.append(f"tokenizer {kinds[0] if kinds[0] == kinds[1] else ' -> '.join(kinds)}")
    if not recipe.metrics and fitted.metrics:
        parts.append(f"metrics {' '.join(fitted.metrics)}")
    lines = [f"{choice.task}: {', '.join(parts)}"] if parts else []
    if recipe.preset == AUTO:
        lines.append(f"{choice.size}: {', '.join(_shown(choice, fitted)) or 'all else as named'}")
    return "; ".join(lines)


def _shown(choice: Choice, fitted: Recipe) -> list[str]:
    """Return what is said of the values that nobody named."""
    texts = {
        "vocab_size": "vocabulary {:,}",
        "normalization": "Hangul read letter by letter ({})",
        "split_digits": "numbers read digit by digit",
        "dropout": "dropout {}",
        "learning_rate": "learning rate {}",
        "tokens_per_update": "{:,} tokens an update",
        "lr_scheduler_type": "{} schedule",
        "num_train_epochs": "{:g} epochs",
        "muon": "matrices learned by Muon",
        "average_checkpoints": "the last {} checkpoints averaged",
    }
    values = fitted.flat()
    hidden = fitted.named | ({"num_train_epochs"} if values.get("max_steps", -1) > 0 else frozenset())
    shown = [key for key in texts if key in choice.settings and key not in hidden and values[key]]
    return [texts[key].format(values[key]) for key in shown]


__all__ = ["SHARES", "SUBWORD_KINDS", "Choice", "choice_of_old", "choose", "explain", "with_room"]
