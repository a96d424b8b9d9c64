"""A fixed handful of the folders that fuzz_folders.py makes."""

from tests.fuzz import fuzz_folders


def test_every_command_ends_in_an_answer_or_a_paragraph() -> None:
    assert fuzz_folders.run(seconds=float("inf"), examples=24) == 24
    assert fuzz_folders.OUTCOMES["verify refused"] > 0
    assert fuzz_folders.OUTCOMES["generate answered"] > 0
