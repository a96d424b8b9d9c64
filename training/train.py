"""From text to a folder that answers: one training run, told from top to bottom.

    accelerate launch training/train.py [--recipe FILE] [--any_recipe_key value ...]

Without arguments it trains the date demo. `seqloom train` is the same door.
"""

import logging
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from tqdm import tqdm
from transformers import GenerationConfig, Seq2SeqTrainingArguments, set_seed

import seqloom  # noqa: F401  (registers the classes and the bundler that every checkpoint is written with)
from seqloom.configuration.command import CommandParser, run_command
from seqloom.configuration.recipe import Recipe, RecipeError, add_recipe_arguments, recipe_from_arguments
from seqloom.modeling.modeling_seqloom import SeqloomForConditionalGeneration
from seqloom.training import preflight
from seqloom.training.batching import accumulation_steps
from seqloom.training.corpus import load_corpus
from seqloom.training.demo import DEMO_EXAMPLES, build_demo
from seqloom.training.metrics import get_metrics
from seqloom.training.run_folder import RunFolder
from seqloom.training.tasks import get_task
from seqloom.training.tokenizer import SeqloomTokenizers, train_tokenizer
from seqloom.training.trainer import EvaluationPlan, SampleOutputs, SeqloomTrainer, lengths_of

logger = logging.getLogger(__name__)

DEFAULT_METRICS = {"pairs": ("bleu", "chrf", "exact_match", "cer"), "continuation": ()}


def train(recipe: Recipe) -> dict[str, Any]:
    """Train what the recipe says, or go on where an earlier start of it stopped.

    Args:
        recipe: the resolved recipe.

    Returns:
        The scores, as `OUTPUT/run/results.json` keeps them.

    Raises:
        ValueError: for anything wrong with recipe or data, before training starts.
    """
    metrics = tuple(recipe.metrics or DEFAULT_METRICS[recipe.task])
    get_metrics(metrics)
    folder = RunFolder(Path(recipe.output))
    if folder.is_finished and recipe.resume == "auto":
        say(f"{folder.path} holds a finished run; nothing to do. --resume never --overwrite trains it again.")
        return folder.results()
    arguments = training_arguments(recipe)
    set_seed(arguments.seed)
    with arguments.main_process_first(desc="preparing data and vocabulary"):
        if arguments.process_index == 0:
            folder.open(recipe)
        corpus, facts = read_corpus(recipe)
        tokenizers = read_or_train_tokenizers(recipe, corpus["train"], folder)
        data = DatasetDict({name: encode(split, tokenizers, recipe, name) for name, split in corpus.items()})
    if arguments.process_index == 0:
        folder.write("data.json", facts)
    arguments.gradient_accumulation_steps = accumulation_steps(
        recipe.tokens_per_update, recipe.tokens_per_device, arguments.world_size
    )

    model = SeqloomForConditionalGeneration(recipe.model_config(vocab_size=tokenizers.vocab_size))
    model.generation_config = generation_config(recipe, tokenizers)
    trainer = SeqloomTrainer(
        model,
        arguments,
        tokenizers=tokenizers,
        tokens_per_update=recipe.tokens_per_update,
        evaluation=EvaluationPlan(metrics, max_new_tokens=recipe.max_new_tokens),
        train_dataset=data["train"],
        eval_dataset=data.get("validation"),
    )
    if recipe.num_sample_outputs and "validation" in data:
        trainer.add_callback(sample_outputs(trainer, data["validation"], recipe))
    check_before_training(trainer, data, recipe)

    started = time.perf_counter()
    outcome = trainer.train(resume_from_checkpoint=folder.last_checkpoint())
    seconds = time.perf_counter() - started
    save(trainer, folder)
    results = {"seconds": round(seconds, 1), "updates": outcome.global_step, "train_loss": outcome.training_loss}
    results |= final_scores(trainer, data, recipe, folder)
    if trainer.is_world_process_zero():
        folder.write("results.json", results)
        say_how_to_use(trainer, data, recipe, results)
    return results


# Text ----------------------------------------------------------------------------------------------------------------


def read_corpus(recipe: Recipe) -> tuple[DatasetDict, dict[str, Any]]:
    """Return the splits as pairs of text, and what is known of each: files, rows, what was dropped and why.

    The splits are "train", and "validation" and "test" where the recipe names them.
    """
    if recipe.is_demo:
        demo = build_demo()
        return demo, {split: {"name": "date demo", "num_rows": len(rows)} for split, rows in demo.items()}
    task = get_task(recipe.task, num_splits=recipe.num_splits)
    corpus, facts = {}, {}
    for split, name in (("train", "train"), ("validation", "valid"), ("test", "test")):
        if files := getattr(recipe, name):
            loaded = load_corpus(
                files,
                columns=recipe.columns,
                task=recipe.task,
                split=name,
                where=recipe.selection(),
                num_proc=recipe.num_proc,
            )
            corpus[split] = task.to_pairs(loaded.dataset, seed=seed_of(recipe), num_proc=recipe.num_proc)
            facts[split] = asdict(loaded.facts)
    return DatasetDict(corpus), facts


def read_or_train_tokenizers(recipe: Recipe, pairs: Dataset, folder: RunFolder) -> SeqloomTokenizers:
    """Return the vocabulary of this run: the one it was started with, or a new one from the training text."""
    home = folder.records / "tokenizer"
    if not home.is_dir():
        tokenizers = train_tokenizer(
            pairs["source"],
            pairs["target"],
            kind=recipe.tokenizer,
            vocab_size=recipe.vocab_size,
            joint=recipe.joint_vocabulary,
            normalization=recipe.normalization,
            min_frequency=recipe.min_frequency,
            character_coverage=recipe.character_coverage,
            split_digits=recipe.split_digits,
        )
        tokenizers.save(home)
    return SeqloomTokenizers.load(home)


def encode(pairs: Dataset, tokenizers: SeqloomTokenizers, recipe: Recipe, split: str) -> Dataset:
    """Add `input_ids` and `labels` to the texts; training examples over the length limits are left out and counted."""
    encoded = pairs.map(
        encode_batch,
        batched=True,
        num_proc=recipe.num_proc,
        fn_kwargs={"tokenizers": tokenizers},
        desc=f"Tokenizing {split}",
    )
    if split != "train":
        return encoded
    lengths = lengths_of(encoded)
    limits = [recipe.max_source_length or np.inf, recipe.max_target_length or np.inf]
    fits = (lengths <= limits).all(axis=1) & (lengths.sum(axis=1) <= recipe.tokens_per_update)
    if not fits.any():
        raise RecipeError(
            f"no training example is left: all {len(fits):,} are longer than max_source_length="
            f"{recipe.max_source_length}, max_target_length={recipe.max_target_length} or tokens_per_update="
            f"{recipe.tokens_per_update} tokens; the shortest source has {lengths[:, 0].min()}. Raise the limit."
        )
    if not fits.all():
        logger.warning(
            "Left out %s of %s training examples: longer than max_source_length=%s, max_target_length=%s or "
            "tokens_per_update=%s tokens.",
            f"{(~fits).sum():,}",
            f"{len(fits):,}",
            recipe.max_source_length,
            recipe.max_target_length,
            recipe.tokens_per_update,
        )
        encoded = encoded.select(np.flatnonzero(fits))
    return encoded


def encode_batch(batch: dict[str, list[str]], tokenizers: SeqloomTokenizers) -> dict[str, list[list[int]]]:
    """Return token ids of both sides, each ending in the end-of-sequence token."""
    return {
        "input_ids": tokenizers.source(batch["source"], return_attention_mask=False).input_ids,
        "labels": tokenizers.target(batch["target"], return_attention_mask=False).input_ids,
    }


# Settings ------------------------------------------------------------------------------------------------------------


def seed_of(recipe: Recipe) -> int:
    """Return the seed that decides weights, dropout, cuts and order."""
    return int(recipe.training_arguments.get("seed", 42))


def training_arguments(recipe: Recipe) -> Seq2SeqTrainingArguments:
    """Return transformers' arguments: the recipe's, and those that the recipe leaves to us."""
    chosen = dict(recipe.training_arguments)
    if recipe.is_demo or recipe.valid:
        chosen.setdefault("eval_strategy", "steps")
    chosen.setdefault("per_device_eval_batch_size", 64)
    chosen.setdefault("dataloader_pin_memory", torch.cuda.is_available())
    chosen.setdefault("ddp_find_unused_parameters", False)
    chosen.setdefault("use_cpu", not torch.accelerator.is_available())  # else CPU processes would not know each other
    return Seq2SeqTrainingArguments(output_dir=recipe.output, **chosen)


def generation_config(recipe: Recipe, tokenizers: SeqloomTokenizers) -> GenerationConfig:
    """Return how the folder decodes unless told otherwise; padding, start and unknown are never text."""
    tokenizer = tokenizers.target
    return GenerationConfig(
        max_new_tokens=recipe.max_new_tokens,
        num_beams=recipe.num_beams,
        length_penalty=recipe.length_penalty,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.bos_token_id,
        suppress_tokens=[tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id],
    )


# What a person sees --------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Print a line above whatever progress bar is running."""
    tqdm.write(text, file=sys.stdout)


def sample_outputs(trainer: SeqloomTrainer, validation: Dataset, recipe: Recipe) -> SampleOutputs:
    """Return the callback that shows a few validation examples, evenly picked, at each evaluation."""
    picked = np.linspace(0, len(validation) - 1, min(recipe.num_sample_outputs, len(validation)), dtype=int)
    return SampleOutputs(validation.select(picked), trainer.write_texts, say)


def check_before_training(trainer: SeqloomTrainer, data: DatasetDict, recipe: Recipe) -> None:
    """Print what is about to be trained and what it takes, and refuse what cannot fit."""
    plan = preflight.survey(trainer.train_sampler())
    memory = preflight.measure(trainer, plan.largest)
    args = trainer.args
    num_updates = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * plan.num_updates)
    if trainer.is_world_process_zero():
        sizes = {name: len(split) for name, split in data.items()}
        for subject, text in preflight.describe(trainer, plan, memory, sizes, num_updates).items():
            say(f"{subject:10}{text}")
    memory.check(recipe.tokens_per_device)
    trainer.add_callback(preflight.TimeEstimate(say))


def say_how_to_use(trainer: SeqloomTrainer, data: DatasetDict, recipe: Recipe, results: dict[str, Any]) -> None:
    """Print scores, three outputs, and the exact lines that use the folder."""
    say(f"\n{recipe.output}: {results['updates']:,} updates in {results['seconds']:.0f} s")
    for split in ("validation", "test"):
        shown = {k.removeprefix(f"{split}_"): v for k, v in results.items() if k.startswith(split) and is_score(k, v)}
        if shown:
            say(f"{split:12}" + ", ".join(f"{name} {value:.2f}" for name, value in shown.items()))
    say("")
    last = data["test"] if "test" in data else data.get("validation", data["train"])
    prompts = list(DEMO_EXAMPLES) if recipe.is_demo else last[:3]["source"]
    for prompt, output in zip(prompts, trainer.write_texts(prompts), strict=True):
        say(f"  {prompt}  ->  {output}")
    say(USAGE.format(folder=recipe.output, prompt=prompts[0]))


USAGE = """
Use it from the command line
    echo '{prompt}' | seqloom generate {folder}
or in Python
    from transformers import pipeline
    write = pipeline("text-generation", model="{folder}", trust_remote_code=True)
    print(write({prompt!r}, return_full_text=False)[0]["generated_text"])
"""


def is_score(name: str, value: Any) -> bool:
    """Return whether a result is a score, and not a duration, a speed or a signature."""
    return isinstance(value, float) and not name.endswith(("runtime", "per_second", "preparation_time", "epoch"))


# The end -------------------------------------------------------------------------------------------------------------


def save(trainer: SeqloomTrainer, folder: RunFolder) -> None:
    """Leave the model at the top of the folder, without the pickle that Trainer adds."""
    trainer.save_model(str(folder.path))
    if trainer.is_world_process_zero():
        (folder.path / "training_args.bin").unlink(missing_ok=True)


def final_scores(trainer: SeqloomTrainer, data: DatasetDict, recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Score validation and test sets as the folder will decode, and keep what the model wrote for the test set."""
    trainer.remove_callback(SampleOutputs)
    trainer.evaluation = replace(trainer.evaluation, num_beams=recipe.num_beams)
    results: dict[str, Any] = {}
    for split in ("validation", "test"):
        if split in data:
            results |= trainer.evaluate(data[split], metric_key_prefix=split)
            results |= trainer.signatures
    if "test" in data and trainer.outputs and trainer.is_world_process_zero():
        texts = data["test"].select_columns(["source", "target"])
        rows = ({**text, "output": output} for text, output in zip(texts, trainer.outputs, strict=True))
        folder.write_lines("test_outputs.jsonl", rows)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; see `seqloom train --help` for every key.

    Args:
        argv: the arguments; None: those of the process.

    Returns:
        0 only when the work is done.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _train_from(arguments), debug="--debug" in arguments)


def _train_from(arguments: list[str]) -> None:
    parser = CommandParser(prog="training/train.py", description="Train a model; the same as `seqloom train`.")
    add_recipe_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    train(recipe_from_arguments(*parser.parse_known_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
