"""Recipe: what decides a training run, with the meaning of each key written under it.

The text under a field is also its `--help`: `field_docs` reads it from the source, so that it is written once.
"""

import ast
import inspect
import itertools
import os
import re
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Literal

from seqloom.configuration.configuration_seqloom import MOST_BEAMS, MOST_TOKENS, SeqloomConfig
from seqloom.configuration.data_names import TAG, DataNameError, can_follow, data_name, is_aligned
from seqloom.configuration.data_size import AUTO, starting_preset
from seqloom.configuration.recipe_values import write_yaml

Vocabulary = Literal["auto", "bpe", "unigram", "char", "word"]

CUT_ANEW = ("bpe", "word")
"""The kinds of vocabulary that `bpe_dropout` goes with: of merges, and of words."""

SIDES = ("source_tokenizer", "target_tokenizer")
"""The keys that name the kind of vocabulary each side."""

_NUMBER = r"[-+]?[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?"
_SHARE = r"[0-9]+|0?\.[0-9]+"

CHAPTERS = ("data", "tokenizer", "model", "training", "evaluation")

HOLD_OUT = "auto"
"""The value of `valid` with which a part of the training text is held out, where it is large enough."""

NOTHING = "none"
"""The value of `valid` and `test` for no such text; 0 is the same."""

RECIPE_HEADER = "# A resolved Seqloom recipe"
"""How a saved recipe begins; a run knows its folder by it."""


def stands_in(chapter: str) -> dict[str, Any]:
    """Metadata of a field: the chapter of the YAML file in which it stands."""
    return {"chapter": chapter}


def at_least(minimum: int) -> dict[str, Any]:
    """Metadata of a field: the least value it may have."""
    return {"minimum": minimum}


Precision = Literal["auto", "fp32", "bf16", "fp16"]
NARROW_FORMATS: tuple[Precision, ...] = ("bf16", "fp16")
"""Numbers of 16 bits, as `precision` and transformers' arguments name them."""

DATA, TOKENIZER, MODEL, TRAINING, EVALUATION = map(stands_in, CHAPTERS)


class RecipeError(ValueError):
    """A recipe or command line that cannot be trained; the message tells its author what to change."""


@dataclass(kw_only=True)
class Recipe:
    """One training run; `resolve_recipe` builds it and fills `model` and `training_arguments`.

    Raises:
        RecipeError: if two fields contradict each other.
    """

    task: Literal["pairs", "continuation"] = field(default="pairs", metadata=DATA)
    """pairs: source -> target; continuation: raw text, cut at a random point into prompt and continuation."""
    train: list[str] = field(default_factory=list, metadata=DATA)
    """Two line-aligned files, or one TSV, JSONL, CSV, Parquet or raw text file, or a Hub data set; several files with
    columns are read one after the other, and FILE:2 is learned twice an epoch, FILE:0.5,tag=bt in every other one and
    with the token <bt> in front of its sources; []: the demo."""
    valid: list[str] = field(default_factory=lambda: [HOLD_OUT], metadata=DATA)
    """Validation text, decoded and scored during training: files as in train, or how much to hold out of train, in
    examples (1000) or as a share (0.05), whole sources, of corpora without a tag where there are any; auto: a twentieth
    of it, 50 to 1,000, and nothing of fewer than 500; none: no validation."""
    test: list[str] = field(default_factory=list, metadata=DATA)
    """Test text, decoded and scored once at the end; files, a number or a share as in valid."""
    columns: list[str] | None = field(default=None, metadata=DATA)
    """Column names in the data: source and target for pairs, one for continuation; null: source target, or text."""
    where: list[str] = field(default_factory=list, metadata=DATA)
    """Read only rows that have these values, each written COLUMN=VALUE; where a column is named more than once, a row
    needs one of its values; []: every row."""
    tags: list[str] = field(default_factory=list, metadata=DATA)
    """Columns whose values stand in front of the source, each a token of its own, e.g. language: <language=de>; files
    that are read later need these columns too; []: none."""
    clean: Literal["none", "default", "strict"] = field(default="none", metadata=DATA)
    """Which training rows are left out by the rules of `seqloom check`, each counted; none: blank ones alone; default:
    broken, misplaced, repeated and leaked ones too; strict: also doubtful ones. Validation and test text stay whole."""
    max_source_length: int | None = field(default=None, metadata=DATA | at_least(1))
    """Most source tokens of a training example; long_examples says what becomes of longer ones; null: no limit."""
    max_target_length: int | None = field(default=None, metadata=DATA | at_least(1))
    """Most target tokens of a training example; long_examples says what becomes of longer ones; null: no limit."""
    long_examples: Literal["drop", "refuse"] = field(default="drop", metadata=DATA)
    """What becomes of training examples that exceed a maximum length or tokens_per_update; drop: they are left out and
    counted; refuse: the run ends with an error before training."""
    num_splits: int = field(default=1, metadata=DATA | at_least(1))
    """Cut points drawn in each document of a continuation corpus; each makes one example of prompt and continuation."""
    languages: list[str] = field(default_factory=list, metadata=DATA)
    """Languages of the text as ISO 639 codes, the source's first, e.g. de en; the model card states them; []: none."""
    num_proc: int | None = field(default=None, metadata=DATA | at_least(1))
    """Processes that read and tokenize the corpus; null: one."""

    tokenizer: Vocabulary = field(default=AUTO, metadata=TOKENIZER)
    """Kind of vocabulary, bpe, unigram, char or word, learned from the training text alone; auto: a kind each side, and
    one vocabulary or two, as suits what the text looks like."""
    source_tokenizer: Vocabulary | None = field(default=None, metadata=TOKENIZER)
    """Kind of the source vocabulary, where it is another than the target's; null: as tokenizer says."""
    target_tokenizer: Vocabulary | None = field(default=None, metadata=TOKENIZER)
    """Kind of the target vocabulary, where it is another than the source's; null: as tokenizer says."""
    vocab_size: int = field(default=10_000, metadata=TOKENIZER | at_least(5))
    """Most entries the vocabulary may have; a small corpus fills fewer."""
    joint_vocabulary: bool = field(default=True, metadata=TOKENIZER)
    """One vocabulary for source and target, or one each; two kinds of tokenizer are always one each."""
    normalization: Literal["nfc", "nfkc", "nfd", "none"] = field(default="nfc", metadata=TOKENIZER)
    """Unicode normalisation of every text, in training and in use; nfd takes sources apart, letters from accents and
    Hangul syllables into their letters, and leaves targets nfc, with one vocabulary each."""
    character_coverage: float = field(default=1.0, metadata=TOKENIZER)
    """Share of the text whose characters get an entry; the rare rest is written as bytes. 0.9995 suits Chinese."""
    min_frequency: int | None = field(default=None, metadata=TOKENIZER | at_least(1))
    """How often a merge, character or word must occur to get an entry; null: 2 for bpe and word, else 1."""
    split_digits: bool = field(default=False, metadata=TOKENIZER)
    """Make every digit a token of its own."""
    bpe_dropout: float = field(default=0.0, metadata=TOKENIZER | at_least(0))
    """BPE-dropout: the chance that a merge is skipped (bpe), or that a word is spelled in letters, in the source and in
    the target alike (word), drawn anew in every epoch; 0.1 is usual, 0 is off."""

    preset: str = field(default=AUTO, metadata=MODEL)
    """A named size of the model, with the learning rate, warm-up and tokens per update that suit it; auto: chosen by
    the kind of task and the number of training examples, and with it size of vocabulary, dropout, epochs, averaging."""
    init_from: str | None = field(default=None, metadata=MODEL)
    """A finished folder, or a checkpoint in one, with whose weights the training begins; the shape of the model is
    that folder's, and the learning rate suits it; null: random weights."""
    init_vocabulary: Literal["keep", "new"] = field(default="keep", metadata=TOKENIZER)
    """With init_from: keep the folder's vocabulary, or learn a new one from the training text; pieces that both have
    keep their embeddings."""

    output: str = field(default="seqloom-model", metadata=TRAINING)
    """The folder that will hold the finished model; running checkpoints lie in OUTPUT/checkpoint-N."""
    resume: Literal["auto", "never"] = field(default="auto", metadata=TRAINING)
    """auto: go on from the last whole checkpoint in OUTPUT, if there is one; never: start over."""
    overwrite: bool = field(default=False, metadata=TRAINING)
    """With resume=never: replace the finished run that OUTPUT holds."""
    license: str | None = field(default=None, metadata=TRAINING)
    """Licence of the finished model, for its card, as the Hub abbreviates it: apache-2.0; null: not stated."""
    tokens_per_update: int = field(default=8192, metadata=TRAINING | at_least(1))
    """Most source + target tokens that one update learns from, over all devices together; padding does not count."""
    tokens_per_device: int = field(default=8192, metadata=TRAINING | at_least(1))
    """Most padded tokens that a device computes at once; its memory sets the limit. Changes speed, never the result."""
    precision: Precision = field(default=AUTO, metadata=TRAINING)
    """Numbers in which matrices are multiplied; bf16=true says the same as precision=bf16. auto: on a CPU fp32 or bf16,
    whichever is faster on a micro-batch before the first update, and kept with the run; elsewhere fp32."""
    packing: bool = field(default=False, metadata=TRAINING)
    """Put sentences end to end and compute no padding; for GPUs with bf16. The result is the same; a CPU is slower."""
    average_checkpoints: int = field(default=0, metadata=TRAINING | at_least(0))
    """Checkpoints whose weights are averaged into the final folder; 5 or 10 are usual, 0 takes the last one alone."""
    average_by: Literal["last", "best"] = field(default="last", metadata=TRAINING)
    """Which checkpoints to average: the last ones, or the best ones by metric_for_best_model on the validation set."""
    ema_decay: float = field(default=0.0, metadata=TRAINING | at_least(0))
    """Evaluate and save a moving average of the weights, of which each update keeps this share; 0.999 is usual, 0 is
    off."""
    rdrop_alpha: float = field(default=0.0, metadata=TRAINING | at_least(0))
    """Weight of R-Drop, by which two passes with dropout learn to agree; 1 to 5 are usual, 0 is off. Takes twice the
    time and memory."""
    muon: bool = field(default=False, metadata=TRAINING)
    """Learn the layers' matrices with Muon and only the rest with optim, at the same learning_rate."""
    early_stopping_patience: int = field(default=0, metadata=TRAINING | at_least(0))
    """Stop after so many evaluations without a better metric_for_best_model and keep the best model; 0 is off."""
    log_gradient_flow: bool = field(default=False, metadata=TRAINING)
    """Log the norm of the gradient in each layer, for OUTPUT/run/history.jsonl, report.html and gradient_flow.png."""

    metrics: list[str] = field(default_factory=list, metadata=EVALUATION)
    """Scores to report, e.g. bleu chrf exact_match; [] or auto: those that are usual for the kind of task."""
    num_beams: int = field(default=4, metadata=EVALUATION | at_least(1))
    """Beams of the final test and of generation_config.json; 1 is greedy."""
    length_penalty: float = field(default=1.0, metadata=EVALUATION)
    """Beam scores are divided by length ** length_penalty: above 0 favours longer outputs."""
    max_new_tokens: int | None = field(default=None, metadata=EVALUATION | at_least(1))
    """Longest output in tokens; null: a quarter more than the longest target, and ten."""
    num_sample_outputs: int = field(default=3, metadata=EVALUATION | at_least(0))
    """Validation examples printed at each evaluation: source, output, reference."""

    model: dict[str, Any] = field(default_factory=dict)
    """Fields of `SeqloomConfig` beyond its defaults, preset included."""
    training_arguments: dict[str, Any] = field(default_factory=dict)
    """Fields of `Seq2SeqTrainingArguments` beyond its defaults, `TRAINING_DEFAULTS` and preset included."""
    named: frozenset[str] = field(default=frozenset(), compare=False, repr=False)
    """Keys that the recipe file or the command line names; auto leaves them as they are."""

    PASSED_THROUGH: ClassVar[tuple[str, ...]] = ("model", "training_arguments", "named")

    def __post_init__(self) -> None:
        self.output = os.path.expanduser(self.output)
        for split in ("valid", "test"):
            if means_nothing(getattr(self, split)):
                setattr(self, split, [])
        if self.metrics == [AUTO]:
            self.metrics = []
        starting_preset(self.preset)
        self._settle_precision()
        self._settle_tokenizers()
        self._check_files()
        self._check_columns()
        self._check_languages()
        self._check_continuation()
        self._check_run()
        self._check_parent()
        self._check_quality_tools()
        self._check_averaging()
        self._check_best_model()

    def _settle_precision(self) -> None:
        """Let `precision` and transformers' own two words for it, `bf16` and `fp16`, say the same."""
        asked = {name: self.training_arguments[name] for name in NARROW_FORMATS if name in self.training_arguments}
        if self.precision == AUTO and asked:
            self.precision = next((name for name in NARROW_FORMATS if asked.get(name)), "fp32")
        for name, is_on in asked.items():
            if is_on != (self.precision == name):
                raise RecipeError(
                    f"precision={self.precision} and {name}={str(is_on).lower()} are two answers to one question; "
                    f"leave {name} out."
                )
        if self.precision in NARROW_FORMATS:
            self.training_arguments = {**self.training_arguments, self.precision: True}

    def _settle_tokenizers(self) -> None:
        """Write the kinds of both sides in one way: `tokenizer` alone where they are one, else both under it."""
        sides = self.tokenizers
        if AUTO in sides:
            return
        self.tokenizer = sides[0] if sides[0] == sides[1] else AUTO
        self.source_tokenizer, self.target_tokenizer = (None, None) if sides[0] == sides[1] else sides
        if (sides[0] == sides[1] and self.normalization != "nfd") or not self.joint_vocabulary:
            return
        self.joint_vocabulary = False
        if "joint_vocabulary" in self.named and sides[0] == sides[1]:
            raise RecipeError(
                "joint_vocabulary=true: normalization=nfd takes sources apart, and targets stay whole; leave "
                "joint_vocabulary out, or take another normalization."
            )
        if "joint_vocabulary" in self.named:
            raise RecipeError(
                f"joint_vocabulary=true: one vocabulary has one kind, and the source's is {sides[0]}, the target's "
                f"{sides[1]}; leave joint_vocabulary out, or name one tokenizer for both."
            )

    @property
    def tokenizers(self) -> tuple[Vocabulary, Vocabulary]:
        """The kinds of the source's and the target's vocabulary; auto where the training text decides."""
        return self.source_tokenizer or self.tokenizer, self.target_tokenizer or self.tokenizer

    def tokenizers_or(self, chosen: Sequence[str]) -> tuple[str, str]:
        """Return the kinds of both sides, a chosen one where the training text decides."""
        source, target = (own if asked == AUTO else asked for asked, own in zip(self.tokenizers, chosen, strict=True))
        return source, target

    @property
    def is_demo(self) -> bool:
        """True where no training text is named: the built-in date demo."""
        return not self.train

    @property
    def num_passes(self) -> int:
        """Forward passes whose memory a micro-batch takes at once: R-Drop's two lie side by side."""
        return 2 if self.rdrop_alpha else 1

    def share_of(self, split: str) -> str | None:
        """Return how much of the training text is to be held out for `valid` or `test`: "auto", "1000", "0.05".

        None where files are named, or nothing. A file of such a name is meant as ./1000.
        """
        names = getattr(self, split)
        is_share = len(names) == 1 and (names[0] == HOLD_OUT or re.fullmatch(_SHARE, names[0]))
        return names[0] if is_share and not self.is_demo else None

    def model_config(self, **overrides: Any) -> SeqloomConfig:
        """Build the configuration of the model; label smoothing comes from `label_smoothing_factor`.

        Args:
            overrides: fields that win, e.g. the `vocab_size` that the trained tokenizer really has.
        """
        smoothing = self.training_arguments.get("label_smoothing_factor", 0.0)
        return SeqloomConfig(**{"vocab_size": self.vocab_size, "label_smoothing": smoothing, **self.model, **overrides})

    def selection(self) -> dict[str, list[str]]:
        """What `where` asks for: column -> accepted values."""
        return selection_of(self.where)

    def chapters(self) -> dict[str, dict[str, Any]]:
        """Every value of the recipe, grouped as in the YAML."""
        grouped: dict[str, dict[str, Any]] = {chapter: {} for chapter in CHAPTERS}
        for item in own_fields():
            grouped[item.metadata["chapter"]][item.name] = getattr(self, item.name)
        grouped["model"].update(self.model)
        grouped["training"].update(self.training_arguments)
        return grouped

    def flat(self) -> dict[str, Any]:
        """Every value of the recipe by key, without the chapters."""
        return {key: value for values in self.chapters().values() for key, value in values.items()}

    def to_yaml(self) -> str:
        """The resolved recipe as YAML that `resolve_recipe` reads back to an equal recipe."""
        return "\n".join(write_yaml({chapter: values}) for chapter, values in self.chapters().items())

    def save(self, path: str | PathLike[str]) -> None:
        """Write the resolved recipe to `path`."""
        Path(path).write_text(self.to_file(Path(path).name), encoding="utf-8", newline="\n")

    def to_file(self, name: str = "recipe.yaml") -> str:
        """The resolved recipe as a file of this name holds it."""
        return f"{RECIPE_HEADER}: seqloom train --recipe {shlex.quote(name)}\n{self.to_yaml()}"

    def _check_files(self) -> None:
        if self.test == [HOLD_OUT]:
            raise RecipeError("test=auto is not chosen for you; name files, or how much to hold out: --test 500.")
        for split in ("train", "valid", "test"):
            names = getattr(self, split)
            is_number = split != "train" and len(names) == 1 and re.fullmatch(_NUMBER, names[0])
            if is_number and not re.fullmatch(_SHARE, names[0]):
                raise RecipeError(
                    f"{split}={names[0]} cannot be held out; write a number of examples, 1000, or a share below 1, "
                    f"0.05; a file of that name is ./{names[0]}."
                )
            self._check_names(split, names)
            if len(names) > 2 and not can_follow(names):
                raise RecipeError(
                    f"{split} names {len(names)} files ({', '.join(names)}); give two line-aligned files, source and "
                    f"target, or one file with both, or several such files, which are read one after the other "
                    f"(.tsv, .jsonl, .csv, .parquet). Join several text files into one first: cat."
                )
            if names and names != [HOLD_OUT] and self.is_demo:
                raise RecipeError(
                    f"{split}={' '.join(names)} is given and train is not; add --train with your training text, "
                    f"or leave {split} out to train the date demo."
                )

    def _check_names(self, split: str, names: list[str]) -> None:
        try:
            corpora = [data_name(name) for name in names]
        except DataNameError as error:
            raise RecipeError(f"{split}={error}") from None
        for name, corpus in zip(names, corpora, strict=True):
            if corpus.weight is not None and split != "train":
                raise RecipeError(
                    f"{split}={name}: how often an example is learned says nothing of text that is scored; leave the "
                    f"{corpus.weight} out."
                )
            if corpus.has_options and len(names) == 2 and not can_follow(names):
                raise RecipeError(
                    f"{split}={' '.join(names)}: {name} has a weight or a tag, and two text files are source and "
                    f"target, line by line; make one file of them: paste SOURCE TARGET > BOTH.tsv."
                )

    def _check_columns(self) -> None:
        wanted = 1 if self.task == "continuation" else 2
        if self.columns is not None and len(self.columns) != wanted:
            rule = "one column, the text" if wanted == 1 else "two columns, source and target"
            raise RecipeError(f"columns={' '.join(self.columns)} does not fit task={self.task}; it reads {rule}.")
        for condition in self.where:
            column, equals, _ = condition.partition("=")
            if not (column and equals):
                raise RecipeError(f"where={condition} names no column and value; write COLUMN=VALUE, e.g. language=de.")
        own = self.columns or (["text"] if wanted == 1 else ["source", "target"])
        for column in self.tags:
            if column in own or self.tags.count(column) > 1:
                fault = "is learned from, or learned, itself" if column in own else "is named twice"
                raise RecipeError(f"tags={' '.join(self.tags)}: {column} {fault}; leave it out of tags.")
            if not TAG.fullmatch(f"<{column}=x>"):
                better = re.sub(r"[<>\s]+", "_", column)
                raise RecipeError(
                    f"tags={shlex.join(self.tags)}: {column!r} makes no token, which has no blank, < or > in it; give "
                    f"the column another name, such as {better}."
                )
        if not (self.is_demo or is_aligned(self.train)):
            return
        data = "the demo has" if self.is_demo else f"the line-aligned files {' and '.join(self.train)} have"
        if self.columns is not None:
            raise RecipeError(f"columns={' '.join(self.columns)}: {data} no columns; leave columns out.")
        for key, use in (("where", "select by"), ("tags", "make tags of")):
            if given := getattr(self, key):
                raise RecipeError(f"{key}={' '.join(given)}: {data} no columns to {use}; leave {key} out.")

    def _check_languages(self) -> None:
        for code in self.languages:
            if not re.fullmatch(r"[a-z]{2,3}|multilingual|code", code):
                raise RecipeError(
                    f"languages={' '.join(self.languages)}: {code} is not a language code; write two or three small "
                    f"letters of ISO 639 each, the source's first, e.g. de en."
                )

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
            if is_aligned(getattr(self, split)):
                raise RecipeError(
                    f"{split}={' '.join(getattr(self, split))}: task=continuation reads one raw text, not two aligned "
                    f"files; name one file, or use task=pairs."
                )
        if self.source_tokenizer or self.target_tokenizer:
            raise RecipeError(
                f"source_tokenizer={self.source_tokenizer} target_tokenizer={self.target_tokenizer}: prompt and "
                f"continuation are one language; name the kind of its vocabulary with tokenizer alone."
            )
        if self.normalization == "nfd":
            raise RecipeError(
                "normalization=nfd: it takes sources apart and leaves targets whole, and here they are one text; use "
                "nfc or nfkc with task=continuation."
            )
        if not self.joint_vocabulary:
            raise RecipeError(
                "joint_vocabulary=false: prompt and continuation are one language; leave it out with task=continuation."
            )

    def _check_run(self) -> None:
        if not self.output.strip():
            raise RecipeError(
                f"output={self.output!r} names no folder; write --output DIR (is a variable of the shell unset?), or "
                f"--output . for the folder you are in."
            )
        if self.overwrite and self.resume == "auto":
            raise RecipeError(
                "overwrite=true starts over and resume=auto goes on; add --resume never, or leave overwrite out."
            )
        for key, most in (("max_new_tokens", MOST_TOKENS), ("num_beams", MOST_BEAMS)):
            value = getattr(self, key)
            if value is not None and value > most:
                raise RecipeError(f"{key}={value} is more than {most:,}, the most that is tried; lower it.")
        smoothing = self.training_arguments.get("label_smoothing_factor", 0.0)
        if not 0 <= smoothing < 1:
            raise RecipeError(f"label_smoothing_factor={smoothing} is outside [0, 1); it is a share, e.g. 0.1.")
        strategy = self.training_arguments.get("eval_strategy", "no")
        if strategy != "no" and not self.valid and not self.is_demo:
            raise RecipeError(
                f"eval_strategy={strategy} needs something to score and valid names nothing; add --valid, "
                f"or use eval_strategy=no."
            )

    def _check_parent(self) -> None:
        if self.init_from is None:
            if self.init_vocabulary == "new":
                raise RecipeError(
                    "init_vocabulary=new needs init_from, for without it every vocabulary is new; leave it out, or add "
                    "--init_from FOLDER."
                )
        elif Path(self.init_from).expanduser().resolve().is_relative_to(Path(self.output).resolve()):
            raise RecipeError(
                f"init_from={self.init_from} is, or lies in, the folder to be written; name another --output. To train "
                f"the run in it longer, give its own command a higher --max_steps."
            )

    def _check_quality_tools(self) -> None:
        others = set(self.tokenizers) - {*CUT_ANEW, AUTO}
        if self.bpe_dropout and others:
            raise RecipeError(
                f"bpe_dropout={self.bpe_dropout} skips merges or words and tokenizer={min(others)} has neither; leave "
                f"it out, or use tokenizer={' or '.join(CUT_ANEW)}."
            )
        for key, value, usual in (("bpe_dropout", self.bpe_dropout, 0.1), ("ema_decay", self.ema_decay, 0.999)):
            if value >= 1:
                raise RecipeError(f"{key}={value} is outside [0, 1); use e.g. {usual}, or 0 for off.")
        if self.ema_decay and self.average_checkpoints:
            raise RecipeError(
                f"ema_decay={self.ema_decay} and average_checkpoints={self.average_checkpoints} are two ways to "
                f"average the same weights; leave one of them out."
            )
        if self.packing and self.model.get("attention_dropout"):
            raise RecipeError(
                f"packing=true has no kernel with attention_dropout={self.model['attention_dropout']}; set it to 0 "
                f"(dropout stays), or leave packing out."
            )

    def _check_averaging(self) -> None:
        if not self.average_checkpoints:
            if self.average_by == "best":
                raise RecipeError(
                    "average_by=best chooses among checkpoints and average_checkpoints=0 takes none; "
                    "add --average_checkpoints 5, or leave average_by out."
                )
            return
        strategy = self.training_arguments.get("save_strategy", "steps")
        if strategy == "no":
            raise RecipeError(
                f"average_checkpoints={self.average_checkpoints} needs checkpoints and save_strategy=no writes none; "
                f"use save_strategy=steps."
            )
        limit = self.training_arguments.get("save_total_limit")
        if limit is not None and limit < self.average_checkpoints:
            raise RecipeError(
                f"save_total_limit={limit} deletes checkpoints that average_checkpoints={self.average_checkpoints} "
                f"needs; raise it to {self.average_checkpoints} or leave it out."
            )

    def _check_best_model(self) -> None:
        """Refuse to look for the best checkpoint where scores and checkpoints do not come at the same updates."""
        arguments = self.training_arguments
        wanted = [f"early_stopping_patience={self.early_stopping_patience}"] * bool(self.early_stopping_patience)
        wanted += ["average_by=best"] * (self.average_by == "best")
        wanted += ["load_best_model_at_end=true"] * bool(arguments.get("load_best_model_at_end"))
        if not wanted:
            return
        evaluated, saved = arguments.get("eval_strategy", "no"), arguments.get("save_strategy", "steps")
        if evaluated == "no":
            remedy = "leave it out" if "eval_strategy" in self.named and self.valid else "add --valid"
            raise RecipeError(f"{wanted[0]} needs a score to compare and eval_strategy=no gives none; {remedy}.")
        if saved not in (evaluated, "best"):
            raise RecipeError(
                f"{wanted[0]} needs a checkpoint for each score: eval_strategy={evaluated} and save_strategy={saved} "
                f"must be the same; use save_strategy={evaluated}."
            )
        every, save = arguments.get("eval_steps", 500), arguments.get("save_steps", 500)
        if evaluated == saved == "steps" and min(every, save) >= 1 and save % every:
            raise RecipeError(
                f"{wanted[0]} needs a score for each checkpoint: save_steps={save} is not a multiple of "
                f"eval_steps={every}; use save_steps={every * max(1, round(save / every))}."
            )


def selection_of(conditions: list[str]) -> dict[str, list[str]]:
    """Return column -> accepted values of some COLUMN=VALUE."""
    selected: dict[str, list[str]] = {}
    for condition in conditions:
        column, _, value = condition.partition("=")
        selected.setdefault(column, []).append(value)
    return selected


def means_nothing(names: list[str]) -> bool:
    """Return whether a recipe's `valid` or `test` names no text: [], none or 0."""
    return names in ([], [NOTHING]) or (len(names) == 1 and re.fullmatch(r"[0.]*0[0.]*", names[0]) is not None)


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


__all__ = [
    "CHAPTERS",
    "HOLD_OUT",
    "NARROW_FORMATS",
    "SIDES",
    "Precision",
    "Recipe",
    "RecipeError",
    "field_docs",
    "means_nothing",
    "own_fields",
    "selection_of",
]
