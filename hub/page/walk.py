"""The walk through a model: one sentence, every number it meets on the way, in one HTML file that needs no network.

    text -> generate -> forced pass with hooks (walk_numbers.py) --+
         -> beams, and once more without each word (walk_search.py) +-> one JSON + templates/walk.html -> page

The page checks itself against these numbers and shows the result; it computes sums, softmax and temperature on its own.
This file imports torch and transformers only, and its neighbours: `seqloom space` copies it into the folder of a Space.
"""

import json
import re
from typing import Any

import torch
import transformers
from torch import Tensor

from seqloom.hub.page.explain import as_seq2seq, name_tokens, read_source, write_target
from seqloom.hub.page.walk_numbers import (
    MOST_TOKENS,
    choose_layers,
    embedding_numbers,
    lens_numbers,
    pack,
    recording,
    score_numbers,
    shown_dimensions,
    side_numbers,
)
from seqloom.hub.page.walk_search import beam_tree, leave_one_out
from seqloom.hub.word_alignment import eager_attention, find_place

BEAMS = 4
"""Beams of the tree where the model itself writes greedily."""
DATA_MARK = "{{ walk }}"
"""Where the page's template takes the JSON."""


def walk(
    model: Any,
    tokenizer: Any,
    text: str,
    *,
    target: str | None = None,
    target_tokenizer: Any | None = None,
    name: str = "",
    every_layer: bool = False,
    **generate_options: Any,
) -> dict[str, Any]:
    """Return all that the page shows of one sentence's way through a Seqloom model, as JSON takes it.

    Args:
        model: of class `SeqloomForConditionalGeneration` or `SeqloomForCausalLM`, in eval mode.
        tokenizer: of the same folder.
        text: the source.
        target: walk through this output instead of the one that the model writes.
        target_tokenizer: for `target`, where the two sides have vocabularies of their own; None: `tokenizer`.
        name: what the page calls the model.
        every_layer: keep queries, keys and values of all layers, however large the page.
        generate_options: for `generate`, e.g. `num_beams`. Nothing is drawn at random.

    Raises:
        ValueError: for a text without words, or a model that is no Seqloom model.
    """
    if not text.strip():
        raise ValueError(f"text={text!r} has no words to walk with; give a sentence.")
    model = as_seq2seq(model)
    if getattr(model.config, "model_type", None) != "seqloom":
        raise ValueError(
            f"{type(model).__name__} is no Seqloom model, and the walk knows no other network from inside; "
            f"explain(model, tokenizer, text) works for every encoder-decoder."
        )
    options = {"do_sample": False, **generate_options}
    beams = int(options.get("num_beams") or model.generation_config.num_beams or 1)
    names = target_tokenizer or tokenizer
    inputs = read_source(model, tokenizer, text)
    tree = beam_tree(model, inputs, **{**options, "num_beams": beams if beams > 1 else BEAMS})
    winner = torch.tensor([tree.pop("winner")], device=model.device)
    is_found = target is None and beams > 1  # by the search that was just made
    written = winner if is_found else write_target(model, inputs, target, names, **options)  # (1, 1 + T)
    data, words = _pass_numbers(model, inputs, written, every_layer)
    ends = _end_ids(model)
    words |= {node["id"] for node in tree["nodes"]} | set(ends[:1])
    without = leave_one_out(model, tokenizer, text, written, MOST_TOKENS, **options)
    ids = inputs["input_ids"][0].tolist()
    place = find_place(model, [(ids, written[0, 1:].tolist())])
    return {
        "model": _describe(model, tokenizer, name),
        "text": text,
        "output": names.decode(written[0], skip_special_tokens=True),
        "forced": target is not None,
        "beams": beams,
        "source": {"tokens": name_tokens(tokenizer, ids)[:MOST_TOKENS], "ids": ids[:MOST_TOKENS], "total": len(ids)},
        "target": {
            "ids": written[0].tolist()[: MOST_TOKENS + 1],
            "total": written.shape[1] - 1,
            "ended": int(written[0, -1]) in ends,
            "end": next(iter(ends), None),
        },
        **data,
        "place": {"layer": place.layer, "shift": place.is_shifted},
        "tree": tree,
        "without": without | {"falls": pack(without["falls"])},
        "names": dict(zip(map(str, sorted(words)), name_tokens(names, sorted(words)))),
    }


def _end_ids(model: Any) -> list[int]:
    end = model.generation_config.eos_token_id
    return end if isinstance(end, list) else [] if end is None else [end]


@torch.inference_mode()
def _pass_numbers(
    model: Any, inputs: dict[str, Tensor], written: Tensor, every_layer: bool
) -> tuple[dict[str, Any], set[int]]:
    """Return the forced pass's numbers, and the words that they name."""
    config, num_source, num_target = model.config, inputs["input_ids"].shape[1], written.shape[1] - 1
    with eager_attention(model), recording(model) as record:
        loss = model(**inputs, labels=written[:, 1:], smoothing=0.0, output_attentions=True, use_cache=False).loss
    kept = choose_layers(config, num_source, num_target, *([None] if every_layer else []))
    scores = score_numbers(record, model, written[0, 1:])
    lens = lens_numbers(record, model, written[0, 1:])
    data = {
        "dims": shown_dimensions(config.d_model),
        "score": -float(loss) * num_target,
        "embedding": {side: embedding_numbers(record, config, side) for side in ("encoder", "decoder")},
        "encoder": side_numbers(record, config, "encoder", kept),
        "decoder": side_numbers(record, config, "decoder", kept),
        "scores": scores.numbers,
        "lens": lens.numbers,
    }
    return data, scores.words | lens.words | set(written[0].tolist())


def _describe(model: Any, tokenizer: Any, name: str) -> dict[str, Any]:
    """Return the switches of the network that the page speaks of."""
    config = model.config
    sizes = "d_model vocab_size encoder_layers decoder_layers encoder_attention_heads decoder_attention_heads"
    sizes += " num_key_value_heads encoder_ffn_dim decoder_ffn_dim"
    switches = "norm_position norm_type activation_function use_gated_ffn position_embedding_type tie_word_embeddings"
    return {key: getattr(config, key) for key in f"{sizes} {switches}".split()} | {
        "name": name or "Seqloom",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "scale": float(model.model.encoder.embed_scale),
        "separate": not tokenizer.init_kwargs.get("seqloom_tokenizer", {}).get("joint", True),
        "transformers": transformers.__version__,
    }


def render_walk(data: dict[str, Any], template: str) -> str:
    """Return the page: the template with the JSON in it, in which no text can end the script or begin HTML.

    Args:
        data: of `walk`.
        template: walk.html.
    """
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return template.replace(DATA_MARK, _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text))


_UNSAFE = re.compile(r"[<>&\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff]")
"""What could end the script, begin HTML, break a line, or turn the direction of whoever reads the file."""


__all__ = ["render_walk", "walk"]
