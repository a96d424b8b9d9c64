"""What one process finds, on every process of a run: all go on, or all end."""

from collections.abc import Callable
from typing import TypeVar, cast

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from seqloom.training.fault_tolerance.run_health import TrainingError
from seqloom_cli.command import EXIT_FAILED

T = TypeVar("T")


def from_main_process(compute: Callable[[], T]) -> T:
    """Return what the first process finds, on every process."""
    found = [compute() if PartialState().is_main_process else None]
    return broadcast_object_list(found)[0]


def refused_together(check: Callable[[], T]) -> T:
    """Return what the first process finds, on every process; what it refuses ends them all, and it alone says why.

    Raises:
        TrainingError: by `check`, on the first process.
    """

    def found() -> tuple[T | None, TrainingError | None]:
        try:
            return check(), None
        except TrainingError as error:
            return None, error

    result, error = from_main_process(found)
    if error:
        raise error if PartialState().is_main_process else SystemExit(EXIT_FAILED)
    return cast(T, result)
