"""How CTranslate2 is told of a Seqloom network: the same code for its own converter and for `seqloom export`.

CTranslate2 (https://github.com/OpenNMT/CTranslate2) answers several times faster than torch and needs neither torch nor
transformers. Its converter knows a model by the name of its configuration's class, and loads the configuration before
it looks for a loader: so the code in a folder can bring the loader along. The file is copied into every folder, and

    ct2-transformers-converter --model FOLDER --trust_remote_code --output_dir DIR

works where Seqloom is not installed. No import statement here names CTranslate2, for transformers demands of every
reader of a folder what the folder's files import.

    D d_model    H head dimension    V vocabulary
"""

import sys
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

OLDEST = (4, 6, 3)
"""The first release of CTranslate2 whose encoder-decoders know rotary positions."""

STORED_POSITIONS = 4096
"""Rows of the stored table of sinusoids, where the folder's `max_position_embeddings` is not longer: a hard limit.

The engine's own formula counts from 1 and divides by D / 2 - 1; ours would come out as another model.
"""

SUPPRESSED = -1e4
"""Bias of the words that the folder never writes: their probability is 0, and float16 can hold it."""

ACTIVATIONS = {
    "relu": "RELU",
    "gelu": "GELU",
    "gelu_python": "GELU",
    "gelu_new": "GELUTanh",
    "gelu_fast": "GELUTanh",
    "gelu_accurate": "GELUTanh",
    "gelu_pytorch_tanh": "GELUTanh",
    "gelu_python_tanh": "GELUTanh",
    "quick_gelu": "GELUSigmoid",
    "silu": "SWISH",
    "swish": "SWISH",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
}
"""transformers' name of an activation -> CTranslate2's."""

NEAREST_ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "silu": "silu", "mish": "silu", "sigmoid": "sigmoid"}
"""Part of a name that CTranslate2 lacks -> the known activation that is most like it."""

ROPE_TYPES = ("default", "linear")
"""Of "llama3" the engine knows the case of one model: whatever it is told, it counts with a trained length of 8,192."""

CONVERTER = "ctranslate2.converters.transformers"


class ConversionError(ValueError):
    """A model that CTranslate2 cannot compute, with the nearest one that it can."""


class SeqloomLoader:
    """What CTranslate2's converter asks: which class loads the model, and what is in it."""

    architecture_name = "AutoModelForSeq2SeqLM"

    def __call__(self, model: Any, tokenizer: Any) -> Any:
        """Return the `TransformerSpec` of a model; see `build_spec`."""
        return build_spec(model, tokenizer)


def offer_loader() -> None:
    """Make Seqloom known to CTranslate2's converter, if that is loaded.

    Called whenever a configuration is made, for the converter may be loaded before or after the folder's code. `python
    -m ctranslate2.converters.transformers` loads it under the name `__main__`.
    """
    for module in (sys.modules.get(CONVERTER), sys.modules.get("__main__")):
        is_converter = getattr(getattr(module, "__spec__", None), "name", None) == CONVERTER
        if is_converter and hasattr(module, "register_loader"):
            module.register_loader("SeqloomConfig")(SeqloomLoader)  # type: ignore[union-attr]


@torch.no_grad()
def build_spec(model: Any, tokenizer: Any, alignment_layer: int = -1) -> Any:
    """Return a model as CTranslate2 describes one, with copies of the weights and the vocabulary.

    Args:
        model: a `SeqloomForConditionalGeneration` on the CPU.
        tokenizer: of the same folder; the names of its tokens are the engine's vocabulary, on both sides.
        alignment_layer: of the decoder, whose cross attention the engine returns, the mean of its heads.

    Returns:
        A `ctranslate2.specs.TransformerSpec`.

    Raises:
        ConversionError: for what the engine cannot compute, naming the nearest that works.
        ImportError: if CTranslate2 is too old.
    """
    refuse_old_engine()
    refuse_unknown_switches(model.config)
    settings = {**model.config.to_dict(), **_given(model.generation_config.to_dict())}
    specs = import_module("ctranslate2.specs")
    encoder, decoder = model.get_encoder(), model.get_decoder()
    spec = _specification()(
        specs.TransformerEncoderSpec(**_architecture(encoder, model.config.encoder_attention_heads)),
        specs.TransformerDecoderSpec(
            **_architecture(decoder, model.config.decoder_attention_heads),
            alignment_layer=alignment_layer,
            alignment_heads=0,  # the mean of all
        ),
    )
    _fill_stack(spec.encoder, encoder, spec.encoder.embeddings[0])
    _fill_stack(spec.decoder, decoder, spec.decoder.embeddings)
    spec.decoder.projection.weight = model.lm_head.weight.clone()
    if suppressed := settings.get("suppress_tokens"):
        spec.decoder.projection.bias = suppressing_bias(model.lm_head.weight, suppressed)
    _fill_settings(spec, model, tokenizer, settings)
    return spec


def refuse_old_engine() -> None:
    """Refuse a CTranslate2 that lacks what is needed.

    Raises:
        ImportError: naming the release that has it.
    """
    installed = version("ctranslate2")
    if tuple(int(part) for part in installed.split(".")[:3] if part.isdigit()) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ImportError(
            f"ctranslate2 {installed} is too old for Seqloom's models; pip install -U 'ctranslate2>={oldest}'."
        )


def refuse_unknown_switches(config: Any) -> None:
    """Refuse what the engine cannot compute.

    Raises:
        ConversionError: naming the nearest that works.
    """
    name = config.activation_function
    if name not in ACTIVATIONS:
        near = next((known for part, known in NEAREST_ACTIVATIONS.items() if part in name), "relu")
        raise ConversionError(
            f"activation_function={name!r} is none of CTranslate2's ({', '.join(ACTIVATIONS)}); train with "
            f"activation_function={near!r}, which is nearest."
        )
    if config.position_embedding_type == "rotary" and (kind := config.rope_parameters["rope_type"]) not in ROPE_TYPES:
        raise ConversionError(
            f"rope_type={kind!r} is none that CTranslate2 computes in an encoder-decoder ({', '.join(ROPE_TYPES)}); "
            f"'linear' with the same factor is nearest, and wants some updates of training to get used to."
        )


def suppressing_bias(weight: Tensor, token_ids: list[int]) -> Tensor:
    """Return (V,) numbers to add to the logits so that some words are never written.

    Args:
        weight: (V, D) of the LM head.
        token_ids: the words.
    """
    bias = weight.new_zeros(weight.shape[0])
    bias[token_ids] = SUPPRESSED
    return bias


def positions_in_table(config: Any) -> int | None:
    """Return how many tokens the converted model can read or write; None: as many as memory holds."""
    if config.position_embedding_type == "rotary":
        return None
    longest = config.max_position_embeddings
    return longest if config.position_embedding_type == "learned" else max(longest, STORED_POSITIONS)


def vocabulary_of(tokenizer: Any, size: int) -> list[str]:
    """Return the name of every id; ids that the tokenizer does not know get names that no text is cut into.

    Raises:
        ConversionError: if the tokenizer has more ids than the model.
    """
    names = {index: token for token, index in tokenizer.get_vocab().items()}
    if max(names) >= size:
        raise ConversionError(
            f"the tokenizer has {max(names) + 1:,} ids and the model's vocab_size is {size:,}; call "
            f"model.resize_token_embeddings({max(names) + 1}) and save both together."
        )
    return [names.get(index, f"<unnamed_{index}>") for index in range(size)]


# Eight bits ----------------------------------------------------------------------------------------------------------

INT8_SHARE = 63 / 127
"""Share of the range of int8 that weights use: two products of them and of an unsigned byte fit into 16 bits.

x86 without VNNI adds two such products in 16 bits and cuts what does not fit. On such a machine (AMD, oneDNN) forced
log-probabilities were 0.33 off with the whole range, and 0.02 with half of it (LOG: int8 without VNNI); torch's and
fbgemm's `reduce_range` is the same. It costs one bit of the weights.
"""


def _specification() -> Any:
    """Return CTranslate2's `TransformerSpec`, which quantises to half of the range of int8."""
    base: Any = import_module("ctranslate2.specs").TransformerSpec

    class HalfRangeSpec(base):
        """What the engine reads as a TransformerSpec: that is the name it is saved under."""

        def optimize(self, quantization: str | None = None) -> None:
            """Quantise."""
            super().optimize(quantization)
            if str(quantization).startswith("int8"):
                import_module("ctranslate2.specs.model_spec").visit_spec(self, _halve_range)

    return HalfRangeSpec


def _halve_range(spec: Any, name: str, value: Any) -> None:
    """Scale one variable and its scale down, if it is quantised; an alias is a string and follows."""
    scale: Any = getattr(spec, f"{name.rpartition('/')[2]}_scale", None)
    if getattr(value, "dtype", None) == "int8" and hasattr(scale, "array"):
        value.array[...] = (value.array * INT8_SHARE).round()
        scale.array *= INT8_SHARE


# Parts ---------------------------------------------------------------------------------------------------------------


def _architecture(stack: Any, heads: int) -> dict[str, Any]:
    """The arguments of one side's specification."""
    config = stack.config
    groups = config.num_key_value_heads
    activations = import_module("ctranslate2.specs").Activation
    return {
        "num_layers": len(stack.layers),
        "num_heads": heads,
        "num_heads_kv": None if groups in (None, heads) else groups,  # as many as heads: another layout than None
        "pre_norm": config.norm_position == "pre",
        "rms_norm": config.norm_type == "rmsnorm",
        "activation": getattr(activations, ACTIVATIONS[config.activation_function]),
        "ffn_glu": config.use_gated_ffn,
        **_rotary(config, heads),
    }


def _rotary(config: Any, heads: int) -> dict[str, Any]:
    if config.position_embedding_type != "rotary":
        return {}
    rope = config.rope_parameters
    rotary = {
        "rotary_dim": config.d_model // heads,
        "rotary_interleave": False,  # pairs are (i, i + H/2), as in Llama
        "rotary_base": rope["rope_theta"],
    }
    if rope["rope_type"] == "linear":  # the factor alone would be ignored
        scaling = import_module("ctranslate2.specs").RotaryScalingType
        rotary |= {"rotary_scaling_type": scaling.Linear, "rotary_scaling_factor": rope["factor"]}
    return rotary


def _fill_stack(spec: Any, stack: Any, embeddings: Any) -> None:
    """Fill one side: embeddings, positions, layers, and a pre-norm's last norm.

    Nothing that the model itself holds is handed over: CTranslate2 quantises in place, and the model would answer with
    what is left of its weights.
    """
    spec.scale_embeddings = stack.embed_scale
    embeddings.weight = stack.embed_tokens.weight.clone()
    table = _positions(stack)
    if table is None:
        if hasattr(spec, "position_encodings"):  # the encoder's specification always asks for some
            del spec.position_encodings
    else:
        spec.position_encodings.encodings = table
    if hasattr(spec, "layer_norm"):
        _fill_norm(spec.layer_norm, stack.layer_norm)
    for layer_spec, layer in zip(spec.layer, stack.layers):
        _fill_self_attention(layer_spec.self_attention, layer.self_attn, layer.self_attn_layer_norm)
        if hasattr(layer, "encoder_attn"):
            _fill_cross_attention(layer_spec.attention, layer.encoder_attn, layer.encoder_attn_layer_norm)
        _fill_feed_forward(layer_spec.ffn, layer)


def _positions(stack: Any) -> Tensor | None:
    """Return (positions, D) vectors that are added to the embeddings; None: positions are rotary."""
    limit = positions_in_table(stack.config)
    if limit is None:
        return None
    if stack.config.position_embedding_type == "learned":
        return stack.embed_positions.table.weight.clone()
    weight = stack.embed_tokens.weight
    nothing = weight.new_zeros((1, limit, stack.config.d_model))
    return stack.embed_positions(nothing, torch.arange(limit, device=weight.device)[None])[0]


def _fill_self_attention(spec: Any, attention: Any, norm: nn.Module) -> None:
    _fuse(spec.linear[0], attention.q_proj, attention.k_proj, attention.v_proj)
    _fuse(spec.linear[1], attention.out_proj)
    _fill_norm(spec.layer_norm, norm)


def _fill_cross_attention(spec: Any, attention: Any, norm: nn.Module) -> None:
    _fuse(spec.linear[0], attention.q_proj)
    _fuse(spec.linear[1], attention.k_proj, attention.v_proj)
    _fuse(spec.linear[2], attention.out_proj)
    _fill_norm(spec.layer_norm, norm)


def _fill_feed_forward(spec: Any, layer: Any) -> None:
    _fuse(spec.linear_0, layer.fc1)
    _fuse(spec.linear_1, layer.fc2)
    if layer.fc3 is not None:
        _fuse(spec.linear_0_noact, layer.fc3)
    _fill_norm(spec.layer_norm, layer.final_layer_norm)


def _fuse(spec: Any, *linears: Any) -> None:
    """Lay projections one below the other: one matrix product for all."""
    spec.weight = torch.cat([linear.weight for linear in linears])
    spec.bias = torch.cat([linear.bias for linear in linears])


def _fill_norm(spec: Any, norm: Any) -> None:
    spec.gamma = norm.weight.clone()
    if hasattr(spec, "beta"):
        spec.beta = norm.bias.clone()


def _fill_settings(spec: Any, model: Any, tokenizer: Any, settings: dict[str, Any]) -> None:
    """Name the tokens that the engine has to know, and the vocabulary of both sides."""
    names = vocabulary_of(tokenizer, model.config.vocab_size)
    spec.register_source_vocabulary(names)
    spec.register_target_vocabulary(names)
    end, start = first_of(settings.get("eos_token_id")), first_of(settings.get("decoder_start_token_id"))
    if end is None or start is None:
        raise ConversionError(
            f"eos_token_id={end} and decoder_start_token_id={start}: CTranslate2 has to know where an answer begins "
            f"and ends; name both in config.json."
        )
    spec.config.eos_token = names[end]
    spec.config.decoder_start_token = names[start]
    spec.config.bos_token = names[start]
    # An unknown token that is no entry would be appended to the vocabulary, which then no longer fits the weights.
    unknown = tokenizer.unk_token_id
    spec.config.unk_token = names[end if unknown is None else unknown]
    spec.config.layer_norm_epsilon = model.config.norm_eps


def first_of(ids: int | list[int] | None) -> int | None:
    """Return the id, or the first of several."""
    return ids[0] if isinstance(ids, list) else ids


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


__all__ = ["ConversionError", "SeqloomLoader", "build_spec", "offer_loader", "positions_in_table"]
