"""The run folder: the finished model at the top, checkpoints below it, and the records of the run in `run/`.

OUTPUT/            config.json, model.safetensors, tokenizer.json, ... : the model, loadable
OUTPUT/checkpoint-N/                                                   : whole models during training
OUTPUT/run/        recipe.yaml, tokenizer/, data.json, environment.json, results.json, test_outputs.jsonl
OUTPUT/_saving/    what is being written; gone when nothing is
OUTPUT/_broken-checkpoint-N/                                           : a checkpoint that was found damaged

Every file and folder outside `_saving` is whole at any moment; `checkpoints` says how.
"""

import contextlib
import errno
import json
import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from seqloom.configuration.recipe import Recipe, RecipeError
from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.training.fault_tolerance.checkpoints import (
    STAGING,
    checkpoints_in,
    clear_staging,
    discard,
    flush,
    last_whole_checkpoint,
    put_in_place,
    write_json,
    write_text,
)

try:
    import fcntl
except ImportError:  # Windows: a second run is not kept out
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

# What may differ when a run goes on: how long, how fast, how watched; never what is learned from what.
CHANGEABLE = frozenset(
    {"resume", "overwrite", "output", "tokens_per_device", "num_proc", "max_steps", "num_train_epochs", "metrics"}
    | {"num_beams", "length_penalty", "max_new_tokens", "num_sample_outputs", "test", "report_to", "run_name"}
    | {"eval_steps", "eval_strategy", "save_steps", "save_strategy", "save_total_limit", "logging_steps"}
    | {"logging_strategy", "logging_dir", "disable_tqdm", "dataloader_num_workers", "per_device_eval_batch_size"}
    | {"push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy", "hub_revision", "languages", "license"}
    | {"load_best_model_at_end", "metric_for_best_model", "early_stopping_patience"}
    | {"average_checkpoints", "average_by", "log_gradient_flow"}
)
PATIENCE = 60.0
"""Seconds for which a run waits for its folder: a killed run may still be dying when it is started again."""

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
        """Return the newest whole checkpoint, or None; broken ones are named in a warning and set aside."""
        checkpoint = last_whole_checkpoint(self.path)
        return None if checkpoint is None else str(checkpoint)

    @contextlib.contextmanager
    def hold(self, *, is_main: bool) -> Iterator[None]:
        """Keep other runs out of the folder until the end, and remove what a killed one has left half-written.

        Args:
            is_main: whether this process speaks for the run; the others hold nothing.

        Raises:
            RecipeError: when another run is still writing there after `PATIENCE`.
        """
        if not is_main:
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        held = [os.open(self.path, os.O_RDONLY)] if fcntl else []
        if held:
            os.register_at_fork(after_in_child=lambda: _let_go(held))  # data workers may outlive a killed run
        try:
            for handle in held:
                self._wait_for(handle)
            clear_staging(self.path)
            yield
            clear_staging(self.path)
        finally:
            _let_go(held)

    def _wait_for(self, handle: int) -> None:
        started = time.monotonic()
        while not _locks(handle):
            if time.monotonic() - started > PATIENCE:
                raise RecipeError(
                    f"another run is still writing to {self.path}; wait for its end, stop it, or take another --output."
                )
            if time.monotonic() - started < 1:
                logger.warning("Another run is still writing to %s; waiting for its end.", self.path)
            time.sleep(1)

    def open(self, recipe: Recipe) -> None:
        """Make the folder ready for `recipe`: go on in it, or start over in it.

        Raises:
            RecipeError: when it holds a finished run that may not be replaced, or a run of another recipe.
        """
        if recipe.resume == "never":
            self._start_over(overwrite=recipe.overwrite)
        elif self.recipe_file.is_file():
            self._refuse_other_recipe(recipe)
        self.records.mkdir(parents=True, exist_ok=True)
        with self.staged(self.recipe_file) as staged:
            recipe.save(staged)
        write_json(self.records / "environment.json", describe_environment())

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write what a run scored, and thereby that it is finished."""
        write_json(self.records / "results.json", results)

    def write_lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write one record as JSON lines, whole or not at all."""
        write_text(self.records / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def write_data_facts(self, facts: Mapping[str, Any]) -> None:
        """Write what is known of the data.

        Raises:
            RecipeError: when the training text is not the one that the run was started with.
        """
        file = self.records / "data.json"
        before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else facts
        old, new = (each.get("train", {}).get("fingerprint") for each in (before, facts))
        if old is not None and old != new:
            rows = " and ".join(f"{each['train']['num_rows']:,}" for each in (before, facts))
            raise RecipeError(
                f"the training text has changed since the run in {self.path} was started ({rows} rows, then and now), "
                f"so it cannot go on where it was; bring the old text back, take another --output, or --resume never."
            )
        write_json(file, facts)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Hand out a folder on the run's disk that is gone afterwards."""
        (self.path / STAGING).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.path / STAGING, ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    @contextlib.contextmanager
    def staged(self, final: Path) -> Iterator[Path]:
        """Hand out a path of the same name to write to; what was written there then appears at `final` in one step."""
        with self.scratch() as folder:
            yield folder / final.name
            flush(folder)
            put_in_place(folder / final.name, final)

    def _start_over(self, *, overwrite: bool) -> None:
        if self.is_finished and not overwrite:
            raise RecipeError(
                f"{self.path} holds a finished run and resume=never would replace it; choose another --output, "
                f"or add --overwrite."
            )
        (self.records / "results.json").unlink(missing_ok=True)  # first: half removed is not finished
        for checkpoint in checkpoints_in(self.path):
            discard(checkpoint, self.path)
        shutil.rmtree(self.records, ignore_errors=True)

    def _refuse_other_recipe(self, recipe: Recipe) -> None:
        before, now = resolve_recipe(self.recipe_file).flat(), recipe.flat()
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


def _let_go(held: list[int]) -> None:
    while held:
        os.close(held.pop())


def _locks(handle: int) -> bool:
    """Try to lock an open folder; where the file system has no locks, the run goes on without one."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True
