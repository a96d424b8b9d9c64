"""Which words of the output come from which words of the source, read off cross attention.

A decoder looks at the source twice: for what it has just read, and for what it writes next. Where a token came from
stands in the step that *reads* it (Shift-Att, Chen et al. 2020, https://arxiv.org/abs/2004.14837) or in the step that
chose it, in one layer or another, and that differs from model to model (LOG: word alignment). So each model is asked:
which layer and which step agree best with what happens to a token's probability when a source token is left out?

    S source length    T target length    L decoder layers    N heads
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Any, Literal

import torch
from torch import Tensor

MOST_SENTENCES, MOST_TOKENS = 8, 48
"""Of a sample on which a model is asked; shorter sentences say as much in less time."""

CLEAR = 1.0
"""Nats that a token's log-probability has to fall, when a source token is left out, to count."""

Units = Literal["words", "characters", "tokens"]

UNITS: dict[str, Callable[[str], list[tuple[int, int]]]] = {
    "words": lambda text: [match.span() for match in re.finditer(r"\S+", text)],
    "characters": lambda text: [match.span() for match in re.finditer(r"\S", text)],
}
"""What a text is counted in -> where each of them begins and ends."""


@dataclass(frozen=True)
class Place:
    """Where a model keeps its alignment."""

    layer: int
    """Of the decoder, counted from 0; its heads are averaged."""
    is_shifted: bool
    """Whether a token's source stands in the step that reads it, or in the one that chose it."""


def origins(attention: Tensor, num_tokens: int, is_end: Sequence[bool], place: Place) -> list[int | None]:
    """Return for each output token the source token that it came from; None where it looked at the source's end.

    Args:
        attention: (T', S) weights, row t of the step that chose token t; a token whose step is not there has none.
        num_tokens: T tokens that are asked for, the output's end not among them.
        is_end: S, whether a source token only ends the sequence.
        place: of the model.
    """
    rows = attention[int(place.is_shifted) :][:num_tokens]
    found = [int(row.argmax()) for row in rows]
    return [None if is_end[source] else source for source in found] + [None] * (num_tokens - len(found))


def middle_layer(num_layers: int) -> int:
    """Return the layer whose cross attention aligns best, counted from 0: the third of six in Chen et al. 2020."""
    return (num_layers - 1) // 2


@torch.inference_mode()
def find_place(model: Any, sentences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Place:
    """Ask a model where its alignments stand.

    Args:
        model: an encoder-decoder in eval mode.
        sentences: ids of sources and of what the model wrote, their ends included; a few are taken.

    Returns:
        The paper's, the third layer of six and shifted, where no sentence says anything.
    """
    layers = model.config.decoder_layers
    short = [pair for pair in sentences if 2 < len(pair[0]) <= MOST_TOKENS and 1 < len(pair[1]) <= MOST_TOKENS]
    agreed = torch.zeros(layers, 2)
    for source, target in short[:MOST_SENTENCES]:
        fall = fall_without(model, source, target)  # (T, S - 1)
        attention = attention_of(model, source, target).mean(dim=1)  # (L, T, S)
        clear = fall.max(dim=-1).values[:-1] > CLEAR
        wanted = fall.argmax(dim=-1)[:-1]
        for number, rows in enumerate((attention[:, :-1], attention[:, 1:])):
            agreed[:, number] += ((rows.argmax(dim=-1) == wanted) & clear).sum(dim=-1).cpu()
    if not agreed.any():
        return Place(middle_layer(layers), is_shifted=True)
    best = int(agreed.flatten().argmax())
    return Place(best // 2, bool(best % 2))


def fall_without(model: Any, source: Sequence[int], target: Sequence[int]) -> Tensor:
    """Return (T, S - 1): by how much a target token's log-probability falls without a source token, the end aside."""
    size = len(source)
    ids = torch.tensor([source], device=model.device).expand(size, -1)
    mask = torch.ones(size, size, dtype=torch.long, device=model.device)
    mask[:-1, :-1] -= torch.eye(size - 1, dtype=torch.long, device=model.device)  # the last row has all
    read = _read(model, target)[:, :-1].expand(size, -1)
    logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=read).logits  # (S, T, V)
    chosen = torch.tensor(target, device=model.device)[None, :, None].expand(size, -1, 1)
    log_probs = logits.float().log_softmax(-1).gather(-1, chosen)[..., 0]  # (S, T)
    return (log_probs[-1:] - log_probs[:-1]).T


def attention_of(model: Any, source: Sequence[int], target: Sequence[int]) -> Tensor:
    """Return (L, N, T, S) of a forced pass."""
    with eager_attention(model):
        output = model(
            input_ids=torch.tensor([source], device=model.device),
            decoder_input_ids=_read(model, target)[:, :-1],
            output_attentions=True,
            use_cache=False,
        )
    return torch.stack(output.cross_attentions)[:, 0].float()


def _read(model: Any, target: Sequence[int]) -> Tensor:
    """Return (1, 1 + T), the decoder's start token in front."""
    settings = model.generation_config
    start = settings.bos_token_id if settings.decoder_start_token_id is None else settings.decoder_start_token_id
    return torch.tensor([[start, *target]], device=model.device)


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Run a model on the kernel that returns its weights, then on its own again."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def pharaoh(
    sources: Sequence[int | None],
    source_spans: Sequence[tuple[int, int]],
    target_spans: Sequence[tuple[int, int]],
    texts: tuple[str, str],
    units: Units,
) -> list[tuple[int, int]]:
    """Return pairs of source and target units, counted from 0, as the Pharaoh format has them.

    Args:
        sources: of each target token the source token it came from.
        source_spans: of each source token, where it stands in the text.
        target_spans: of each target token.
        texts: source and output.
        units: what is counted; "tokens" needs no spans.
    """
    if units == "tokens":
        return [(source, target) for target, source in enumerate(sources) if source is not None]
    source_units, target_units = (UNITS[units](text) for text in texts)
    pairs = {
        (i, j)
        for source, target_span in zip(sources, target_spans, strict=True)
        if source is not None
        for i in _touched(source_units, source_spans[source])
        for j in _touched(target_units, target_span)
    }
    return sorted(pairs)


def source_spans(tokenizer: Any, text: str) -> list[tuple[int, int]]:
    """Return where each token of a source stands in it; what the tokenizer adds stands nowhere, at (0, 0)."""
    return [tuple(span) for span in tokenizer(text, return_offsets_mapping=True)["offset_mapping"]]


def target_spans(tokenizer: Any, tokens: Sequence[int]) -> list[tuple[int, int]]:
    """Return where each token of an output stands in its text, by how long the text is up to it.

    A token that is a byte of a character stands where the character does: until its last byte is there, the text ends
    in marks that are no part of the whole.
    """
    texts = [tokenizer.decode(tokens[:count], skip_special_tokens=True) for count in range(len(tokens) + 1)]
    lengths = [sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, texts[-1]))) for text in texts]
    spans: list[tuple[int, int]] = []
    for text, (begin, end) in reversed([*zip(texts[1:], pairwise(lengths), strict=True)]):
        is_open = len(text) > end and spans
        spans.append((begin, spans[-1][1] if is_open else end))
    return spans[::-1]


def _touched(units: Sequence[tuple[int, int]], span: tuple[int, int]) -> list[int]:
    return [place for place, (begin, end) in enumerate(units) if begin < span[1] and span[0] < end]


__all__ = [
    "UNITS",
    "Place",
    "Units",
    "attention_of",
    "eager_attention",
    "fall_without",
    "find_place",
    "middle_layer",
    "origins",
    "pharaoh",
    "source_spans",
    "target_spans",
]
