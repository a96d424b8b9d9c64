"""What the search looked at, and what it would have written without a word: the two questions one pass cannot answer.

    generate, watched from inside -> the tree of all beams, with scores, and where the winner overtook
    S + 1 sources in one batch    -> what changes in the output when a word of the source is missing

This file imports torch and transformers only, and explain.py: `seqloom space` copies it into the folder of a Space.
"""

import re
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from seqloom.hub.page.explain import read_source, up_to_end

MOST_PIECES = 64
"""Words of the source that are left out one by one."""

_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_SOURCE_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\s{_IDEOGRAPHS}]+")
"""A word stands between blanks; Chinese and Japanese have none, and every character is one."""
_OUTPUT_PIECE = re.compile(rf"[{_IDEOGRAPHS}]|\w+|\s+|.", re.DOTALL)

Prefix = tuple[int, ...]


class _Watcher(LogitsProcessor):
    """Remembers every beam that the search extends, with the log-probabilities of what could follow."""

    def __init__(self) -> None:
        self.following: dict[Prefix, Tensor] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        for row, values in zip(input_ids.tolist(), scores, strict=True):
            self.following.setdefault(tuple(row), values.float().cpu())
        return scores


@torch.inference_mode()
def beam_tree(model: Any, inputs: dict[str, Tensor], num_beams: int, **options: Any) -> dict[str, Any]:
    """Search with beams and return the tree of what was looked at.

    Args:
        model: an encoder-decoder with `generate`.
        inputs: `input_ids` and `attention_mask` of one source.
        num_beams: 2 or more.
        options: for `generate`.

    Returns:
        `nodes`, the root first: parent, id, its own log-probability and the sum so far, depth, and the rank among the
        beams of that depth (None: it had ended); `ends`, best first: the node and generate's score; `overtook`, the
        depth at which the winner came to the front for good (1: it led from the start).
    """
    watcher = _Watcher()
    output = model.generate(
        **inputs,
        **options | {"num_beams": num_beams, "num_return_sequences": num_beams, "do_sample": False},
        logits_processor=LogitsProcessorList([watcher]),
        return_dict_in_generate=True,
        output_scores=True,
    )
    end_ids = model.generation_config.eos_token_id
    finals = [tuple(up_to_end(row[None], end_ids)[0].tolist()) for row in output.sequences]
    root = finals[0][:1]
    tree = _Tree(watcher.following, root)
    for prefix in sorted([*watcher.following, *finals], key=len):
        if prefix[1:]:
            tree.add(prefix)
    tree.rank()
    ends = [
        {"node": tree.index[final], "score": float(score)}
        for final, score in dict(zip(reversed(finals), reversed(output.sequences_scores.tolist()))).items()
    ]
    penalty = model.generation_config.length_penalty
    return {
        "beams": num_beams,
        "length_penalty": float(options.get("length_penalty", 1.0 if penalty is None else penalty)),
        "nodes": tree.nodes,
        "ends": sorted(ends, key=lambda end: -end["score"]),
        "overtook": tree.overtaking(finals[0]),
        "winner": list(finals[0]),
    }


class _Tree:
    """Prefixes of the search as nodes, each under the prefix it extends."""

    def __init__(self, following: dict[Prefix, Tensor], root: Prefix) -> None:
        self.following = following
        self.index = {root: 0}
        self.nodes: list[dict[str, Any]] = [
            {"parent": None, "id": root[-1], "logp": 0.0, "sum": 0.0, "depth": 0, "rank": 0}
        ]

    def add(self, prefix: Prefix) -> None:
        """Add a prefix whose parent is there, once."""
        parent = self.index.get(prefix[:-1])
        if prefix in self.index or parent is None:
            return
        logp = float(self.following[prefix[:-1]][prefix[-1]])
        if logp == -torch.inf:  # fills the beam up where nothing else is allowed
            return
        self.index[prefix] = len(self.nodes)
        node = {"parent": parent, "id": prefix[-1], "logp": logp, "sum": self.nodes[parent]["sum"] + logp}
        self.nodes.append({**node, "depth": len(prefix) - 1, "rank": None})

    def rank(self) -> None:
        """Number the running beams of each depth, the best 0."""
        by_depth: dict[int, list[dict[str, Any]]] = {}
        for prefix, index in self.index.items():
            if prefix in self.following:
                by_depth.setdefault(len(prefix), []).append(self.nodes[index])
        for nodes in by_depth.values():
            for rank, node in enumerate(sorted(nodes, key=lambda node: -node["sum"])):
                node["rank"] = rank

    def overtaking(self, winner: Prefix) -> int:
        """Return the first depth from which on the winner is never behind another running beam."""
        ranks = [self.nodes[self.index[winner[:length]]]["rank"] for length in range(2, len(winner))]
        behind = [depth for depth, rank in enumerate(ranks, start=1) if rank]
        return max(behind, default=0) + 1


def source_pieces(text: str, most: int = MOST_PIECES) -> tuple[list[tuple[int, int]], int]:
    """Return where the words of a text begin and end, and how many there are beyond `most`.

    A text of one word is cut into its characters.
    """
    spans = [match.span() for match in _SOURCE_WORD.finditer(text)]
    if len(spans) == 1:
        spans = [(index, index + 1) for index in range(*spans[0])]
    return spans[:most], max(0, len(spans) - most)


@torch.inference_mode()
def leave_one_out(model: Any, tokenizer: Any, text: str, written: Tensor, steps: int, **options: Any) -> dict[str, Any]:
    """Let the model write once more without each word of the source, and read its output again without it.

    Args:
        model: an encoder-decoder with `generate`.
        tokenizer: of the source.
        text: the source.
        written: (1, 1 + T) ids that were written from the whole text.
        steps: tokens of the output that are shown.
        options: for `generate`.

    Returns:
        For each of U words: the word, the output without it as pieces ("=", "-" or "+", text) against the output of the
        whole text, and by how much the log-probability of each token of the output falls, (U, steps).
    """
    spans, others = source_pieces(text)
    texts = [text, *(_without(text, span) for span in spans)]
    inputs = read_source(model, tokenizer, texts)
    sequences = model.generate(**inputs, **options | {"do_sample": False, "num_return_sequences": 1})
    outputs = tokenizer.batch_decode(sequences, skip_special_tokens=True)
    scores = _token_scores(model, inputs, written)[:, :steps]  # (1 + U, steps)
    return {
        "whole": outputs[0],
        "words": [text[begin:end] for begin, end in spans],
        "left": others,
        "changes": [_changes(outputs[0], output) for output in outputs[1:]],
        "falls": (scores[:1] - scores[1:]).cpu(),
    }


def _without(text: str, span: tuple[int, int]) -> str:
    """Cut a word out, and one of the two blanks beside it."""
    before, after = text[: span[0]], text[span[1] :]
    return before + (after[1:] if after[:1].isspace() and (not before or before[-1].isspace()) else after)


def _token_scores(model: Any, inputs: dict[str, Tensor], written: Tensor) -> Tensor:
    """Return (B, T), the log-probability of each written token, from each of B sources."""
    target = written.expand(len(inputs["input_ids"]), -1)
    rows = []
    for start in range(len(target)):  # a row at a time: (B, T, V) may not fit
        source = {name: ids[start : start + 1] for name, ids in inputs.items()}
        logits = model(**source, decoder_input_ids=target[start : start + 1, :-1], use_cache=False).logits
        rows.append(logits[0].float().log_softmax(-1).gather(1, target[start, 1:, None])[:, 0])
    return torch.stack(rows)


def _changes(whole: str, output: str) -> list[tuple[str, str]]:
    """Return one text's difference to another, as pieces: kept, gone, new."""
    old, new = (_OUTPUT_PIECE.findall(text) for text in (whole, output))
    pieces: list[tuple[str, str]] = []
    for kind, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            pieces.append(("=", "".join(old[a:b])))
        else:
            pieces += [(sign, "".join(part)) for sign, part in (("-", old[a:b]), ("+", new[c:d])) if part]
    return pieces


__all__ = ["beam_tree", "leave_one_out", "source_pieces"]
