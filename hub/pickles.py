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
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
"""Names of what torch.load and its kin read: under such a name, whatever begins like a pickle is taken for one."""

MOST_BYTES, MOST_OPCODES, MOST_MEMBERS, MOST_IN_A_ROW = 1 << 24, 100_000, 1_000, 5
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
            return any(map(_opens_a_pickle, _streams(file, head)))
    except _NOT_READABLE:
        return False  # no archive, or one that no loader opens


def _opens_a_pickle(stream: "IO[bytes] | Callable[[], IO[bytes]]") -> bool:
    """Whether a stream, or what opens one, is a pickle; a member that cannot be read acquits itself alone."""
    try:
        return _runs_something(stream() if callable(stream) else stream)
    except _NOT_READABLE:
        return False


_NOT_READABLE = (
    *(OSError, EOFError, ValueError, RuntimeError, NotImplementedError),
    *(lzma.LZMAError, zlib.error, zipfile.BadZipFile, tarfile.TarError),
)


_FIRST_CHARACTERS = frozenset(opcode.code for opcode in pickletools.opcodes) | {"P"}  # "PK" is a zip


class _Inflated(io.RawIOBase):
    """A zlib stream, as joblib writes it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.inflater = file, zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data and not self.inflater.eof:
            raw = self.inflater.unconsumed_tail or self.file.read(io.DEFAULT_BUFFER_SIZE)
            if not raw:
                break
            data = self.inflater.decompress(raw, len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _inflate(file: IO[bytes]) -> IO[bytes]:
    return io.BufferedReader(_Inflated(file))


_COMPRESSORS: dict[bytes, Any] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"\x5d\x00\x00": lzma.open,
    **{bytes([0x78, level]): _inflate for level in (0x01, 0x5E, 0x9C, 0xDA)},
}


def _streams(file: IO[bytes], head: bytes) -> "Iterator[IO[bytes] | Callable[[], IO[bytes]]]":
    """Yield a file, and what can be unpacked of it, or what unpacks it."""
    yield file
    file.seek(0)
    if head.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(file) as archive:
            members = sorted(archive.infolist(), key=lambda member: not member.filename.endswith(".pkl"))  # torch's
            yield from (partial(archive.open, member) for member in members[:MOST_MEMBERS])
    elif head[257:262] == b"ustar":
        with tarfile.open(fileobj=file) as archive:
            files = (member for member, _ in zip(archive, range(MOST_MEMBERS)) if member.isfile())
            yield from filter(None, map(archive.extractfile, files))
    for magic, unpack in _COMPRESSORS.items():
        if head.startswith(magic):
            file.seek(0)
            yield unpack(file)


def _runs_something(file: IO[bytes]) -> bool:
    """Whether unpickling a stream would call something, or get to its end; torch wrote several pickles in a row."""
    names: set[str] = set()
    beginning, number = _Beginning(file), 0
    try:
        for _ in range(MOST_IN_A_ROW):
            for opcode, _, _ in pickletools.genops(beginning):  # type: ignore[arg-type]
                number += 1
                names.add(opcode.name)
                if number > MOST_OPCODES or _is_call(opcode.name, names):
                    return True
            if "PROTO" in names or _IMPORTS & names:
                return True
    except _EndlessError:
        return True
    except (ValueError, EOFError, OverflowError):  # what pickletools raises for anything else than a pickle
        file.seek(0)
        return _is_array_of_objects(file)
    return False


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
