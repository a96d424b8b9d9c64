"""A network as two ONNX graphs, in the names that transformers.js looks for, and both again in eight bits.

     input_ids (B, S)   attention_mask (B, S)
         |
     encoder_model.onnx          the encoder, then the cross keys and values of all decoder layers side by side
         |
     last_hidden_state (B, S, 2 * layers * G * H)
         |                       whoever runs the graphs hands it on untouched, as encoder_hidden_states
         v
     decoder_model_merged.onnx  <--  input_ids (B, T), encoder_attention_mask (B, S),
         |                           past_key_values.{i}.decoder.key and .value (B, G, past, H)
         v
     logits (B, T, V)   present.{i}.decoder.key and .value (B, G, past + T, H)

So the source's keys and values are computed once a sentence, without a branch in the graph ("merged" is what
transformers.js calls a decoder for the first and for the later steps), and a past of length 0 begins a sentence.

transformers' own `OnnxExporter` takes models whole, with all that they return, under names of its own; `torch.onnx`,
on which it stands, takes these two and lets us name what goes in and out.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from seqloom.hub.export.ctranslate2_loader import suppressing_bias
from seqloom.hub.export.output_folder import ExportError

ENCODER, DECODER = "encoder_model", "decoder_model_merged"

QUANTIZED = "_quantized"
"""Behind a graph's name: its weights are bytes. transformers.js asks for it with `dtype: "q8"`."""

MOST_BYTES = 2_000_000_000
"""Of weights in one graph: protobuf ends at 2 GiB."""


UNTRACEABLE = {
    "dynamic": "up to max_position_embeddings tokens 'default' computes the same: write it into config.json",
    "longrope": "train with 'yarn' and the same factor, which is nearest",
}
"""Kind of rotary scaling that chooses frequencies by the length of each text, which no graph does -> the nearest."""


class EncoderGraph(nn.Module):
    """Source ids to the cross keys and values of all decoder layers."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.get_encoder()
        attentions = [layer.encoder_attn for layer in model.get_decoder().layers]
        self.projections = nn.ModuleList([proj for attn in attentions for proj in (attn.k_proj, attn.v_proj)])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, S) ids and mask -> (B, S, 2 * layers * G * H)."""
        states = self.encoder(input_ids, attention_mask).last_hidden_state
        return torch.cat([projection(states) for projection in self.projections], dim=-1)


class DecoderGraph(nn.Module):
    """Some target ids, and what was computed before, to logits and what the next step needs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder = model.get_decoder()
        # Not the shared matrix: only what is constant and lies as the product reads it can be stored as bytes.
        self.projection = nn.Parameter(model.lm_head.weight.detach().t().clone())
        suppressed = model.generation_config.suppress_tokens
        self.register_buffer("bias", suppressing_bias(model.lm_head.weight, suppressed) if suppressed else None)

    def forward(
        self, input_ids: Tensor, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor, past: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """(B, T) ids and keys and values (B, G, past, H) -> (B, T, V) logits and (B, G, past + T, H)."""
        cross = encoder_hidden_states.chunk(len(past), dim=-1)
        split_heads = self.decoder.layers[0].encoder_attn.split_heads
        output = self.decoder(
            input_ids,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            cache=EncoderDecoderCache(
                DynamicCache(pairs_of(past)),
                DynamicCache(pairs_of([split_heads(states) for states in cross])),  # (B, G, S, H)
            ),
            use_cache=True,
        )
        logits = output.last_hidden_state @ self.projection  # (B, T, V)
        if self.bias is not None:
            logits = logits + self.bias
        layers = output.cache.self_attention_cache.layers
        return (logits, *(states for layer in layers for states in (layer.keys, layer.values)))


def pairs_of(states: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Key, value, key, value, ... -> (key, value) a layer."""
    return list(zip(states[::2], states[1::2], strict=True))


def past_names(model: Any, kind: str = "past_key_values") -> list[str]:
    """Return what a decoder's cache is called, layer by layer, as it comes in; "present": as it goes out."""
    return [
        f"{kind}.{layer}.decoder.{part}" for layer in range(model.config.decoder_layers) for part in ("key", "value")
    ]


def write_graphs(model: Any, folder: Path) -> None:
    """Write both graphs in float32.

    Args:
        model: a `SeqloomForConditionalGeneration` in float32, on the CPU, in eval mode.
        folder: exists.

    Raises:
        ExportError: for a network that cannot be traced, or weights that do not fit into one file.
    """
    refuse_unknown_switches(model.config)
    refuse_too_large(model)
    config = model.config
    batch, source, target, past = (
        torch.export.Dim(name)
        for name in ("batch_size", "encoder_sequence_length", "decoder_sequence_length", "past_decoder_sequence_length")
    )
    heads = config.num_key_value_heads or config.decoder_attention_heads
    head_dim = config.d_model // config.decoder_attention_heads
    ids, mask = torch.ones(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.long)
    keys_and_values = [torch.zeros(2, heads, 4, head_dim) for _ in past_names(model)]
    with traceable(model), torch.no_grad():
        encoder = EncoderGraph(model).eval()
        write_graph(
            encoder,
            {"input_ids": (ids, {0: batch, 1: source}), "attention_mask": (mask, {0: batch, 1: source})},
            ["last_hidden_state"],
            folder / f"{ENCODER}.onnx",
        )
        write_graph(
            DecoderGraph(model).eval(),
            {
                # Three tokens: with one, the length of the past would be taken for a constant.
                "input_ids": (torch.ones(2, 3, dtype=torch.long), {0: batch, 1: target}),
                "encoder_hidden_states": (encoder(ids, mask), {0: batch, 1: source}),
                "encoder_attention_mask": (mask, {0: batch, 1: source}),
                "past": (keys_and_values, [{0: batch, 2: past} for _ in keys_and_values]),
            },
            ["logits", *past_names(model, "present")],
            folder / f"{DECODER}.onnx",
            past=past_names(model),
        )


def write_graph(
    module: nn.Module,
    inputs: dict[str, tuple[Any, Any]],
    output_names: list[str],
    path: Path,
    past: Sequence[str] = (),
) -> None:
    """Trace a module and write its graph.

    Args:
        module: in eval mode.
        inputs: name -> a sample and which of its dimensions vary.
        output_names: in the order in which it returns them.
        path: of the file.
        past: names of the tensors in the list `inputs["past"]`, if there is one.
    """
    names = [name for name in inputs if name != "past"]
    program = torch.onnx.export(
        module,
        kwargs={name: sample for name, (sample, _) in inputs.items()},
        dynamic_shapes={name: dims for name, (_, dims) in inputs.items()},
        input_names=[*names, *past],
        output_names=output_names,
        dynamo=True,
        verbose=False,
    )
    assert program is not None, "torch.onnx.export with dynamo=True returns a program"
    program.save(str(path), external_data=False)


def refuse_unknown_switches(config: Any) -> None:
    """Refuse what cannot be traced.

    Raises:
        ExportError: naming the nearest that works.
    """
    is_rotary = config.position_embedding_type == "rotary"
    if is_rotary and (kind := config.rope_parameters["rope_type"]) in UNTRACEABLE:
        raise ExportError(
            f"rope_type={kind!r} counts anew for each length, and a graph has one count; {UNTRACEABLE[kind]}."
        )


def refuse_too_large(model: Any) -> None:
    """Refuse weights that one file cannot hold.

    Raises:
        ExportError: naming another engine.
    """
    size = sum(parameter.nbytes for parameter in model.get_decoder().parameters()) + model.lm_head.weight.nbytes
    size = max(size, sum(parameter.nbytes for parameter in model.get_encoder().parameters()))
    if size > MOST_BYTES:
        raise ExportError(
            f"one side of the network has {size:,} bytes of weights, and a graph holds at most {MOST_BYTES:,}; "
            f"seqloom export --to ctranslate2 has no such limit."
        )


@contextmanager
def traceable(model: Any) -> Iterator[None]:
    """Let attention be written out for the time being, and a tracer's remarks to its developers unsaid."""
    attention, exporter = model.config._attn_implementation, logging.getLogger("torch.onnx")
    level = exporter.level
    model.set_attn_implementation("eager")
    exporter.setLevel(logging.ERROR)  # "torchvision is not installed", four times
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
        model.set_attn_implementation(attention)


def quantize_graphs(folder: Path) -> None:
    """Write both graphs again with weights of eight bits; activations are quantised as they come.

    Unsigned bytes on both sides: x86 without VNNI adds products of signed and unsigned bytes in 16 bits and cuts what
    does not fit.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # "please consider pre-processing", which folds what torch.onnx has folded
    try:
        for name in (ENCODER, DECODER):
            quantize_dynamic(
                folder / f"{name}.onnx",
                folder / f"{name}{QUANTIZED}.onnx",
                op_types_to_quantize=["MatMul", "Gather"],
                per_channel=True,
                weight_type=QuantType.QUInt8,
                extra_options={"MatMulConstBOnly": True},
            )
    finally:
        root.setLevel(level)


__all__ = [
    "DECODER",
    "ENCODER",
    "QUANTIZED",
    "past_names",
    "quantize_graphs",
    "refuse_unknown_switches",
    "write_graphs",
]
