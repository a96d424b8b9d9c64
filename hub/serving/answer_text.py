"""The text of an answer as its tokens come: in whole characters, and before the first stop string.

A character may take several tokens, a token may hold more than a stop string's end, and a stop string may come in
several pieces. What was given out once is never taken back, and nothing is held longer than it has to be.
"""

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from seqloom.hub.serving.job_queue import Job

HALF = "\ufffd"
"""How a tokenizer writes bytes that are no character, or not yet one."""


class AnswerPieces:
    """Cuts an answer into pieces of whole characters, also where its bytes are no text."""

    def __init__(self, tokenizer: Any) -> None:
        """Take what decodes."""
        self._tokenizer = tokenizer
        self._context: list[int] = []
        """Tokens whose text was given out last; whether a word begins with a blank depends on the one before it."""
        self._open: list[int] = []
        """Tokens since then."""

    def take(self, token: int) -> str:
        """Return the text that is whole with this token."""
        self._open.append(token)
        text = self.rest()
        if not text or text.endswith(HALF):
            return ""
        self._context, self._open = self._open, []
        return text

    def rest(self) -> str:
        """Return what is left when no token follows."""
        before, whole = (
            self._tokenizer.decode(tokens, skip_special_tokens=True)
            for tokens in (self._context, self._context + self._open)
        )
        return str(whole[len(before) :])


class UntilStop:
    """Lets text through up to the first stop string; OpenAI's servers leave it out."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Take the stop strings, none of them empty."""
        self._stops = stops
        self._held = ""
        """The end of the text so far that could become a stop string."""
        self.is_stopped = False

    def take(self, text: str) -> str:
        """Return what may be given out now."""
        text, self._held = self._held + text, ""
        if self.is_stopped:
            return ""
        if places := [place for stop in self._stops if (place := text.find(stop)) >= 0]:
            self.is_stopped = True
            return text[: min(places)]
        kept = self._length_to_hold(text)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def rest(self) -> str:
        """Return what was held, for nothing follows."""
        return "" if self.is_stopped else self._held

    def _length_to_hold(self, text: str) -> int:
        longest = max(map(len, self._stops), default=1) - 1
        ends = range(min(longest, len(text)), 0, -1)
        return next((n for n in ends if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)


class Answer:
    """One job as it is read: what there is to say of it, also while it is written."""

    def __init__(self, job: Job, tokenizer: Any, *, name: str, model: str) -> None:
        self.job, self.tokenizer, self.name, self.model = job, tokenizer, name, model
        self.created = int(time.time())
        self.text, self.num_tokens = "", 0
        """Tokens that were written, an end of sequence included."""
        self.num_pieces = 0
        """Pieces of the text that were given out."""
        self.is_cut = False
        """Whether it ended for want of room."""

    async def pieces(self) -> AsyncIterator[str]:
        """Yield the text before the first stop string as it comes; in one piece, if nobody watches."""
        if not self.job.is_watched:
            tokens = [token async for token in self.job]
            self.num_tokens, self.text = len(tokens), self.tokenizer.decode(tokens, skip_special_tokens=True)
            self.is_cut = self.job.is_cut
            yield self.text
            return
        async for piece in self._watch():
            self.text += piece
            self.num_pieces += 1
            yield piece

    async def _watch(self) -> AsyncIterator[str]:
        pieces, until = AnswerPieces(self.tokenizer), UntilStop(self.job.stops)
        async for token in self.job:
            self.num_tokens += 1
            if piece := until.take(pieces.take(token)):
                yield piece
            if until.is_stopped:
                return
        self.is_cut = self.job.is_cut
        if piece := until.take(pieces.rest()) + until.rest():
            yield piece


__all__ = ["HALF", "Answer", "AnswerPieces", "UntilStop"]
