"""What every fuzz target shares: hypothesis for a number of examples in a test, or for as long as somebody waits."""

import argparse
import logging
import time
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

ROUND = 500
"""Examples between two looks at the clock."""


def fuzz(
    check: Callable[[Any], None], inputs: SearchStrategy[Any], *, examples: int = ROUND, seconds: float | None = None
) -> int:
    """Hand generated inputs to `check`, and return how many it has seen.

    Args:
        check: raises, or asserts, where an input is answered wrongly; hypothesis then looks for the smallest such one.
        inputs: what is generated.
        examples: how many, the same ones at every call; with `seconds` this counts for nothing.
        seconds: how long to go on, with other inputs in every round.
    """
    tried = 0

    def counted(value: Any) -> None:
        nonlocal tried
        tried += 1
        check(value)

    started, number = time.monotonic(), 0
    while number == 0 or (seconds is not None and time.monotonic() - started < seconds):
        _run_round(counted, inputs, ROUND if seconds else examples, number if seconds is None else time.time_ns())
        number += 1
    return tried


def _run_round(check: Callable[[Any], None], inputs: SearchStrategy[Any], examples: int, number: int) -> None:
    chosen = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    seed(number)(chosen(given(inputs)(check)))()


def main(run: Callable[..., int]) -> None:
    """Fuzz from the command line: `python -m tests.fuzz.fuzz_recipes --seconds 3600`."""
    logging.disable()
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    print(f"{run(seconds=parser.parse_args().seconds):,} inputs, each answered as it should be")
