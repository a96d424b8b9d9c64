"""A training that begins with the weights of another: `init_from`.

    parent's folder --> shape, vocabulary, learning rate --> what the recipe does not name
                    |
                    +-> weights --> the model: all but the embeddings as they are, those by their pieces

With the parent's vocabulary this is fine-tuning; with one of its own the new model is a child (Zoph et al. 2016,
arXiv:1604.02201; Kocmi & Bojar 2018, arXiv:1809.00357): pieces that both have keep their embeddings, others begin as in
any new model. What was taken over is kept in `run/parent.json`, so a run that goes on does not need the parent again.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from seqloom.configuration.automatic import SHARES, Choice
from seqloom.configuration.data_size import AUTO
from seqloom.configuration.presets import get_preset
from seqloom.configuration.recipe import SIDES, Recipe, RecipeError
from seqloom.configuration.recipe_keys import model_keys, shown
from seqloom.configuration.recipe_layers import fit_recipe, resolve_recipe, with_values
from seqloom.hub.dangers import check_folder
from seqloom.hub.files import read_object, sha256_of
from seqloom.hub.loading import load_folder
from seqloom.hub.model_card import weights_sha256
from seqloom.hub.tags import SETTINGS_KEY
from seqloom.modeling.modeling_seqloom import SeqloomForConditionalGeneration
from seqloom.training.tokenizer import SOURCE_MARKER, TARGET_MARKER, SeqloomTokenizers

FREE = frozenset({"dropout", "attention_dropout", "activation_dropout", "init_std"})
"""Fields of a model's configuration that its weights do not depend on."""

VOCABULARY = ("normalization", "joint_vocabulary")
"""Recipe keys that a tokenizer remembers of its own making, besides its size."""

LEARNING_VOCABULARY = ("character_coverage", "min_frequency", "split_digits")
"""Those that say how a vocabulary is learned, and nothing of one that is there."""

WARM_UP = 0.1
"""Share of the run: it may have fewer updates than a new model's warm-up."""

_EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True)
class Parent:
    """What a run has to know of the folder that it begins with."""

    folder: str
    """As the recipe names it."""
    name: str
    """For the card: its name on the Hub, or the folder's."""
    is_on_hub: bool
    """Whether `name` is one on the Hub."""
    weights: str
    """Their SHA-256, as a card says it."""
    sha256: dict[str, str]
    """Of the files with weights and vocabulary, by name."""
    model: dict[str, Any]
    """Fields of `SeqloomConfig` that a recipe may set."""
    vocabulary: dict[str, Any]
    """Recipe keys that describe its vocabulary, by key."""
    learning_rate: float
    """The highest of its training; unknown: that of the paper for its width."""
    rope_parameters: dict[str, Any] | None = None
    """Of rotary positions."""
    num_known: int = 0
    """Entries of the new model's vocabulary whose embeddings are the parent's."""
    num_new: int = 0
    """The others."""

    @property
    def tokenizers(self) -> tuple[str, str]:
        """The kinds of the source's and of the target's vocabulary."""
        source, target = (self.vocabulary[side] for side in SIDES)
        return source, target

    def describe_embeddings(self) -> str:
        """Say how many embeddings were taken over."""
        if not self.num_new:
            return f"all {self.num_known:,} embeddings are the parent's"
        return f"{self.num_known:,} pieces keep the parent's embeddings, {self.num_new:,} begin as in a new model"


RECORD = "parent.json"
"""The record of a run that holds a `Parent`."""


def recorded_parent(records: Path) -> Parent | None:
    """Return what a run has kept of the folder that it began with; None: it began with random weights.

    Args:
        records: the `run/` of its folder.
    """
    record = read_object(records / RECORD)
    return Parent(**record) if record else None


def is_changed(parent: Parent) -> bool:
    """Whether the folder holds other weights, or another vocabulary, than it did; one that is gone has not changed."""
    folder = Path(parent.folder).expanduser()
    return any((folder / name).is_file() and sha256_of(folder / name) != was for name, was in parent.sha256.items())


def read_parent(name: str) -> Parent:
    """Look at a folder without loading its weights.

    Args:
        name: a finished folder, or a checkpoint in one.

    Raises:
        RecipeError: for a folder that is none of ours.
        FolderError: for one that is dangerous to open.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise RecipeError(
            f"init_from={name} is no folder; name the --output of a finished run, or a checkpoint-N in it. One on the "
            f"Hub is fetched first: hf download OWNER/NAME --local-dir DIR."
        )
    check_folder(folder)
    config = read_object(folder / "config.json") or {}
    if config.get("model_type") != "seqloom":
        raise RecipeError(
            f"init_from={name} holds a model of type {config.get('model_type')!r}, and weights of another network do "
            f"not fit this one; name a folder that seqloom train wrote."
        )
    recipe = None
    with suppress(ValueError):  # of another release: what it says is a help, no need
        recipe = recipe_of(folder)
    on_hub = recipe.training_arguments.get("hub_model_id") if recipe else None
    known = recipe.training_arguments.get("learning_rate") if recipe else None
    width = config["d_model"]
    files = [*sorted(folder.glob("*.safetensors")), *sorted(folder.rglob("tokenizer.json"))]
    files = [file for file in files if file.parent == folder or file.parent == folder / "target"]
    return Parent(
        folder=name,
        name=on_hub or folder.resolve().name,
        is_on_hub=on_hub is not None,
        weights=weights_sha256(folder),
        sha256={file.relative_to(folder).as_posix(): sha256_of(file) for file in files},
        model={key.name: config[key.name] for key in model_keys() if key.name in config},
        vocabulary=_vocabulary_of(SeqloomTokenizers.load(folder)),
        learning_rate=known or width**-0.5 * 4000**-0.5,  # section 5.3 of the paper, at its peak
        rope_parameters=config.get("rope_parameters"),
    )


def recipe_of(folder: str | PathLike[str]) -> Recipe | None:
    """Return the recipe of the run that made a folder, or in which a checkpoint lies; None: it is not known."""
    file = records_of(folder) / "recipe.yaml"
    return resolve_recipe(file) if file.is_file() else None


def records_of(folder: str | PathLike[str]) -> Path:
    """Return where the records of a folder's run lie, if it has one."""
    path = Path(folder)
    return (path.resolve().parent if path.name.startswith("checkpoint-") else path) / "run"


def _vocabulary_of(tokenizers: SeqloomTokenizers) -> dict[str, Any]:
    made = tokenizers.settings
    both = tokenizers.source, tokenizers.target
    kinds = {side: each.init_kwargs[SETTINGS_KEY]["kind"] for side, each in zip(SIDES, both, strict=True)}
    kinds |= {"normalization": made["normalization"], "joint_vocabulary": made["joint"]}
    return {**kinds, "vocab_size": tokenizers.vocab_size - len(tokenizers.tags)}


# The recipe ----------------------------------------------------------------------------------------------------------


def fit_to_parent(recipe: Recipe, choice: Choice, parent: Parent | None) -> tuple[Recipe, str]:
    """Put into a recipe what the training text and its parent suggest.

    Args:
        recipe: as `resolve_recipe` left it.
        choice: what the training text decides.
        parent: what it begins with; None: random weights.

    Returns:
        The recipe, and a line on what comes from the parent; "" without one.
    """
    fitted = fit_recipe(recipe, choice)
    if parent is None:
        return fitted, ""
    rate, length = SHARES[recipe.init_vocabulary]
    suggested = {
        **parent.model,
        **dict(zip(SIDES, recipe.tokenizers_or(parent.tokenizers), strict=True)),
        **{key: parent.vocabulary[key] for key in VOCABULARY},
        **({"vocab_size": parent.vocabulary["vocab_size"]} if recipe.init_vocabulary == "keep" else {}),
        "learning_rate": float(f"{parent.learning_rate * rate:.2g}"),
        "warmup_steps": WARM_UP,
        "num_train_epochs": max(1, round(fitted.training_arguments["num_train_epochs"] * length)),
    }
    fitted = with_values(fitted, suggested)
    return fitted, _describe(fitted, parent)


def refuse_misfit(recipe: Recipe, parent: Parent) -> None:
    """Refuse what a recipe names and the weights, or the vocabulary that is kept, do not have.

    Raises:
        RecipeError: with the key, the parent's value and the remedy.
    """
    fixed = {key: value for key, value in parent.model.items() if key not in FREE}
    if fixed.get("position_embedding_type") != "learned":
        fixed.pop("max_position_embeddings", None)
    wanted = recipe.flat()
    defaults = {key.name: key.default for key in model_keys()}
    for key, value in fixed.items():
        if key in recipe.named and wanted.get(key, defaults[key]) != value:
            raise RecipeError(
                f"{key}={shown(wanted[key])} does not fit the weights of init_from={parent.folder}, which have "
                f"{key}={shown(value)}; leave {key} out, or train from random weights: leave init_from out."
            )
    preset = get_preset(recipe.preset).model if "preset" in recipe.named and recipe.preset != AUTO else {}
    for key, value in preset.items():
        if key in fixed and key not in recipe.named and value != fixed[key]:
            raise RecipeError(
                f"preset={recipe.preset} has {key}={shown(value)}, which does not fit the weights of "
                f"init_from={parent.folder} ({key}={shown(fixed[key])}); leave preset out: the shape is the folder's."
            )
    if recipe.init_vocabulary == "new":
        return
    for side, asked, own in zip(SIDES, recipe.tokenizers, parent.tokenizers, strict=True):
        if asked not in (AUTO, own):
            key = side if side in recipe.named else "tokenizer"
            raise RecipeError(
                f"{key}={asked} is not the vocabulary of init_from={parent.folder}, which has {key}={own}; leave {key} "
                f"out, or add --init_vocabulary new to learn one from the new text."
            )
    for key in LEARNING_VOCABULARY:
        if key in recipe.named and wanted[key] != Recipe.__dataclass_fields__[key].default:
            raise RecipeError(
                f"{key}={shown(wanted[key])} says how a vocabulary is learned, and init_from={parent.folder} has "
                f"one; leave {key} out, or add --init_vocabulary new to learn one from the new text."
            )
    for key in (*VOCABULARY, "vocab_size"):
        value = parent.vocabulary[key]
        fits = wanted[key] >= value if key == "vocab_size" else wanted[key] == value  # the most that it may have
        if key in recipe.named and not fits:
            raise RecipeError(
                f"{key}={shown(wanted[key])} is not the vocabulary of init_from={parent.folder}, which has "
                f"{key}={shown(value)}; leave {key} out, or add --init_vocabulary new to learn one from the new text."
            )


def _describe(recipe: Recipe, parent: Parent) -> str:
    """Say what comes from the parent and what was chosen because of it; the recipe's author knows what is named."""
    kept = "its vocabulary" if recipe.init_vocabulary == "keep" else "a new vocabulary"
    arguments = recipe.training_arguments
    chosen = []
    if "learning_rate" not in recipe.named:
        rate = SHARES[recipe.init_vocabulary][0]
        chosen.append(f"learning rate {arguments['learning_rate']:g}, {rate:g} of the parent's")
    if "num_train_epochs" not in recipe.named and arguments.get("max_steps", -1) <= 0:
        chosen.append(f"{arguments['num_train_epochs']:g} epochs")
    return "; ".join([f"{parent.folder} (weights {parent.weights[:12]}), {kept}", *chosen])


# The weights ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def take_over(model: SeqloomForConditionalGeneration, tokenizers: SeqloomTokenizers, parent: Parent) -> Parent:
    """Put the weights of a parent into a new model of its shape.

    Args:
        model: with random weights, which stay for pieces that the parent does not have.
        tokenizers: of the model.
        parent: whose folder is read.

    Returns:
        The parent, with what was taken over of its embeddings.

    Raises:
        RecipeError: when the folder has changed since it was looked at.
        FolderError, WeightsError: for a folder whose weights cannot be read, or are not all there.
    """
    if is_changed(parent):
        raise RecipeError(f"init_from={parent.folder} has changed while it was read; start again.")
    old, _ = load_folder(Path(parent.folder).expanduser(), "cpu")
    own = SeqloomTokenizers.load(Path(parent.folder).expanduser())
    pairs = shared_pieces(own.source.get_vocab(), tokenizers.source.get_vocab())
    before, now = (torch.tensor(ids) for ids in zip(*pairs, strict=True))
    weights = old.state_dict()
    for name, weight in model.state_dict().items():  # tied names are one tensor
        if name.endswith(_EMBEDDINGS):
            weight[now] = weights[name][before].to(weight)
        else:
            weight.copy_(weights[name])
    return replace(parent, num_known=len(pairs), num_new=tokenizers.vocab_size - len(pairs))


def shared_pieces(old: Mapping[str, int], new: Mapping[str, int]) -> list[tuple[int, int]]:
    """Return the ids in both vocabularies of each piece that both have, in the order of the new ids.

    Between a joint vocabulary and one for each side a piece is the same without the marker of its side.
    """
    found = []
    for piece, place in sorted(new.items(), key=lambda item: item[1]):
        plain = piece.removeprefix(TARGET_MARKER).removeprefix(SOURCE_MARKER)
        for spelled in (piece, plain, TARGET_MARKER + plain):
            if spelled in old:
                found.append((old[spelled], place))
                break
    return found


__all__ = [
    "RECORD",
    "Parent",
    "fit_to_parent",
    "is_changed",
    "read_parent",
    "recipe_of",
    "recorded_parent",
    "records_of",
    "refuse_misfit",
    "take_over",
]
