"""Cuts an answer before a stop string, whole or in pieces; OpenAI's servers leave it out, transformers' leaves it in.

A token may hold more than the stop string's end, and a stop string may come in several pieces of text: so generation
stops at tokens, and the text is cut here.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """Return the text before the first stop string, all of it if there is none."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


def length_to_hold(text: str, stops: Sequence[str]) -> int:
    """Return how many characters at the end of a text could become a stop string when more text comes."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0


class UntilStop:
    """The reading end of a queue of pieces of text that ends them before a stop string.

    What is no text (the end, errors) passes through. Nothing comes late: only what could begin a stop string is held.
    """

    def __init__(self, queue: "asyncio.Queue[Any]", stops: Sequence[str]) -> None:
        """Read from a queue of pieces of text, of which None is the end; there is at least one stop string."""
        self._queue, self._stops = queue, stops
        self._ready: deque[Any] = deque()
        self._held, self._is_stopped = "", False

    async def get(self) -> Any:
        """Return the next item; wait for it."""
        while not self._ready:
            self._take(await self._queue.get())
        return self._ready.popleft()

    def get_nowait(self) -> Any:
        """Return the next item.

        Raises:
            asyncio.QueueEmpty: if there is none yet.
        """
        while not self._ready:
            self._take(self._queue.get_nowait())
        return self._ready.popleft()

    def _take(self, item: Any) -> None:
        if not isinstance(item, str):
            self._release(self._held)
            self._held = ""
            self._ready.append(item)
            return
        text = self._held + item
        before = cut_at_stop(text, self._stops)
        kept = 0 if len(before) < len(text) else length_to_hold(text, self._stops)
        self._held = text[len(text) - kept :]
        self._release(before[: len(before) - kept])
        self._is_stopped |= len(before) < len(text)

    def _release(self, text: str) -> None:
        if text and not self._is_stopped:
            self._ready.append(text)


__all__ = ["UntilStop", "cut_at_stop", "length_to_hold"]
