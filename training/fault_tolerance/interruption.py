"""Stopping a run on request: save after the running update, then end, on all processes at the same update.

Schedulers announce the end before they enforce it: Slurm and spot machines send SIGTERM (Slurm's `--signal=USR1@120`
sends SIGUSR1), a person presses Ctrl-C. transformers' `enable_jit_checkpoint` listens to SIGTERM only, each process for
itself after a timer of three seconds, and may save in the middle of an update, whose dropout is then drawn twice. Here
the processes agree first, and what is saved is always the state between two updates:

    signal on any process -> flag -> every update: maximum of all flags -> next update's end: save -> stop

The flags travel on gloo while the next update is computed, so that no device waits for them; a stop therefore takes one
more update on several processes. A launcher that is killed takes its processes with it the same way.
"""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from seqloom_cli.command import EXIT_INTERRUPTED, EXIT_STOPPED, StoppedError

_NAMES = ("SIGTERM", "SIGUSR1", "SIGINT")  # Windows has no SIGUSR1
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
"""What asks a run to stop."""

ORPHANED = 1
"""Stands for a launcher that was killed, as if it had hung up (SIGHUP)."""


class StopSignals:
    """While open, a stop signal waits for the running update; where nothing is trained it ends the run at once."""

    def __init__(self, note: Callable[[str], Any] = lambda text: None) -> None:
        """Listen from `with` on.

        Args:
            note: writes that the run is about to stop, before it saves: a scheduler may kill it before it has.
        """
        self.note = note
        self.received = 0
        """The signal that asked for the stop; 0: none has."""
        self.is_training = False
        """Whether somebody looks at `received` after each update."""
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # others cannot listen to signals
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            _as_a_child(number)
        elif number == signal.SIGINT and (self.received == signal.SIGINT or not self.is_training):
            raise KeyboardInterrupt
        elif not self.is_training:
            raise stopped_at_rest(number)
        elif not self.received:  # a repeated SIGTERM is the same wish: srun and torchrun both hand it on
            self.received = number
            again = " Ctrl-C again stops at once." if number == signal.SIGINT else ""
            text = f"\n{name_of(number)}: saving a checkpoint after the running update, then stopping.{again}\n"
            os.write(2, text.encode())  # print is not allowed to interrupt itself


def stopped_at_rest(number: int) -> StoppedError:
    """Return what ends a run at once, for nothing is being trained."""
    text = (
        f"Stopped by {name_of(number)} while nothing was being trained; what was saved before is kept. The same "
        f"command started again goes on from there."
    )
    return StoppedError(text, EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_STOPPED)


def _as_a_child(number: int) -> None:
    """Data workers inherit the handlers: they ignore what their parent decides on, and end when they are told to."""
    if number == signal.SIGTERM:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def ignore_stop_signals() -> None:
    """Let a data worker live until its trainer has saved, where a scheduler signals every process of a job."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def name_of(number: int) -> str:
    """Return how people call what asked for the stop."""
    if number == ORPHANED:
        return "the end of its launcher"
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def is_launched() -> bool:
    """Return whether torchrun or `accelerate launch` started this process: the exit code is lost, and so may it be."""
    return bool({"TORCHELASTIC_RUN_ID", "ACCELERATE_USE_CPU"} & os.environ.keys())


class StopAfterUpdate(TrainerCallback):
    """Turns a stop signal on any process into a checkpoint and a stop on all of them."""

    def __init__(self, signals: StopSignals | None = None) -> None:
        """Listen to `signals`; without, nothing ever asks for a stop."""
        self.signals = signals or StopSignals()
        self.reason = 0
        """Why all processes stop; 0: they do not."""
        self.is_extra = False
        """Whether only the stop asks for the checkpoint of this update; it has no place among the regular ones."""
        self._is_postponed = False
        self._flags: Flags | None = None
        self._launcher = os.getppid() if is_launched() else None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start to look for signals."""
        self._flags = Flags()
        self.reason = 0
        self.signals.is_training = True

    def hear_last(self) -> int:
        """Return what asks for a stop when the last update is done; every process calls."""
        if self._flags and not self.reason:
            self._flags.exchange(self._wish())
            self.reason = self._flags.exchange(self._wish())
        return self.reason

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Nobody looks any more: from here on signals end the run at once, and so does one that came just now.

        Raises:
            StoppedError: for a signal that nobody has looked at.
        """
        self.signals.is_training = False
        if self._flags:
            self._flags.close()
        if self.signals.received and not self.reason:
            raise stopped_at_rest(self.signals.received)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save here if any process was asked to stop; the end of an epoch saves after its evaluation, not before."""
        assert self._flags is not None, "on_train_begin comes first"
        if not self.reason:
            self.reason = self._flags.exchange(self._wish())
            if self.reason and state.is_world_process_zero:
                self.signals.note(f"Stopping by {name_of(self.reason)} after update {state.global_step:,}.")
        self.is_extra = bool(self.reason) and not control.should_save
        control.should_save = control.should_save or bool(self.reason)
        is_end = _ends_epoch(state) or state.global_step >= state.max_steps  # in the middle of an epoch, perhaps
        is_before_evaluation = is_end and args.eval_strategy == IntervalStrategy.EPOCH
        self._is_postponed = control.should_save and is_before_evaluation
        if self._is_postponed:
            control.should_save = False

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save what was postponed; an epoch that was broken off is neither evaluated nor saved."""
        if self._is_postponed:
            control.should_save = True
            self.is_extra = self.is_extra and args.save_strategy != SaveStrategy.EPOCH
        elif self.reason and not _ends_epoch(state):
            control.should_log = control.should_evaluate = control.should_save = False

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop once the checkpoint is there: the stop is no part of what was saved."""
        self._is_postponed = False
        if self.reason:
            control.should_training_stop = True

    def error(self, checkpoint: str, state: TrainerState) -> StoppedError:
        """Return what ends the run: what was saved, and how to go on; only one process speaks."""
        code = EXIT_INTERRUPTED if self.reason == signal.SIGINT else EXIT_STOPPED
        text = (
            f"Stopped by {name_of(self.reason)} after update {state.global_step:,} of {state.max_steps:,}, saved in "
            f"{checkpoint}. The same command started again goes on from there."
        )
        return StoppedError(text if state.is_world_process_zero else "", code)

    def _wish(self) -> int:
        is_orphan = self._launcher is not None and os.getppid() != self._launcher
        return self.signals.received or (ORPHANED if is_orphan else 0)


class Flags:
    """One number per process, exchanged beside the training; all processes read the same maximum at the same update."""

    def __init__(self) -> None:
        is_alone = not distributed.is_available() or not distributed.is_initialized()
        self._group = None if is_alone else distributed.new_group(backend="gloo")
        self._work: Any = None
        self._sent = torch.zeros(1, dtype=torch.int32)

    def exchange(self, flag: int) -> int:
        """Hand in a number, and return the maximum of those handed in at the call before; alone: the number itself."""
        if self._group is None:
            return flag
        highest = self._read()
        self._sent = torch.tensor([flag], dtype=torch.int32)
        self._work = distributed.all_reduce(self._sent, distributed.ReduceOp.MAX, group=self._group, async_op=True)
        return highest

    def _read(self) -> int:
        if self._work is not None:
            self._work.wait()
        return int(self._sent)

    def close(self) -> None:
        """Wait for the last exchange and give the group back."""
        if self._group is not None:
            self._read()
            distributed.destroy_process_group(self._group)
            self._group = None


def _ends_epoch(state: TrainerState) -> bool:
    return float(state.epoch).is_integer()
