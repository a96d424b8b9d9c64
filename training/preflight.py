"""Before the first update: what is about to be trained, what it takes, and whether it fits.

Memory is not guessed from a formula: a probe runs the forward pass of a few rows of the largest micro-batch, counts
what autograd keeps for the backward pass, and scales it to all rows. So attention kernels, precision, gradient
checkpointing and switches of the model are all in the number. Weights, gradients and optimizer states are counted
exactly.
"""

import contextlib
import itertools
import math
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from accelerate.utils import send_to_device
from torch import Tensor
from transformers import TrainerCallback, get_scheduler
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerControl, TrainerState

from seqloom.configuration.recipe import RecipeError
from seqloom.training.batching import UpdateSampler, accumulation_steps
from seqloom.training.fault_tolerance.checkpoints import checkpoints_in
from seqloom.training.monitoring.progress import duration
from seqloom.training.quality.muon import matrices_of
from seqloom.training.trainer import SeqloomTrainer

PROBED_UPDATES = 500
"""Updates looked at for padding and the largest micro-batch; a random sample, for the order is random."""

OPTIMIZER_STATES = {"sgd": 0, "adafactor": 1, "adagrad": 1, "rmsprop": 1, "lion_32bit": 1}
"""Numbers an optimizer keeps for each weight; Adam and its kin, the default, keep 2."""

TRANSIENT = 1.5
"""What backward and the kernels need beside what autograd has kept, as a factor on it (LOG: memory estimate)."""

KERNELS, NARROW_CPU_KERNELS = 100_000_000, 800_000_000
"""Bytes that libraries take once training runs; on a CPU oneDNN keeps kernels for every shape of bf16 products."""


@dataclass(frozen=True)
class Survey:
    """What training is about to compute, as far as the first updates show."""

    num_updates: int
    """Updates in an epoch."""
    num_tokens: int
    """Source + target tokens in an epoch, without padding."""
    padding: float
    """Share of the padded tokens that are padding, 0 to 1, on this process's micro-batches."""
    largest: tuple[int, int, int]
    """Rows, source length and target length of the micro-batch with the most padded tokens."""


@dataclass(frozen=True)
class Memory:
    """What one device needs, in bytes."""

    weights: int
    """Weights, gradients, optimizer states, and what libraries take."""
    activations: int
    """What the largest micro-batch needs on top."""
    available: int
    """What the device has for it."""

    @property
    def total(self) -> int:
        """All that is needed."""
        return self.weights + self.activations

    def check(self, tokens_per_device: int, can_cut: Callable[[int], bool] = lambda tokens: True) -> None:
        """Refuse what cannot fit.

        Args:
            tokens_per_device: of the recipe.
            can_cut: whether updates can be cut into micro-batches of so many tokens.

        Raises:
            RecipeError: with the largest `tokens_per_device` that does, if there is one.
        """
        if self.total <= self.available:
            return
        need = f"training needs about {gigabytes(self.total)} a device and {gigabytes(self.available)} are free"
        room = self.available - self.weights
        fits = tokens_per_device * room // max(1, self.activations)
        if fits >= 64 and not can_cut(round_down(fits)):
            raise RecipeError(
                f"{need}, of which {gigabytes(self.activations)} are for tokens_per_device={tokens_per_device}, and "
                f"the longest examples do not fit into {round_down(fits)}. Lower max_source_length and "
                f"max_target_length, use a smaller preset, or turn on gradient_checkpointing."
            )
        if fits < 64:
            raise RecipeError(
                f"{need}: weights, gradients and optimizer states alone take {gigabytes(self.weights)}. Use a smaller "
                "preset or vocabulary, more memory, or shard the model over several devices."
            )
        raise RecipeError(
            f"{need}, of which {gigabytes(self.activations)} are for tokens_per_device={tokens_per_device}; lower it "
            f"to {round_down(fits)} (the result stays the same, the update is cut into more micro-batches), or turn on "
            "gradient_checkpointing."
        )


@dataclass(frozen=True)
class Disk:
    """What a run writes into its folder, in bytes."""

    checkpoint: int
    """One of them: weights, optimizer states, the moving average."""
    num_checkpoints: int
    """That are there at a time, with the one that is being written."""
    model: int
    """The finished one."""
    available: int
    """Free, and taken by checkpoints of this run."""
    path: Path
    least: int = 1
    """Checkpoints that have to be kept."""

    @property
    def total(self) -> int:
        """All that is needed."""
        return self.num_checkpoints * self.checkpoint + self.model

    @property
    def _checkpoints(self) -> str:
        return f"{self.num_checkpoints or 'no'} checkpoint{'s' * (self.num_checkpoints > 1)}"

    def __str__(self) -> str:
        """Say it in a line."""
        at_a_time = " at a time, the one being written among them," if self.num_checkpoints > 1 else ""
        free = f"{megabytes(self.available)} are free"
        return f"about {megabytes(self.total)} for {self._checkpoints}{at_a_time} and the model; {free}"

    def check(self) -> None:
        """Refuse what cannot fit.

        Raises:
            RecipeError: with how many checkpoints do.
        """
        if self.total <= self.available:
            return
        kept = (self.available - self.model) // max(1, self.checkpoint) - 1
        fewer = f"keep fewer with --save_total_limit {kept}, " if self.least <= kept < self.num_checkpoints - 1 else ""
        raise RecipeError(
            f"the run writes about {megabytes(self.total)} into {self.path} ({self._checkpoints} of "
            f"{megabytes(self.checkpoint)} and the model), and {megabytes(self.available)} are free there; {fewer}make "
            f"room, or name an --output on another disk."
        )


def measure_disk(trainer: SeqloomTrainer, num_updates: int, kept: int | None, averaged: int = 0) -> Disk:
    """Return what a run needs of the disk that its folder lies on.

    Args:
        trainer: with model and arguments.
        num_updates: of the whole run.
        kept: checkpoints that are kept; None or 0: all.
        averaged: of these at the end; 0: none.
    """
    args, output = trainer.args, Path(trainer.args.output_dir)
    weights = weight_bytes(trainer)
    states = 0 if args.save_only_model else optimizer_bytes(trainer)
    saves = _num_saves(args, num_updates)
    newest_and_best = 1 + bool(args.load_best_model_at_end)
    held = min(saves, max(kept or saves, newest_and_best))
    own = sum(path.stat().st_size for each in checkpoints_in(output) for path in each.rglob("*") if path.is_file())
    return Disk(
        checkpoint=states + weights * (1 + (trainer.moving_average is not None)),
        num_checkpoints=min(held + 1, saves),
        model=weights,
        available=shutil.disk_usage(output).free + own,
        path=output,
        least=max(newest_and_best, averaged),
    )


def _num_saves(args: Any, num_updates: int) -> int:
    """Return how many checkpoints a run writes; one that is saved by its score at most at each evaluation."""
    strategy = str(getattr(args.save_strategy, "value", args.save_strategy))
    if strategy in ("no", "epoch"):
        return 0 if strategy == "no" else math.ceil(args.num_train_epochs)
    every = float(args.eval_steps if strategy == "best" and args.eval_steps else args.save_steps)
    return math.ceil(num_updates / (every if every >= 1 else max(1, math.ceil(every * num_updates))))


def describe_new_end(trainer: SeqloomTrainer, checkpoint: Path, num_updates: int) -> str:
    """Say what it does to the learning rate that a run is made longer; "": its end is the one it was started for.

    Args:
        trainer: with the arguments.
        checkpoint: from which it goes on.
        num_updates: of the run now.
    """
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    update, before = state.global_step, state.max_steps
    if num_updates == before:
        return ""
    planned = f"It was planned for {before:,} updates and has {num_updates:,} now"
    looked_at = sorted({round(share * update / 50) for share in range(51)})
    old, new = ([learning_rate_at(trainer.args, at, end) for at in looked_at] for end in (before, num_updates))
    if None not in old and old == new:
        return f"{planned}; its learning rate is the one that it would have had from the start."
    jump = "" if None in (old[-1], new[-1]) else f" at update {update:,} it was {old[-1]:.3g} and is {new[-1]:.3g} now."
    return (
        f"{planned}, so the schedule {trainer.args.lr_scheduler_type.value} of the learning rate is another:{jump} The "
        f"model will not be that of a run planned so long from the start."
    )


def learning_rate_at(args: Any, update: int, num_updates: int) -> float | None:
    """Return the learning rate of an update by the schedule of a run; None where it depends on the scores."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
    warmup, options = args.get_warmup_steps(num_updates), args.lr_scheduler_kwargs
    schedule = get_scheduler(args.lr_scheduler_type, optimizer, warmup, num_updates, options or {})
    curves = getattr(schedule, "lr_lambdas", None)
    return args.learning_rate * curves[0](update) if curves else None


def survey(sampler: UpdateSampler) -> Survey:
    """Look at the micro-batches of the first epoch, as far as `PROBED_UPDATES` reach."""
    lengths, steps, packed = sampler.lengths, sampler.settings.accumulation_steps, sampler.settings.packed
    batches = itertools.islice(sampler, PROBED_UPDATES * steps)
    shapes = np.array([(len(rows), *_row_lengths(lengths[rows], packed), lengths[rows].sum()) for rows in batches])
    padded = shapes[:, 3] if packed else shapes[:, 0] * (shapes[:, 1] + shapes[:, 2])
    rows, source, target, _ = shapes[padded.argmax()]
    return Survey(
        num_updates=len(sampler) // steps,
        num_tokens=sampler.num_tokens(),
        padding=float(1 - shapes[:, 3].sum() / padded.sum()),
        largest=(int(rows), int(source), int(target)),
    )


def _row_lengths(lengths: np.ndarray, packed: bool) -> np.ndarray:
    """Return how long rows are on either side: as the longest; packed: such that together they are as long as all."""
    return np.ceil(lengths.mean(axis=0)).astype(int) if packed else lengths.max(axis=0)


def measure(trainer: SeqloomTrainer, largest: tuple[int, int, int]) -> Memory:
    """Return what one device needs for its largest micro-batch.

    Args:
        trainer: with the model; where weights are sharded or DeepSpeed moves it, on the CPU still.
        largest: rows, source length and target length.
    """
    rows, source, target = largest
    one, two = (kept_for_backward(trainer, probe, source, target) for probe in (1, 2))
    kept = one + (two - one) * (rows - 1)  # what does not grow with the rows, such as the LM head's gradient, is in one
    is_narrow_cpu = trainer.args.bf16 and trainer.args.device.type == "cpu"
    state = state_bytes(trainer) + (NARROW_CPU_KERNELS if is_narrow_cpu else KERNELS)
    there = weight_bytes(trainer) if device_of(trainer.model).type == trainer.args.device.type else 0
    return Memory(state, int(TRANSIENT * kept), free_bytes(trainer.args.device) + there)


def can_cut(trainer: SeqloomTrainer, tokens_per_device: int) -> bool:
    """Return whether the updates of a run can be cut into micro-batches of so many padded tokens."""
    try:
        accumulation_steps(
            trainer.train_sampler().lengths, replace(trainer.batching, tokens_per_device=tokens_per_device)
        )
    except ValueError:
        return False
    return True


def weight_bytes(trainer: SeqloomTrainer) -> int:
    """Return the bytes of the whole weights."""
    return sum(parameter.nbytes for parameter in trainer.model.parameters())


def device_of(model: torch.nn.Module) -> torch.device:
    """Return where a model lies."""
    return next(model.parameters()).device


def state_bytes(trainer: SeqloomTrainer) -> int:
    """Return the bytes that weights, gradients, optimizer states and moving average take on one device.

    DDP has two copies of the gradients, its own and the one that it sends. FSDP and ZeRO-3 leave each process its share
    of everything, ZeRO-2 of all but the weights.
    """
    weights, optimizer, processes = weight_bytes(trainer), optimizer_bytes(trainer), trainer.args.world_size
    if trainer.is_sharded:
        return (2 * weights + optimizer) // processes
    if trainer.is_deepspeed_enabled:
        return weights + (weights + optimizer) // processes
    copies = 2 + (processes > 1) + (trainer.moving_average is not None)
    return optimizer + copies * weights


def optimizer_bytes(trainer: SeqloomTrainer) -> int:
    """Return the bytes of what the optimizer keeps; Muon keeps one number for each weight of its matrices."""
    by_muon = sum(each.nbytes for each in matrices_of(trainer.model)) if trainer.has_muon else 0
    return by_muon + OPTIMIZER_STATES.get(trainer.args.optim, 2) * (weight_bytes(trainer) - by_muon)


def kept_for_backward(trainer: SeqloomTrainer, rows: int, source: int, target: int) -> int:
    """Return the bytes that autograd keeps for the forward pass of so many rows of these lengths."""
    model = trainer.model
    word = trainer.tokenizers.source.eos_token_id
    inputs = trainer.train_collator([{"input_ids": [word] * source, "labels": [word] * target}] * rows)
    own = {tensor.untyped_storage().data_ptr() for tensor in itertools.chain(model.parameters(), model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    was_training = model.training
    model.train()
    with (
        torch.random.fork_rng(),  # a look ahead must not change what is learned
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        switched_as_in_training(trainer),
        trainer.compute_loss_context_manager(),
    ):
        loss = trainer.compute_loss(model, send_to_device(inputs, device_of(model)))
    model.train(was_training)
    del loss  # only now: memory that is freed is used again, and would be counted once
    return sum(kept.values())


@contextlib.contextmanager
def switched_as_in_training(trainer: SeqloomTrainer) -> Iterator[None]:
    """Checkpoint activations and multiply in narrow numbers as Trainer will, which turns both on when it begins."""
    model, args = trainer.model, trainer.args
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # before 5.24
    options = dict(getattr(args, f"{kind}_checkpointing_kwargs") or {})
    own = {name: options.pop(name) for name in ("every_n_layers", "offload") if name in options}
    is_ours = getattr(args, f"{kind}_checkpointing") and not getattr(model, f"is_{kind}_checkpointing")
    if is_ours:
        getattr(model, f"{kind}_checkpointing_enable")(options or None, **own)
    try:
        narrow = torch.bfloat16 if args.bf16 else torch.float16
        with torch.autocast(device_of(model).type, narrow, enabled=args.bf16 or args.fp16):
            yield
    finally:
        if is_ours:
            getattr(model, f"{kind}_checkpointing_disable")()


def free_bytes(device: torch.device) -> int:
    """Return what a process may still take: of its GPU, or its share of the machine's or container's memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        free = min(free, limit - int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii")))
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def describe(
    trainer: SeqloomTrainer, survey: Survey, memory: Memory, sizes: dict[str, int], num_updates: int
) -> dict[str, str]:
    """Return what a person reads before the first update, by subject.

    Args:
        trainer: with model and arguments.
        survey: of the training set.
        memory: of one device.
        sizes: examples in each split.
        num_updates: of the whole run.
    """
    config, args = trainer.model.config, trainer.args
    layers = f"{config.encoder_layers}+{config.decoder_layers} layers of {config.d_model}"
    device = f"{args.world_size} x {args.device.type}"
    epochs = f"{num_updates / survey.num_updates:.1f} epochs"
    batch = "{} x ({} + {})".format(*survey.largest)
    micro_batches = args.gradient_accumulation_steps
    return {
        "model": f"{layers}, vocabulary {config.vocab_size:,}, {trainer.model.num_parameters():,} parameters",
        "data": f"{', '.join(f'{count:,} {name}' for name, count in sizes.items())} examples",
        "epoch": f"{survey.num_tokens:,} source + target tokens, {survey.num_updates:,} updates",
        "run": f"{num_updates:,} updates = {epochs} on {device}, in {micro_batches} micro-batches each",
        "padding": f"{100 * survey.padding:.1f} % of what is computed; the largest micro-batch is {batch} tokens",
        "memory": f"about {gigabytes(memory.total)} a device; {gigabytes(memory.available)} are free",
    }


LONG = 24 * 3600
"""Seconds of a run from which on it is said what makes one shorter."""

SHORTER = "; a smaller --preset, or fewer --num_train_epochs or --max_steps, takes less"


class TimeEstimate(TrainerCallback):
    """Says once, after the first updates, how long the run will take."""

    def __init__(self, say: Callable[[str], None], warm_up: int = 5, sample: int = 20) -> None:
        """Time `sample` updates after `warm_up` others, which are slower."""
        self.say = say
        self.first, self.last = warm_up, warm_up + sample
        self.ends: list[float] = []
        """When updates ended."""

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count, and speak when the sample is complete."""
        if len(self.ends) == self.last:
            return
        self.ends.append(time.perf_counter())
        left = state.max_steps - state.global_step
        if len(self.ends) == self.last and left > 0 and state.is_world_process_zero:
            seconds = [end - start for start, end in pairwise(self.ends[self.first - 1 :])]
            pace = statistics.median(seconds)  # an evaluation or a save lies between two ends
            remedy = SHORTER if pace * left > LONG else ""
            self.say(
                f"time      {duration(pace * left)} to go, evaluations not counted ({pace:.3g} s an update){remedy}"
            )


def gigabytes(num_bytes: int) -> str:
    """Return a size as people say it: "0.4 GB"."""
    return f"{num_bytes / 1e9:.1f} GB"


def megabytes(num_bytes: int) -> str:
    """Return a size on a disk as people say it: "31 MB", "0.2 GB"."""
    return f"{num_bytes / 1e6:,.0f} MB" if num_bytes < 1e8 else gigabytes(num_bytes)


def round_down(value: int) -> int:
    """Return the largest number of at most two digits and zeros that is not above `value`."""
    digits = 10 ** max(0, len(str(value)) - 2)
    return value // digits * digits


__all__ = ["Memory", "Survey", "TimeEstimate", "can_cut", "describe", "measure", "survey"]
