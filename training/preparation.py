"""From the recipe's files to examples a model can learn from: text, vocabulary, token ids.

Everything here depends on recipe and files alone, so that a run started again finds the same examples.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict

from seqloom.configuration.automatic import SUBWORD_KINDS, Choice, choose, with_room
from seqloom.configuration.configuration_seqloom import MOST_TOKENS
from seqloom.configuration.data_names import TAG, data_name
from seqloom.configuration.recipe import Recipe, RecipeError
from seqloom.configuration.task_kind import Looks, count_rivals, sampled
from seqloom.hub.files import SEAL_NAME
from seqloom.training.batching import BatchSettings
from seqloom.training.checking.cleaning import clean_corpus
from seqloom.training.demo import build_demo
from seqloom.training.examples import lengths_of
from seqloom.training.fault_tolerance.checkpoints import find_damage
from seqloom.training.fault_tolerance.run_folder import RunFolder
from seqloom.training.held_out import LEFT_OUT, held_facts, hold_out, judges_of, shares_of
from seqloom.training.parent import Parent, is_changed, read_parent, recorded_parent, refuse_misfit
from seqloom.training.quality.bpe_dropout import EpochEncodings, LengthLimits
from seqloom.training.reading.corpus import load_corpus
from seqloom.training.reading.sources import MOST_TAGS, Extra
from seqloom.training.reading.tasks import get_task
from seqloom.training.settings import metrics_for, seed_of
from seqloom.training.tokenizer import (
    SeqloomTokenizers,
    ids_of,
    in_normal_form,
    tokenizing_in_threads,
    train_tokenizer,
)
from seqloom.training.vocabulary import NUM_RESERVED, alphabet_of

logger = logging.getLogger(__name__)

MANY_CHARACTERS = 500
"""Characters of a sample from which on those of the whole text are counted, for a vocabulary has to hold them."""

ROOM, SPARE = 1.25, 10
"""An output may be longer than the longest target by this factor and so many tokens: others are nonsense."""


def parent_of(recipe: Recipe, run: RunFolder) -> Parent | None:
    """Return what a recipe begins with: as an earlier start of the run has kept it, else as the folder is.

    Raises:
        RecipeError: for a folder that is none of ours, that is not whole, or that does not fit what was named.
        FolderError: for one that is dangerous to open.
    """
    if recipe.init_from is None:
        return None
    known = recorded_parent(run.records) if recipe.resume == "auto" and run.last_checkpoint() else None
    if known and known.folder == recipe.init_from:
        if is_changed(known):
            logger.warning(
                "init_from=%s holds other weights now than when the run in %s began; the run goes on with its own.",
                known.folder,
                run.path,
            )
        return known
    parent, folder = read_parent(recipe.init_from), Path(recipe.init_from).expanduser()
    is_sealed = (folder / SEAL_NAME).is_file()
    faults = [find_damage(folder)] if is_sealed else RunFolder(folder).installed_faults().values()
    if fault := next(filter(None, faults), None):
        raise RecipeError(
            f"init_from={recipe.init_from} is not as its run left it: {fault}. Bring the file back, or name another "
            f"folder."
        )
    refuse_misfit(recipe, parent)
    return parent


def read_corpus(
    recipe: Recipe, splits: Sequence[str] = ("train", "validation", "test")
) -> tuple[DatasetDict, dict[str, Any]]:
    """Return the splits as pairs of text, and what is known of each: files, rows, what was dropped and why.

    The splits are "train", and "validation" and "test" where the recipe names them or holds them out of "train". Files
    of splits that are not asked for are not read.
    """
    if recipe.is_demo:
        demo = build_demo()
        return demo, {split: {"name": "date demo", "num_rows": len(rows)} for split, rows in demo.items()}
    loaded = {}
    for split, name in (("train", "train"), ("validation", "valid"), ("test", "test")):
        files = getattr(recipe, name)
        is_wanted = split in splits or recipe.clean != "none"  # what leaks into train is found in all of them
        if files and recipe.share_of(name) is None and is_wanted:
            loaded[split] = load_corpus(
                files,
                columns=recipe.columns,
                task=recipe.task,
                split=name,
                where=recipe.selection(),
                tags=recipe.tags,
                num_proc=recipe.num_proc,
            )
    loaded["train"] = clean_corpus(loaded, recipe.clean, recipe.num_proc)
    texts = {split: corpus.dataset for split, corpus in loaded.items()}
    facts = {split: asdict(corpus.facts) for split, corpus in loaded.items()}
    judges = judges_of(texts["train"], recipe.train)
    if shares := shares_of(recipe, int(judges.sum())):
        parts = hold_out(texts["train"], shares, seed=seed_of(recipe), judges=judges)
        texts |= parts
        facts |= held_facts(facts["train"], parts, shares, int(judges.sum()))
    task = get_task(recipe.task, num_splits=recipe.num_splits)
    pairs = {
        split: task.to_pairs(texts[split], seed=seed_of(recipe), num_proc=recipe.num_proc)
        for split in ("train", "validation", "test")
        if split in texts
    }
    return DatasetDict(pairs), facts


def read_training(recipe: Recipe | None, files: Sequence[str]) -> tuple[Dataset, str]:
    """Return a training text as pairs, and its fingerprint.

    Args:
        recipe: of the run; what it held out is left out. None: files with the columns of the task pairs.
        files: its own, or others that hold the same.

    Raises:
        CorpusError: for files that cannot be read.
    """
    if recipe and list(files) == recipe.train:
        corpus, facts = read_corpus(recipe, ["train"])
        return with_tags(corpus["train"]), str(facts["train"]["fingerprint"])
    task, columns = (recipe.task, recipe.columns) if recipe else ("pairs", None)
    loaded = load_corpus(list(files), columns=columns if len(files) == 1 else None, task=task, split="train")
    return with_tags(get_task(task).to_pairs(loaded.dataset)), loaded.facts.fingerprint


def choose_for(recipe: Recipe, pairs: Dataset, folder: RunFolder) -> Choice:
    """Return what the training text decides where the recipe says auto; of a run that goes on, what it recorded.

    Args:
        recipe: with what is named.
        pairs: the training text.
        folder: of the run.
    """
    if folder.goes_on(recipe):
        return folder.choice()
    sample = pairs[sampled(len(pairs))]
    looks = Looks.of(sample["source"], sample["target"], is_continuation=recipe.task == "continuation")
    choice = choose(recipe, len(pairs), looks)
    sides = zip(("source", "target"), (looks.source, looks.target), choice.tokenizers, strict=True)
    cut = [name for name, side, kind in sides if kind in SUBWORD_KINDS and side.alphabet > MANY_CHARACTERS]
    found = set().union(*(alphabet_of(pairs[name], recipe.normalization) for name in cut))
    return with_room(choice, NUM_RESERVED + len(found)) if found else choice


def settle(
    recipe: Recipe, corpus: DatasetDict, facts: dict[str, Any], metrics: Sequence[str]
) -> tuple[Recipe, dict[str, str]]:
    """Write into a recipe what the corpus has decided: what judges the run, and by which scores.

    Args:
        recipe: whose `valid` and `metrics` may be "auto".
        corpus: all splits, as text.
        facts: of `read_corpus`.
        metrics: that are usual for the kind of task.

    Returns:
        The recipe, and a line for each thing that nobody has named, by subject.
    """
    lines = {}
    for split, name in (("validation", "valid"), ("test", "test")):
        if recipe.share_of(name) is None:
            continue
        dropped = facts["train"]["num_dropped"]
        held = dropped.get(f"held out for {split}", 0)
        facts["train"].setdefault("asked", {})[name] = recipe.share_of(name)
        if held:
            whole = "sources" if recipe.task == "pairs" else "documents"
            tagged = [each for each in recipe.train if data_name(each).tag] if LEFT_OUT in dropped else []
            but = f" but for {' '.join(tagged)}, which lost {dropped[LEFT_OUT]:,} of the same {whole}" if tagged else ""
            lines[name] = f"{held:,} examples held out of the training text{but}, whole {whole}; --{name} none for none"
            changed: dict[str, Any] = {name: [str(held)]}
            recipe = replace(recipe, **changed)
        else:
            judges = judges_of(corpus["train"], recipe.train)
            plain = "" if judges.all() else " without a tag"
            lines[name] = (
                f"none, for {judges.sum():,} training examples{plain} are too few to hold some out unasked: nothing "
                f"will be scored. Add --valid FILES, or --valid 0.1 for a tenth of them"
            )
            recipe = replace(recipe, valid=[], training_arguments={**recipe.training_arguments, "eval_strategy": "no"})
    if not recipe.metrics and recipe.task == "pairs":
        recipe = replace(recipe, metrics=list(metrics_for(recipe, metrics)))
    return recipe, lines


def describe_rivals(corpus: DatasetDict) -> str:
    """Say that examples of the validation or test text have a source that others have with another target; "": none."""
    found = []
    for split in ("validation", "test"):
        if split in corpus:
            pairs = corpus[split]
            tags = pairs[Extra.TAGS] if Extra.TAGS in pairs.column_names else [""] * len(pairs)
            if rivals := count_rivals(list(zip(tags, pairs["source"], strict=True)), pairs["target"]):
                found.append(f"{rivals:,} of {len(pairs):,} {split} examples")
    if not found:
        return ""
    return (
        f"{' and '.join(found)} have a source that others have with another target, and one output cannot equal both: "
        f"scores are lower than they could be. seqloom evaluate --any_reference takes each of the targets as right"
    )


def read_or_train_tokenizers(recipe: Recipe, pairs: Dataset, folder: RunFolder) -> SeqloomTokenizers:
    """Return the vocabulary of this run: the one it was started with, its parent's, or a new one from the text."""
    home = folder.prepared / "tokenizer"
    if not home.is_dir():
        tokenizers = _parents_tokenizers(recipe) or train_tokenizer(
            pairs["source"],
            pairs["target"],
            kind=recipe.tokenizers[0],
            target_kind=recipe.tokenizers[1],
            vocab_size=recipe.vocab_size,
            joint=recipe.joint_vocabulary,
            normalization=recipe.normalization,
            target_normalization="nfc" if recipe.normalization == "nfd" else None,
            min_frequency=recipe.min_frequency,
            character_coverage=recipe.character_coverage,
            split_digits=recipe.split_digits,
            show_progress=not recipe.training_arguments.get("disable_tqdm"),
        )
        tags = tags_of(pairs)
        if tags or tokenizers.tags:  # a parent's entries stay; which columns make tags is this run's own
            tokenizers.add_tags(tags, recipe.tags)
        with folder.staged(home) as staged:
            tokenizers.save(staged)
    return SeqloomTokenizers.load(home)


def _parents_tokenizers(recipe: Recipe) -> SeqloomTokenizers | None:
    if recipe.init_from is None or recipe.init_vocabulary == "new":
        return None
    return SeqloomTokenizers.load(Path(recipe.init_from).expanduser())


def tags_of(pairs: Dataset) -> list[str]:
    """Return the tags in front of sources, in the order of the alphabet.

    Raises:
        RecipeError: for more than a model can learn.
    """
    if Extra.TAGS not in pairs.column_names:
        return []
    tags = sorted({tag for several in pairs.unique(Extra.TAGS) for tag in TAG.findall(several)})
    if len(tags) > MOST_TAGS:
        raise RecipeError(
            f"the sources have {len(tags):,} different tags, from {tags[0]} to {tags[-1]}, and each has to be learned "
            f"from many examples; name columns in tags that have few different values, at most {MOST_TAGS:,}."
        )
    return tags


def refuse_unknown_tags(recipe: Recipe, corpus: DatasetDict, tokenizers: SeqloomTokenizers) -> None:
    """Refuse tags of validation and test files that are no token of the vocabulary: the model would read letters.

    Raises:
        RecipeError: with what the training text has.
    """
    for split, name in (("validation", "valid"), ("test", "test")):
        is_file = split in corpus and recipe.share_of(name) is None and not recipe.is_demo
        if is_file and (unknown := sorted({*tags_of(corpus[split])} - {*tokenizers.tags})):
            raise RecipeError(
                f"{name}: its sources have the tag {unknown[0]}, and those of the training text have "
                f"{' '.join(tokenizers.tags[:12]) or 'none'}; name the same tags for both, or other {name} text."
            )


def with_tags(pairs: Dataset, num_proc: int | None = None) -> Dataset:
    """Put the tags of each pair in front of its source."""
    if Extra.TAGS not in pairs.column_names:
        return pairs
    return pairs.map(_put_tags, batched=True, num_proc=num_proc, remove_columns=[Extra.TAGS], desc="Putting tags")


def _put_tags(batch: dict[str, list[str]]) -> dict[str, list[str]]:
    return {"source": [tags + source for tags, source in zip(batch["tags"], batch["source"], strict=True)]}


def describe_tags(tokenizers: SeqloomTokenizers) -> str:
    """Say which tokens stand in front of sources."""
    shown = " ".join(tokenizers.tags[:8]) + (" ..." if tokenizers.tags[8:] else "")
    return f"{len(tokenizers.tags):,} in front of sources, each a token: {shown}"


def encode(
    pairs: Dataset, tokenizers: SeqloomTokenizers, split: str, num_proc: int | None = None, **options: Any
) -> Dataset:
    """Add `input_ids` and `labels` to the texts, in the threads of the tokenizers or in so many processes.

    Args:
        pairs: columns `source` and `target`.
        tokenizers: of both sides.
        split: what the bar calls them.
        num_proc: None: one process, whose tokenizers use all cores.
        options: of `Dataset.map`.
    """
    with tokenizing_in_threads(is_on=num_proc is None):
        encoded = pairs.with_format("arrow").map(
            encode_table,
            batched=True,
            num_proc=num_proc,
            fn_kwargs={"tokenizers": tokenizers, "target_rule": TARGET_RULE},
            desc=f"Tokenizing {split}",
            **options,
        )
    return encoded.with_format(None)


def leave_out_long(encoded: Dataset, recipe: Recipe, facts: dict[str, Any]) -> tuple[Dataset, dict[str, Any]]:
    """Leave out training examples over the length limits, or refuse them, as the recipe says.

    Args:
        encoded: the training set.
        recipe: with the limits.
        facts: what is known of the training set.

    Returns:
        The examples within the limits, and the facts with how many are not and which is the longest of those.

    Raises:
        RecipeError: when an example is too long and `long_examples` is "refuse", or none is left.
    """
    lengths = lengths_of(encoded)
    limits = [recipe.max_source_length or np.inf, recipe.max_target_length or np.inf]
    fits = (lengths <= limits).all(axis=1) & (lengths.sum(axis=1) <= recipe.tokens_per_update)
    facts = {**facts, "num_too_long": int((~fits).sum())}
    if fits.all():
        return encoded, facts
    rule = f"{_limits_in_words(recipe)} tokens"
    if not fits.any():
        raise RecipeError(
            f"no training example is left: all {len(fits):,} are longer than {rule}. {_keep_half(lengths, recipe)}"
        )
    longest = int(np.where(fits, 0, lengths.sum(axis=1)).argmax())
    row = encoded[longest]
    facts["longest"] = {"row": longest + 1, "tokens": lengths[longest].tolist(), "source": row["source"][:80]}
    found = (
        f"{facts['num_too_long']:,} of {len(fits):,} training examples: longer than {rule}. The longest is row "
        f"{longest + 1:,} of those read, {lengths[longest][0]:,} + {lengths[longest][1]:,} tokens, "
        f"{row['source'][:40]!r}"
    )
    if recipe.long_examples == "refuse":
        raise RecipeError(f"long_examples=refuse, and there are {found}; shorten them, or take drop.")
    logger.warning("Left out %s.", found)
    return encoded.select(np.flatnonzero(fits)), facts


def _limits_in_words(recipe: Recipe) -> str:
    """Return the limits that a recipe sets, for messages."""
    keys = ("max_source_length", "max_target_length", "tokens_per_update")
    set_here = [f"{key}={value}" for key in keys if (value := getattr(recipe, key)) is not None]
    return " or ".join([", ".join(set_here[:-1]), set_here[-1]] if set_here[1:] else set_here)


def _keep_half(lengths: np.ndarray, recipe: Recipe) -> str:
    """Return which limits to raise so that an example of middle length is kept."""
    source, target = (int(length) for length in lengths[lengths.sum(axis=1).argsort()[len(lengths) // 2]])
    needed = {"max_source_length": source, "max_target_length": target}
    needed |= {"tokens_per_update": source + target, "tokens_per_device": (source + target) * recipe.num_passes}
    limits = {key: getattr(recipe, key) for key in needed}
    flags = [f"--{key} {n}" for key, n in needed.items() if limits[key] is not None and limits[key] < n]
    return f"An example of middle length has {source:,} + {target:,} tokens; {' '.join(flags)} keeps it."


def fit_output_length(recipe: Recipe, data: DatasetDict) -> tuple[Recipe, str]:
    """Settle how long outputs may be, now that all lengths are known, and refuse what learned positions cannot read.

    Args:
        recipe: with a longest output, or null.
        data: all splits, encoded.

    Returns:
        The recipe with a longest output, and a line that says which.

    Raises:
        RecipeError: when an example has more tokens than there are learned positions.
    """
    lengths = {split: lengths_of(rows) for split, rows in data.items()}
    known = known_positions(recipe)
    refuse_beyond(known, lengths, recipe.init_from)
    longest = max(int(sides[:, 1].max(initial=0)) for sides in lengths.values())
    chosen = min(int(longest * ROOM) + SPARE, known)
    if recipe.max_new_tokens is None:
        reason = f"chosen from the longest target, which has {longest:,}"
        return replace(recipe, max_new_tokens=chosen), f"at most {chosen:,} tokens, {reason}"
    named = min(recipe.max_new_tokens, known)
    if named < recipe.max_new_tokens:
        logger.warning(
            f"max_new_tokens={recipe.max_new_tokens} is lowered to the max_position_embeddings={known} learned "
            f"positions that there are."
        )
    for split, sides in lengths.items():
        count = int((sides[:, 1] > named).sum())
        if count and split != "train":
            logger.warning(
                f"{count:,} of {len(sides):,} {split} targets are longer than max_new_tokens={named}: their outputs "
                f"will be cut, and scored as they are then. Left out, or null, it is chosen from the data: {chosen:,}."
            )
    return replace(recipe, max_new_tokens=named), f"at most {named:,} tokens; the longest target has {longest:,}"


def known_positions(recipe: Recipe) -> int:
    """Return the most tokens of a sequence: those of the table if positions are learned."""
    config = recipe.model_config()
    return config.max_position_embeddings if config.position_embedding_type == "learned" else MOST_TOKENS


def refuse_beyond(known: int, lengths: dict[str, np.ndarray], parent: str | None = None) -> None:
    """Refuse examples with more tokens than a model has positions: training, an evaluation or the test would die.

    Raises:
        RecipeError: with the number of positions that would do.
    """
    needed = max(int(sides.max(initial=0)) for sides in lengths.values())
    if needed <= known:
        return
    counts = {split: int((sides > known).any(axis=1).sum()) for split, sides in lengths.items()}
    named = ", ".join(f"{count:,} of {len(lengths[split]):,} {split}" for split, count in counts.items() if count)
    is_train_alone = counts["train"] and sum(counts.values()) == counts["train"]
    dropped = f", leave them out with --max_source_length {known} --max_target_length {known}" if is_train_alone else ""
    raised = f"--max_position_embeddings {needed}, or " if needed <= MOST_TOKENS else ""
    remedy = f"Use {raised}--position_embedding_type sinusoidal or rotary{dropped}, or shorten them"
    if parent:
        remedy = f"init_from={parent} has no more; shorten them{dropped}, or leave init_from out"
    raise RecipeError(
        f"{named} examples have more tokens on a side than max_position_embeddings={known} learned positions; the "
        f"longest has {needed:,}. {remedy}."
    )


TARGET_RULE = 2
"""Raised when targets become something else: the cache of `Dataset.map` knows a function by its name alone."""


def encode_table(pairs: pa.Table, tokenizers: SeqloomTokenizers, target_rule: int = TARGET_RULE) -> pa.Table:
    """Add token ids of both sides to some pairs, each ending in the end-of-sequence token.

    Targets become what decoding their ids gives, for outputs are compared with them.
    """
    sides = (("input_ids", tokenizers.source, "source"), ("labels", tokenizers.target, "target"))
    for name, tokenizer, text in sides:
        ids = ids_of(tokenizer, pairs[text].to_pylist())
        pairs = pairs.append_column(name, pa.array(ids, pa.list_(pa.int32())))
    place, normalizer = pairs.schema.get_field_index("target"), tokenizers.target.backend_tokenizer.normalizer
    targets = in_normal_form(normalizer, pairs["target"].to_pylist())
    return pairs.set_column(place, "target", pa.array(targets, pairs.schema.field(place).type))


def epoch_encodings(
    pairs: Dataset, tokenizers: SeqloomTokenizers, recipe: Recipe, settings: BatchSettings
) -> EpochEncodings:
    """Return the training pairs as BPE-dropout cuts them, anew in each epoch."""
    known = known_positions(recipe)
    limits = LengthLimits(
        min(recipe.max_source_length or known, known),
        min(recipe.max_target_length or known, known),
        min(settings.tokens_per_update, settings.tokens_per_pass),
    )
    return EpochEncodings(
        pairs,
        tokenizers,
        dropout=recipe.bpe_dropout,
        seed=settings.seed,
        limits=limits,
        num_proc=recipe.num_proc,
    )
