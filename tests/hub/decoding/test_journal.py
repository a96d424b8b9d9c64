"""Output that goes on after a kill: no line lost, none doubled, none of another command."""

import contextlib
import gzip
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from seqloom.hub.decoding import journal as module
from seqloom.hub.decoding.journal import Journal, JournalError
from seqloom.hub.decoding.sinks import StreamSink

LINES = [f"{number}\n".encode() for number in range(20)]


def write(files: list[Path], lines: list[bytes], work: dict[str, object] | None = None, window: int = 3) -> None:
    """Answer lines with themselves, as a command does that is started again and again."""
    with contextlib.closing(Journal(files, work or {"beams": 1})) as journal:
        if not journal.is_finished:
            rest = iter(lines)
            journal.skip(rest)
            while batch := list(itertools.islice(rest, window)):
                journal.commit(batch, [b"".join(batch).decode()] * len(files), {"lines": journal.lines})
        journal.finish()


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("names", [["out.txt"], ["out.txt.gz", "report.jsonl"]])
def test_killed_at_every_operation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    """Whatever file operation is the last one, the same command ends with every line once."""
    operations = itertools.count()
    limit = [10**6]

    def counted(function):
        def call(*args, **kwargs):
            if next(operations) >= limit[0]:
                raise Killed
            return function(*args, **kwargs)

        return call

    for name in ("write", "fsync", "replace", "ftruncate"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    monkeypatch.setattr(module, "write_whole", counted(module.write_whole))
    write([tmp_path / f"whole_{name}" for name in names], LINES)
    for last in range(next(operations)):
        files = [tmp_path / f"{last}_{name}" for name in names]
        operations, limit[0] = itertools.count(), last
        with pytest.raises(Killed):
            write(files, LINES)
        limit[0] = 10**6
        write(files, LINES)
        for file, name in zip(files, names, strict=True):
            unpack = gzip.decompress if name.endswith(".gz") else bytes
            assert unpack(file.read_bytes()) == b"".join(LINES), last
        assert not list(tmp_path.glob(f"{last}_*.part*"))


def test_a_process_that_is_killed(tmp_path: Path) -> None:
    """The same with a real process and a real signal, in the middle of its lines."""
    script = (
        "import itertools, os, signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from tests.hub.decoding import test_journal as this\n"
        "def lines():\n"
        "    for number, line in enumerate(this.LINES):\n"
        "        if number == 10: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        yield line\n"
        "this.write([Path(sys.argv[2])], lines(), window=2)\n"
    )
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", script, str(root), str(tmp_path / "out")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert (tmp_path / "out.part").read_bytes() == b"".join(LINES[:10])
    write([tmp_path / "out"], LINES)
    assert (tmp_path / "out").read_bytes() == b"".join(LINES)


def part_of(files: list[Path]) -> Path:
    return files[0].with_name("out.part")


def journal_file(files: list[Path]) -> Path:
    return files[0].with_name("out.part.json")


def half(tmp_path: Path) -> list[Path]:
    files = [tmp_path / "out"]
    journal = Journal(files, {"beams": 1})
    journal.commit(LINES[:6], ["".join(line.decode() for line in LINES[:6])], {})
    journal.close()
    return files


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda files: write(files, LINES, {"beams": 4}), "were written with beams=1, and now it is 4; repeat"),
        (lambda files: write(files, [b"x\n", *LINES[1:]]), "The first 6 lines of the input are not those"),
        (lambda files: write(files, LINES[:3]), "The first 6 lines of the input are not those"),
        (lambda files: (part_of(files).write_text("0\n"), write(files, LINES)), "was changed or cut; add"),
        (lambda files: (part_of(files).write_text("0\n1\n2\n3\n4\n6\n"), write(files, LINES)), "The first 12 bytes of"),
        (lambda files: (journal_file(files).write_text('{"lines"'), write(files, LINES)), "is missing or damaged; add"),
        (lambda files: (journal_file(files).write_text('{"lines": 6}'), write(files, LINES)), "is none of this"),
        (lambda files: (journal_file(files).rename(files[0].with_name("kept")), write(files, LINES)), "12 bytes of an"),
        (lambda files: write([*files, files[0].with_name("second")], LINES), "is none of this command's"),
    ],
)
def test_what_is_not_this_commands_is_refused(tmp_path: Path, break_it, message: str) -> None:
    files = half(tmp_path)
    with pytest.raises(JournalError, match=message) as error:
        break_it(files)
    assert "--overwrite" in str(error.value)
    assert part_of(files).read_bytes(), "nothing is lost by trying"
    with contextlib.closing(Journal(files, {"beams": 4}, overwrite=True)) as journal:  # the remedy
        journal.commit(LINES[:1], ["new\n"], {})
        journal.finish()
    assert files[0].read_text() == "new\n"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "kept") == ["out"]


def test_two_commands_do_not_write_one_file(tmp_path: Path) -> None:
    with contextlib.closing(Journal([tmp_path / "out"], {})) as journal:
        with pytest.raises(JournalError, match="is being written by another command; wait"):
            Journal([tmp_path / "out"], {}, overwrite=True)
        journal.commit(LINES[:1], ["0\n"], {})
        journal.finish()
    assert (tmp_path / "out").read_text() == "0\n"


def test_what_was_noted_is_known_again(tmp_path: Path) -> None:
    files = half(tmp_path)
    with contextlib.closing(Journal(files, {"beams": 1})) as journal:
        journal.skip(iter(LINES))
        journal.commit(LINES[6:7], ["6\n"], {"cut": 3})
    assert json.loads((tmp_path / "out.part.json").read_text())["lines"] == 7
    with contextlib.closing(Journal(files, {"beams": 1})) as journal:
        assert journal.notes == {"cut": 3}


def test_a_command_that_did_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), contextlib.closing(Journal([tmp_path / "out"], {})):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Part and standard output; the same command goes on with the part."""
    write_to = os.write
    monkeypatch.setattr(module.os, "write", lambda *_: write_to(full, b"x"))
    with open("/dev/full", "wb", buffering=0) as device:
        full = device.fileno()
        with pytest.raises(OSError, match=re.escape("No space left on device: ")) as error:
            write([tmp_path / "out"], LINES)
        assert error.value.filename == str(tmp_path / "out.part")
    monkeypatch.undo()
    write([tmp_path / "out"], LINES)
    with open("/dev/full", "w") as device:
        monkeypatch.setattr("sys.stdout", device)
        with pytest.raises(OSError, match="No space left on device: 'standard output'"):
            StreamSink([], "").write([], ["text"])
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            device.close()
