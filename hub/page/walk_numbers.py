"""The numbers of one sentence's way through a model, as the page of a walk shows them.

    one forced pass, every module's input and output kept by hooks -> tables, packed for JSON

The network has the names of modeling_seqloom.py (`model.encoder.layers.0.self_attn.q_proj`, ...). Tables are packed in
base64: as float16, three to four digits, where a reader looks at them, as float32 where the page goes on computing.
This file imports torch only: `seqloom space` copies it into the folder of a Space.

    S source length    T target length    L either    D d_model    d dimensions shown    N query heads    H head width
    G key/value heads    F feed-forward width    V vocabulary
"""

import base64
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

MOST_TOKENS = 64
"""Tokens of a side that the page shows; the model reads all of them."""
MOST_DIMENSIONS = 64
"""Dimensions of a vector of the stream that the page shows, evenly spread over all D."""
MOST_NUMBERS = 450_000
"""Numbers of attention in a page, about 1.2 MB: the weights of all heads, then queries, keys and values while there is
room."""
MOST_WORDS = 64
"""Words of a step's distribution that have their own number; the others are put together in `TAIL_GROUPS` groups."""
TAIL_GROUPS = 32
HEAD_WORDS = 3
"""Words a step whose row of the LM head is in the page, so that their logit can be computed there."""
NUM_NEURONS = 8
"""Neurons of the feed-forward that a token moves most, shown one by one."""

Packed = dict[str, Any]
Record = dict[str, "Passed"]


@dataclass(frozen=True)
class Passed:
    """What went into a module and what came out, without the batch's dimension."""

    read: Tensor
    wrote: Tensor
    beside: Tensor | None = None
    """The second output: attention weights (N, L, K), or the sines of rotary positions (L, H)."""


@contextmanager
def recording(model: nn.Module) -> Iterator[Record]:
    """Keep what every module reads and writes during a forward of one sentence, by the module's name."""
    record: Record = {}

    def keep(name: str, _: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        first, *others = output if isinstance(output, tuple) else (output,)
        if inputs and isinstance(inputs[0], Tensor) and isinstance(first, Tensor):
            beside = others[0][0].float().cpu() if others and isinstance(others[0], Tensor) else None
            reads = inputs[0] if inputs[0].dtype == torch.long else inputs[0].float()
            record[name] = Passed(reads[0].cpu(), first[0].float().cpu(), beside)

    handles = [module.register_forward_hook(partial(keep, name)) for name, module in model.named_modules()]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def pack(values: Tensor, *, exact: bool = False) -> Packed:
    """Return a tensor as JSON takes it: its shape, and base64 of little-endian float16, or float32 where `exact`.

    What float16 cannot hold, above 65,504, is packed as float32 too.
    """
    values = values.detach().float().cpu().contiguous()
    exact = exact or (values.numel() > 0 and float(values.abs().max()) > 65_000)
    array = values.numpy().astype("<f4" if exact else "<f2")
    name = "f32" if exact else "f16"
    return {"shape": list(values.shape), name: base64.b64encode(array.tobytes()).decode("ascii")}


def shown_dimensions(d_model: int) -> list[int]:
    """Return which of D dimensions are shown: all of a narrow model, else `MOST_DIMENSIONS`, evenly spread."""
    count = min(d_model, MOST_DIMENSIONS)
    return [index * d_model // count for index in range(count)]


def embedding_numbers(record: Record, config: Any, side: str) -> dict[str, Any]:
    """Return the rows of the table, what is added for positions, and the sum, (L, d) each; rotary: the turns (L, H/2).

    Positions are None where nothing is added.
    """
    rows = record[f"model.{side}.embed_tokens"].wrote[:MOST_TOKENS]
    added = record[f"model.{side}.embed_positions"]
    dims = shown_dimensions(config.d_model)
    scaled, total = added.read[:MOST_TOKENS], added.wrote[:MOST_TOKENS]
    turns = record.get(f"model.{side}.rotary_emb")
    numbers = {
        "rows": pack(rows[:, dims]),
        "positions": pack((total - scaled)[:, dims]) if turns is None else None,
        "sum": pack(total[:, dims]),
    }
    if turns is not None:
        cos, sin = turns.wrote[:MOST_TOKENS], turns.beside
        assert sin is not None, "rotary positions come as cosines and sines"
        half = cos.shape[-1] // 2
        numbers["turns"] = pack(torch.atan2(sin[:MOST_TOKENS, :half], cos[:, :half]))
    return numbers


def side_numbers(record: Record, config: Any, side: str, kept: set[tuple[str, int]]) -> dict[str, Any]:
    """Return a side's layers: attentions, feed-forward, and what each sublayer added to the stream.

    Args:
        record: of the forced pass.
        config: the model's.
        side: "encoder" or "decoder".
        kept: (kind, layer) whose queries, keys and values go into the page; see `choose_layers`.
    """
    dims = shown_dimensions(config.d_model)
    num_layers = getattr(config, f"{side}_layers")
    begin = f"model.{side}.layers"
    layers = []
    for index in range(num_layers):
        name = f"{begin}.{index}"
        kinds = {"encoder_self": "self_attn"} if side == "encoder" else {"self": "self_attn", "cross": "encoder_attn"}
        attentions = {
            kind: attention_numbers(record, f"{name}.{module}", config, side, with_vectors=(kind, index) in kept)
            for kind, module in kinds.items()
        }
        end = record[f"{begin}.{index}"].wrote
        layers.append(
            {
                **attentions,
                "stream": _sublayers(record, name, [*kinds.values(), "fc2"], end, config, dims),
                "feed_forward": feed_forward_numbers(record, name),
            }
        )
    start = record[f"{begin}.0"].read
    return {"start": pack(start[:MOST_TOKENS, dims]), "start_norms": pack(start.norm(dim=-1)), "layers": layers} | {
        "out": pack(record[f"model.{side}.layer_norm"].wrote[:MOST_TOKENS, dims]),
    }


def _sublayers(
    record: Record, layer: str, modules: list[str], end: Tensor, config: Any, dims: list[int]
) -> list[dict[str, Any]]:
    """Return for each sublayer what it added to the stream and what the stream is behind it, (L, d), with norms (L).

    Pre-norm adds and no more. Post-norm normalises the sum: what stands behind a sublayer is what the next one reads.
    """
    stream = record[layer].read
    rows = []
    for module, after in zip(modules, [*modules[1:], None]):
        added = record[f"{layer}.{module}"].wrote
        if config.norm_position == "pre":
            stream = stream + added
        else:
            stream = end if after is None else record[f"{layer}.{after.replace('fc2', 'fc1')}"].read
        rows.append(
            {"added": pack(added[:MOST_TOKENS, dims]), "after": pack(stream[:MOST_TOKENS, dims])}
            | {"added_norms": pack(added.norm(dim=-1)), "after_norms": pack(stream.norm(dim=-1))}
        )
    return rows


def attention_numbers(record: Record, name: str, config: Any, side: str, *, with_vectors: bool) -> dict[str, Any]:
    """Return an attention's weights (N, L, K), what falls on keys that are not shown, and the norms of its sums (N, L).

    With vectors also queries (N, L, H), keys and values (G, K, H), positions turned into them where they are rotary.
    """
    heads = getattr(config, f"{side}_attention_heads")
    width = config.d_model // heads
    weights = record[name].beside
    assert weights is not None, "the eager kernel returns its weights"
    mixed = record[f"{name}.out_proj"].read[:MOST_TOKENS].unflatten(-1, (heads, width))  # (L, N, H)
    numbers: dict[str, Any] = {
        "weights": pack(weights[:, :MOST_TOKENS, :MOST_TOKENS]),
        "mixed_norms": pack(mixed.norm(dim=-1).T),
    }
    if weights.shape[-1] > MOST_TOKENS:
        numbers["rest"] = pack(weights[:, :MOST_TOKENS, MOST_TOKENS:].sum(-1))
    if with_vectors:
        turns = record.get(f"model.{side}.rotary_emb") if name.endswith("self_attn") else None
        for part in ("query", "key", "value"):
            vectors = (
                record[f"{name}.{part[0]}_proj"].wrote.unflatten(-1, (-1, width)).transpose(0, 1)
            )  # (N or G, L, H)
            if turns is not None and part != "value":
                vectors = _turn(vectors, turns)
            numbers[part] = pack(vectors[:, :MOST_TOKENS])
    return numbers


def _turn(states: Tensor, turns: Passed) -> Tensor:
    """Turn (N, L, H) as the network does, see `rotate` in modeling_seqloom.py."""
    first, second = states.chunk(2, dim=-1)
    assert turns.beside is not None, "rotary positions come as cosines and sines"
    return states * turns.wrote + torch.cat([-second, first], dim=-1) * turns.beside


def feed_forward_numbers(record: Record, layer: str) -> dict[str, Any]:
    """Return for each token its inner values (L, at most d), the share that is not zero (L), and the largest of all."""
    inner = record[f"{layer}.fc2"].read[:MOST_TOKENS]  # (L, F)
    largest = inner.abs().topk(min(NUM_NEURONS, inner.shape[-1])).indices  # (L, NUM_NEURONS)
    dims = shown_dimensions(inner.shape[-1])
    return {
        "inner": pack(inner[:, dims]),
        "dims": dims,
        "active": pack((inner.abs() > 1e-3 * inner.abs().max()).float().mean(-1)),
        "neurons": largest.tolist(),
        "neuron_values": pack(inner.gather(1, largest)),
    }


def choose_layers(
    config: Any, num_source: int, num_target: int, most: int | None = MOST_NUMBERS
) -> set[tuple[str, int]]:
    """Return the (kind, layer) whose queries, keys and values go into the page; None as `most`: all.

    First come the first layers, then the last, then the others, until with the weights of all heads `most` numbers are
    there; always the first layer's of encoder self attention and of cross attention.
    """
    source, target = min(num_source, MOST_TOKENS), min(num_target, MOST_TOKENS)
    kinds = {"encoder_self": (config.encoder_layers, 3 * source), "cross": (config.decoder_layers, target + 2 * source)}
    kinds["self"] = (config.decoder_layers, 3 * target)
    wanted = [
        (rank, kind, layer, vectors * config.d_model)
        for kind, (layers, vectors) in kinds.items()
        for rank, layer in enumerate(dict.fromkeys([0, layers - 1, *range(layers)]))
    ]
    weights = config.encoder_layers * config.encoder_attention_heads * source**2
    weights += config.decoder_layers * config.decoder_attention_heads * target * (target + source)
    kept, room = set(), math.inf if most is None else most - weights
    for rank, kind, layer, cost in sorted(wanted, key=lambda each: each[0]):
        room -= cost
        if room >= 0 or (rank == 0 and kind != "self"):
            kept.add((kind, layer))
    return kept


@dataclass(frozen=True)
class Scores:
    """What the LM head says at T places: the page's packed numbers, and which words it names."""

    numbers: dict[str, Any]
    words: set[int]


def score_numbers(record: Record, model: Any, written: Tensor) -> Scores:
    """Return the distribution of each step: the best words' logits, the others in groups, and the last rows (T, D).

    Args:
        record: of the forced pass.
        model: with `lm_head`.
        written: (T) ids that were written.
    """
    logits = record["lm_head"].wrote[:MOST_TOKENS]  # (T, V)
    written = written[:MOST_TOKENS].cpu()
    best = logits.topk(min(MOST_WORDS, logits.shape[-1]))  # (T, K)
    log_probabilities = logits.log_softmax(-1)
    named = torch.cat([best.indices[:, :HEAD_WORDS].flatten(), written]).unique()
    groups = [_tail(row, ids) for row, ids in zip(logits, best.indices, strict=True)]
    ranks = (logits > logits.gather(1, written[:, None])).sum(-1)
    numbers = {
        "ids": best.indices.tolist(),
        "logits": pack(best.values, exact=True),
        "tail": pack(torch.stack(groups), exact=True),
        "written_logit": pack(logits.gather(1, written[:, None])[:, 0], exact=True),
        "written_logp": pack(log_probabilities.gather(1, written[:, None])[:, 0], exact=True),
        "written_rank": ranks.tolist(),
        "last": pack(record["lm_head"].read[:MOST_TOKENS]),
        "row_ids": named.tolist(),
        "rows": pack(model.lm_head.weight.detach().cpu()[named]),
    }
    return Scores(numbers, set(best.indices.flatten().tolist()) | set(named.tolist()))


def _tail(logits: Tensor, best: Tensor) -> Tensor:
    """Return (TAIL_GROUPS, 2): the words that are not among the best, in groups of like logits, as count and level.

    The level is the log of the mean of exp(logit), so that the groups' sum is exact.
    """
    rest = torch.ones_like(logits, dtype=torch.bool).scatter(0, best, value=False)
    others = logits[rest]
    groups = torch.zeros(TAIL_GROUPS, 2)
    if others.numel() == 0:
        return groups
    low, high = others.aminmax()
    group = ((others - low) / (high - low).clamp(min=1e-6) * (TAIL_GROUPS - 1e-3)).long().clamp(max=TAIL_GROUPS - 1)
    counts = torch.zeros(TAIL_GROUPS).index_add(0, group, torch.ones_like(others))
    sums = torch.zeros(TAIL_GROUPS).index_add(0, group, (others - high).exp())
    level = torch.where(counts > 0, (sums / counts.clamp(min=1)).log() + high, 0.0)
    return torch.stack([counts, level], dim=-1)


def lens_numbers(record: Record, model: Any, written: Tensor) -> Scores:
    """Return what each decoder layer would have said, had it been the last: final norm and LM head on its states.

    That is the logit lens (nostalgebraist 2020): (layers, T) best words, their probabilities, and the written word's.
    """
    decoder, ids, best, own, ranks = model.model.decoder, [], [], [], []
    written = written[:MOST_TOKENS].to(model.device)
    for index in range(len(decoder.layers)):
        states = record[f"model.decoder.layers.{index}"].wrote[:MOST_TOKENS].to(model.device, model.dtype)
        probabilities = model.lm_head(decoder.layer_norm(states)).float().softmax(-1)  # (T, V)
        top = probabilities.topk(min(3, probabilities.shape[-1]))
        mine = probabilities.gather(1, written[:, None])  # (T, 1)
        ids.append(top.indices.tolist())
        best.append(top.values)
        own.append(mine[:, 0])
        ranks.append((probabilities > mine).sum(-1).tolist())
    numbers = {"ids": ids, "probabilities": pack(torch.stack(best)), "written": pack(torch.stack(own)), "ranks": ranks}
    return Scores(numbers, {id_ for layer in ids for row in layer for id_ in row})


__all__ = [
    "MOST_TOKENS",
    "Scores",
    "attention_numbers",
    "choose_layers",
    "embedding_numbers",
    "lens_numbers",
    "pack",
    "recording",
    "score_numbers",
    "shown_dimensions",
    "side_numbers",
]
