"""The text of an answer as its tokens come: in whole characters, and before the first stop string.

A character may take several tokens, a token may hold more than a stop string's end, and a stop string may come in
several pieces. What was given out once is never taken back, and nothing is held longer than it has to be.
"""

from collections.abc import Sequence
from typing import Any

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
        return self._held

    def _length_to_hold(self, text: str) -> int:
        longest = max(map(len, self._stops), default=1) - 1
        ends = range(min(longest, len(text)), 0, -1)
        return next((n for n in ends if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)


__all__ = ["HALF", "AnswerPieces", "UntilStop"]
