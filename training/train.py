"""From text to a folder that answers: one training run, told from top to bottom.

    accelerate launch training/train.py [--recipe FILE] [--any_recipe_key value ...]

Without arguments it trains the date demo. `seqloom train` is the same door.
"""

import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset, DatasetDict
from tqdm import tqdm
from transformers import GenerationConfig, Seq2SeqTrainingArguments, set_seed

import seqloom  # registers the classes and the bundler that every checkpoint is written with
from seqloom.configuration.command import CommandParser, run_command
from seqloom.configuration.recipe import (
    Recipe,
    RecipeError,
    add_recipe_arguments,
    fit_recipe,
    recipe_from_arguments,
)
from seqloom.modeling.modeling_seqloom import SeqloomForConditionalGeneration
from seqloom.training import preflight
from seqloom.training.averaging import KeepBestCheckpoints, average_run, describe_average
from seqloom.training.batching import ACCELERATOR_OVERHEAD, CPU_OVERHEAD, accumulation_steps
from seqloom.training.bpe_dropout import EpochEncodings, LengthLimits
from seqloom.training.confidence import confidence_intervals
from seqloom.training.corpus import load_corpus
from seqloom.training.demo import DEMO_EXAMPLES, build_demo
from seqloom.training.gradient_flow import can_draw
from seqloom.training.interruption import StopSignals
from seqloom.training.metrics import get_metrics
from seqloom.training.run_folder import RunFolder
from seqloom.training.run_health import explained_writing, remedy_for_disk
from seqloom.training.selection import EarlyStopping, selection_settings
from seqloom.training.tasks import get_task
from seqloom.training.tokenizer import SeqloomTokenizers, train_tokenizer
from seqloom.training.trainer import EvaluationPlan, SampleOutputs, SeqloomTrainer, lengths_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

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
    get_metrics(metrics_of(recipe))
    folder = RunFolder(Path(recipe.output))
    arguments = training_arguments(recipe)
    with StopSignals() as signals, folder.hold(is_main=arguments.process_index == 0):
        PartialState().wait_for_everyone()
        return train_in(folder, recipe, arguments, signals)


def train_in(
    folder: RunFolder, recipe: Recipe, arguments: Seq2SeqTrainingArguments, signals: StopSignals
) -> dict[str, Any]:
    """Train in a folder that is ours; see `train`.

    Args:
        folder: held by this run.
        recipe: the resolved recipe.
        arguments: transformers' own, of this recipe.
        signals: what may ask for a stop.
    """
    if folder.is_finished and recipe.resume == "auto":
        say(f"{folder.path} holds a finished run; nothing to do. --resume never --overwrite trains it again.")
        if recipe.training_arguments.get("push_to_hub"):
            push_finished(folder, recipe)
        return folder.results()
    set_seed(arguments.seed)
    with arguments.main_process_first(desc="preparing data and vocabulary"):
        corpus, facts = read_corpus(recipe)
        recipe, choice = fit_recipe(recipe, len(corpus["train"]))
        if arguments.process_index == 0:
            folder.open(recipe)
        tokenizers = read_or_train_tokenizers(recipe, corpus["train"], folder)
        data = DatasetDict({name: encode(split, tokenizers, recipe, name) for name, split in corpus.items()})
        data["train"], facts["train"] = leave_out_long(data["train"], recipe, facts["train"])
    if arguments.process_index == 0:
        folder.write_data_facts(facts)
    if choice:
        arguments = training_arguments(recipe)
        if arguments.process_index == 0:
            say(f"auto      {choice}")
    encodings = epoch_encodings(data["train"], tokenizers, recipe, arguments) if recipe.bpe_dropout else None
    num_passes = 2 if recipe.rdrop_alpha else 1  # both lie in memory at once
    tokens_per_device = recipe.tokens_per_device // num_passes
    arguments.gradient_accumulation_steps = accumulation_steps(
        encodings.lengths_of_epoch(0) if encodings else lengths_of(data["train"]),
        tokens_per_update=recipe.tokens_per_update,
        tokens_per_device=tokens_per_device,
        world_size=arguments.world_size,
        overhead=CPU_OVERHEAD if arguments.device.type == "cpu" else ACCELERATOR_OVERHEAD,
    )

    set_seed(arguments.seed)  # training a vocabulary and reading it back must not lead to different weights
    model = SeqloomForConditionalGeneration(recipe.model_config(vocab_size=tokenizers.vocab_size))
    model.generation_config = generation_config(recipe, tokenizers)
    if arguments.bf16 and arguments.device.type == "cpu":
        model.set_attn_implementation("eager")  # bf16 SDPA has a backward pass many times slower there (LOG 2026-11-23)
    trainer = SeqloomTrainer(
        model,
        arguments,
        tokenizers=tokenizers,
        tokens_per_update=recipe.tokens_per_update,
        tokens_per_device=tokens_per_device,
        evaluation=EvaluationPlan(metrics_of(recipe), max_new_tokens=recipe.max_new_tokens),
        train_dataset=data["train"],
        eval_dataset=data.get("validation"),
        encodings=encodings,
        rdrop_alpha=recipe.rdrop_alpha,
        ema_decay=recipe.ema_decay,
    )
    add_quality_tools(trainer, recipe, folder)
    trainer.listen_to(signals)
    if recipe.num_sample_outputs and "validation" in data:
        trainer.add_callback(sample_outputs(trainer, data["validation"], recipe))
    check_before_training(trainer, data, recipe)

    started = time.perf_counter()
    checkpoint = from_main_process(folder.last_checkpoint)
    outcome = trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.perf_counter() - started
    trainer.use_moving_average()
    averaging = average(trainer, recipe) if recipe.average_checkpoints else {}
    save(trainer, folder)
    results = {"seconds": round(seconds, 1), "updates": outcome.global_step, "train_loss": outcome.training_loss}
    results |= training_facts(trainer, data, checkpoint)
    results |= averaging
    results |= final_scores(trainer, data, recipe, folder)
    prompts = example_prompts(data, recipe)
    outputs = trainer.write_texts(prompts)
    if trainer.is_world_process_zero():
        folder.write("results.json", results)
        trainer.create_model_card()
        say_how_to_use(recipe, results, prompts, outputs)
    if arguments.push_to_hub:
        trainer.publish("End of training")
    return results


def from_main_process(compute: Callable[[], T]) -> T:
    """Return what the first process finds, on every process."""
    found = [compute() if PartialState().is_main_process else None]
    return broadcast_object_list(found)[0]


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
        with folder.staged(home) as staged:
            tokenizers.save(staged)
    return SeqloomTokenizers.load(home)


def encode(pairs: Dataset, tokenizers: SeqloomTokenizers, recipe: Recipe, split: str) -> Dataset:
    """Add `input_ids` and `labels` to the texts."""
    return pairs.map(
        encode_batch,
        batched=True,
        num_proc=recipe.num_proc,
        fn_kwargs={"tokenizers": tokenizers},
        desc=f"Tokenizing {split}",
    )


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
    rule = (
        f"max_source_length={recipe.max_source_length}, max_target_length={recipe.max_target_length} or "
        f"tokens_per_update={recipe.tokens_per_update} tokens"
    )
    if not fits.any():
        raise RecipeError(
            f"no training example is left: all {len(fits):,} are longer than {rule}; the shortest source has "
            f"{lengths[:, 0].min()}. Raise the limit."
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
        raise RecipeError(f"long_examples=refuse, and there are {found}; shorten them, raise the limit, or take drop.")
    logger.warning("Left out %s.", found)
    return encoded.select(np.flatnonzero(fits)), facts


def encode_batch(batch: dict[str, list[str]], tokenizers: SeqloomTokenizers) -> dict[str, list[list[int]]]:
    """Return token ids of both sides, each ending in the end-of-sequence token."""
    return {
        "input_ids": tokenizers.source(batch["source"], return_attention_mask=False).input_ids,
        "labels": tokenizers.target(batch["target"], return_attention_mask=False).input_ids,
    }


def epoch_encodings(
    pairs: Dataset, tokenizers: SeqloomTokenizers, recipe: Recipe, arguments: Seq2SeqTrainingArguments
) -> EpochEncodings:
    """Return the training pairs as BPE-dropout cuts them, anew in each epoch."""
    limits = LengthLimits(
        recipe.max_source_length or np.inf,
        recipe.max_target_length or np.inf,
        min(recipe.tokens_per_update, recipe.tokens_per_device // (2 if recipe.rdrop_alpha else 1)),
    )
    return EpochEncodings(
        pairs,
        tokenizers,
        dropout=recipe.bpe_dropout,
        seed=arguments.seed if arguments.data_seed is None else arguments.data_seed,
        limits=limits,
        num_proc=recipe.num_proc,
    )


# Settings ------------------------------------------------------------------------------------------------------------


def seed_of(recipe: Recipe) -> int:
    """Return the seed that decides weights, dropout, cuts and order."""
    return int(recipe.training_arguments.get("seed", 42))


def metrics_of(recipe: Recipe) -> tuple[str, ...]:
    """Return the names of the scores that are computed from decoded text."""
    return tuple(recipe.metrics or DEFAULT_METRICS[recipe.task])


def training_arguments(recipe: Recipe) -> Seq2SeqTrainingArguments:
    """Return transformers' arguments: the recipe's, and those that the recipe leaves to us."""
    chosen = recipe.training_arguments | selection_settings(recipe, metrics_of(recipe))
    if recipe.is_demo or recipe.valid:
        chosen.setdefault("eval_strategy", "steps")
    chosen.setdefault("per_device_eval_batch_size", 64)
    chosen.setdefault("dataloader_pin_memory", torch.cuda.is_available())
    chosen.setdefault("ddp_find_unused_parameters", False)
    chosen.setdefault("hub_strategy", "end")  # a half-trained model is nobody's business unless it is asked for
    chosen["logging_nan_inf_filter"] = False  # a loss that is no number ends the run, see run_health
    chosen["restore_callback_states_from_checkpoint"] = True  # early stopping goes on counting
    if chosen.pop("enable_jit_checkpoint", False):
        logger.warning("enable_jit_checkpoint is ignored: on SIGTERM all processes save and stop without it.")
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


def add_quality_tools(trainer: SeqloomTrainer, recipe: Recipe, folder: RunFolder) -> None:
    """Hang early stopping, the choice of checkpoints and the gradients' log into the trainer.

    Raises:
        RecipeError: where weights are to be averaged and no process has all of them.
    """
    is_sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if is_sharded and (recipe.ema_decay or recipe.average_checkpoints):
        key = "ema_decay" if recipe.ema_decay else "average_checkpoints"
        raise RecipeError(f"{key} averages whole weights, and FSDP and DeepSpeed shard them; leave it out, or use DDP.")
    arguments = trainer.args
    if recipe.early_stopping_patience:
        trainer.add_callback(EarlyStopping(recipe.early_stopping_patience))
    if recipe.average_by == "best":
        metric, higher = str(arguments.metric_for_best_model), bool(arguments.greater_is_better)
        trainer.add_callback(KeepBestCheckpoints(recipe.average_checkpoints, metric, higher=higher))
    if recipe.log_gradient_flow:
        trainer.watch_gradients(folder.records)
        if not can_draw() and trainer.is_world_process_zero():
            logger.warning("log_gradient_flow draws with matplotlib, which is missing: pip install 'seqloom[plots]'.")


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


def example_prompts(data: DatasetDict, recipe: Recipe) -> list[str]:
    """Return three sources that the end of a run shows with what the model writes."""
    last = data["test"] if "test" in data else data.get("validation", data["train"])
    return list(DEMO_EXAMPLES) if recipe.is_demo else last[:3]["source"]


def say_how_to_use(recipe: Recipe, results: dict[str, Any], prompts: Sequence[str], outputs: Sequence[str]) -> None:
    """Print scores, three outputs, and the exact lines that use the folder."""
    say(f"\n{recipe.output}: {results['updates']:,} updates in {results['seconds']:.0f} s")
    for split in ("validation", "test"):
        shown = {k.removeprefix(f"{split}_"): v for k, v in results.items() if k.startswith(split) and is_score(k, v)}
        if shown:
            say(f"{split:12}" + ", ".join(f"{name} {value:.2f}" for name, value in shown.items()))
    say("")
    for prompt, output in zip(prompts, outputs, strict=True):
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
    """Leave the model at the top of the folder: all of it, or nothing that looks like a model."""
    with explained_writing(folder.path, folder.path, remedy_for_disk(trainer.args)):
        folder.publish(
            lambda staged: trainer.save_model(staged, _internal_call=True),  # pushed later, with its scores in the card
            is_main=trainer.is_world_process_zero(),
        )
    trainer.accelerator.wait_for_everyone()


def average(trainer: SeqloomTrainer, recipe: Recipe) -> dict[str, Any]:
    """Average the checkpoints into the model, and say what that did."""
    results = average_run(trainer, recipe.average_checkpoints, recipe.average_by)
    if trainer.is_world_process_zero():
        say(f"average   {describe_average(results)}")
    return results


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
        intervals = confidence_intervals(trainer.outputs, data["test"]["target"][:], trainer.evaluation.metrics)
        results |= {f"test_{name}": bounds for name, bounds in intervals.items()}
    return results


def training_facts(trainer: SeqloomTrainer, data: DatasetDict, checkpoint: str | None) -> dict[str, Any]:
    """Return what a model card says of the training beyond the recipe."""
    source, target = lengths_of(data["train"]).sum(axis=0).tolist()
    resumed = {"resumed_at": int(checkpoint.rpartition("-")[2])} if checkpoint else {}
    return {
        "epochs": trainer.state.epoch,
        "train_source_tokens": source,
        "train_target_tokens": target,
        "processes": trainer.args.world_size,
        **resumed,
    }


def push_finished(folder: RunFolder, recipe: Recipe) -> None:
    """Send a finished run's folder; what an earlier start could not send is sent now."""
    arguments = training_arguments(recipe)
    if arguments.process_index == 0:
        seqloom.push_folder(
            folder.path,
            arguments.hub_model_id or folder.path.absolute().name,
            private=arguments.hub_private_repo is not False,
            token=arguments.hub_token,
            revision=arguments.hub_revision,
            message="End of training",
        )


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
