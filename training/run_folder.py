"""The run folder: the finished model at the top, running checkpoints below, and what is known of the run in `run/`.

OUTPUT/            config.json, model.safetensors, tokenizer.json, ... : the model, loadable
OUTPUT/checkpoint-N/                                                   : whole models during training
OUTPUT/run/        recipe.yaml, data.json, environment.json, results.json, test_outputs.jsonl
"""

import json
import platform
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import get_last_checkpoint

from seqloom.configuration.recipe import Recipe, RecipeError, load_recipe

# What may differ when a run goes on: how long, how fast, how watched; never what is learned from what.
CHANGEABLE = frozenset(
    {"resume", "overwrite", "output", "tokens_per_device", "num_proc", "max_steps", "num_train_epochs", "metrics"}
    | {"num_beams", "length_penalty", "max_new_tokens", "num_sample_outputs", "test", "report_to", "run_name"}
    | {"eval_steps", "eval_strategy", "save_steps", "save_strategy", "save_total_limit", "logging_steps"}
    | {"logging_strategy", "logging_dir", "disable_tqdm", "dataloader_num_workers", "per_device_eval_batch_size"}
    | {"push_to_hub", "hub_model_id", "hub_private_repo", "load_best_model_at_end", "metric_for_best_model"}
)
PACKAGES = ("seqloom", "torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy", "sacrebleu")


@dataclass(frozen=True)
class RunFolder:
    """Paths and records of one run."""

    path: Path

    @property
    def records(self) -> Path:
        """Where the records lie."""
        return self.path / "run"

    @property
    def recipe_file(self) -> Path:
        """The resolved recipe."""
        return self.records / "recipe.yaml"

    @property
    def is_finished(self) -> bool:
        """Whether a run has ended here; its results are written last."""
        return (self.records / "results.json").is_file()

    def results(self) -> dict[str, Any]:
        """Return what a finished run scored."""
        return json.loads((self.records / "results.json").read_text(encoding="utf-8"))

    def last_checkpoint(self) -> str | None:
        """Return the newest checkpoint whose last-written file is there, or None."""
        if not self.path.is_dir():
            return None
        checkpoint = get_last_checkpoint(str(self.path))
        return checkpoint if checkpoint and _is_whole(Path(checkpoint)) else None

    def open(self, recipe: Recipe) -> None:
        """Make the folder ready for `recipe`: go on in it, or start over in it.

        Raises:
            RecipeError: when it holds a finished run that may not be replaced, or a run of another recipe.
        """
        if recipe.resume == "never":
            self._start_over(recipe)
        elif self.recipe_file.is_file():
            self._refuse_other_recipe(recipe)
        self.records.mkdir(parents=True, exist_ok=True)
        recipe.save(self.recipe_file)
        self.write("environment.json", describe_environment())

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write one record as JSON."""
        text = json.dumps(content, ensure_ascii=False, indent=2, default=str)
        (self.records / name).write_text(text + "\n", encoding="utf-8")

    def write_lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write one record as JSON lines."""
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (self.records / name).write_text("".join(lines), encoding="utf-8")

    def _start_over(self, recipe: Recipe) -> None:
        if self.is_finished and not recipe.overwrite:
            raise RecipeError(
                f"{self.path} holds a finished run and resume=never would replace it; choose another --output, "
                f"or add --overwrite."
            )
        for checkpoint in self.path.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        shutil.rmtree(self.records, ignore_errors=True)

    def _refuse_other_recipe(self, recipe: Recipe) -> None:
        before, now = _flat(load_recipe(self.recipe_file)), _flat(recipe)
        changed = [key for key in sorted(before | now) if key not in CHANGEABLE and before.get(key) != now.get(key)]
        if changed:
            key = changed[0]
            others = f" (and {len(changed) - 1} more: {', '.join(changed[1:])})" if changed[1:] else ""
            raise RecipeError(
                f"the run in {self.path} was started with {key}={before.get(key)} and is now asked to go on with "
                f"{key}={now.get(key)}{others}; take the old value, another --output, or --resume never."
            )


def describe_environment() -> dict[str, Any]:
    """Return what a reader needs to repeat the run elsewhere: versions and hardware."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "device": device,
        "device_count": max(1, torch.cuda.device_count()),
        "threads": torch.get_num_threads(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def _is_whole(checkpoint: Path) -> bool:
    try:
        TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    except (OSError, ValueError, TypeError):
        return False
    return True


def _flat(recipe: Recipe) -> dict[str, Any]:
    return {key: value for values in recipe.chapters().values() for key, value in values.items()}
