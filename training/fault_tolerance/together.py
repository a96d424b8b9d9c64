"""What one process finds, on every process of a run: all go on, or all end."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TypeVar, cast
from uuid import uuid4

from accelerate import PartialState
from accelerate.utils import gather_object
from torch import distributed

from seqloom.configuration.recipe import RecipeError
from seqloom.training.fault_tolerance.checkpoints import STAGING, remove
from seqloom.training.fault_tolerance.run_health import TrainingError, is_lost_peer
from seqloom_cli.command import EXIT_FAILED

T = TypeVar("T")

PATIENCE = timedelta(days=1)
"""For which processes wait for the first one's work; a vocabulary of many lines takes longer than ddp_timeout."""

LATE = 90.0
"""Seconds after which a file of one machine is seen on others that share a disk; NFS remembers for 60 what was not."""


def from_main_process(compute: Callable[[], T]) -> T:
    """Return what the first process finds, on every process; what it fails at ends them all, and it alone says why.

    Raises:
        Exception: by `compute`, on the first process.
        SystemExit: on the others.
        TrainingError: where another process has gone.
    """
    group = _waiting_group()
    found: T | None = None
    error: Exception | None = None
    if PartialState().is_main_process:
        try:
            found = compute()
        except Exception as failure:
            error = failure
    return cast(T, _shared(found, error, group))


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """Let the first of all processes do a work before the others do the same; what it fails at ends them all.

    Transformers' `main_process_first` waits no longer than `ddp_timeout`, and lets the others go on after a failure.
    """
    group = _waiting_group()
    if not PartialState().is_main_process:
        _shared(None, None, group)
        yield
        return
    try:
        yield
    except Exception as error:
        _shared(None, error, group)
    else:
        _shared(None, None, group)


def _shared(found: T | None, error: Exception | None, group: distributed.ProcessGroup | None) -> T | None:
    """Return what the first process has found, or end as it does."""
    told = [(found, error is not None)]
    if group is not None:
        try:
            distributed.broadcast_object_list(told, src=0, group=group)
        except RuntimeError as lost:
            if is_lost_peer(lost):
                raise TrainingError(
                    "another process of this run has ended, and the others cannot go on without it; its own message "
                    "says why."
                ) from lost
            raise
    found, has_failed = told[0]
    if has_failed:
        raise error or SystemExit(EXIT_FAILED)
    return found


@cache
def _waiting_group() -> distributed.ProcessGroup | None:
    """Return all processes on gloo, which waits as long as `PATIENCE` and notices at once when one is gone.

    To be called before there is anything to wait for: they find each other within `ddp_timeout`.
    """
    is_alone = PartialState().num_processes == 1
    return None if is_alone else distributed.new_group(backend="gloo", timeout=PATIENCE)


def refuse_unshared(output: Path) -> None:
    """Refuse a run's folder that is not one and the same for all processes.

    Raises:
        RecipeError: on the first process, naming the machines that have another.
        SystemExit: on the others.
    """
    if PartialState().num_processes == 1:
        return
    token = from_main_process(lambda: _leave_token(output))
    blind = gather_object([] if _appears(output / STAGING / token) else [socket.gethostname()])

    def refuse() -> None:
        remove(output / STAGING / token)
        if blind:
            raise RecipeError(
                f"output={output} is another folder on {', '.join(sorted(set(blind)))} than on {socket.gethostname()}, "
                f"where the first process writes; put it on a disk that all machines share, under the same name."
            )

    from_main_process(refuse)


def _leave_token(output: Path) -> str:
    token = f".{uuid4().hex}.tmp"  # a name that is in no start's way
    (output / STAGING).mkdir(exist_ok=True)
    (output / STAGING / token).touch()
    return token


def _appears(path: Path) -> bool:
    """Return whether a file is there, or comes within `LATE`."""
    ends = time.monotonic() + LATE
    while not path.exists():
        if time.monotonic() > ends:
            return False
        time.sleep(0.5)
    return True
