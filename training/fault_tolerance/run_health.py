"""What ends a run badly, said in one paragraph: a loss that is no number, a run that diverges, memory, a full disk.

Each message has the value, the rule, the remedy, and the last good checkpoint. The rules:

- A loss or gradient that is no finite number is an error, never filtered out of the log. On a CPU the gradient of each
  update is checked before the optimizer uses it. On a GPU that check would make the processor wait, so there the logged
  values are checked, and the weights before every save. Weights that are not finite are never saved.
- A run has diverged when its loss, the median of `ENTRIES` log entries, is worse than guessing every token of the
  vocabulary alike by a factor of two; or when the median over at least `UPDATES` updates has risen far above the lowest
  that it had already reached (`RISE`). Spikes recover within a few updates and do not move a median.
"""

import contextlib
import errno
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState

from seqloom.training.fault_tolerance.checkpoints import checkpoints_in, update_of

logger = logging.getLogger(__name__)

ENTRIES = 4
"""Log entries in a row whose median must be bad before a run is called diverged."""

UPDATES = 100
"""Updates that are looked at together when a loss is compared with its own past: single updates of a small budget are
noisy, and the lowest of thousands of noisy values is far below their level."""

RISE = 0.5
"""How far above its lowest level a loss may rise: this share of it, and at least one nat."""


class TrainingError(ValueError):
    """A run that cannot go on; the message says what happened, what was kept, and what to change."""

    is_shared = False
    """Whether every process finds the same, so that one of them should say it."""


class LossError(TrainingError):
    """A loss, gradient or weight that ends the run."""

    is_shared = True


class CheckpointError(TrainingError):
    """A checkpoint that is needed is missing, damaged, or not ours."""

    is_shared = True


class MouthError(TrainingError):
    """This library does not write what the model would say."""

    is_shared = True


# Loss ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Divergence:
    """A loss that has climbed and stays there."""

    loss: float
    """Median of the last entries."""
    reference: float
    """What it is measured against."""
    meaning: str
    """What that is: its own lowest level, or guessing."""
    last_good_update: int
    """The last update before the climb; 0: there was none."""


class LossWatch:
    """Looks for a loss that has climbed and stays there."""

    def __init__(self, vocab_size: int) -> None:
        """Start without a past; a uniform guess has the loss ln(vocab_size)."""
        self.guess = math.log(vocab_size)
        self.lowest = math.inf
        """The lowest level so far: the least median over a window."""
        self.losses: list[tuple[int, float]] = []
        """(update, mean loss since the entry before), oldest first."""

    def add(self, update: int, loss: float) -> Divergence | None:
        """Take a log entry.

        Args:
            update: at which it was logged.
            loss: mean over the updates since the entry before.

        Returns:
            What is wrong with the last entries, or None.
        """
        self.losses.append((update, loss))
        if found := self._climb(ENTRIES, 2 * self.guess + 1, self.guess, "what guessing gives"):
            return found
        interval = update - self.losses[-2][0] if len(self.losses) > 1 else 1
        window = max(ENTRIES, math.ceil(UPDATES / max(1, interval)))
        self.lowest = min(self.lowest, self._level(window))
        return self._climb(window, self.lowest + max(1.0, RISE * self.lowest), self.lowest, "where it has been")

    def _climb(self, window: int, bound: float, reference: float, meaning: str) -> Divergence | None:
        level = self._level(window)
        if math.isinf(level) or level <= bound:
            return None
        good = [update for update, loss in self.losses if loss <= bound]
        return Divergence(level, reference, meaning, good[-1] if good else 0)

    def _level(self, window: int) -> float:
        """Return the median of the last `window` entries, which single spikes do not move; inf if there are fewer."""
        recent = [loss for _, loss in self.losses[-window:]]
        return float(np.median(recent)) if len(recent) == window else math.inf


class LossGuard(TrainerCallback):
    """Ends a run whose logged loss is no number, or has diverged."""

    def __init__(self, vocab_size: int) -> None:
        """Remember how bad a guess is."""
        self.vocab_size = vocab_size
        self.watch = LossWatch(vocab_size)

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Learn the past of a run that goes on."""
        self.watch = LossWatch(self.vocab_size)
        for entry in state.log_history:
            if "loss" in entry:
                self.watch.add(entry["step"], entry["loss"])

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, float], **kwargs: Any
    ) -> None:
        """Look at an entry with a training loss.

        Raises:
            LossError: on every process alike; the values are those of all of them.
        """
        if "loss" not in logs:
            return
        norm = logs.get("grad_norm", 0.0)
        if not math.isfinite(logs["loss"]) or not (math.isfinite(norm) or args.fp16):  # fp16 skips such updates itself
            raise not_finite(args, state, loss=logs["loss"], grad_norm=norm)
        if found := self.watch.add(state.global_step, logs["loss"]):
            raise diverged(args, state, found)


def not_finite(args: Any, state: TrainerState, **values: float) -> LossError:
    """Return the error of a loss or gradient that is no number.

    Args:
        args: the run's.
        state: where it stands.
        values: what was seen, by name.
    """
    seen = " and ".join(f"{name}={value:.4g}" for name, value in values.items())
    precision = "in bf16 or fp32 instead of fp16, " if args.fp16 else ""
    return LossError(
        f"{seen} after {_updates(state)}: from here on nothing is learned any more. Nothing of it was saved. "
        f"{_what_is_kept(args.output_dir)} {_gentler(args, precision)}"
    )


def diverged(args: Any, state: TrainerState, found: Divergence) -> LossError:
    """Return the error of a run that unlearns."""
    return LossError(
        f"the loss has climbed to {found.loss:.3g} and stays there ({_updates(state)}): far above "
        f"{found.reference:.3g}, which is {found.meaning}; the run has diverged. "
        f"{_what_is_kept(args.output_dir, found.last_good_update)} {_gentler(args)}"
    )


def speechless(args: Any, state: TrainerState, found: str) -> MouthError:
    """Return the error of a run whose weights are right, and whose texts are not.

    Args:
        args: the run's.
        state: where it stands.
        found: what is wrong, why, and what helps.
    """
    return MouthError(
        f"What is written is not what the model says ({_updates(state)}). {found} Nothing that was learned is lost: "
        f"{_what_is_kept(args.output_dir)} The same command goes on from there."
    )


def broken_weights(model: torch.nn.Module) -> str | None:
    """Return the name of a parameter that holds something else than finite numbers, or None."""
    for name, parameter in model.named_parameters():
        values = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        if not torch.isfinite(values).all():
            return name
    return None


def is_finite_without_waiting(value: Tensor | float | None) -> bool:
    """Return whether a value is finite, or True where looking would make the processor wait for its device."""
    if isinstance(value, Tensor):
        return value.device.type != "cpu" or bool(torch.isfinite(value).all())
    return value is None or math.isfinite(value)


def _updates(state: TrainerState) -> str:
    return f"update {state.global_step:,} of {state.max_steps:,}"


def _gentler(args: Any, precision: str = "") -> str:
    """Return the remedy: how to train so that the loss holds."""
    warmup = max(100, 2 * int(args.warmup_steps)) if args.warmup_steps >= 1 or not args.warmup_steps else 0
    flags = f"--learning_rate {min(args.learning_rate / 3, 3e-3):.1g}" + (f" --warmup_steps {warmup}" if warmup else "")
    return (
        f"Train {precision}with a lower learning rate or a longer warm-up, for example {flags} --resume never, or into "
        f"another --output."
    )


def _what_is_kept(output: Path | str, until: int | None = None) -> str:
    """Name the last good checkpoint.

    Args:
        output: the run's folder.
        until: the last update that was good; None: all that is saved is.
    """
    good = [path for path in checkpoints_in(Path(output)) if until is None or update_of(path) <= until]
    return f"The last good checkpoint, {good[-1]}, is kept." if good else "There is no checkpoint from before."


# Memory --------------------------------------------------------------------------------------------------------------

_NO_MEMORY = re.compile(r"(?i)can't allocate memory|not enough memory|out of memory|CUBLAS_STATUS_ALLOC_FAILED")
_LOST_PEER = re.compile(r"(?i)connection (was )?(closed|reset|refused)|broken pipe|remote process exited|socket")


@dataclass
class MicroBatch:
    """The batch under work, and the largest that went well."""

    rows: int = 0
    examples: int = 0
    """As many; packed ones stand in one row."""
    source: int = 0
    target: int = 0
    largest_done: int = 0
    """Padded source + target tokens of the largest micro-batch that memory held."""
    activation_bytes: int = 0
    """What that one took on top of weights and optimizer, where the device says so."""
    base_bytes: int = 0
    is_evaluating: bool = False

    @property
    def padded_tokens(self) -> int:
        """Padded source + target tokens of the batch under work."""
        return self.rows * (self.source + self.target)

    def start(self, inputs: dict[str, Any]) -> None:
        """Note a micro-batch before it is computed."""
        (self.rows, self.source), self.target = inputs["input_ids"].shape[-2:], inputs["labels"].shape[-1]
        self.examples = len(inputs["cu_seq_lens_q"]) - 1 if "cu_seq_lens_q" in inputs else self.rows
        if self.padded_tokens > self.largest_done and torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self.base_bytes = torch.cuda.memory_allocated()

    def finish(self) -> None:
        """Note that memory held it."""
        if self.padded_tokens > self.largest_done:
            self.largest_done = self.padded_tokens
            if torch.cuda.is_available():
                self.activation_bytes = torch.cuda.max_memory_allocated() - self.base_bytes

    def likely_to_fit(self) -> int:
        """Return the largest number of padded tokens that memory will probably hold."""
        failed = self.padded_tokens
        guess = failed // 2
        if self.largest_done and self.activation_bytes:
            free, _ = torch.cuda.mem_get_info()
            room = free + torch.cuda.memory_reserved() - self.base_bytes
            guess = int(0.9 * room / self.activation_bytes * self.largest_done)
        elif self.largest_done:
            guess = min(self.largest_done, failed * 3 // 4)
        guess = max(1, min(guess, failed * 9 // 10))
        digits = 10 ** max(0, len(str(guess)) - 2)
        return guess // digits * digits


def out_of_memory(args: Any, state: TrainerState, batch: MicroBatch, device: str) -> TrainingError:
    """Return the error of a batch that memory did not hold."""
    kept = _what_is_kept(args.output_dir)
    if batch.is_evaluating:
        size = args.per_device_eval_batch_size
        smaller = f"--per_device_eval_batch_size {size // 2}: scores stay the same"
        remedy = smaller if size > 1 else "fewer --num_beams, or a smaller --max_new_tokens"
        return TrainingError(
            f"out of memory on {device} while evaluating after {_updates(state)}, with per_device_eval_batch_size="
            f"{size}. {kept} Start the same command with {remedy}."
        )
    shape = f"{batch.rows} x ({batch.source} source + {batch.target} target) = {batch.padded_tokens:,} padded tokens"
    if batch.examples <= 1:
        remedy = (
            "It is one example, so smaller micro-batches do not help: turn on --gradient_checkpointing, or begin a new "
            "run with shorter examples (max_source_length, max_target_length), --bf16 true or a smaller preset."
        )
    else:
        remedy = (
            f"Start the same command with --tokens_per_device {batch.likely_to_fit()}: it goes on with the same "
            f"updates, cut into more micro-batches; or turn on --gradient_checkpointing."
        )
    done = f" (the largest that it held had {batch.largest_done:,})" if batch.largest_done else ""
    return TrainingError(
        f"out of memory on {device} after {_updates(state)}: it did not hold a micro-batch of {shape}{done}. "
        f"{kept} {remedy}"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed, on whatever device."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None)


def is_lost_peer(error: BaseException) -> bool:
    """Return whether another process of the run has gone, and this one waited for it."""
    return isinstance(error, RuntimeError) and _LOST_PEER.search(str(error)) is not None


def lost_peer(args: Any, state: TrainerState) -> TrainingError:
    """Return the error of a process that waits for one that has gone."""
    return TrainingError(
        f"another process of this run has ended ({_updates(state)}), and the others cannot go on without it; its own "
        f"message says why. {_what_is_kept(args.output_dir)} The same command started again goes on from there."
    )


# Disk ----------------------------------------------------------------------------------------------------------------

FULL = 1_000_000
"""Bytes on a disk under which it is called full."""

_WRITERS = re.compile(r"(?i)PytorchStreamWriter|inline_container|iostream|unexpected pos")  # torch.save's own errors


@contextlib.contextmanager
def explained_writing(what: Path, output: Path) -> Iterator[None]:
    """Say why something could not be written, what is kept, and what to do.

    Args:
        what: the file or folder that was asked for.
        output: the run's folder.

    Raises:
        TrainingError: for everything that a disk can refuse.
    """
    try:
        yield
    except Exception as error:
        if not is_refused_write(error):
            raise
        free = shutil.disk_usage(output).free
        raise TrainingError(
            f"{what} could not be written: {_why(error, free)} ({free / 1e6:,.1f} MB are free on that disk). "
            f"{_remedy(output, getattr(error, 'errno', None))}"
        ) from error


def _remedy(output: Path, number: int | None) -> str:
    """Return what is kept, and what to do about the disk of a run's folder."""
    can_be_full = number not in (errno.EROFS, errno.EIO, *_DENIALS)
    room = "Make room (--save_total_limit N keeps fewer checkpoints), then start the same command again."
    other = "Allow writing there, then start the same command again; or take another --output."
    return f"{_what_is_kept(output)} {room if can_be_full else other}"


_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_DENIALS = {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}  # below a folder that we write to
_IN_WORDS = re.compile(r"(?i)\(os error (\d+)\)|\[errno (\d+)\]")  # of the libraries written in Rust and C++


@contextlib.contextmanager
def explained_disks(output: Path) -> Iterator[None]:
    """Say of any write that a disk refuses, the run's or that of the cache of texts, what is kept and what to do.

    Args:
        output: the run's folder.

    Raises:
        TrainingError: naming the file, the disk and the remedy.
    """
    try:
        yield
    except (TrainingError, ConnectionError):
        raise
    except Exception as error:
        explanation = _explain_disk(error, output)
        if explanation is None:
            raise
        raise TrainingError(explanation) from error


def _explain_disk(error: Exception, output: Path) -> str | None:
    """Return the words for an error that is a disk's, None for any other."""
    from datasets import config as cache

    number = error.errno if isinstance(error, OSError) else None
    if number is None and (match := _IN_WORDS.search(str(error))):
        number = int(match[1] or match[2])
    named = getattr(error, "filename", None)
    file = Path(os.fsdecode(named)).absolute() if isinstance(named, str | bytes | os.PathLike) else None
    homes = [Path(home).absolute() for home in (output, cache.HF_DATASETS_CACHE, cache.HF_CACHE_HOME)]
    home = next((home for home in homes if file and file.is_relative_to(home)), None)
    if number not in _REFUSALS and not (number in _DENIALS and home):
        return None
    if home is None and file is not None:
        return None  # a file of neither: its own message names it
    home = home or next((home for home in homes if not _takes_a_file(home)), homes[0])
    place = file or home
    free = f"{shutil.disk_usage(_existing(place)).free / 1e6:,.1f} MB are free on that disk"
    words = f"{place} could not be written: {os.strerror(number)} ({free})."
    if home == homes[0]:
        return f"{words} {_remedy(output, number)}"
    remedy = "Make room there" if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "Allow writing there"
    return (
        f"{words} It belongs to the cache of texts, {home}. {remedy}, or name another folder in the environment "
        f"variable HF_HOME (HF_DATASETS_CACHE for the texts alone), then start the same command again. "
        f"{_what_is_kept(output)}"
    )


def _takes_a_file(folder: Path) -> bool:
    folder = _existing(folder)
    return os.access(folder, os.W_OK) and shutil.disk_usage(folder).free >= FULL


def _existing(path: Path) -> Path:
    return next(each for each in (path, *path.absolute().parents) if each.exists())


def is_refused_write(error: BaseException) -> bool:
    """Return whether the disk, and not the program, was the reason."""
    from safetensors import SafetensorError

    is_torchs = isinstance(error, RuntimeError) and _WRITERS.search(str(error)) is not None
    is_systems = isinstance(error, OSError | SafetensorError) and not isinstance(error, ConnectionError)
    return is_torchs or is_systems


def _why(error: BaseException, free: int) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if free < FULL:  # torch.save only says that it did not get on
        return os.strerror(errno.ENOSPC)
    return str(error).partition("\n")[0].removeprefix("Error while serializing: ").strip()
