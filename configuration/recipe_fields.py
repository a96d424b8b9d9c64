"""Recipe: what decides a training run, with the meaning of each key written under it.

The text under a field is also its `--help`: `field_docs` reads it from the source, so that it is written once.
"""

import ast
import inspect
import itertools
import textwrap
from dataclasses import Field, dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Literal

from seqloom.configuration.configuration_seqloom import SeqloomConfig
from seqloom.configuration.presets import get_preset
from seqloom.configuration.recipe_values import write_yaml

CHAPTERS = ("data", "tokenizer", "model", "training", "evaluation")


def stands_in(chapter: str) -> dict[str, Any]:
    """Metadata of a field: its chapter in the YAML."""
    return {"chapter": chapter}


def at_least(minimum: int) -> dict[str, Any]:
    """Metadata of a field: the least value it may have."""
    return {"minimum": minimum}


DATA, TOKENIZER, MODEL, TRAINING, EVALUATION = map(stands_in, CHAPTERS)


class RecipeError(ValueError):
    """Something in a recipe or on the command line that cannot be trained; the message is for its author."""


@dataclass(kw_only=True)
class Recipe:
    """One training run; `resolve_recipe` and `load_recipe` build it and fill `model` and `training_arguments`.

    Raises:
        RecipeError: if two fields contradict each other.
    """

    task: Literal["pairs", "continuation"] = field(default="pairs", metadata=DATA)
    """pairs: source -> target; continuation: raw text, split at a random point into prompt and continuation."""
    train: list[str] = field(default_factory=list, metadata=DATA)
    """Two line-aligned files, or one TSV, JSONL, CSV, Parquet or raw text file, or a Hub data set; []: the demo."""
    valid: list[str] = field(default_factory=list, metadata=DATA)
    """Validation text, decoded and scored during training."""
    test: list[str] = field(default_factory=list, metadata=DATA)
    """Test text, decoded and scored once at the end."""
    columns: list[str] | None = field(default=None, metadata=DATA)
    """Column names in the data: source and target for pairs, one for continuation; null: source target, or text."""
    where: list[str] = field(default_factory=list, metadata=DATA)
    """Read only rows with these values, as COLUMN=VALUE; of one column any value will do, of several all must fit."""
    max_source_length: int | None = field(default=None, metadata=DATA | at_least(1))
    """Training examples with more source tokens are left out and counted; null: no limit."""
    max_target_length: int | None = field(default=None, metadata=DATA | at_least(1))
    """Training examples with more target tokens are left out and counted; null: no limit."""
    num_splits: int = field(default=1, metadata=DATA | at_least(1))
    """Split points drawn from each document of a continuation corpus, each an example of its own."""
    num_proc: int | None = field(default=None, metadata=DATA | at_least(1))
    """Processes that read and tokenize the corpus; null: one."""

    tokenizer: Literal["bpe", "unigram", "char", "word"] = field(default="bpe", metadata=TOKENIZER)
    """Kind of vocabulary, learned from the training text alone."""
    vocab_size: int = field(default=10_000, metadata=TOKENIZER | at_least(5))
    """Most entries the vocabulary may have; a small corpus fills fewer."""
    joint_vocabulary: bool = field(default=True, metadata=TOKENIZER)
    """One vocabulary for source and target, or one each."""
    normalization: Literal["nfc", "nfkc", "none"] = field(default="nfc", metadata=TOKENIZER)
    """Unicode normalisation of every text, in training and in use."""
    character_coverage: float = field(default=1.0, metadata=TOKENIZER)
    """Share of the text whose characters get an entry; the rare rest is written as bytes. Chinese: 0.9995."""
    min_frequency: int | None = field(default=None, metadata=TOKENIZER | at_least(1))
    """How often a merge, character or word must occur to get an entry; null: 2 for bpe and word, else 1."""
    split_digits: bool = field(default=False, metadata=TOKENIZER)
    """Make every digit a token of its own."""

    preset: str = field(default="small", metadata=MODEL)
    """Named geometry with fitting learning rate and warm-up."""

    output: str = field(default="seqloom-model", metadata=TRAINING)
    """The folder that will hold the finished model; running checkpoints lie in OUTPUT/checkpoint-N."""
    resume: Literal["auto", "never"] = field(default="auto", metadata=TRAINING)
    """auto: go on from the last whole checkpoint in OUTPUT, if there is one; never: start over."""
    overwrite: bool = field(default=False, metadata=TRAINING)
    """With resume=never: replace the finished run that OUTPUT holds."""
    tokens_per_update: int = field(default=8192, metadata=TRAINING | at_least(1))
    """Source + target tokens one update learns from, on however many devices; padding does not count."""
    tokens_per_device: int = field(default=8192, metadata=TRAINING | at_least(1))
    """Padded tokens a device takes in one go; what its memory holds. Changes the speed, never the result."""

    metrics: list[str] = field(default_factory=list, metadata=EVALUATION)
    """Scores to report, e.g. bleu chrf exact_match; []: what fits task and language."""
    num_beams: int = field(default=4, metadata=EVALUATION | at_least(1))
    """Beams of the final test and of generation_config.json; 1 is greedy."""
    length_penalty: float = field(default=1.0, metadata=EVALUATION)
    """Beam scores are divided by length ** length_penalty: above 0 favours longer outputs."""
    max_new_tokens: int = field(default=256, metadata=EVALUATION | at_least(1))
    """Longest output in tokens."""
    num_sample_outputs: int = field(default=3, metadata=EVALUATION | at_least(0))
    """Validation examples printed at each evaluation: source, output, reference."""

    model: dict[str, Any] = field(default_factory=dict)
    """Fields of `SeqloomConfig` beyond its defaults, preset included."""
    training_arguments: dict[str, Any] = field(default_factory=dict)
    """Fields of `Seq2SeqTrainingArguments` beyond its defaults, `TRAINING_DEFAULTS` and preset included."""

    PASSED_THROUGH: ClassVar[tuple[str, ...]] = ("model", "training_arguments")

    def __post_init__(self) -> None:
        get_preset(self.preset)
        self._check_files()
        self._check_columns()
        self._check_where()
        self._check_continuation()
        self._check_run()

    @property
    def is_demo(self) -> bool:
        """True where no training text is named: the built-in date demo."""
        return not self.train

    def model_config(self, **overrides: Any) -> SeqloomConfig:
        """Build the configuration of the model; label smoothing comes from `label_smoothing_factor`.

        Args:
            overrides: fields that win, e.g. the `vocab_size` that the trained tokenizer really has.
        """
        smoothing = self.training_arguments.get("label_smoothing_factor", 0.0)
        return SeqloomConfig(**{"vocab_size": self.vocab_size, "label_smoothing": smoothing, **self.model, **overrides})

    def selection(self) -> dict[str, list[str]]:
        """What `where` asks for: column -> accepted values."""
        selected: dict[str, list[str]] = {}
        for condition in self.where:
            column, _, value = condition.partition("=")
            selected.setdefault(column, []).append(value)
        return selected

    def chapters(self) -> dict[str, dict[str, Any]]:
        """Every value of the recipe, grouped as in the YAML."""
        grouped: dict[str, dict[str, Any]] = {chapter: {} for chapter in CHAPTERS}
        for item in own_fields():
            grouped[item.metadata["chapter"]][item.name] = getattr(self, item.name)
        grouped["model"].update(self.model)
        grouped["training"].update(self.training_arguments)
        return grouped

    def to_yaml(self) -> str:
        """The resolved recipe as YAML that `load_recipe` reads back to an equal recipe."""
        return "\n".join(write_yaml({chapter: values}) for chapter, values in self.chapters().items())

    def save(self, path: str | PathLike[str]) -> None:
        """Write the resolved recipe to `path`."""
        header = f"# A resolved Seqloom recipe: seqloom train --recipe {Path(path).name}\n"
        Path(path).write_text(header + self.to_yaml(), encoding="utf-8", newline="\n")

    def _check_files(self) -> None:
        for split in ("train", "valid", "test"):
            names = getattr(self, split)
            if len(names) > 2:
                raise RecipeError(
                    f"{split} names {len(names)} files ({', '.join(names)}); give two line-aligned files, source and "
                    f"target, or one file with both. Join several files into one first."
                )
            if names and self.is_demo:
                raise RecipeError(
                    f"{split}={' '.join(names)} is given and train is not; add --train with your training text, "
                    f"or leave {split} out to train the date demo."
                )

    def _check_columns(self) -> None:
        if self.columns is None:
            return
        wanted = 1 if self.task == "continuation" else 2
        if len(self.columns) != wanted:
            rule = "one column, the text" if wanted == 1 else "two columns, source and target"
            raise RecipeError(f"columns={' '.join(self.columns)} does not fit task={self.task}; it reads {rule}.")
        if self.is_demo or len(self.train) == 2:
            data = "the demo has" if self.is_demo else f"the line-aligned files {' and '.join(self.train)} have"
            raise RecipeError(f"columns={' '.join(self.columns)}: {data} no columns; leave columns out.")

    def _check_where(self) -> None:
        for condition in self.where:
            column, equals, _ = condition.partition("=")
            if not (column and equals):
                raise RecipeError(f"where={condition} names no column and value; write COLUMN=VALUE, e.g. language=de.")
        if self.where and (self.is_demo or len(self.train) == 2):
            data = "the demo has" if self.is_demo else f"the line-aligned files {' and '.join(self.train)} have"
            raise RecipeError(f"where={' '.join(self.where)}: {data} no columns to select by; leave where out.")

    def _check_continuation(self) -> None:
        if self.task != "continuation":
            if self.num_splits != 1:
                raise RecipeError(
                    f"num_splits={self.num_splits} splits documents, and task={self.task} has none; "
                    f"leave it out, or use task=continuation."
                )
            return
        if self.is_demo:
            raise RecipeError("task=continuation needs a text and train names none; add --train FILE.")
        for split in ("train", "valid", "test"):
            if len(getattr(self, split)) == 2:
                raise RecipeError(
                    f"{split}={' '.join(getattr(self, split))}: task=continuation reads one raw text, not two aligned "
                    f"files; name one file, or use task=pairs."
                )
        if not self.joint_vocabulary:
            raise RecipeError(
                "joint_vocabulary=false: prompt and continuation are one language; leave it out with task=continuation."
            )

    def _check_run(self) -> None:
        if self.overwrite and self.resume == "auto":
            raise RecipeError(
                "overwrite=true starts over and resume=auto goes on; add --resume never, or leave overwrite out."
            )
        smoothing = self.training_arguments.get("label_smoothing_factor", 0.0)
        if not 0 <= smoothing < 1:
            raise RecipeError(f"label_smoothing_factor={smoothing} is outside [0, 1); it is a share, e.g. 0.1.")
        strategy = self.training_arguments.get("eval_strategy", "no")
        if strategy != "no" and not self.valid and not self.is_demo:
            raise RecipeError(
                f"eval_strategy={strategy} needs something to score and valid names nothing; add --valid, "
                f"or use eval_strategy=no."
            )


def own_fields() -> "list[Field[Any]]":
    """The fields of `Recipe` in the order of the chapters."""
    own = [item for item in fields(Recipe) if item.name not in Recipe.PASSED_THROUGH]
    return sorted(own, key=lambda item: CHAPTERS.index(item.metadata["chapter"]))


def field_docs(cls: type) -> dict[str, str]:
    """The text under each field of a class, by field name."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
    return {
        declared.target.id: inspect.cleandoc(text.value.value)
        for declared, text in itertools.pairwise(body)
        if isinstance(declared, ast.AnnAssign)
        and isinstance(declared.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


__all__ = ["CHAPTERS", "Recipe", "RecipeError", "field_docs", "own_fields"]
