r"""Decode a text file with a finished folder: one line in, one line out, in the input's order.

Lines end at "\n" alone, as in the corpus reader. They are decoded in batches of near-equal length, longest first:
padding costs little, and what does not fit in memory shows at once.
"""

import gzip
import io
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from logging import getLogger
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils import logging

from seqloom.hub.pipeline_seqloom import TranslationPipeline, score_sequences
from seqloom.hub.quoting import shown
from seqloom.hub.verify import FolderError, check_folder
from seqloom.modeling.canary import ends_of
from seqloom.modeling.limits import DEFAULT_MAX_LENGTH

TOKENS_PER_BATCH = 4096
"""Padded source tokens x beams of one batch; well under 1 GB for the base model.

CPU seconds for 400 lines, tiny model, one core: 1.45 at 512, 0.95 at 4,096, 0.99 at 16,384; with 5 beams 8.7, 4.9, 4.8.
"""

logger = getLogger(__name__)

FALLBACK_MAX_NEW_TOKENS = int(TranslationPipeline._default_generation_config.max_new_tokens)
"""For folders that say nothing about length, as in the pipelines: transformers' own default cuts at 20 tokens."""


@dataclass(frozen=True)
class Hypothesis:
    """One output for one input."""

    text: str
    """On one line: line ends that a model writes become spaces."""
    score: float | None = None
    """Sum of the tokens' log-probabilities / length ** length_penalty; None where nobody asked or for a blank line."""
    is_cut: bool = False
    """Whether it has no end of sequence, for the longest output left no room for it."""


NO_OUTPUT = Hypothesis("")
"""What a blank line gives."""

TOO_LONG = Hypothesis("")
"""What a line gives that the model cannot read; told from `NO_OUTPUT` by identity."""

MOST_SOURCE_TOKENS = 16_384
"""Source tokens that are tried at least; attention costs their square. A model that knows longer ones reads those."""

MOST_CHARACTERS = 1_000_000
"""Characters of a line that a tokenizer gets to see; it takes seconds for each million."""


def generate_file(
    folder: str | PathLike[str],
    *,
    input_file: str | None = None,
    output_file: str | None = None,
    num_beams: int | None = None,
    n_best: int | None = None,
    max_new_tokens: int | None = None,
) -> None:
    """Decode a file with a trained folder.

    Without `n_best` every input line gives one output line. With it every input line gives `n_best` lines
    "score<TAB>text", best first. A blank input line gives empty lines, as many as the others; so does one that is too
    long, and then the command fails when all others are written.

    Args:
        folder: a trained model.
        input_file: UTF-8 text, plain or .gz; None: stdin.
        output_file: where to write, plain or .gz; None: stdout.
        num_beams: None: what the folder's generation_config.json says, and at least `n_best`.
        n_best: outputs per input.
        max_new_tokens: None: what the folder's generation_config.json says.

    Raises:
        ValueError: for a folder, a file or numbers that do not fit, with the remedy.
    """
    if output_file is not None and not Path(output_file).absolute().parent.is_dir():
        raise ValueError(f"{output_file}: the folder {Path(output_file).absolute().parent} does not exist; create it.")
    lines = read_lines(input_file)
    model, tokenizer = load_folder(folder)
    groups = generate_lines(model, tokenizer, lines, num_beams=num_beams, n_best=n_best, max_new_tokens=max_new_tokens)
    outputs = (output for group in groups for output in group)
    _write_rows([out.text if out.score is None else f"{out.score:.4f}\t{out.text}" for out in outputs], output_file)
    if too_long := [number for number, group in enumerate(groups, start=1) if group[0] is TOO_LONG]:
        some = ", ".join(map(str, too_long[:10])) + (", ..." if too_long[10:] else "")
        raise ValueError(
            f"{len(too_long):,} of {len(lines):,} lines are too long for {folder} and have an empty output: {some}. "
            f"Split them into shorter ones; all others are written."
        )


@contextmanager
def explained_loading(folder: str | PathLike[str], what: str) -> Iterator[None]:
    """Let a library's complaint about a file of a folder say which folder, and what helps.

    Args:
        folder: that is read.
        what: of it, e.g. "weights".

    Raises:
        FolderError: for whatever a library raises; what is ours, and full memory, passes.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if type(error).__module__.startswith("seqloom"):
            raise
        reason = shown(" ".join(str(error).split()) or type(error).__name__, 300).rstrip(".")
        raise FolderError(f"The {what} in {shown(folder)} cannot be read ({reason}); copy the folder again.") from error


def load_folder(folder: str | PathLike[str]) -> tuple[Any, Any]:
    """Load model and tokenizer of a trained folder, on the GPU if there is one.

    The installed classes do it; the folder's own code is not run, nor any pickle read.

    Raises:
        FolderError: if the folder is none, or dangerous to open.
    """
    check_folder(folder)
    # Whoever imports this module has imported seqloom, and with it registered the classes.
    with no_loading_bar(), explained_loading(folder, "model"):
        model = AutoModelForSeq2SeqLM.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
    with explained_loading(folder, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def generate_lines(
    model: Any,
    tokenizer: Any,
    lines: Sequence[str],
    *,
    num_beams: int | None = None,
    n_best: int | None = None,
    max_new_tokens: int | None = None,
) -> list[list[Hypothesis]]:
    """Decode lines, whatever their order and lengths; a bar is drawn if stderr is a terminal.

    Args:
        model: a sequence-to-sequence model with `generate`.
        tokenizer: of the same folder.
        lines: one source each.
        num_beams: None: what the model's generation config says, and at least `n_best`.
        n_best: outputs per line, with their scores; None: the best one, without.
        max_new_tokens: None: what the model's generation config says.

    Returns:
        For each line its outputs, best first; `NO_OUTPUT` for a blank line, `TOO_LONG`, after a warning, for one that
        the model cannot read.

    Raises:
        ValueError: if `n_best` asks for more outputs than there are beams.
    """
    options = _options(model, num_beams, n_best or 1, max_new_tokens)
    groups = [[NO_OUTPUT] * (n_best or 1) for _ in lines]
    lengths_of, too_long = _measure(model, tokenizer, lines)
    for index, found in too_long.items():
        logger.warning(f"line {index + 1} has {found}; its output is empty.")
        groups[index] = [TOO_LONG] * (n_best or 1)
    filled, lengths = list(lengths_of), list(lengths_of.values())
    batches = plan_batches(lengths, TOKENS_PER_BATCH // options["num_beams"])
    with progress_bar("Writing", len(filled), "line") as progress:
        for batch in batches:
            indices = [filled[position] for position in batch]
            texts = [lines[index] for index in indices]
            decoded = _generate_batch(model, tokenizer, texts, options, n_best is not None)
            for index, group in zip(indices, decoded, strict=True):
                groups[index] = group
            progress.update(len(batch))
    return groups


def _measure(model: Any, tokenizer: Any, lines: Sequence[str]) -> tuple[dict[int, int], dict[int, str]]:
    """Return the tokens of each line that is not blank, by index, and which lines are too long, and why."""
    known = getattr(model.config, "max_position_embeddings", 0)
    is_learned = getattr(model.config, "position_embedding_type", None) == "learned"
    limit = known if is_learned else max(known, MOST_SOURCE_TOKENS)
    rule = f"the {limit:,} positions that the model has learned" if is_learned else f"{limit:,}, the most that is tried"
    filled = [index for index, line in enumerate(lines) if line.strip()]
    too_long = {
        index: f"{len(lines[index]):,} characters, more than {MOST_CHARACTERS:,}, the most that is tokenized"
        for index in filled
        if len(lines[index]) > MOST_CHARACTERS
    }
    filled = [index for index in filled if index not in too_long]
    ids = tokenizer([lines[index] for index in filled]).input_ids if filled else []
    lengths = dict(zip(filled, map(len, ids), strict=True))
    too_long |= {index: f"{n:,} tokens, more than {rule}" for index, n in lengths.items() if n > limit}
    return {index: n for index, n in lengths.items() if n <= limit}, too_long


def plan_batches(lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Group positions into batches of near-equal length, longest first.

    Args:
        lengths: tokens of each line.
        tokens_per_batch: most padded tokens (lines x longest) of a batch; a longer line stands alone.
    """
    batches: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda position: -lengths[position]):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= tokens_per_batch:
            batches[-1].append(position)
        else:
            batches.append([position])
    return batches


def read_lines(input_file: str | None) -> list[str]:
    r"""Read the lines of a file or of stdin; they end at "\n" or "\r\n" alone, and a byte order mark is dropped.

    Raises:
        ValueError: naming the line that is not UTF-8.
    """
    lines = _read_bytes(input_file).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [_decode(line, number, input_file or "stdin") for number, line in enumerate(lines, start=1)]


def progress_bar(description: str, total: int, unit: str) -> "tqdm[Any]":
    """Return a bar with rate and time to go; where stderr is no terminal, it is a plain line every half minute."""
    if sys.stderr.isatty():
        return tqdm(desc=description, total=total, unit=unit, unit_scale=True, delay=2, dynamic_ncols=True)
    form = "{desc}: {n_fmt} of {total_fmt} " + f"{unit}s, {{rate_fmt}}, {{remaining}} to go"
    return tqdm(
        desc=description,
        total=total,
        unit=unit,
        file=_Lines(),
        mininterval=30,
        maxinterval=60,
        delay=30,
        bar_format=form,
    )


class _Lines(io.TextIOBase):
    """stderr for what draws over its own last line: each drawing becomes a line."""

    def write(self, text: str) -> int:
        if drawn := text.strip():
            print(drawn, file=sys.stderr, flush=True)
        return len(text)


@contextmanager
def no_loading_bar() -> Iterator[None]:
    """Keep transformers' own bars, over weights and files and drawn even into log files, off the screen."""
    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def _options(model: Any, num_beams: int | None, n_best: int, max_new_tokens: int | None) -> dict[str, Any]:
    """What `generate` is told beyond the folder's own generation_config.json."""
    config = model.generation_config
    if num_beams is not None and num_beams < n_best:
        raise ValueError(f"n_best={n_best} needs as many beams, and beams={num_beams}; use --beams {n_best} or more.")
    options = {"num_beams": max(num_beams or config.num_beams or 1, n_best), "num_return_sequences": n_best}
    if max_new_tokens is None and config.max_new_tokens is None and config.max_length in (None, DEFAULT_MAX_LENGTH):
        max_new_tokens = FALLBACK_MAX_NEW_TOKENS
    return options if max_new_tokens is None else {**options, "max_new_tokens": max_new_tokens}


@torch.inference_mode()
def _generate_batch(
    model: Any, tokenizer: Any, lines: Sequence[str], options: dict[str, Any], with_scores: bool
) -> list[list[Hypothesis]]:
    inputs = tokenizer(list(lines), padding=True, return_tensors="pt").to(model.device)
    sequences = model.generate(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, **options)
    n_best = options["num_return_sequences"]
    scores: list[float | None] = [None] * len(sequences)
    if with_scores:
        scores = score_sequences(model, inputs, sequences, model.generation_config.to_dict()).tolist()
    texts = tokenizer.batch_decode(sequences, skip_special_tokens=True)
    ends = torch.tensor(ends_of(model.config), device=sequences.device)
    cut = (~torch.isin(sequences[:, 1:], ends).any(dim=1)).tolist()
    hypotheses = [Hypothesis(one_line(text), *found) for text, *found in zip(texts, scores, cut, strict=True)]
    return [hypotheses[start : start + n_best] for start in range(0, len(hypotheses), n_best)]


def one_line(text: str) -> str:
    """Return a text with spaces for its line ends, as it is written to a file of lines."""
    return text.replace("\r\n", " ").replace("\n", " ")


def _read_bytes(input_file: str | None) -> bytes:
    if input_file is None:
        return sys.stdin.buffer.read()
    data = Path(input_file).read_bytes()
    if not input_file.endswith(".gz"):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{input_file} is not a whole gzip file ({error}); copy it again, or rename it.") from error


def _decode(line: bytes, number: int, name: str) -> str:
    try:
        return line.removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: line {number} is not UTF-8 (byte {error.start + 1}); convert it first.") from error


def _write_rows(rows: Sequence[str], output_file: str | None) -> None:
    data = "".join(f"{row}\n" for row in rows).encode("utf-8")
    if output_file is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        Path(output_file).write_bytes(gzip.compress(data) if output_file.endswith(".gz") else data)


__all__ = [
    "Hypothesis",
    "generate_file",
    "generate_lines",
    "load_folder",
    "no_loading_bar",
    "one_line",
    "plan_batches",
    "progress_bar",
    "read_lines",
]
