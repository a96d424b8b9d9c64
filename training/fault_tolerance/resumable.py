"""ResumableTrainer: a Trainer that can be killed at any moment and ends with the same weights.

transformers' Trainer restores weights, optimizer, schedule, random states and the place in the epoch. What it lacks,
and what these hooks add:

- killed while it saves, it leaves half a checkpoint in the place of a whole one -> staged, sealed and renamed, see
  `checkpoints`
- resumed at the last update it computes one more -> an epoch is not entered when nothing is left to learn
- resumed after an early stop it trains on -> the stop is read from the checkpoint
- evaluation draws random numbers, and a run killed between an epoch's checkpoint and its evaluation never evaluates it
  -> evaluation leaves the random states as they were, and an epoch is saved after its evaluation
- DDP rounds the first update of every start otherwise than later ones -> a pass before training takes its place
- the log forgets what was learned between its last entry and the checkpoint -> that sum is in the seal
- the best checkpoint is loaded without a look at its files -> held against the seal
- with save_total_limit=1 every checkpoint-N but the best goes at the end, whoever wrote it -> the end stays, too
- an early stop between two saves leaves no checkpoint of the end -> it is saved
- random states of Apple's and Intel's GPUs are not saved -> they are
- on more processes than before, a new one finds no random state to go on from -> seeded by the number of the update
- signals, full disks, memory and broken losses end in tracebacks -> see `interruption` and `run_health`
"""

import contextlib
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Trainer, set_seed
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.trainer_utils import SaveStrategy

from seqloom.hub.loading import no_loading_bar
from seqloom.training.fault_tolerance.checkpoints import (
    STAGING,
    checkpoint_path,
    discard_extra,
    facts_of,
    find_damage,
    is_ours,
    put_in_place,
    rotate,
    seal,
    update_of,
)
from seqloom.training.fault_tolerance.interruption import StopAfterUpdate, StopSignals, name_of
from seqloom.training.fault_tolerance.run_health import (
    CheckpointError,
    LossGuard,
    MicroBatch,
    TrainingError,
    broken_weights,
    explained_writing,
    is_finite_without_waiting,
    is_lost_peer,
    is_out_of_memory,
    lost_peer,
    not_finite,
    out_of_memory,
)
from seqloom.training.fault_tolerance.together import from_main_process
from seqloom.training.monitoring.progress import mean_loss
from seqloom.training.quality.selection import scores_by_update
from seqloom_cli.command import EXIT_FAILED


@runtime_checkable
class CheckpointPart(Protocol):
    """A callback with a state of its own that must survive a kill, such as a moving average of the weights."""

    def save_part(self, checkpoint: Path) -> None:
        """Write the state into a checkpoint that is still staged; called on every process."""

    def load_part(self, checkpoint: Path) -> None:
        """Read it back; called on every process, after the model has its weights."""


class ResumableTrainer(Trainer):
    """A Trainer with whole checkpoints, exact resume, a clean stop on signals, and errors that say what to do."""

    control: TrainerControl

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Set up a run; everything is Trainer's."""
        super().__init__(*args, **kwargs)
        self.stopper = StopAfterUpdate()
        """Hears of stop signals once `listen_to` was called."""
        self.micro_batch = MicroBatch()
        """What memory holds at the moment."""
        self.add_callback(self.stopper)
        self.add_callback(LossGuard(self.model.config.vocab_size))
        self.saved_updates: list[int] = []
        """The updates at which this run has saved a regular checkpoint, over all its starts; some may be gone."""
        self._unlogged: dict[str, float] = {}
        self._is_staging = False
        self._is_done = False
        self._update_loss: Tensor | float = 0.0

    def listen_to(self, signals: StopSignals) -> None:
        """Save and stop when one of these signals arrives."""
        self.stopper.signals = signals

    # Training ----------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train to the end, from a checkpoint if one is given.

        Raises:
            StoppedError: after a stop signal, when the checkpoint is written.
            TrainingError: when the run cannot go on.
        """
        # Whatever was drawn since the trainer was set up; and no two processes drop out the same.
        set_seed(self.args.seed + self.args.process_index)
        self._is_done, self._unlogged, self.saved_updates = False, {}, []
        with self._explained_failures():
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> tuple[nn.Module, Any]:
        """Also notice when a checkpoint is the end of its run, and load what Trainer does not know of it."""
        model, dataloader = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        self._is_done = self.state.global_step >= max_steps
        if resume_from_checkpoint is not None:
            self._go_on_from(Path(resume_from_checkpoint))
            self.state.compute_steps(self.args, max_steps)  # the checkpoint's are those of its command
        if isinstance(model, nn.parallel.DistributedDataParallel):
            self._settle(model)
        return model, dataloader

    def _go_on_from(self, checkpoint: Path) -> None:
        self._is_done |= ended_early(TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)))
        facts = facts_of(checkpoint)
        self._unlogged, self.saved_updates = facts.get("unlogged", {}), facts.get("saved_updates", [])
        self._name_best_checkpoint()
        is_regular = self.saved_updates[-1:] == [update_of(checkpoint)]
        if self.args.should_save and is_regular and checkpoint == self._final_folder():
            self._remove_superfluous(checkpoint.parent)  # a kill may have come before
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, CheckpointPart):
                callback.load_part(checkpoint)

    def _settle(self, model: nn.Module) -> None:
        """Let DDP settle how it packs gradients, before the first update of every start.

        DDP packs them in one order for the first backward pass and in another, by arrival, ever after. Three processes
        and more add in an order that depends on the packing, so the first update after a resume would be rounded
        differently. A pass whose gradients are thrown away brings every start to the final packing.
        """
        ids = torch.full((2, 4), self.model.config.eos_token_id, device=self.args.device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
        with kept_random_state():
            model.train()
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, inputs)
            self.accelerator.backward(loss)
        model.zero_grad()

    def _run_epoch(self, **kwargs: Any) -> None:
        """Compute an epoch, unless nothing is left to learn; the log goes on where the checkpoint's had stopped."""
        if self._is_done:
            self._end_epoch_without_updates()
            return
        unlogged, self._unlogged = self._unlogged, {}
        if unlogged:
            self._tr_loss += unlogged["loss"]
            self._globalstep_last_logged = int(unlogged["since"])
        super()._run_epoch(**kwargs)

    def _end_epoch_without_updates(self) -> None:
        """End an epoch of which nothing is left, with the reading that it would have ended with."""
        unlogged, self._unlogged = self._unlogged, {}
        self.control.should_training_stop = True
        self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
        if unlogged and self.control.should_log:
            self.log({"loss": unlogged["loss"] / (self.state.global_step - unlogged["since"])})

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Note what is computed, so that running out of memory can be explained."""
        self.micro_batch.start(inputs)
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.micro_batch.finish()
        self._update_loss = self._update_loss + loss
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> Tensor | float | None:
        """Refuse a gradient that is no number before the optimizer takes it; the norm is that of all processes."""
        norm = super()._get_grad_norm(model, grad_norm)
        loss, self._update_loss = self._update_loss, 0.0
        is_scaled = getattr(self.accelerator, "scaler", None) is not None  # fp16 finds its scale by such updates
        if not is_scaled and not is_finite_without_waiting(norm):
            raise not_finite(self.args, self.state, grad_norm=float(norm), loss=float(loss))
        return norm

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """End the training; a stopped one ends here, before its best model would be looked for.

        A signal that came after the last update, for example while it was saved, is obeyed as well. A checkpoint of the
        last update has no reading of what was learned since the one before; with no epoch left it is made up for here.
        """
        if self._unlogged:
            self._end_epoch_without_updates()
        is_done = self.state.global_step >= self.state.max_steps
        if self.stopper.hear_last() and not (is_done and self.args.save_only_model):  # from that no run could go on
            self.stopper.is_extra = True
            if not from_main_process(lambda: is_ours(self._final_folder())):
                self._save_checkpoint(self.model, trial=None)
            self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
            if self.args.save_only_model:
                raise CheckpointError(
                    f"stopped by {name_of(self.stopper.reason)} after update {self.state.global_step:,} of "
                    f"{self.state.max_steps:,}. {self._final_folder()} holds the weights alone (save_only_model), and "
                    f"no run goes on from it: the same command starts over. Leave save_only_model out."
                )
            raise self.stopper.error(str(self._final_folder()), self.state)
        if self.args.save_strategy != SaveStrategy.NO and not from_main_process(self._final_folder().is_dir):
            self.stopper.is_extra = True  # an early stop between two saves: whoever comes back finds the end
            self._save_checkpoint(self.model, trial=None)
        limit = self.args.save_total_limit
        self.args.save_total_limit = None  # 1 would remove the end where it is not the best, and what is not ours
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _load_best_model(self) -> None:
        """Load the best model, if every file of its checkpoint is as it was written.

        Raises:
            CheckpointError: if not.
        """
        best = Path(self.state.best_model_checkpoint or "")
        if fault := find_damage(best) if best.is_dir() else "it is missing":
            raise CheckpointError(
                f"the best model is to be loaded from {best}, but {fault}. Bring it back as it was; or start "
                f"the same command with --load_best_model_at_end false, which keeps the model of the last update."
            )
        super()._load_best_model()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, at the end the mean loss of the whole run; Trainer's own, with times, is that of its last start."""
        if "train_loss" in logs:
            logs = {"train_loss": mean_loss(self.state.log_history)}
            if not any("loss" in row for row in self.state.log_history):
                return
        super().log(logs, start_time)

    # Random states -----------------------------------------------------------------------------------------------

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate; how often that is done does not change what is learned.

        Raises:
            TrainingError: where memory runs out, after the training, too.
        """
        self.micro_batch.is_evaluating = True
        try:
            with kept_random_state():
                return super().evaluate(*args, **kwargs)
        except (MemoryError, RuntimeError) as error:
            self._explain_memory(error)
            raise
        finally:
            self.micro_batch.is_evaluating = False

    def _save_rng_state(self, output_dir: str) -> None:
        """Save this process's random state, also that of a device which Trainer leaves out."""
        super()._save_rng_state(output_dir)
        if device := forgotten_device(self.args.device):
            torch.save(device.get_rng_state(), self._device_state(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore this process's random state; one that was not there before keeps a seed of its own."""
        if checkpoint is not None:
            set_seed(self.args.seed + self.args.process_index + self.args.world_size * self.state.global_step)
        super()._load_rng_state(checkpoint)
        device = forgotten_device(self.args.device)
        if device and checkpoint is not None and (file := self._device_state(checkpoint)).is_file():
            device.set_rng_state(torch.load(file, weights_only=True))

    def _device_state(self, checkpoint: str) -> Path:
        return Path(checkpoint) / f"rng_state_device_{self.args.process_index}.pth"

    # Checkpoints -------------------------------------------------------------------------------------------------

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Warn of missing weights, but not of those that are another's second name and never saved."""
        tied = self.model.all_tied_weights_keys
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint that is whole or not there, then remove the oldest.

        Raises:
            TrainingError: when the weights are not finite, or the disk refuses.
        """
        if parameter := broken_weights(model):
            raise not_finite(self.args, self.state, **{parameter: float("nan")})
        staged, final = self._staged_folder(), self._final_folder()
        if final.exists() and not is_ours(final):
            raise CheckpointError(
                f"{final} is in the way and was not written by Seqloom; move it away, then start again."
            )
        unlogged = self._sum_unlogged()
        try:
            with explained_writing(final, final.parent):
                self._stage_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    self._show_checkpoint(staged, final, unlogged)
        except TrainingError:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))

    def _stage_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Let Trainer write its checkpoint into the staging folder; only the best one's name must not point there."""
        best, self.state.best_global_step = self.state.best_global_step, None
        self._is_staging = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._is_staging = False
            self.state.best_global_step = best  # where nothing saved has a score
        self._name_best_checkpoint()
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, CheckpointPart):
                callback.save_part(self._staged_folder())
        if self.args.should_save:
            self.state.save_to_json(str(self._staged_folder() / TRAINER_STATE_NAME))

    def _sum_unlogged(self) -> dict[str, float]:
        """Return the sum of the losses since the log's last entry, the mean over the processes, and where that was."""
        loss = self.accelerator.gather(self._tr_loss.detach().clone()).mean().item()
        since = self._globalstep_last_logged
        return {"loss": loss, "since": since} if since < self.state.global_step else {}

    def _show_checkpoint(self, staged: Path, final: Path, unlogged: dict[str, float]) -> None:
        """Let a checkpoint appear, and remove what it makes superfluous; an extra one leaves the others alone."""
        update = self.state.global_step
        is_best = self.args.save_strategy == SaveStrategy.BEST and self.state.best_global_step == update
        is_extra = self.stopper.is_extra and not is_best  # that it is the best is known after its evaluation
        self.saved_updates = sorted({*self.saved_updates, *([] if is_extra else [update])})
        facts = {"update": update, "processes": self.args.world_size, "is_extra": is_extra}
        seal(staged, **facts, unlogged=unlogged, saved_updates=self.saved_updates)
        put_in_place(staged, final)
        if not is_extra:
            self._remove_superfluous(final.parent)

    def _remove_superfluous(self, output: Path) -> None:
        discard_extra(output, self.state.best_model_checkpoint)
        rotate(output, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _get_output_dir(self, trial: Any) -> str:
        """Return where checkpoints are written: while one is saved, the staging folder."""
        folder = super()._get_output_dir(trial)
        return str(Path(folder) / STAGING) if self._is_staging else folder

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the model and what `complete` adds, without bars; tied weights that were gathered from shards once.

        The pickle of the arguments leaves: the recipe says the same, and nobody has to trust it.
        """
        if state_dict is not None:
            tied = self.model.all_tied_weights_keys
            state_dict = {name: weight for name, weight in state_dict.items() if name not in tied}
        with no_loading_bar():
            super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            self.complete(folder)

    def complete(self, folder: Path) -> None:
        """Add what a saved model is to have beside its weights; on the process that saves. Here: nothing."""

    def _final_folder(self) -> Path:
        return checkpoint_path(Path(self.args.output_dir), self.state.global_step)

    def _staged_folder(self) -> Path:
        return checkpoint_path(Path(self.args.output_dir) / STAGING, self.state.global_step)

    def _name_best_checkpoint(self) -> None:
        """Point to the best of the saved updates, by the history; Trainer knows of the best evaluated one alone.

        The first of equals, as Trainer has it. A checkpoint that is gone was not the best, unless it was named so.
        """
        if self.args.metric_for_best_model is None:
            return
        if found := from_main_process(self._best_saved):  # which alone knows what it has saved and removed
            best, self.state.best_metric = found
            self.state.best_global_step = best
            self.state.best_model_checkpoint = str(checkpoint_path(Path(self.args.output_dir), best))

    def _best_saved(self) -> tuple[int, float] | None:
        """Return the best update that was saved, and its score; None: none has one."""
        output, now = Path(self.args.output_dir), self.state.global_step
        named = {now, self.state.best_global_step}
        saved = {u for u in {*self.saved_updates, now} if u in named or checkpoint_path(output, u).is_dir()}
        history = scores_by_update(self.state.log_history, str(self.args.metric_for_best_model).removeprefix("eval_"))
        scores = {update: score for update, score in history.items() if update in saved}
        if not scores:
            return None
        best = (max if self.args.greater_is_better else min)(scores, key=lambda update: scores[update])
        return best, scores[best]

    # Failures ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _explained_failures(self) -> Iterator[None]:
        try:
            yield
        except TrainingError as error:
            if error.is_shared and self.args.process_index and not self.is_fsdp_enabled:
                raise SystemExit(EXIT_FAILED) from error  # the first process says it
            raise
        except (MemoryError, RuntimeError) as error:
            if self.args.world_size > 1 and is_lost_peer(error):
                raise lost_peer(self.args, self.state) from error
            self._explain_memory(error)
            raise

    def _explain_memory(self, error: Exception) -> None:
        """Raise what to do about an allocation that failed; anything else is left to the caller."""
        if is_out_of_memory(error):
            raise out_of_memory(self.args, self.state, self.micro_batch, str(self.args.device)) from error


def ended_early(saved: TrainerState) -> bool:
    """Return whether something else than the number of updates had ended the run that saved this state."""
    control = saved.stateful_callbacks.get("TrainerControl", {}).get("args", {})
    return bool(control.get("should_training_stop")) and saved.global_step < saved.max_steps


def forgotten_device(device: torch.device) -> Any:
    """Return torch's module for a device whose random state Trainer does not save; None: it does."""
    return torch.get_device_module(device) if device.type in ("mps", "xpu") else None


@contextlib.contextmanager
def kept_random_state() -> Iterator[None]:
    """Give back the state of every random generator as it was: Python's, NumPy's, torch's on CPU and device."""
    python, numpy = random.getstate(), np.random.get_state()
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    devices = [torch.accelerator.current_device_index()] if device else []
    try:
        with torch.random.fork_rng(devices, device_type=device.type if device else "cuda"):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
