"""What the recipe says in the words of others: transformers' training arguments and generation config."""

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import GenerationConfig, Seq2SeqTrainingArguments

from seqloom.configuration.recipe import Recipe, RecipeError
from seqloom.configuration.suggestion import did_you_mean
from seqloom.configuration.task_kind import SENTENCES
from seqloom.training.metrics import METRICS
from seqloom.training.quality.selection import selection_settings
from seqloom.training.tokenizer import SeqloomTokenizers

logger = logging.getLogger(__name__)


def seed_of(recipe: Recipe) -> int:
    """Return the seed of cut points and order: `data_seed`, or the seed of weights and dropout where none is named."""
    named = recipe.training_arguments
    return int(named["seed"] if named.get("data_seed") is None else named["data_seed"])


def metrics_of(recipe: Recipe) -> tuple[str, ...]:
    """Return the names of the scores that are computed from decoded text; none for continuation unless named."""
    return tuple(recipe.metrics or metrics_for(recipe, SENTENCES.metrics))


def metrics_for(recipe: Recipe, usual: Sequence[str]) -> tuple[str, ...]:
    """Return what is scored where the recipe names no metrics, and what is to choose the best checkpoint with it.

    Args:
        recipe: with its task.
        usual: for the kind of task.
    """
    usual = () if recipe.task == "continuation" else tuple(usual)
    chooser = str(recipe.training_arguments.get("metric_for_best_model") or "").removeprefix("eval_")
    return (*usual, chooser) if chooser in METRICS and chooser not in usual else usual


def training_arguments(recipe: Recipe) -> Seq2SeqTrainingArguments:
    """Return transformers' arguments: the recipe's, and those that the recipe leaves to us."""
    asked = recipe.training_arguments
    chosen = asked | selection_settings(
        asked, metrics_of(recipe), patience=recipe.early_stopping_patience, average_by=recipe.average_by
    )
    chosen.setdefault("use_cpu", not torch.accelerator.is_available())  # else CPU processes would not know each other
    # one thread pads 1.4 million tokens a second: nothing beside a CPU's training, too slow beside a GPU's
    chosen.setdefault("dataloader_num_workers", 0 if chosen["use_cpu"] else 2)
    chosen.setdefault("per_device_eval_batch_size", 64)
    chosen.setdefault("dataloader_pin_memory", torch.cuda.is_available())
    chosen.setdefault("ddp_find_unused_parameters", False)
    chosen.setdefault("hub_strategy", "end")  # a half-trained model is nobody's business unless it is asked for
    if chosen.get("run_name") is None:  # a name of the tracker's own would be another one at the end and on resume
        chosen["run_name"] = Path(recipe.output).absolute().name
    chosen["logging_nan_inf_filter"] = False  # a loss that is no number ends the run, see run_health
    chosen["restore_callback_states_from_checkpoint"] = True  # the clock goes on counting
    if chosen.pop("enable_jit_checkpoint", False):
        logger.warning("enable_jit_checkpoint is ignored: on SIGTERM all processes save and stop without it.")
    arguments = Seq2SeqTrainingArguments(output_dir=recipe.output, **chosen)
    if recipe.precision == "fp32":  # a recipe that names it means it, whatever `accelerate launch` was told
        arguments.mixed_precision = "no"
    return arguments


def describe_idle_devices(arguments: Seq2SeqTrainingArguments) -> str:
    """Say how all GPUs of a machine are used where one process sees several; "": there is nothing to say."""
    count = torch.cuda.device_count() if arguments.device.type == "cuda" else 0
    if arguments.world_size > 1 or count < 2:
        return ""
    return (
        f"one of {count} GPUs is used; accelerate launch --config_file configuration/accelerate/multi-gpu.yaml "
        f"--num_processes {count} training/train.py with the same flags uses all"
    )


TRACKERS = {
    **{name: name for name in ("clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "mlflow", "neptune")},
    **{name: name for name in ("swanlab", "tensorboard", "trackio", "wandb")},
    "azure_ml": "azureml-mlflow",
    "flyte": "flytekit",
    "kubeflow": "kubeflow",
}
"""What `report_to` may name -> what to install for it."""

_MODULES = {"azure_ml": ("azureml",), "flyte": ("flytekit",), "tensorboard": ("tensorboard", "tensorboardX")}


def refuse_missing_trackers(names: str | Sequence[str] | None) -> None:
    """Refuse a tracker that is not installed, before anything is read.

    Args:
        names: `report_to` of a recipe.

    Raises:
        RecipeError: naming what to install.
    """
    for name in [names] if isinstance(names, str) else names or ():
        if name in ("none", "all"):
            continue
        if name not in TRACKERS:
            hint = did_you_mean(name, TRACKERS)
            raise RecipeError(f"report_to={name} is unknown; {hint}it may be none, all, {', '.join(sorted(TRACKERS))}.")
        if not any(find_spec(module) for module in _MODULES.get(name, (name,))):
            raise RecipeError(
                f"report_to={name} needs a package that is not installed: pip install {TRACKERS[name]}. Without "
                f"report_to the same numbers stand in run/history.jsonl and run/report.html."
            )


def generation_config(
    recipe: Recipe, tokenizers: SeqloomTokenizers, *, longest_source: int | None = None
) -> GenerationConfig:
    """Return how the folder decodes unless told otherwise; padding, start and unknown are never text.

    Args:
        recipe: with the search and the longest output.
        tokenizers: with the ids of what is never text.
        longest_source: tokens of the longest source that is trained on; the doors warn of longer ones.
    """
    tokenizer = tokenizers.target
    return GenerationConfig(
        max_new_tokens=recipe.max_new_tokens,
        longest_trained_source=longest_source,
        num_beams=recipe.num_beams,
        length_penalty=recipe.length_penalty,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.bos_token_id,
        suppress_tokens=[tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id],
    )
