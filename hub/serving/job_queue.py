"""Requests that wait for an engine, and the threads that take as many of them at once as go together.

put(job) --> waiting --+  the oldest, and those with its settings and nearly its length
                       v
                 engine.write([job, job, ...])     a thread for each batch that the engine writes at a time
                       |  job.take(token), as they come
                       v
                 async for token in job            on the event loop that asked
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from seqloom.hub.batches import plan_batches
from seqloom.hub.decoding.engines import TOKENS_PER_BATCH
from seqloom.hub.serving.chat_request import RequestError

logger = logging.getLogger(__name__)

MAX_WAITING = 256
"""Requests that may wait; the next one is told to come again."""

ANSWER_SECONDS = 300.0
"""What an answer gets once it is begun; 256 tokens with four beams take seconds."""


class ServerStopping(RequestError):  # noqa: N818
    """The server was told to end; the request was not begun, or not finished."""

    def __init__(self) -> None:
        super().__init__("The server is shutting down; ask again when it is back.", status=503, retry_after=5)


@dataclass(eq=False)
class Job:
    """One request from its acceptance to its last token; an engine's thread writes to it, an event loop reads."""

    loop: asyncio.AbstractEventLoop
    source: list[int]
    """Ids, the end of sequence included."""
    settings: dict[str, Any]
    """What differs from the folder's generation config, as `settings_of` returns it."""
    max_new_tokens: int
    ends: frozenset[int]
    """Ids that end an answer."""
    stops: Sequence[str] = ()
    """Texts before which the answer ends, whoever notices."""
    is_stream: bool = False
    prompt_tokens: int = 0
    key: Hashable = None
    """Jobs of equal keys may be written together."""
    num_beams: int = 1
    tokens: list[int] = field(default_factory=list)
    is_over: bool = False
    """Whether no token is wanted any more: the answer is complete, it failed, or its reader is gone."""
    asked: float = field(default_factory=time.monotonic)
    begun: float = math.inf

    def __post_init__(self) -> None:
        self.is_watched = self.is_stream or bool(self.stops)
        """Whether each token is wanted as it comes, or all of them at the end."""
        self._events: asyncio.Queue[int | Exception | None] = asyncio.Queue()

    @property
    def is_cut(self) -> bool:
        """Whether it ended for want of room."""
        return len(self.tokens) >= self.max_new_tokens and self.tokens[-1] not in self.ends

    def take(self, token: int) -> bool:
        """Take the next token; return whether it was the last one that is wanted."""
        if self.is_given_up():
            return True
        self.tokens.append(token)
        if self.is_watched:
            self._send(token)
        if token in self.ends or len(self.tokens) >= self.max_new_tokens:
            self.end()
        return self.is_over

    def take_all(self, tokens: Iterable[int]) -> None:
        """Take tokens up to the last one that is wanted."""
        for token in tokens:
            if self.take(token):
                return

    def is_given_up(self) -> bool:
        """Return whether no token is wanted any more, or it has taken too long."""
        if time.monotonic() - self.begun > ANSWER_SECONDS:
            self.end(
                RequestError(
                    f"The answer takes more than the {ANSWER_SECONDS:g} seconds that this server gives one; "
                    "ask for fewer tokens (max_tokens) or beams, or send a shorter text.",
                    code="timeout",
                )
            )
        return self.is_over

    def end(self, error: Exception | None = None) -> None:
        """Say that nothing follows, if that was not said yet."""
        if not self.is_over:
            self.is_over = True
            self._send(error)

    def _send(self, event: int | Exception | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody reads
            self.loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def __aiter__(self) -> AsyncIterator[int]:
        """Yield the tokens: as they come if it is watched, else when all are there.

        Raises:
            Exception: what has ended the answer before its time.
        """
        while (event := await self._events.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event
        if not self.is_watched:
            for token in self.tokens:
                yield token


class Engine(Protocol):
    """What writes answers."""

    num_threads: int
    """Batches that it writes at a time."""

    def admit(self, job: Job) -> None:
        """Set a job's key and beams.

        Raises:
            RequestError: for settings that the engine does not have.
        """

    def write(self, jobs: Sequence[Job]) -> None:
        """Write the answers of jobs with one key, and hand each its tokens with `Job.take`."""


class JobQueue:
    """What waits and what is written."""

    def __init__(
        self, engine: Engine, max_waiting: int = MAX_WAITING, note: Callable[[int], None] = lambda _: None
    ) -> None:
        """Start the threads.

        Args:
            engine: writes.
            max_waiting: jobs that may wait.
            note: is told the number of jobs in each batch.
        """
        self.engine, self.max_waiting, self.note = engine, max_waiting, note
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.is_stopping = False
        """Whether new jobs are refused."""
        self._seconds_waited = 0.0
        """By the job that was begun last."""
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(engine.num_threads)]
        for thread in self._threads:
            thread.start()

    def put(self, job: Job) -> None:
        """Let a job wait.

        Raises:
            RequestError: 429 if too many wait; 503 if the server ends.
        """
        with self._changed:
            if self.is_stopping:
                raise ServerStopping
            if len(self.waiting) >= self.max_waiting:
                raise RequestError(
                    f"{len(self.waiting):,} requests wait already, and no more may; ask again later.",
                    code="rate_limit_exceeded",
                    status=429,
                    retry_after=math.ceil(self._seconds_waited) or 1,
                )
            self.waiting.append(job)
            self._changed.notify_all()

    def drop(self, job: Job) -> None:
        """Forget a job whose reader has gone, or has read enough; if it is over, nothing happens."""
        job.is_over = True
        with self._changed:
            if job in self.waiting:
                self.waiting.remove(job)
                self._changed.notify_all()

    def drain(self) -> None:
        """Refuse new jobs, and return when all others are answered; `abort` makes that soon."""
        with self._changed:
            self.is_stopping = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self.waiting and not self.running)
        for thread in self._threads:
            thread.join()

    def abort(self) -> None:
        """Refuse all jobs, those in work at their next token."""
        with self._changed:
            self.is_stopping = True
            for job in (*self.waiting, *self.running):
                job.end(ServerStopping())
            self.waiting.clear()
            self._changed.notify_all()

    def _work(self) -> None:
        while jobs := self._next_batch():
            self.note(len(jobs))
            try:
                self._write(jobs)
            finally:
                with self._changed:
                    self.running = [job for job in self.running if job not in jobs]
                    self._changed.notify_all()

    def _next_batch(self) -> list[Job]:
        """Wait for jobs, and take the oldest with those that go with it; none: it is all over."""
        with self._changed:
            self._changed.wait_for(lambda: self.waiting or self.is_stopping)
            if not self.waiting:
                return []
            alike = [job for job in self.waiting if job.key == self.waiting[0].key]
            plan = plan_batches([len(job.source) for job in alike], TOKENS_PER_BATCH // alike[0].num_beams)
            jobs = [alike[place] for place in next(places for places in plan if 0 in places)]
            self.waiting = [job for job in self.waiting if job not in jobs]
            self.running += jobs
            now = time.monotonic()
            for job in jobs:
                job.begun = now
            self._seconds_waited = now - jobs[0].asked
            return jobs

    def _write(self, jobs: Sequence[Job]) -> None:
        """Write a batch; if that fails, write each alone, for one may have been the reason for all."""
        try:
            self.engine.write(jobs)
        except Exception as error:
            logger.exception("A batch of %d could not be written.", len(jobs))
            for job in jobs:
                if len(jobs) > 1 and not job.tokens and not job.is_over:
                    self._write([job])
                job.end(error)
        for job in jobs:
            job.end()


__all__ = ["ANSWER_SECONDS", "MAX_WAITING", "Engine", "Job", "JobQueue", "ServerStopping"]
