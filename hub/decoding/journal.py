"""Files of output that grow for hours: whole lines only, and after a kill they go on where they stopped.

OUT.part            what is written so far
OUT.part.json       the journal, there first: lines of input that are done, bytes and digest of each part
|  every window of lines: parts are written and synced, then the journal is replaced in one step
|  after a kill: parts are compared, cut back to the journal's bytes, and the input is read on behind its lines
v
OUT                 the parts, renamed when all is written; then the journal goes
"""

import gzip
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seqloom.hub.files import naming, read_object, try_lock
from seqloom.modeling.canary import write_whole

PART = ".part"


class JournalError(ValueError):
    """Output that this command may not go on with."""


class Journal:
    """The parts of one command's files, and how far they are."""

    def __init__(self, files: list[Path], work: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Open the parts, cut back to what the journal vouches for.

        Args:
            files: that are written, the output first; its name is the journal's.
            work: what makes the output: values by name. A journal of other values is refused.
            overwrite: begin anew, whatever an earlier command has left.

        Raises:
            JournalError: if the parts belong to another command, or are not what the journal says, or have none, or if
                another command is writing them.
        """
        self.files = files
        self.path = files[0].with_name(f"{files[0].name}{PART}.json")
        self.work = json.loads(json.dumps(work))
        self.lines, self._digest = 0, hashlib.sha256()
        self._parts = [_Written() for _ in files]
        self._expected_digest = self._digest.hexdigest()
        self.notes: dict[str, Any] = {}
        """What the command wants to know again."""
        self.is_finished = False
        """Whether an earlier command had written everything, and was killed while it moved the parts."""
        self._new = [_part(file) for file in files if not _part(file).exists()]
        self._handles = [os.open(_part(file), os.O_RDWR | os.O_CREAT, 0o666) for file in files]
        self._is_ours = False
        try:
            if not try_lock(self._handles[0]):
                raise JournalError(f"{files[0]} is being written by another command; wait, or name another file.")
            self._is_ours = True
            if not overwrite:
                self._adopt(read_object(self.path))
            for handle, part in zip(self._handles, self._parts, strict=True):
                os.ftruncate(handle, min(part.size, os.fstat(handle).st_size))
                os.lseek(handle, 0, os.SEEK_END)
            if not self.is_finished:
                self._write()
        except BaseException:
            self.close()
            raise

    def skip(self, lines: Iterator[bytes]) -> None:
        """Read over the lines that are done, and compare them with those that were read before.

        Raises:
            JournalError: if they are others.
        """
        for _ in range(self.lines):
            self._digest.update(next(lines, b""))
        if self._digest.hexdigest() != self._expected_digest:
            raise JournalError(
                f"The first {self.lines:,} lines of the input are not those that {_part(self.files[0])} answers; "
                f"add --overwrite to begin anew."
            )

    def commit(self, lines: list[bytes], texts: list[str], notes: dict[str, Any]) -> None:
        """Add the answers to some lines of input, on the disk before this returns.

        Args:
            lines: of the input.
            texts: for each file what they add to it.
            notes: what the command wants to know again.
        """
        self.notes = notes
        for place, (handle, file, text) in enumerate(zip(self._handles, self.files, texts, strict=True)):
            data = text.encode()
            if data and file.name.endswith(".gz"):
                data = gzip.compress(data)  # members may follow each other in a file
            view = memoryview(data)
            with naming(_part(file)):
                while view:
                    view = view[os.write(handle, view) :]
                os.fsync(handle)
            self._parts[place].add(data)
        for line in lines:
            self._digest.update(line)
        self.lines += len(lines)
        self._write()

    def finish(self) -> None:
        """Put the parts in their places; an empty .gz becomes a gzip file of nothing."""
        for place, (handle, file) in enumerate(zip(self._handles, self.files, strict=True)):
            if not self._parts[place].size and file.name.endswith(".gz"):
                data = gzip.compress(b"")
                os.write(handle, data)
                self._parts[place].add(data)
        self.is_finished = True
        self._write()
        for file, part in zip(self.files, self._parts, strict=True):
            if part.size == _part(file).stat().st_size:  # else it was in its place before a kill
                os.replace(_part(file), file)
            _part(file).unlink(missing_ok=True)
        self.path.unlink()
        self.close()

    def _write(self) -> None:
        parts = [[part.size, part.digest.hexdigest()] for part in self._parts]
        facts = {"lines": self.lines, "digest": self._digest.hexdigest(), "parts": parts, "work": self.work}
        write_whole(self.path, json.dumps({**facts, "notes": self.notes, "is_finished": self.is_finished}))

    def close(self) -> None:
        """Let go of the parts; of a command that has done nothing none is left behind."""
        while self._handles:
            os.close(self._handles.pop())
        if self._is_ours and not self.lines and not self.is_finished:
            for file in (*map(_part, self.files), self.path):
                file.unlink(missing_ok=True)

    def _adopt(self, found: Mapping[str, Any] | None) -> None:
        """Take over what an earlier command has written."""
        part = _part(self.files[0])
        if found is None:
            if written := sum(os.fstat(handle).st_size for handle in self._handles):
                raise self._refused(
                    f"{part} holds {written:,} bytes of an earlier command, and {self.path.name}, which says how far "
                    f"they are good, is missing or damaged; add --overwrite to begin anew."
                )
            return
        if found.get("lines") == 0 and not found.get("is_finished"):
            return  # killed before its first window
        try:
            theirs, lines, parts = dict(found["work"]), int(found["lines"]), list(found["parts"])
            if len(parts) != len(self.files):
                raise ValueError
            self._parts = [_Written(int(size), expected=str(digest)) for size, digest in parts]
            self.notes, self.is_finished = dict(found["notes"]), bool(found["is_finished"])
            self._expected_digest = str(found["digest"])
        except (KeyError, TypeError, ValueError):
            raise self._refused(f"{self.path} is none of this command's; add --overwrite to begin anew.") from None
        self.lines = lines
        for name in sorted({*theirs, *self.work}, key=str):
            if theirs.get(name) != self.work.get(name):
                raise self._refused(
                    f"{part} holds the answers to {lines:,} lines that were written with "
                    f"{name}={theirs.get(name)!r}, and now it is {self.work.get(name)!r}; repeat the earlier command "
                    f"to go on with it, or add --overwrite to begin anew."
                )
        for handle, file, written_part in zip(self._handles, self.files, self._parts, strict=True):
            is_moved = self.is_finished and not os.fstat(handle).st_size and file.exists()
            if not is_moved and not written_part.matches(handle):
                raise self._refused(
                    f"The first {written_part.size:,} bytes of {_part(file)} are not those that this command wrote: "
                    f"the file was changed or cut; add --overwrite to begin anew."
                )

    def _refused(self, message: str) -> JournalError:
        """Leave everything as it was found."""
        self._is_ours = False
        for part in self._new:
            part.unlink(missing_ok=True)
        return JournalError(message)


@dataclass
class _Written:
    """What stands in a part."""

    size: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    expected: str = ""

    def add(self, data: bytes) -> None:
        """Count bytes behind the others."""
        self.size += len(data)
        self.digest.update(data)

    def matches(self, handle: int) -> bool:
        """Read a part that an earlier command wrote, and return whether it begins with what that command says."""
        left = self.size
        os.lseek(handle, 0, os.SEEK_SET)
        while left and (data := os.read(handle, min(left, 1 << 20))):
            self.digest.update(data)
            left -= len(data)
        return not left and self.digest.hexdigest() == self.expected


def _part(file: Path) -> Path:
    return file.with_name(file.name + PART)


__all__ = ["Journal", "JournalError"]
