"""What a model looked at and what else it considered while it wrote: plain data for a page, a notebook or a test.

    text -> generate (or a target that is given) -> forced pass over the same tokens -> Explanation

The forced pass reads the finished output once more and asks at every position for the whole distribution and for the
weights of cross attention. Only the eager kernel returns weights, so the model runs on it for this one pass; what is
explained was written with the model's own kernel. Pictures of an explanation are in explain_figures.py.

This file imports torch, transformers and word_alignment.py only: `seqloom space` copies it into the folder of a Space.

    S source length    T target length    L decoder layers    N heads    V vocabulary    K candidates
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from seqloom.hub.word_alignment import Place, eager_attention, middle_layer, origins


@dataclass(frozen=True)
class Candidate:
    """A token that could have come next."""

    token: str
    probability: float
    """Under the model itself: before beams, suppressed tokens and other rules of the search."""


@dataclass(frozen=True)
class Step:
    """One token of the output."""

    token: str
    probability: float
    candidates: list[Candidate]
    """The K most probable tokens at this place, best first; the token that was written need not be among them."""


@dataclass(frozen=True)
class Explanation:
    """An output and how it came about."""

    source: str
    output: str
    source_tokens: list[str]
    """S tokens that the encoder read, the end of the sequence included."""
    steps: list[Step]
    """T tokens that were written, the end of the sequence included if it was."""
    cross_attention: list[list[list[list[float]]]]
    """(L, N, T, S): how much each output token took from each source token; each row of S sums to 1."""

    def alignment(self, *, layer: int | None = None, shift: bool = True) -> list[int | None]:
        """Return for each of the T tokens which source token it belongs to, by index; None where nobody can say.

        Args:
            layer: of the decoder, counted from 0; its heads' mean is read. None: the middle one, see `middle_layer`.
            shift: read a token's row where the decoder reads it, one step after it was written (Shift-Att, Chen et al.
                2020, arXiv 2004.14837), when it looks at what that token says; False: where it was written. The last
                token is not read again.
        """
        layer = middle_layer(len(self.cross_attention)) if layer is None else layer
        weights = torch.tensor(self.cross_attention[layer]).mean(0)  # (T, S)
        return origins(weights, len(weights), [False] * weights.shape[1], Place(layer, shift))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as lists, dictionaries, texts and numbers, as JSON takes them."""
        return asdict(self)


@torch.inference_mode()
def explain(
    model: Any,
    tokenizer: Any,
    text: str,
    *,
    target: str | None = None,
    target_tokenizer: Any | None = None,
    num_candidates: int = 5,
    **generate_options: Any,
) -> Explanation:
    """Write an output for a text, or take a given one, and explain it token by token.

    Args:
        model: an encoder-decoder with `generate`, in eval mode.
        tokenizer: of the same folder.
        text: the source.
        target: explain this output instead of the one that the model writes.
        target_tokenizer: for `target`, where the two sides have vocabularies of their own; None: `tokenizer`.
        num_candidates: K.
        generate_options: for `generate`, e.g. `num_beams`.

    Raises:
        TypeError: where the first is no network.
        ValueError: for fewer than one candidate.
    """
    if num_candidates < 1:
        raise ValueError(f"num_candidates={num_candidates} leaves nothing to show; use 1 or more.")
    model = as_seq2seq(model)
    inputs = read_source(model, tokenizer, text)
    written = write_target(model, inputs, target, target_tokenizer or tokenizer, **generate_options)  # (1, 1 + T)
    with eager_attention(model):
        outputs = model(**inputs, decoder_input_ids=written[:, :-1], output_attentions=True, use_cache=False)
    return Explanation(
        source=text,
        output=tokenizer.decode(written[0], skip_special_tokens=True),
        source_tokens=name_tokens(tokenizer, inputs["input_ids"][0].tolist()),
        steps=_steps(target_tokenizer or tokenizer, outputs.logits[0], written[0, 1:], num_candidates),
        cross_attention=torch.stack(outputs.cross_attentions)[:, 0].float().tolist(),
    )


def as_seq2seq(model: Any) -> Any:
    """Return the same network, weights shared, without the causal-LM interface, where it has one.

    Raises:
        TypeError: for what is no network, such as the tokenizer in its place.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"{type(model).__name__} is no network; the model comes first, then its tokenizer, the text.")
    for parent in type(model).__mro__[1:]:
        if parent.__name__ == "SeqloomForConditionalGeneration":
            model = copy.copy(model)
            model.__class__ = parent
    return model


def read_source(model: Any, tokenizer: Any, texts: str | Sequence[str]) -> dict[str, Tensor]:
    """Return `input_ids` and `attention_mask` of texts, (B, S) each, where the model is."""
    batch = tokenizer([texts] if isinstance(texts, str) else list(texts), padding=True, return_tensors="pt")
    return {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}


def write_target(
    model: Any, inputs: dict[str, Tensor], target: str | None, target_tokenizer: Any, **generate_options: Any
) -> Tensor:
    """Return (1, 1 + T) ids, the decoder's start token first: of the given target, or of what the model writes."""
    if target is None:
        written = model.generate(**inputs, **generate_options)[:1]
    else:
        ids = target_tokenizer([target], return_tensors="pt")["input_ids"]
        settings = model.generation_config
        begins = (settings.decoder_start_token_id, settings.bos_token_id)
        start = torch.full((1, 1), next(token for token in begins if token is not None))
        written = torch.cat([start, ids], dim=1).to(model.device)
    return up_to_end(written, model.generation_config.eos_token_id)


def up_to_end(written: Tensor, end_ids: int | list[int] | None) -> Tensor:
    """Cut what follows the first end of the sequence, (1, L): padding of a batch of beams."""
    ends = torch.isin(written[0, 1:], torch.as_tensor([] if end_ids is None else end_ids, device=written.device))
    return written[:, : int(ends.int().argmax()) + 2] if ends.any() else written


def name_tokens(tokenizer: Any, ids: list[int]) -> list[str]:
    """Name tokens, without the marks of separate vocabularies; a row that only fills up the table is its number."""
    named = zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)
    return [f"#{id_}" if name is None else _MARK.sub("", name) for id_, name in named]


_MARK = re.compile(r"^<(source|target)>(?=.)", re.DOTALL)
"""Before the pieces of the other side where each side has a vocabulary of its own; no text can spell it."""


def _steps(tokenizer: Any, logits: Tensor, targets: Tensor, num_candidates: int) -> list[Step]:
    """Read each position's distribution: logits (T, V), and targets (T), the ids that were written."""
    probabilities = logits.float().softmax(-1)  # (T, V)
    best = probabilities.topk(min(num_candidates, probabilities.shape[-1]))  # (T, K)
    chosen = probabilities.gather(1, targets[:, None])[:, 0]
    names = name_tokens(tokenizer, targets.tolist())
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    candidates = [list(map(Candidate, name_tokens(tokenizer, ids), values)) for ids, values in rows]
    return list(map(Step, names, chosen.tolist(), candidates))


__all__ = ["Candidate", "Explanation", "Step", "explain"]
