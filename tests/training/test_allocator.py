"""Freed memory is kept: what was touched once costs no page faults the next time."""

import platform
import subprocess
import sys

import pytest

from seqloom.training import allocator

FAULTS = """
import ctypes, resource, sys, torch
from seqloom.training.allocator import MMAP_THRESHOLD, keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
else:  # as glibc starts; left alone it raises the threshold, and what comes back depends on how the heap lies
    assert ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 128 << 10)

def work():
    for _ in range(20):  # two blocks of 20 MB at a time
        first = torch.ones(5_000_000)
        second = first + 1

work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_a_second_round_of_the_same_tensors_asks_the_system_for_nothing() -> None:
    """A busy machine takes pages away and adds to the count, so the least of some rounds counts."""
    kept = next((count for _ in range(5) if (count := faults("keep")) < 1_000), None)
    assert kept is not None
    assert faults("return") > 1_000


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert not allocator.keep_freed_memory()


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.sys, "platform", "linux")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert not allocator.keep_freed_memory()
