"""Tells pickles from other files by their content; loading one runs whatever it says, whatever it is called.

What is looked for is what `pickle.load`, `torch.load`, `numpy.load` and `joblib.load` would unpickle: a pickle itself,
one in a zip or tar archive, behind a compressor, or in an array of objects. Only the beginning of a file is read, and
nothing of it is run.
"""

import bz2
import gzip
import io
import lzma
import pickletools
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
"""Names of what torch.load and its kin read: under such a name, whatever begins like a pickle is taken for one."""

MOST_BYTES, MOST_OPCODES, MOST_MEMBERS = 1 << 24, 100_000, 1_000
"""What is read of a pickle or an archive. What goes on like a pickle for so long is one."""


class _EndlessError(Exception):
    """So much was read, and it may still be a pickle."""


class _Beginning:
    """The beginning of a file, as pickletools reads it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.left = file, MOST_BYTES

    def read(self, size: int) -> bytes:
        return self._count(self.file.read(min(size, self.left)))

    def readline(self) -> bytes:
        return self._count(self.file.readline(self.left))

    def _count(self, data: bytes) -> bytes:
        self.left -= len(data)
        if not self.left:
            raise _EndlessError
        return data


def is_pickle(path: Path) -> bool:
    """Return whether a regular file is a pickle, or holds one that loading it would open."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
            if path.suffix.lower() in PICKLE_SUFFIXES and head[:1].decode("latin-1") in _FIRST_CHARACTERS:
                return True
            file.seek(0)
            return any(map(_runs_something, _streams(file, head)))
    except (OSError, EOFError, ValueError, RuntimeError, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError):
        return False  # no archive, or one that no loader opens


_FIRST_CHARACTERS = frozenset(opcode.code for opcode in pickletools.opcodes) | {"P"}  # "PK" is a zip

_COMPRESSORS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


def _streams(file: IO[bytes], head: bytes) -> Iterator[IO[bytes]]:
    """Yield a file, and what can be unpacked of it."""
    yield file
    file.seek(0)
    if head.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(file) as archive:
            yield from map(archive.open, archive.infolist()[:MOST_MEMBERS])
    elif head[257:262] == b"ustar":
        with tarfile.open(fileobj=file) as archive:
            members = (member for member, _ in zip(archive, range(MOST_MEMBERS)) if member.isfile())
            yield from filter(None, map(archive.extractfile, members))
    for magic, unpack in _COMPRESSORS.items():
        if head.startswith(magic):
            yield unpack(file)


def _runs_something(file: IO[bytes]) -> bool:
    """Whether unpickling a stream would call something, or get to its end."""
    names: set[str] = set()
    try:
        for number, (opcode, _, _) in enumerate(pickletools.genops(_Beginning(file))):  # type: ignore[arg-type]
            names.add(opcode.name)
            if number > MOST_OPCODES or _is_call(opcode.name, names):
                return True
    except _EndlessError:
        return True
    except (ValueError, EOFError, OverflowError):  # what pickletools raises for anything else than a pickle
        file.seek(0)
        return _is_array_of_objects(file)
    return "PROTO" in names or bool(_IMPORTS & names)


def _is_call(name: str, names: set[str]) -> bool:
    """Whether an opcode calls something, after those that have been met: there has to be something to call."""
    if name == "INST":  # which imports by itself
        return "MARK" in names
    has_arguments = "MARK" in names if name == "OBJ" else len(names) > 2
    return name in _CALLS and has_arguments and bool(_IMPORTS & names)


_IMPORTS = frozenset({"GLOBAL", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"})
_CALLS = frozenset({"REDUCE", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD"})


def _is_array_of_objects(file: IO[bytes]) -> bool:
    """Whether a numpy file needs `allow_pickle`."""
    head = file.read(io.DEFAULT_BUFFER_SIZE)
    return head.startswith(b"\x93NUMPY") and re.search(rb"['\"]\|?O", head) is not None


__all__ = ["PICKLE_SUFFIXES", "is_pickle"]
