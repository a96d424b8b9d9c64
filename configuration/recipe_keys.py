"""Every key that a recipe may hold: Seqloom's own, the model's, and those of transformers' Trainer.

Names, types, defaults and help are read from the classes that declare them. Only two tables are written here: which of
those keys Seqloom sets itself, and what other toolkits call a key.
"""

import inspect
import math
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any, Literal, NoReturn

from seqloom.configuration.configuration_seqloom import SeqloomConfig
from seqloom.configuration.data_size import AUTO, starting_preset
from seqloom.configuration.presets import PRESETS
from seqloom.configuration.recipe import Recipe, RecipeError, field_docs, own_fields
from seqloom.configuration.recipe_values import MismatchError, choices_of, convert, describe
from seqloom.configuration.suggestion import did_you_mean

TRAINING_DEFAULTS: dict[str, Any] = {
    "optim": "adamw_torch_fused",  # with weight_decay 0 it is Adam
    "adam_beta1": 0.9,  # the three of the paper, section 5.3
    "adam_beta2": 0.98,
    "adam_epsilon": 1e-9,
    "lr_scheduler_type": "inverse_sqrt",
    "label_smoothing_factor": 0.1,  # section 5.4
    "num_train_epochs": 20,  # transformers' 3 is made for fine-tuning
    "logging_steps": 50,
    "eval_steps": 500,
    "save_steps": 500,
    "save_total_limit": 2,  # the last, and the one before should the last be damaged; a finished run needs one
    "report_to": "none",
    "seed": 42,
}
"""What Seqloom sets where transformers' default does not fit training from scratch; a preset's values come on top."""


MOST = 10**9
"""Of any number but a seed: more updates, tokens or entries than anybody trains with."""


@dataclass(frozen=True)
class Range:
    """Numbers that a key may hold."""

    rule: str
    """In words, behind "must be"."""
    least: float = float("-inf")
    most: float = MOST
    also: float | None = None
    """A number outside that stands for something."""

    def fault_of(self, number: float) -> str:
        """Return what is wrong with a number, or ""."""
        if number == self.also or self.least <= number <= self.most:
            return ""
        if number < self.least:
            return f"is too small; it must be {self.rule}."
        return f"is too large; it must be {self.rule if self.most != MOST else f'at most {self.most:,}'}."


_ANY = Range(f"at most {MOST:,}")
_NOT_NEGATIVE = Range("at least 0", 0)
_SHARE = Range("at least 0 and below 1", 0, math.nextafter(1, 0))
_INTERVAL = Range("above 0: a number of updates, or a share of the run", math.nextafter(0, 1))

_ARGUMENT_RANGES = {
    "max_steps": Range("at least 1, or -1: num_train_epochs decides", 1, also=-1),
    "num_train_epochs": _NOT_NEGATIVE,
    "learning_rate": _NOT_NEGATIVE,
    "warmup_steps": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "max_grad_norm": _NOT_NEGATIVE,
    "adam_beta1": _SHARE,
    "adam_beta2": _SHARE,
    "adam_epsilon": _NOT_NEGATIVE,
    "eval_delay": _NOT_NEGATIVE,
    "eval_steps": _INTERVAL,
    "save_steps": _INTERVAL,
    "logging_steps": _INTERVAL,
    "save_total_limit": Range("at least 1, or null: all are kept", 1),
    "dataloader_num_workers": _NOT_NEGATIVE,
    "seed": Range("at least 0 and at most 4,294,967,295", 0, 2**32 - 1),
    "data_seed": Range("at least 0 and at most 4,294,967,295", 0, 2**32 - 1),
}
"""Numbers that transformers' arguments may hold; those that it takes silently or refuses late among them."""


@dataclass(frozen=True)
class Key:
    """One key of a recipe: the class that declares it, the chapter in which it stands, and what it may hold."""

    name: str
    chapter: str
    owner: Literal["recipe", "model", "training_arguments"]
    hint: Any
    """The annotation that `convert` reads values by."""
    default: Any
    range: Range = _ANY
    help: str = ""


RESERVED: dict[str, str] = {
    "output_dir": "use output",
    "per_device_train_batch_size": "use tokens_per_device, the padded tokens a device takes in one go",
    "gradient_accumulation_steps": "use tokens_per_update; what does not fit tokens_per_device is accumulated",
    "auto_find_batch_size": "use tokens_per_device",
    "train_sampling_strategy": "updates are planned from the lengths; use tokens_per_update",
    "sortish_sampler": "updates are planned from the lengths; use tokens_per_update",
    "length_column_name": "updates are planned from the lengths; use tokens_per_update",
    "dataloader_drop_last": "every example is seen once per epoch; leave it out",
    "dataloader_in_order": "updates are planned, and their order is kept; leave it out",
    "predict_with_generate": "evaluation always decodes; leave it out",
    "prediction_loss_only": "evaluation always decodes; use eval_strategy=no for none",
    "generation_max_length": "use max_new_tokens",
    "generation_num_beams": "use num_beams",
    "generation_config": "use num_beams, length_penalty and max_new_tokens",
    "remove_unused_columns": "leave it out",
    "label_names": "leave it out",
    "include_for_metrics": "leave it out",
    "batch_eval_metrics": "leave it out",
    "do_train": "name the data with train",
    "do_eval": "name the data with valid",
    "do_predict": "name the data with test",
    "resume_from_checkpoint": "use resume",
    "local_rank": "start several processes with accelerate launch",
    "save_on_each_node": "the output folder is one, on a disk that all machines share; leave it out",
    "parallelism_config": "describe the hardware to accelerate config",
    "use_cache": "decoding always caches and training never does; leave it out",
    "debug": "as a flag of the command line, --debug shows the traceback of an error",
    "hub_token": "a recipe is no place for a secret; log in with `hf auth login` or set HF_TOKEN",
    "label_smoothing": "use label_smoothing_factor",
    "is_encoder_decoder": "leave it out",
    "is_decoder": "leave it out",
    "pad_token_id": "the tokenizer decides it; leave it out",
    "bos_token_id": "the tokenizer decides it; leave it out",
    "eos_token_id": "the tokenizer decides it; leave it out",
    "decoder_start_token_id": "the tokenizer decides it; leave it out",
}
"""Fields of transformers and of the model that Seqloom sets itself, with what to do instead."""

SYNONYMS: dict[str, str] = {
    **SeqloomConfig.attribute_map,
    "batch_size": "tokens_per_update",
    "max_tokens": "tokens_per_device",
    "accum_freq": "tokens_per_update",
    "update_freq": "tokens_per_update",
    "epochs": "num_train_epochs",
    "max_epochs": "num_train_epochs",
    "max_update": "max_steps",
    "train_steps": "max_steps",
    "lr": "learning_rate",
    "warmup": "warmup_steps",
    "warmup_ratio": "warmup_steps",  # transformers 5: a share of the run if below 1
    "warmup_updates": "warmup_steps",
    "scheduler": "lr_scheduler_type",
    "lr_scheduler": "lr_scheduler_type",
    "optimizer": "optim",
    "beam": "num_beams",
    "beams": "num_beams",
    "beam_size": "num_beams",
    "metric": "metrics",
    "data": "train",
    "output_folder": "output",
    "ffn_dim": "encoder_ffn_dim",
    "layers": "encoder_layers",
    "heads": "encoder_attention_heads",
    "share_vocab": "joint_vocabulary",
    "joined_dictionary": "joint_vocabulary",
}
"""What other toolkits call a thing -> what it is called here; only for the did-you-mean."""


@cache
def known_keys() -> Mapping[str, Key]:
    """Every key a recipe may hold, by name; the first call imports transformers' training arguments."""
    from transformers import Seq2SeqTrainingArguments

    keys = {key.name: key for key in own_keys()}
    for key in (*model_keys(), *_argument_keys(Seq2SeqTrainingArguments)):
        if key.name not in RESERVED:
            keys.setdefault(key.name, key)
    return keys


@cache
def own_keys() -> tuple[Key, ...]:
    """The keys that only Seqloom has, in the order of the chapters."""
    hints, docs = typing.get_type_hints(Recipe), field_docs(Recipe)
    hints["preset"] = Literal[(*PRESETS, AUTO)]
    return tuple(
        Key(
            name=item.name,
            chapter=item.metadata["chapter"],
            owner="recipe",
            hint=hints[item.name],
            default=_default(item),
            range=_range_of(item.metadata.get("minimum")),
            help=docs[item.name],
        )
        for item in own_fields()
    )


@cache
def model_keys() -> tuple[Key, ...]:
    """The fields that `SeqloomConfig` declares itself and a recipe may set."""
    hints, docs = inspect.get_annotations(SeqloomConfig, eval_str=True), field_docs(SeqloomConfig)
    return tuple(
        Key(item.name, "model", "model", hints[item.name], _default(item), help=docs.get(item.name, ""))
        for item in fields(SeqloomConfig)
        if item.name in hints and item.name not in RESERVED and item.name != "vocab_size"
    )


def read_value(name: str, value: Any, where: str) -> Any:
    """Convert a value to what its key holds.

    Args:
        name: of the key.
        value: text from a file or a command line, or a Python value.
        where: what a message begins with, e.g. "my.yaml: ".

    Raises:
        RecipeError: if there is no such key, or the value does not fit it.
    """
    key = known_keys().get(name)
    if key is None:
        refuse_key(name, value, where)
    try:
        converted = convert(value, key.hint)
    except MismatchError:
        if value is True:
            raise RecipeError(f"{where}{name} stands without a value; {_what_follows(key)}") from None
        written = f"{name}={shown(value)}"
        raise RecipeError(f"{where}{written} {_rule(key, value)}") from None
    is_number = isinstance(converted, (int, float)) and not isinstance(converted, bool)
    if is_number and (fault := key.range.fault_of(converted)):
        raise RecipeError(f"{where}{name}={converted} {fault}")
    return converted


_EXAMPLES = {
    **{name: f"{name}.de {name}.en" for name in ("train", "valid", "test")},
    "columns": "german english",
    "where": "domain=news",
    "languages": "de en",
    "metrics": "bleu chrf",
}
"""For keys with several values: what may stand behind their flag."""


def _what_follows(key: Key) -> str:
    """Say what belongs behind a flag behind which nothing stands."""
    if example := _EXAMPLES.get(key.name):
        words = "the names of one or two files" if key.name in ("train", "valid", "test") else "one or more words"
        return f"write {words} behind it, for example --{key.name} {example}, or leave it out."
    example = "" if key.default in (None, [], "") else f", for example --{key.name} {shown(key.default)}"
    return f"write {describe(key.hint)} behind it{example}, or leave it out."


def _rule(key: Key, value: Any) -> str:
    """The rule that a value of a known key breaks, and an example or the nearest choice."""
    choices = [str(choice) for choice in choices_of(key.hint)]
    beginning = [choice for choice in choices if choice.startswith(str(value))]
    if hint := did_you_mean(beginning[0] if beginning else value, choices):
        return f"is unknown; {hint}It must be {describe(key.hint)}."
    example = f"; for example {key.name}={shown(key.default)}" if key.default not in (None, [], "") else ""
    return f"must be {describe(key.hint)}{example}."


def refuse_key(name: str, value: Any, where: str) -> NoReturn:
    """Refuse what is no key, or one that Seqloom sets itself.

    Raises:
        RecipeError: always.
    """
    if name in RESERVED:  # the value stays out of the message: it may be a token
        raise RecipeError(f"{where}{name} cannot be set in a recipe: {RESERVED[name]}.")
    hint = did_you_mean(SYNONYMS.get(name, name), known_keys(), "did you mean {}?")
    hint = hint or "seqloom train --help_all lists all keys."
    raise RecipeError(f"{where}{name}={shown(value)} is not a recipe key; {hint}")


def shown(value: Any) -> str:
    """A value as its author wrote it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, (list, tuple)):
        return " ".join(shown(item) for item in value)
    return str(value)


def _default(item: Any) -> Any:
    """What a field is when nobody sets it: the value of the default preset, ours, or the class's own."""
    preset = starting_preset(Recipe.preset)
    values = {**TRAINING_DEFAULTS, **preset.model, **preset.training}
    if item.name in values:
        return values[item.name]
    if item.default is not MISSING:
        return item.default
    return item.default_factory() if item.default_factory is not MISSING else None


def _range_of(minimum: float | None) -> Range:
    return _ANY if minimum is None else Range(f"at least {minimum}", minimum)


def _argument_keys(arguments: type) -> Iterable[Key]:
    """Keys for transformers' training arguments, read from the class: making an instance has side effects."""
    hints = typing.get_type_hints(arguments)
    for item in fields(arguments):
        limits = _ARGUMENT_RANGES.get(item.name, _ANY)
        text = " ".join(str(item.metadata.get("help", "")).replace("%%", "%").split())
        yield Key(item.name, "training", "training_arguments", hints[item.name], _default(item), limits, text)


__all__ = ["RESERVED", "SYNONYMS", "TRAINING_DEFAULTS", "Key", "known_keys", "model_keys", "own_keys"]
