"""Connections of the server, which end where no request comes; uvicorn alone waits for a head without end."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 60.0
"""What the head of a request gets to arrive; at most twice that."""


class Connection(H11Protocol):
    """One connection; a client that sends half a head would keep it, and a file handle, for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        self.loop.call_later(HEAD_SECONDS, self._close_if_idle, None)

    def _close_if_idle(self, seen: Any) -> None:
        """Close, unless since the last look a request has begun, or one is still being answered."""
        if self.cycle is seen and (seen is None or seen.response_complete):
            self.transport.close()
        elif not self.transport.is_closing():
            self.loop.call_later(HEAD_SECONDS, self._close_if_idle, self.cycle)


__all__ = ["Connection"]
