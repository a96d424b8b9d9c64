r"""`seqloom generate`: decode text that may be longer than memory, in order, and go on after a kill.

    lines --> windows --> rows --> answers (pieces, batches, engine) --> output, report, alignments
              at most 512 lines    in this process, or in several         every window is committed, see journal.py

Where the output is a file, a window is always the same lines, and a command that was killed goes on behind its last
window. Lines from a pipe are answered when they come.
"""

import contextlib
import logging
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from seqloom.hub.decoding.answers import Answer, answer
from seqloom.hub.decoding.engines import CTranslate2Engine, Engine, Search, TorchEngine, cores
from seqloom.hub.decoding.job import GenerateError, Job, UnansweredError, refuse_what_cannot_be
from seqloom.hub.decoding.rows import Layout, Row
from seqloom.hub.decoding.sinks import open_sink, texts_of
from seqloom.hub.decoding.windows import Window, layout_of, parsed, windows_of
from seqloom.hub.lines import count_lines, open_bytes, stream_lines
from seqloom.hub.progress_bar import progress_bar
from seqloom_cli.command import visible

logger = logging.getLogger(__name__)


def generate_file(job: Job) -> None:
    """Do a job.

    Every line of input gives one line of output; a blank one a blank one. A line that is too long gives a blank one
    too, and the command fails when all others are written.

    Raises:
        GenerateError: for files and numbers that do not fit.
        UnansweredError: at the end, for lines without an answer.
        JournalError: if what an earlier command has left is not this command's.
        RowError: for a line that is not what its file promises, when all before it are written.
        ValueError: for a folder that cannot be opened, or a line that is not UTF-8.
    """
    refuse_what_cannot_be(job)
    if job.input_file is None and job.output_file is None and sys.stdin.isatty():
        if job.files:
            raise GenerateError("--report and --alignments tell of a file's or a pipe's lines; add -i FILE.")
        converse(job)
        return
    with ExitStack() as stack:
        lines = stream_lines(stack.enter_context(open_bytes(job.input_file)))
        layout, header, lines = layout_of(job, lines)
        sink = stack.enter_context(open_sink(job, layout))
        answers_to = stack.enter_context(_answering(job))
        is_file = job.input_file is not None and Path(job.input_file).is_file()  # a pipe is read once
        total = count_lines(job.input_file) - header if job.input_file and is_file else None
        progress = stack.enter_context(progress_bar("Writing", total, "line", done=sink.done))
        windows = windows_of(sink.behind(lines), whole=is_file)
        for window, groups in answers_to(parsed(layout, windows, 1 + header + sink.done)):
            rows = _rows(window)
            for row, group in zip(rows, groups, strict=True):
                if group[0].fault:
                    logger.warning(f"line {row.number:,} has {group[0].fault}; its output is empty.")
            sink.tally.count(rows, groups)
            sink.write([line for line, _ in window], texts_of(job, layout, rows, groups))
            progress.update(len(window))
        sink.finish()
    for remark in sink.tally.remarks():
        print(remark, file=sys.stderr)
    if sink.tally.faulty:
        raise UnansweredError(sink.tally.fault_sentence(job.folder))


def engine_of(job: Job, device: str | None = None) -> Engine:
    """Load what answers a job."""
    if job.engine == "ctranslate2":
        return CTranslate2Engine(job.folder, job.search, job.quantization, job.processes or 1)
    return TorchEngine(job.folder, job.search, device, job.ensemble)


def answer_rows(job: Job, engine: Engine, rows: Sequence[Row]) -> list[list[Answer]]:
    """Answer some rows as a job says; the same rows with the same seed are answered alike."""
    seed = None if job.search.seed is None or not rows else job.search.seed + rows[0].number
    return answer(
        engine,
        rows,
        long_lines=job.long_lines,
        most_tokens=job.max_source_tokens,
        prefix=job.prefix,
        units=job.alignment_units if job.files else None,
        seed=seed,
    )


def generate_lines(
    model: Any, tokenizer: Any, lines: Sequence[str], search: Search | None = None
) -> list[list[Answer]]:
    """Decode lines with a model that is loaded; for each its outputs, best first."""
    rows = [Row(number, line) for number, line in enumerate(lines, start=1)]
    return answer(TorchEngine.of(model, tokenizer, search or Search()), rows)


def converse(job: Job) -> None:
    """Answer what somebody types, line by line, until Ctrl-D."""
    engine = engine_of(job)
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - arrow keys and history
    print("One source a line; Ctrl-D ends.", file=sys.stderr)
    layout = Layout("the terminal", write_as=job.output_format or "text")
    for number in count(1):
        try:
            line = input("> ")
        except EOFError:
            print(file=sys.stderr)
            return
        if line.strip():
            row = Row(number, line)
            (group,) = answer_rows(job, engine, [row])
            output = group[0].fault or texts_of(job, layout, [row], [group])[0].removesuffix("\n")
            print(visible(output))


# Answers -------------------------------------------------------------------------------------------------------------

Answers = Iterator[tuple[Window, list[list[Answer]]]]


@contextmanager
def _answering(job: Job) -> Iterator[Callable[[Iterator[Window]], Answers]]:
    """Give what answers windows in their order: this process, or several."""
    gpus = torch.cuda.device_count()
    processes = job.processes or max(1, gpus)
    if processes == 1 or job.engine == "ctranslate2":
        engine = engine_of(job)
        yield lambda windows: ((window, answer_rows(job, engine, _rows(window))) for window in windows)
        return
    context = get_context("spawn")
    numbers: Any = context.Queue()
    for number in range(processes):
        numbers.put(number)
    with ProcessPoolExecutor(processes, context, _start_worker, (job, numbers, processes, gpus)) as pool:
        try:
            yield partial(_in_order, pool, 2 * processes)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_loaded: list[Callable[[list[Row]], list[list[Answer]]]] = []
"""In a process of its own, what it has loaded."""


def _start_worker(job: Job, numbers: Any, processes: int, gpus: int) -> None:
    torch.set_num_threads(max(1, cores() // processes))
    device = f"cuda:{numbers.get() % gpus}" if gpus else "cpu"
    _loaded.append(partial(answer_rows, job, engine_of(job, device)))


def _work(rows: list[Row]) -> list[list[Answer]]:
    return _loaded[0](rows)


def _in_order(pool: ProcessPoolExecutor, ahead: int, windows: Iterator[Window]) -> Answers:
    """Hand windows to a pool, a few ahead of what is taken; an error of the input comes behind its answers.

    They are read on a thread: who speaks through a pipe may wait for an answer before the next line.
    """
    waiting: queue.Queue[Any] = queue.Queue(ahead)

    def read() -> None:
        try:
            for window in windows:
                waiting.put((window, pool.submit(_work, _rows(window))))
            waiting.put(None)
        except BaseException as error:
            waiting.put(error)

    threading.Thread(target=read, daemon=True).start()
    while (found := waiting.get()) is not None:
        if isinstance(found, BaseException):
            raise found
        window, future = found
        yield window, future.result()


def _rows(window: Window) -> list[Row]:
    return [row for _, row in window]


__all__ = ["GenerateError", "Job", "Search", "UnansweredError", "engine_of", "generate_file", "generate_lines"]
