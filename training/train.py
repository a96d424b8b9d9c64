"""From text to a folder that answers: one training run, told from top to bottom.

    accelerate launch training/train.py [--recipe FILE] [--any_recipe_key value ...]

Without arguments it trains the date demo. `seqloom train` is the same door.
"""

import contextlib
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import Seq2SeqTrainingArguments, set_seed

from seqloom.configuration.automatic import explain
from seqloom.configuration.data_size import AUTO
from seqloom.configuration.recipe import Recipe, RecipeError
from seqloom.configuration.recipe_flags import add_recipe_arguments, recipe_from_arguments
from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.hub.files import CURVE_NAME
from seqloom.hub.model_card import CARD_NAME, write_model_card
from seqloom.hub.push import describe_share, push_folder
from seqloom.modeling.modeling_seqloom import SeqloomForConditionalGeneration
from seqloom.training import preflight
from seqloom.training.allocator import keep_freed_memory
from seqloom.training.batching import ACCELERATOR_OVERHEAD, BatchSettings, accumulation_steps, longest_epoch
from seqloom.training.checking.glance import note_glance
from seqloom.training.demo import DEMO_EXAMPLES
from seqloom.training.examples import lengths_of, weights_of
from seqloom.training.fault_tolerance.checkpoints import rotate, update_of
from seqloom.training.fault_tolerance.finished_run import Asked, asked_of_finished, with_recorded_precision
from seqloom.training.fault_tolerance.interruption import StopSignals, is_launched
from seqloom.training.fault_tolerance.run_folder import RunFolder
from seqloom.training.fault_tolerance.run_health import TrainingError, explained_disks, explained_writing
from seqloom.training.fault_tolerance.together import from_main_process, main_process_first, refuse_unshared
from seqloom.training.finish import (
    average_run,
    final_scores,
    is_whole,
    refuse_lost_model,
    refuse_to_retrain,
    refuse_unfinished,
    save,
    training_facts,
    try_together,
)
from seqloom.training.held_out import found_in
from seqloom.training.languages import hint_at_languages, settle_languages
from seqloom.training.metrics import get_metrics
from seqloom.training.monitoring.console import SampleOutputs, library_bars, say, say_how_to_use, score_lines
from seqloom.training.monitoring.gradient_flow import can_draw
from seqloom.training.monitoring.history import History, draw_curve, histogram
from seqloom.training.monitoring.progress import duration
from seqloom.training.mouth import check_mouth
from seqloom.training.parent import Parent, fit_to_parent, take_over
from seqloom.training.precision import attention_in, can_choose, choose_precision, launched_precision, overhead_in
from seqloom.training.preparation import (
    choose_for,
    describe_rivals,
    describe_tags,
    encode,
    epoch_encodings,
    fit_output_length,
    leave_out_long,
    parent_of,
    read_corpus,
    read_or_train_tokenizers,
    refuse_unknown_tags,
    settle,
    with_tags,
)
from seqloom.training.quality.averaging import KeepBestCheckpoints
from seqloom.training.quality.selection import EarlyStopping
from seqloom.training.reading.asking import settle_columns
from seqloom.training.reading.unread import find_unread
from seqloom.training.settings import (
    describe_idle_devices,
    generation_config,
    metrics_of,
    refuse_missing_trackers,
    training_arguments,
)
from seqloom.training.tokenizer import SeqloomTokenizers
from seqloom.training.trainer import EvaluationSettings, SeqloomTrainer
from seqloom_cli.command import CommandParser, StoppedError, print_what_goes, run_command

logger = logging.getLogger(__name__)


def train(recipe: Recipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Train what the recipe says, or go on where an earlier start of it stopped.

    Args:
        recipe: the resolved recipe.
        dry_run: do everything until the first update, and leave nothing behind.

    Returns:
        The scores, as `OUTPUT/run/results.json` keeps them; of a dry run nothing.

    Raises:
        ValueError: for anything wrong with recipe or data, before training starts.
    """
    get_metrics(metrics_of(recipe))
    refuse_missing_trackers(recipe.training_arguments.get("report_to"))
    if dry_run:
        recipe = replace(recipe, training_arguments={**recipe.training_arguments, "push_to_hub": False})
    folder = RunFolder(Path(recipe.output))
    arguments = training_arguments(recipe)
    if arguments.device.type == "cpu":
        keep_freed_memory()
    with (
        StopSignals(folder.note_stop) as signals,
        explained_disks(folder.path),
        contextlib.ExitStack() as held,
        library_bars(wanted=not arguments.disable_tqdm),
    ):
        from_main_process(lambda: held.enter_context(folder.hold()))
        with contextlib.nullcontext() if dry_run else noted_end(folder, recipe, is_main=arguments.process_index == 0):
            refuse_unshared(folder.path)
            return train_in(folder, recipe, arguments, signals, dry_run=dry_run)


def train_in(
    folder: RunFolder,
    recipe: Recipe,
    arguments: Seq2SeqTrainingArguments,
    signals: StopSignals,
    *,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Train in a folder that is ours; see `train`.

    Args:
        folder: held by this run.
        recipe: the resolved recipe.
        arguments: transformers' own, of this recipe.
        signals: what may ask for a stop.
        dry_run: see `train`.
    """
    is_finished = folder.is_finished and recipe.resume == "auto"
    if is_finished and not is_whole(folder.results()):
        from_main_process(lambda: refuse_to_retrain(folder))
    elif is_finished:
        asked = from_main_process(lambda: asked_of_finished(folder, recipe))
        lost = from_main_process(lambda: refuse_lost_model(folder))
        if asked in (Asked.NOTHING, Asked.CARD) and not lost:
            return {} if dry_run else finished_before(folder, recipe, arguments, asked)
        if arguments.process_index == 0 and lost:
            say(f"{folder.path} holds a finished run, but {lost}; it is brought back from the last checkpoint.")
    recipe, trainer, data, checkpoint = prepare(folder, recipe, arguments)
    trainer.listen_to(signals)
    num_updates = check_before_training(trainer, data, recipe)
    listen_before_training(trainer, data, folder, checkpoint)
    if trainer.is_world_process_zero():
        say_where_it_begins(trainer, checkpoint, num_updates)
        if not dry_run:
            folder.begin()
    if dry_run:
        if trainer.is_world_process_zero():
            say(f"Nothing was trained, and {recipe.output} is as it was; without --dry_run the training begins here.")
        return {}

    trainer.train(resume_from_checkpoint=checkpoint)
    results = training_facts(trainer, data, checkpoint)
    trainer.use_moving_average()
    if recipe.average_checkpoints and not is_divided(trainer):
        results |= average_run(trainer, recipe.average_checkpoints, recipe.average_by)
    save(trainer, folder)
    results |= final_scores(trainer, data, folder, recipe.num_beams)
    prompts = DEMO_EXAMPLES if recipe.is_demo else example_prompts(data)
    outputs: list[str] = []
    try_together(trainer, results, "samples", lambda: outputs.extend(trainer.write_texts(prompts)))
    if trainer.is_world_process_zero():
        show_the_end(trainer, folder, recipe, data, results, prompts, outputs)
    from_main_process(lambda: refuse_unfinished(folder, results))
    if trainer.args.push_to_hub:
        trainer.push_as_saved("End of training")
    return results


def prepare(
    folder: RunFolder, recipe: Recipe, arguments: Seq2SeqTrainingArguments
) -> tuple[Recipe, SeqloomTrainer, DatasetDict, str | None]:
    """Return the recipe with all that the data decide, the trainer, the data, and the checkpoint that it goes on from.

    Nothing of an earlier run is lost.
    """
    set_seed(arguments.seed)
    parent = from_main_process(lambda: parent_of(recipe, folder))
    with main_process_first():
        corpus, facts = read_corpus(recipe)
        choice = choose_for(recipe, corpus["train"], folder)
        facts["train"]["auto"] = asdict(choice)
        recipe, of_parent = fit_to_parent(asked := recipe, choice, parent)
        recipe, settled = settle(recipe, corpus, facts, choice.metrics)
        if folder.goes_on(recipe):
            recipe = with_recorded_precision(recipe, resolve_recipe(folder.recipe_file))
        if arguments.process_index == 0:
            folder.open(recipe)
        tokenizers = read_or_train_tokenizers(recipe, corpus["train"], folder)
        refuse_unknown_tags(recipe, corpus, tokenizers)
        tagged = {name: with_tags(rows, recipe.num_proc) for name, rows in corpus.items()}
        data = DatasetDict({name: encode(rows, tokenizers, name, recipe.num_proc) for name, rows in tagged.items()})
        data["train"], facts["train"] = leave_out_long(data["train"], recipe, facts["train"])
    if arguments.process_index == 0:
        folder.write_data_facts(facts)
        if not recipe.is_demo:
            say(f"check     {note_glance(corpus, recipe.task, folder.prepared / 'check.json')}")
    arguments = training_arguments(recipe)
    if arguments.process_index == 0:
        auto = explain(choice, asked, recipe)
        tags = describe_tags(tokenizers) if tokenizers.tags else ""
        lines = {
            "auto": auto,
            "parent": of_parent,
            **settled,
            "unread": str(find_unread(recipe) or ""),
            "rivals": describe_rivals(corpus),
            "tags": tags,
            "hint": hint_at_languages(recipe),
            "devices": describe_idle_devices(arguments),
        }
        for subject, line in lines.items():
            if line:
                say(f"{subject:10}{line}")
    recorded = recipe  # what follows from the data is found anew at each start
    recipe, limit = fit_output_length(recipe, data)
    if arguments.process_index == 0:
        say(f"outputs   {limit}")
    checkpoint = from_main_process(folder.last_checkpoint)
    model = build_model(recipe, arguments, tokenizers, parent, int(lengths_of(data["train"])[:, 0].max()))
    if parent and checkpoint is None:
        parent = take_over(model, tokenizers, parent)
        if arguments.process_index == 0:
            folder.write_parent(asdict(parent))
            say(f"weights   {parent.describe_embeddings()}")
    if checkpoint is None and recipe.precision == AUTO:
        recipe = settle_precision(recipe, arguments, model, tokenizers, data["train"])
        arguments = training_arguments(recipe)
        if arguments.process_index == 0:
            folder.note_choice(replace(recorded, precision=recipe.precision))
    return recipe, build_trainer(recipe, arguments, model, tokenizers, data, folder), data, checkpoint


def finished_before(
    folder: RunFolder, recipe: Recipe, arguments: Seq2SeqTrainingArguments, asked: Asked
) -> dict[str, Any]:
    """Return the results of a finished run, after what its end could not do any more: the card, the push."""
    if arguments.process_index == 0:
        if asked == Asked.CARD:
            folder.note_card_facts(recipe)
            done = "its card was written anew" if write_model_card(folder.path) else "its card is edited, and stays"
        else:
            done = "nothing to do"
            card, weights = folder.path / CARD_NAME, folder.records / "weights.json"  # written after the results
            if not (card.is_file() and weights.is_file()):
                write_model_card(folder.path)
        say(f"{folder.path} holds a finished run; {done}. --resume never --overwrite trains it again.")
        if arguments.push_to_hub:
            push_finished(folder, arguments)
    return folder.results()


@contextlib.contextmanager
def noted_end(folder: RunFolder, recipe: Recipe, *, is_main: bool) -> Iterator[None]:
    """Write that the run was stopped, where a script can see it, and say so where a launcher hides the exit code.

    What goes on is the same command, but for one that starts over: that is said here, of stops and failures alike. A
    launcher sends SIGTERM to the others where one process fails: that is no stop, and so a failure is noted, too.
    """
    over = "The command says --resume never: leave that out (and --overwrite), or it starts over."
    try:
        yield
    except StoppedError as stop:
        if not is_main or not str(stop):  # the first process says it
            raise StoppedError("", stop.exit_code) from None
        is_noted = folder.note_stop(str(stop))
        hint = f" The launcher ends with 1; {folder.stop_file} tells a script that the run wants to go on."
        is_hidden = is_noted and is_launched()
        anew = f" {over}" if recipe.resume == "never" else ""
        raise StoppedError(f"{stop}{hint if is_hidden else ''}{anew}", stop.exit_code) from None
    except Exception as error:
        if recipe.resume == "never" and isinstance(error, TrainingError) and folder.has_checkpoint:
            error.add_note(over)
        if is_main:
            folder.forget_stop()
        else:
            folder.note_failure()
        raise


# The trainer ---------------------------------------------------------------------------------------------------------


def build_model(
    recipe: Recipe,
    arguments: Seq2SeqTrainingArguments,
    tokenizers: SeqloomTokenizers,
    parent: Parent | None,
    longest_source: int,
) -> SeqloomForConditionalGeneration:
    """Return a model with random weights, of a parent's shape if it has one."""
    set_seed(arguments.seed)  # training a vocabulary and reading it back must not lead to different weights
    rotation = {"rope_parameters": parent.rope_parameters} if parent and parent.rope_parameters else {}
    model = SeqloomForConditionalGeneration(recipe.model_config(vocab_size=tokenizers.vocab_size, **rotation))
    model.generation_config = generation_config(recipe, tokenizers, longest_source=longest_source)
    return model


def settle_precision(
    recipe: Recipe,
    arguments: Seq2SeqTrainingArguments,
    model: SeqloomForConditionalGeneration,
    tokenizers: SeqloomTokenizers,
    pairs: Dataset,
) -> Recipe:
    """Write into a new run's recipe in which numbers it multiplies, as the stopwatch or its launcher says."""
    if not can_choose(recipe, arguments):
        return replace(recipe, precision=launched_precision(arguments))
    settings = batch_settings(recipe, arguments)
    precision, why = from_main_process(
        lambda: choose_precision(model, pairs, settings, int(tokenizers.source.pad_token_id))
    )
    recipe = replace(recipe, precision=precision)
    if arguments.process_index == 0:
        say(f"numbers   {why}")
    return recipe


def batch_settings(recipe: Recipe, arguments: Seq2SeqTrainingArguments) -> BatchSettings:
    """Return how a process of the run makes its updates."""
    return BatchSettings(
        recipe.tokens_per_update, recipe.tokens_per_device, packed=recipe.packing, num_passes=recipe.num_passes
    ).in_run(arguments)


def build_trainer(
    recipe: Recipe,
    arguments: Seq2SeqTrainingArguments,
    model: SeqloomForConditionalGeneration,
    tokenizers: SeqloomTokenizers,
    data: DatasetDict,
    folder: RunFolder,
) -> SeqloomTrainer:
    """Return a trainer that does with a model what the recipe says."""
    is_cpu = arguments.device.type == "cpu"
    if is_cpu and (attention := attention_in(recipe.precision)):
        model.set_attn_implementation(attention)
    settings = batch_settings(recipe, arguments)
    encodings = epoch_encodings(data["train"], tokenizers, recipe, settings) if recipe.bpe_dropout else None
    lengths = encodings.lengths_of_epoch(0) if encodings else lengths_of(data["train"])
    arguments.gradient_accumulation_steps = accumulation_steps(
        longest_epoch(lengths, weights_of(data["train"]), settings.seed),
        settings,
        overhead=overhead_in(recipe.precision) if is_cpu else ACCELERATOR_OVERHEAD,
    )

    if recipe.packing:
        check_packing(arguments)
    trainer = SeqloomTrainer(
        model,
        arguments,
        tokenizers=tokenizers,
        batching=settings,
        evaluation=EvaluationSettings(metrics_of(recipe), max_new_tokens=model.generation_config.max_new_tokens),
        train_dataset=data["train"],
        eval_dataset=data.get("validation"),
        encodings=encodings,
        rdrop_alpha=recipe.rdrop_alpha,
        ema_decay=recipe.ema_decay,
        has_muon=recipe.muon,
    )
    add_quality_tools(trainer, recipe, folder)
    if recipe.num_sample_outputs and "validation" in data:
        learned = partial(found_in, data["train"])
        trainer.add_callback(SampleOutputs(data["validation"], recipe.num_sample_outputs, trainer.write_texts, learned))
    trainer.add_callback(History(folder.records, report_facts(trainer, data, folder)))  # last: it sees what others log
    return trainer


def report_facts(trainer: SeqloomTrainer, data: DatasetDict, folder: RunFolder) -> dict[str, Any]:
    """Return what the head of a run's report says."""
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in data.items())
    model = f"{trainer.model.num_parameters():,} parameters, vocabulary {trainer.model.config.vocab_size:,}"
    lengths = histogram(lengths_of(data["train"]))
    return {"name": folder.path.absolute().name, "examples": sizes, "model": model, "lengths": lengths}


def check_packing(arguments: Seq2SeqTrainingArguments) -> None:
    """Say where packed sentences are computed one by one.

    Raises:
        RecipeError: on a GPU with 32-bit numbers, for which there is no kernel.
    """
    if arguments.device.type == "cpu":
        logger.warning("packing=true attends to each sentence on its own on a CPU: the same result, but slower.")
    elif not (arguments.bf16 or arguments.fp16):
        raise RecipeError("packing=true needs 16-bit numbers on a GPU; add --precision bf16, or leave packing out.")


def add_quality_tools(trainer: SeqloomTrainer, recipe: Recipe, folder: RunFolder) -> None:
    """Hang early stopping, the choice of checkpoints and the gradients' log into the trainer.

    Raises:
        RecipeError: where whole weights are wanted and no process has all of them.
    """
    if is_divided(trainer):
        settle_shards(trainer, recipe)
    elif recipe.muon and recipe.init_from and trainer.is_world_process_zero():
        logger.warning(
            "muon unlearns much of what init_from brings: French words were learned to 50 % with it and to 76 % "
            "without, in as many updates; leave it out."
        )
    arguments = trainer.args
    if recipe.early_stopping_patience:
        trainer.add_callback(EarlyStopping(recipe.early_stopping_patience))
    if recipe.average_by == "best":
        metric, higher = str(arguments.metric_for_best_model), bool(arguments.greater_is_better)
        trainer.add_callback(KeepBestCheckpoints(recipe.average_checkpoints, metric, higher=higher))
    if recipe.log_gradient_flow and trainer.is_deepspeed_enabled:
        raise RecipeError(
            "log_gradient_flow reads the gradient of each weight, and DeepSpeed keeps them elsewhere; leave it out, or "
            "use DDP or FSDP."
        )
    if recipe.log_gradient_flow:
        trainer.watch_gradients(folder.records)
        if not can_draw() and trainer.is_world_process_zero():
            logger.warning("log_gradient_flow draws with matplotlib, which is missing: pip install 'seqloom[plots]'.")


WHOLE = {
    "ema_decay": ("averages whole weights", ""),
    "average_checkpoints": ("averages whole weights", ": the last weights are kept"),
    "muon": (
        "takes whole matrices",
        ": all is learned by optim, which may want half as many epochs again (num_train_epochs)",
    ),
}
"""Keys that no shard can serve: why, and what becomes of a run for which `auto` chose one."""


def is_divided(trainer: SeqloomTrainer) -> bool:
    """Return whether weights, or what their optimizer knows of them, lie in shards."""
    return trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled


def settle_shards(trainer: SeqloomTrainer, recipe: Recipe) -> None:
    """Refuse what wants whole weights, of which no process has any, where it was named; leave out what `auto` chose.

    Raises:
        RecipeError: where such a key was named.
    """
    flat = recipe.flat()
    for key, (why, instead) in WHOLE.items():
        if not flat[key]:
            continue
        if key in recipe.named:
            raise RecipeError(f"{key} {why}, and FSDP and DeepSpeed shard them; leave it out, or use DDP.")
        if trainer.is_world_process_zero():
            logger.warning("%s, which auto chose, %s, and FSDP and DeepSpeed shard them%s.", key, why, instead)
        if key == "muon":
            trainer.has_muon = False


def check_before_training(trainer: SeqloomTrainer, data: DatasetDict, recipe: Recipe) -> int:
    """Print what is about to be trained and what it takes, refuse what cannot fit, return the updates of the run."""
    survey = preflight.survey(trainer.train_sampler())
    memory = preflight.measure(trainer, survey.largest)
    args = trainer.args
    num_updates = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * survey.num_updates)
    kept = recipe.average_checkpoints + 1 if recipe.average_by == "best" else args.save_total_limit
    disk = preflight.measure_disk(trainer, num_updates, kept, recipe.average_checkpoints)
    if trainer.is_world_process_zero():
        sizes = {name: len(split) for name, split in data.items()}
        for subject, text in preflight.describe(trainer, survey, memory, sizes, num_updates).items():
            say(f"{subject:10}{text}")
        say(f"{'disk':10}{disk}")
    disk.check()
    memory.check(recipe.tokens_per_device, lambda tokens: preflight.can_cut(trainer, tokens))
    trainer.add_callback(preflight.TimeEstimate(say))
    return num_updates


def listen_before_training(
    trainer: SeqloomTrainer, data: DatasetDict, folder: RunFolder, checkpoint: str | None
) -> None:
    """Refuse a library with which the model does not write what it says, and say that it was tried.

    Raises:
        TrainingError: before anything is trained.
    """

    def listen() -> str:
        with (
            folder.scratch() as staging,
            explained_writing(staging, folder.path),
        ):
            return check_mouth(trainer.model, trainer.tokenizers, data["train"], staging, checkpoint)

    line = from_main_process(listen) if not trainer.is_sharded else "not checked, for the weights are sharded"
    if trainer.is_world_process_zero():
        say(f"mouth     {line}")


def say_where_it_begins(trainer: SeqloomTrainer, checkpoint: str | None, num_updates: int) -> None:
    """Say from which update a run goes on, and what that does to its learning rate where it was planned shorter."""
    if checkpoint is None:
        return
    update = update_of(Path(checkpoint))
    say(f"Going on from update {update:,}.")
    if jump := preflight.describe_new_end(trainer, Path(checkpoint), num_updates):
        say(jump)


def show_the_end(
    trainer: SeqloomTrainer,
    folder: RunFolder,
    recipe: Recipe,
    data: DatasetDict,
    results: dict[str, Any],
    prompts: Sequence[str],
    outputs: Sequence[str],
) -> None:
    """Write results, curve, report and card; keep of the checkpoints what may be needed; say how to use it all."""
    metric = next((name for name in trainer.evaluation.metrics), "perplexity" if trainer.eval_dataset else None)
    draw_curve(trainer.state.log_history, folder.path / CURVE_NAME, metric)
    history = next(each for each in trainer.callback_handler.callbacks if isinstance(each, History))
    spent = f"{results['updates']:,} updates in {duration(results['seconds'])}"
    history.write_report(trainer.state, training=spent, **score_lines(results))
    folder.write_results(results)
    if "save_total_limit" not in recipe.named and trainer.args.save_total_limit and is_whole(results):
        rotate(folder.path, max(1, recipe.average_checkpoints), trainer.state.best_model_checkpoint)
    trainer.create_model_card()
    learned = found_in(data["train"], prompts)
    sizes = describe_share(folder.path)
    say_how_to_use(recipe.output, results, prompts, outputs, sizes, recipe.num_beams, learned)


def example_prompts(data: DatasetDict) -> list[str]:
    """Return three sources that the end of a run shows with what the model writes."""
    last = data["test"] if "test" in data else data.get("validation", data["train"])
    return last[:3]["source"]


def push_finished(folder: RunFolder, arguments: Seq2SeqTrainingArguments) -> None:
    """Send a finished run's folder; what an earlier start could not send is sent now."""
    push_folder(
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
    print_what_goes()
    parser = CommandParser(prog="training/train.py", description="Train a model; the same as `seqloom train`.")
    add_recipe_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    namespace, unknown = parser.parse_known_args(arguments)
    recipe = settle_columns(recipe_from_arguments(namespace, unknown))
    train(settle_languages(recipe), dry_run=namespace.dry_run)


if __name__ == "__main__":
    sys.exit(main())
