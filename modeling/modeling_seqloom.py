"""The Transformer of Vaswani et al. 2017, "Attention Is All You Need" ("the paper"), from tokens to the next word.

The file reads in the order in which a sentence travels: (2) tokens become vectors, (3) positions are added, (4) every
token asks with its query, answers with its key and hands over its value, (5) encoder layers, (6) decoder layers, and
(7) the LM head scores every word of the vocabulary. Masks, caches, attention kernels and output capture are those of
transformers: https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/bart/modeling_bart.py
shows the conventions.

    B batch    S source length    T target length    L either length
    D d_model  N query heads      G key/value heads  H head dimension = D / N    F feed-forward width    V vocabulary
"""

import copy
import math
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.generation import GenerationConfig, GenerationMixin
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateOutput
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel, slice_logits_to_keep
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from seqloom.configuration.configuration_seqloom import SeqloomConfig
from seqloom.modeling.canary import adopt_canary, check_once, share, write_canary
from seqloom.modeling.fast_dropout import dropout
from seqloom.modeling.fused_loss import linear_cross_entropy
from seqloom.modeling.library import (
    CACHE,
    CACHE_NAMES,
    BaseModelOutputWithPastAndCrossAttentions,
    GradientCheckpointingLayer,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
    StepInputs,
    answer_to_both_names,
    by_one_name,
    known_keywords,
    naming_unknown_keywords,
    refuse_other_weights,
    tell_peft,
)
from seqloom.modeling.limits import DEFAULT_MAX_LENGTH, check_generation, check_ids, shorten

PACKED = "seqloom_packed"
"""The attention kernel for packed sentences, as `attn_implementation` takes it; see packing.py."""

NORMS: dict[str, type[nn.Module]] = {"layernorm": nn.LayerNorm, "rmsnorm": nn.RMSNorm}


# ---------------------------------------------------------------------------------------------------------------------
# Chapter 2: tokens become vectors (paper section 3.4)
# ---------------------------------------------------------------------------------------------------------------------


def shift_right(ids: Tensor, pad_token_id: int | None, start_token_id: int | None) -> Tensor:
    """Return what the decoder reads when it has to predict `ids`: the start token, then all but the last.

    Args:
        ids: (B, T) target ids; -100 (ignored by the loss) is read as padding.
        pad_token_id: what takes the place of -100.
        start_token_id: the first token that the decoder reads; it stands just before the first real target.

    Returns:
        (B, T) decoder input ids.

    Raises:
        ValueError: when the configuration lacks one of the two tokens.
    """
    if pad_token_id is None or start_token_id is None:
        raise ValueError(
            f"pad_token_id={pad_token_id} and decoder_start_token_id={start_token_id}: shifting targets right needs "
            f"both; set them in the configuration, or give decoder_input_ids."
        )
    shifted = torch.cat([torch.full_like(ids[:, :1], -100), ids[:, :-1]], dim=1)
    shifted = shifted.masked_fill(is_first_target(ids), start_token_id)
    return shifted.masked_fill(shifted == -100, pad_token_id)


def is_first_target(labels: Tensor) -> Tensor:
    """Return (B, T) booleans, True at each row's first label that is not -100: behind it, padding is on the left."""
    is_target = labels != -100
    return is_target & (is_target.cumsum(-1) == 1)


def real_tokens(input_ids: Tensor | None, config: SeqloomConfig) -> Tensor | None:
    """Return the mask of a batch that came without one, (B, S), 1 where a token is not padding; None: for no ids.

    Raises:
        ValueError: where padding and the end of a sentence are one token, and a row has several of it.
    """
    pad = config.pad_token_id
    if input_ids is None or pad is None:
        return None
    is_real = input_ids != pad
    if config.eos_token_id not in (pad, [pad]):
        return is_real.long()
    if not torch.compiler.is_compiling() and bool(((~is_real).sum(-1) > 1).any()):
        raise ValueError(
            f"attention_mask is missing, and pad_token_id={pad} is the end of sequence too, so that nobody can tell "
            f"padding from text; give attention_mask, as a tokenizer called with padding=True returns it."
        )
    return None


def is_packed(kwargs: dict[str, Any], config: SeqloomConfig) -> bool:
    """Return whether a row is several sentences end to end, without padding: `cu_seq_lens_k` says where they end.

    Raises:
        ValueError: for an attention kernel that reads them as one.
    """
    if kwargs.get("cu_seq_lens_k") is None:
        return False
    if config._attn_implementation != PACKED:
        raise ValueError(
            f"cu_seq_lens_k says where packed sentences end, and attn_implementation={config._attn_implementation!r} "
            f"reads them as one; call seqloom.modeling.packing.attend_to_packed(model) first, or do not pack."
        )
    return True


# ---------------------------------------------------------------------------------------------------------------------
# Chapter 3: positions (paper section 3.5)
# ---------------------------------------------------------------------------------------------------------------------


def count_positions(attention_mask: Tensor | None, inputs_embeds: Tensor, past: Cache | None = None) -> Tensor:
    """Number the tokens so that padding is invisible: position 0 is the first real token, left-padded or not.

    Args:
        attention_mask: (B, past + L), nonzero at real tokens; anything but a 2D mask counts all tokens as real.
        inputs_embeds: (B, L, D), read for length and device only.
        past: keys and values of the tokens before these.

    Returns:
        (B, L) or (1, L) positions, counted from 0; padding gets a neighbour's number, nobody attends to it.
    """
    length = inputs_embeds.shape[1]
    if attention_mask is None or attention_mask.ndim != 2:
        past_length = 0 if past is None else past.get_seq_length()
        return torch.arange(length, device=inputs_embeds.device)[None] + past_length
    positions = (attention_mask != 0).long().cumsum(-1) - 1
    return positions.clamp(min=0)[:, -length:].to(inputs_embeds.device)


class SeqloomSinusoidalPositions(nn.Module):
    """PE(pos) = [sin(pos * w_i) | cos(pos * w_i)] with w_i = 10000^(-2i/D): computed at any length, nothing stored.

    The halves stand side by side as in Marian (the paper interleaves them, which permutes the dimensions only).
    """

    def __init__(self, config: SeqloomConfig) -> None:
        super().__init__()
        self.d_model = config.d_model

    def forward(self, hidden_states: Tensor, position_ids: Tensor) -> Tensor:
        """Add each token's position vector; the shape (B, L, D) does not change."""
        device = hidden_states.device
        # Turns are counted in float64 where there is one: in float32 they drift by 1e-3 at position 20,000.
        wide = torch.float32 if device.type == "mps" else torch.float64
        exponents = torch.arange(0, self.d_model, 2, device=device, dtype=wide) / self.d_model
        angles = (position_ids[..., None] * 10000.0**-exponents).remainder(2 * math.pi)  # (B, L, D/2)
        angles = angles.to(torch.promote_types(hidden_states.dtype, torch.float32))
        table = torch.cat([angles.sin(), angles.cos()], dim=-1)  # (B, L, D)
        return hidden_states + table.to(hidden_states.dtype)


class SeqloomLearnedPositions(nn.Module):
    """One trained vector a position, up to `max_position_embeddings` of them."""

    def __init__(self, config: SeqloomConfig) -> None:
        super().__init__()
        self.table = nn.Embedding(config.max_position_embeddings, config.d_model)

    def forward(self, hidden_states: Tensor, position_ids: Tensor) -> Tensor:
        """Add each token's position vector; the shape (B, L, D) does not change.

        Raises:
            ValueError: for more tokens than the table has rows.
        """
        limit = self.table.num_embeddings
        if not torch.compiler.is_compiling() and (longest := int(position_ids.max()) + 1) > limit:
            raise ValueError(
                f"a sequence of {longest} tokens is longer than max_position_embeddings={limit}, all that learned "
                f"positions know; shorten it, or train with position_embedding_type='sinusoidal' or 'rotary'."
            )
        return hidden_states + self.table(position_ids)


class SeqloomNoAddedPositions(nn.Module):
    """Rotary models add nothing to the embeddings: positions turn queries and keys instead."""

    def __init__(self, config: SeqloomConfig) -> None:
        super().__init__()

    def forward(self, hidden_states: Tensor, position_ids: Tensor) -> Tensor:
        """Return (B, L, D) unchanged."""
        return hidden_states


ADDED_POSITIONS: dict[str, type[nn.Module]] = {
    "sinusoidal": SeqloomSinusoidalPositions,
    "learned": SeqloomLearnedPositions,
    "rotary": SeqloomNoAddedPositions,
}


class SeqloomRotaryEmbedding(nn.Module):
    """Cosines and sines by which queries and keys are turned (Su et al. 2021), with transformers' length scaling."""

    inv_freq: Tensor
    attention_scaling: float

    def __init__(self, config: SeqloomConfig) -> None:
        super().__init__()
        self.config = config
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        self.rope_type = config.rope_parameters["rope_type"]
        compute = self.compute_default_rope_parameters if self.rope_type == "default" else None
        inv_freq, self.attention_scaling = (compute or ROPE_INIT_FUNCTIONS[self.rope_type])(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: SeqloomConfig, *_: Any, **__: Any) -> tuple[Tensor, float]:
        """Return the frequencies theta^(-2i/H), i < H/2, and a scale of 1 for the cosines and sines."""
        head_dim = config.hidden_size // config.num_attention_heads
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim
        return config.rope_parameters["rope_theta"] ** -exponents, 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, hidden_states: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines, each (B, L, H), for the positions (B, L)."""
        dtype = torch.promote_types(hidden_states.dtype, torch.float32)
        angles = position_ids[..., None].to(dtype) * self.inv_freq.to(hidden_states.device)  # (B, L, H/2)
        angles = torch.cat([angles, angles], dim=-1)  # (B, L, H)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(hidden_states.dtype), sin.to(hidden_states.dtype)


def rotate(states: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
    """Turn dimension pairs (i, i + H/2) of (B, N, L, H) by the angles whose cosines and sines (B, L, H) are given."""
    if rotation is None:  # positions were added to the embeddings
        return states
    cos, sin = (table[:, None] for table in rotation)  # (B, 1, L, H), the same for all heads
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat([-second, first], dim=-1) * sin


# ---------------------------------------------------------------------------------------------------------------------
# Chapter 4: query, key, value, in several heads (paper section 3.2)
# ---------------------------------------------------------------------------------------------------------------------


def eager_attention_forward(
    module: "SeqloomAttention",
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[Tensor, Tensor]:
    """softmax(Q K^T / sqrt(H)) V, written out; the other kernels compute the same.

    Args:
        module: the attention that asks; its `num_key_value_groups` query heads share one key/value head.
        query: (B, N, T, H).
        key: (B, G, L, H).
        value: (B, G, L, H).
        attention_mask: (B, 1, T, L), 0 where a query may look and very negative elsewhere; None: everywhere.
        scaling: 1 / sqrt(H).
        dropout: share of attention weights dropped.
        **kwargs: ignored here.

    Returns:
        The mixed values (B, T, N, H) and the attention weights (B, N, T, L).
    """
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)  # (B, N, L, H)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)  # (B, N, L, H)
    scores = query @ key.transpose(-2, -1) * scaling  # (B, N, T, L)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
    weights = nn.functional.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights  # (B, T, N, H)


class SeqloomAttention(nn.Module):
    """What self and cross attention share: four projections and one weighted mean."""

    is_causal = False
    is_cross_attention = False

    def __init__(self, config: SeqloomConfig, num_heads: int, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.d_model // num_heads
        num_key_value_heads = config.num_key_value_heads or num_heads
        self.num_key_value_groups = num_heads // num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = config.attention_dropout
        self.q_proj = nn.Linear(config.d_model, config.d_model)
        self.k_proj = nn.Linear(config.d_model, num_key_value_heads * self.head_dim)
        self.v_proj = nn.Linear(config.d_model, num_key_value_heads * self.head_dim)
        self.out_proj = nn.Linear(config.d_model, config.d_model)

    def split_heads(self, states: Tensor) -> Tensor:
        """(B, L, N * H) -> (B, N, L, H)."""
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Mix the values by how well keys answer queries and project: (B, N, T, H) -> (B, T, D), with the weights."""
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.dropout if self.training else 0.0
        mixed, weights = attention(
            self, query, key, value, attention_mask, scaling=self.scaling, dropout=dropout, **kwargs
        )  # (B, T, N, H)
        return self.out_proj(mixed.flatten(2)), weights  # (B, T, D)


class SeqloomSelfAttention(SeqloomAttention):
    """A sentence asks itself; in the decoder (`is_causal`) a token sees only itself and what came before."""

    def __init__(self, config: SeqloomConfig, num_heads: int, layer_idx: int, is_causal: bool) -> None:
        super().__init__(config, num_heads, layer_idx)
        self.is_causal = is_causal

    @known_keywords
    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotation: tuple[Tensor, Tensor] | None = None,
        cache: EncoderDecoderCache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attended states (B, L, D) and the attention weights, where the kernel keeps them."""
        query = rotate(self.split_heads(self.q_proj(hidden_states)), rotation)  # (B, N, L, H)
        key = rotate(self.split_heads(self.k_proj(hidden_states)), rotation)  # (B, G, L, H)
        value = self.split_heads(self.v_proj(hidden_states))  # (B, G, L, H)
        if cache is not None:
            key, value = cache.self_attention_cache.update(key, value, self.layer_idx)  # (B, G, past + L, H)
        return self.attend(query, key, value, attention_mask, **kwargs)


class SeqloomCrossAttention(SeqloomAttention):
    """The target asks the source; the source's keys and values are computed once a sentence and then reused."""

    is_cross_attention = True

    @known_keywords
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attended states (B, T, D) and the attention weights, where the kernel keeps them."""
        query = self.split_heads(self.q_proj(hidden_states))  # (B, N, T, H)
        key, value = self.source_keys_and_values(encoder_hidden_states, cache)
        return self.attend(query, key, value, attention_mask, **kwargs)

    def source_keys_and_values(
        self, encoder_hidden_states: Tensor, cache: EncoderDecoderCache | None
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values of the source, each (B, G, S, H), from the cache when they are there."""
        if cache is not None and cache.is_updated.get(self.layer_idx):
            cached = cache.cross_attention_cache.layers[self.layer_idx]
            return cached.keys, cached.values
        key = self.split_heads(self.k_proj(encoder_hidden_states))
        value = self.split_heads(self.v_proj(encoder_hidden_states))
        if cache is not None:
            key, value = cache.cross_attention_cache.update(key, value, self.layer_idx)
            cache.is_updated[self.layer_idx] = True
        return key, value


# ---------------------------------------------------------------------------------------------------------------------
# Chapter 5: the encoder = self attention + feed-forward, each with residual and norm (paper sections 3.1, 3.3, 5.4)
# ---------------------------------------------------------------------------------------------------------------------


class SeqloomLayer(GradientCheckpointingLayer):
    """What encoder and decoder layers share: the feed-forward, and residual + norm around every sublayer."""

    def __init__(self, config: SeqloomConfig, ffn_dim: int) -> None:
        super().__init__()
        self.is_pre_norm = config.norm_position == "pre"
        self.dropout = config.dropout
        self.activation_dropout = config.activation_dropout
        self.activation = ACT2FN[config.activation_function]
        self.fc1 = nn.Linear(config.d_model, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, config.d_model)
        self.fc3 = nn.Linear(config.d_model, ffn_dim) if config.use_gated_ffn else None

    def enter(self, norm: nn.Module, hidden_states: Tensor) -> Tensor:
        """Return what a sublayer reads: the stream, normalised first if the model is pre-norm."""
        return norm(hidden_states) if self.is_pre_norm else hidden_states

    def leave(self, norm: nn.Module, residual: Tensor, output: Tensor) -> Tensor:
        """Add a sublayer's output to the stream, and normalise afterwards if the model is post-norm."""
        hidden_states = residual + dropout(output, self.dropout, self.training)
        return hidden_states if self.is_pre_norm else norm(hidden_states)

    def feed_forward(self, hidden_states: Tensor) -> Tensor:
        """Transform each token on its own: (B, L, D) -> (B, L, F) -> (B, L, D)."""
        inner = self.activation(self.fc1(hidden_states))  # (B, L, F)
        if self.fc3 is not None:
            inner = inner * self.fc3(hidden_states)
        inner = dropout(inner, self.activation_dropout, self.training)
        return self.fc2(inner)  # (B, L, D)


class SeqloomEncoderLayer(SeqloomLayer):
    """Self attention, then feed-forward."""

    def __init__(self, config: SeqloomConfig, layer_idx: int) -> None:
        super().__init__(config, config.encoder_ffn_dim)
        norm = NORMS[config.norm_type]
        self.self_attn = SeqloomSelfAttention(config, config.encoder_attention_heads, layer_idx, is_causal=False)
        self.self_attn_layer_norm = norm(config.d_model, config.norm_eps)
        self.final_layer_norm = norm(config.d_model, config.norm_eps)

    @known_keywords
    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotation: tuple[Tensor, Tensor] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        normed = self.enter(self.self_attn_layer_norm, hidden_states)
        attended, _ = self.self_attn(normed, attention_mask, rotation, **kwargs)
        hidden_states = self.leave(self.self_attn_layer_norm, hidden_states, attended)

        normed = self.enter(self.final_layer_norm, hidden_states)
        return self.leave(self.final_layer_norm, hidden_states, self.feed_forward(normed))


class SeqloomPreTrainedModel(PreTrainedModel):
    """What transformers has to know of every Seqloom class: what it supports, and how weights start."""

    config: SeqloomConfig
    config_class = SeqloomConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["SeqloomEncoderLayer", "SeqloomDecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = list(CACHE_NAMES)  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _folder_max_new_tokens: int | None = None
    """What the folder's generation_config.json says; what a caller says beats it, see `_prepare_generation_config`."""

    def __init__(self, config: SeqloomConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        tell_peft(config.model_type)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Start as tensor2tensor did: Xavier projections, N(0, 1/D) embeddings; `init_std` asks for one normal."""
        std = self.config.init_std
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight) if std is None else init.normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.d_model**-0.5 if std is None else std)
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                init.zeros_(module.weight[module.padding_idx])
        else:
            super()._init_weights(module)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a folder, and remember its canary; all as in `PreTrainedModel.from_pretrained`.

        But nothing is filled at random unless the caller passes `ignore_mismatched_sizes=True`, or has a class of
        their own, with a head that is new.

        Raises:
            WeightsError: naming the weights that are missing, of another shape, or unknown.
        """
        options = {**kwargs, "output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, **options)
        if not kwargs.get("ignore_mismatched_sizes"):
            refuse_other_weights(info, model.config.architectures or (), pretrained_model_name_or_path)
        settings = getattr(model, "generation_config", None)
        if settings is not None and settings.max_new_tokens is not None:
            settings.max_length = None  # in a file that has both, transformers follows the other; later, see generate
            model._folder_max_new_tokens = settings.max_new_tokens
        adopt_canary(model, pretrained_model_name_or_path, kwargs)
        return (model, info) if kwargs.get("output_loading_info") else model

    def save_pretrained(
        self,
        save_directory: str | PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Save a folder with a canary in it; all as in `PreTrainedModel.save_pretrained`."""
        if is_main_process and not Path(save_directory).is_file():
            write_canary(self, save_directory, foreign_weights=self._are_others(state_dict))
        super().save_pretrained(save_directory, is_main_process, state_dict, *args, **kwargs)
        for weights in Path(save_directory).glob("*.safetensors") if is_main_process else ():
            share(weights)

    def _are_others(self, state_dict: dict[str, Tensor] | None) -> bool:
        """Whether a state_dict holds other tensors than this model."""
        if state_dict is None:
            return False
        own = {tensor.data_ptr() for tensor in self.state_dict().values()}
        return any(tensor.data_ptr() not in own for tensor in state_dict.values())

    def _resize_token_embeddings(
        self, new_num_tokens: int | None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Resize the decoder's own table too, when it has one."""
        resized = super()._resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        decoder = self.get_decoder()
        if decoder is not None and not self.config.tie_word_embeddings:
            size = resized.num_embeddings
            decoder.embed_tokens = self._get_resized_embeddings(decoder.embed_tokens, size, None, mean_resizing)
        return resized


class SeqloomStack(SeqloomPreTrainedModel):
    """What encoder and decoder share: embeddings and positions at the entrance, one norm at a pre-norm's exit."""

    def __init__(self, config: SeqloomConfig) -> None:
        super().__init__(config)
        self.dropout = config.dropout
        self.embed_scale = math.sqrt(config.d_model) if config.scale_embedding else 1.0
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model, config.pad_token_id)
        self.embed_positions = ADDED_POSITIONS[config.position_embedding_type](config)
        is_rotary = config.position_embedding_type == "rotary"
        self.rotary_emb = SeqloomRotaryEmbedding(self.side_config) if is_rotary else None
        is_pre_norm = config.norm_position == "pre"
        self.layer_norm = NORMS[config.norm_type](config.d_model, config.norm_eps) if is_pre_norm else nn.Identity()
        self.gradient_checkpointing = False

    @property
    def side_config(self) -> SeqloomConfig:
        """The configuration in which `num_attention_heads` and `num_hidden_layers` are this side's."""
        return self.config

    def look_up(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """Return the rows of the embedding table, (B, L, D), for ids; or the rows that the caller looked up.

        Raises:
            ValueError: unless exactly one of the two is given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(
                f"{type(self).__name__} got {'neither' if input_ids is None else 'both'} of input_ids and "
                f"inputs_embeds; give exactly one."
            )
        return self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds

    def embed(self, inputs_embeds: Tensor, position_ids: Tensor) -> Tensor:
        """Scale the embeddings and add positions: (B, L, D) -> (B, L, D)."""
        hidden_states = self.embed_positions(inputs_embeds * self.embed_scale, position_ids)
        return dropout(hidden_states, self.dropout, self.training)

    def rotation(self, hidden_states: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the cosines and sines that turn queries and keys; None unless positions are rotary."""
        return None if self.rotary_emb is None else self.rotary_emb(hidden_states, position_ids)


class SeqloomEncoder(SeqloomStack):
    """Embeddings, then `encoder_layers` times self attention and feed-forward."""

    _can_record_outputs = {"hidden_states": SeqloomEncoderLayer, "attentions": SeqloomSelfAttention}  # noqa: RUF012

    def __init__(self, config: SeqloomConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList([SeqloomEncoderLayer(config, i) for i in range(config.encoder_layers)])
        self.post_init()

    @known_keywords
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Read the source.

        Args:
            input_ids: (B, S) token ids.
            attention_mask: (B, S), 1 at real tokens and 0 at padding, on whichever side; None: padding is where
                `pad_token_id` stands in the ids.
            inputs_embeds: (B, S, D) rows of the embedding table instead of ids.
            position_ids: (B, S), counted from 0; None: counted from the mask.
            **kwargs: `output_hidden_states`, `output_attentions`, and what attention kernels take.

        Returns:
            `last_hidden_state` (B, S, D).
        """
        if not is_packed(kwargs, self.config) and attention_mask is None:
            attention_mask = real_tokens(input_ids, self.config)
        inputs_embeds = self.look_up(input_ids, inputs_embeds)  # (B, S, D)
        if position_ids is None:
            position_ids = count_positions(attention_mask, inputs_embeds)  # (B, S)
        mask = create_bidirectional_mask(self.config, inputs_embeds, attention_mask)  # (B, 1, S, S)
        hidden_states = self.embed(inputs_embeds, position_ids)
        rotation = self.rotation(hidden_states, position_ids)
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, rotation, **kwargs)
        return BaseModelOutput(last_hidden_state=self.layer_norm(hidden_states))


# ---------------------------------------------------------------------------------------------------------------------
# Chapter 6: the decoder = masked self attention + cross attention + feed-forward (paper section 3.1)
# ---------------------------------------------------------------------------------------------------------------------


class SeqloomDecoderLayer(SeqloomLayer):
    """Masked self attention, cross attention, then feed-forward."""

    num_hidden_layers_key = "decoder_layers"
    """Where transformers' capture of hidden states reads how many there are, to count them from the end."""

    def __init__(self, config: SeqloomConfig, layer_idx: int) -> None:
        super().__init__(config, config.decoder_ffn_dim)
        norm = NORMS[config.norm_type]
        self.self_attn = SeqloomSelfAttention(config, config.decoder_attention_heads, layer_idx, is_causal=True)
        self.self_attn_layer_norm = norm(config.d_model, config.norm_eps)
        self.encoder_attn = SeqloomCrossAttention(config, config.decoder_attention_heads, layer_idx)
        self.encoder_attn_layer_norm = norm(config.d_model, config.norm_eps)
        self.final_layer_norm = norm(config.d_model, config.norm_eps)

    @known_keywords
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        rotation: tuple[Tensor, Tensor] | None = None,
        cache: EncoderDecoderCache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        normed = self.enter(self.self_attn_layer_norm, hidden_states)
        attended, _ = self.self_attn(normed, attention_mask, rotation, cache, **kwargs)
        hidden_states = self.leave(self.self_attn_layer_norm, hidden_states, attended)

        normed = self.enter(self.encoder_attn_layer_norm, hidden_states)
        attended, _ = self.encoder_attn(normed, encoder_hidden_states, encoder_attention_mask, cache, **kwargs)
        hidden_states = self.leave(self.encoder_attn_layer_norm, hidden_states, attended)

        normed = self.enter(self.final_layer_norm, hidden_states)
        return self.leave(self.final_layer_norm, hidden_states, self.feed_forward(normed))


class SeqloomDecoder(SeqloomStack):
    """Embeddings, then `decoder_layers` times masked self attention, cross attention and feed-forward."""

    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": SeqloomDecoderLayer,
        "attentions": OutputRecorder(SeqloomSelfAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(SeqloomCrossAttention, index=1, layer_name="encoder_attn"),
    }

    def __init__(self, config: SeqloomConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList([SeqloomDecoderLayer(config, i) for i in range(config.decoder_layers)])
        self.post_init()

    @property
    def side_config(self) -> SeqloomConfig:
        """The configuration in which `num_attention_heads` and `num_hidden_layers` are the decoder's."""
        return self.config.get_text_config(decoder=True)

    @known_keywords
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Write the target, reading the source.

        Args:
            input_ids: (B, T) ids of the target so far; with a cache only those that are not in it.
            attention_mask: (B, past + T), 1 at real tokens; or a mask made ready, (B, 1, T, past + T).
            encoder_hidden_states: (B, S, D), what the encoder made of the source.
            encoder_attention_mask: (B, S), 1 at the source's real tokens.
            cache: keys and values of earlier steps.
            inputs_embeds: (B, T, D) rows of the embedding table instead of ids.
            position_ids: (B, T), counted from 0; None: counted from the mask.
            use_cache: keep keys and values for the next step.
            **kwargs: `output_hidden_states`, `output_attentions`, and what attention kernels take.

        Returns:
            `last_hidden_state` (B, T, D) and the cache.

        Raises:
            ValueError: without a source to read.
        """
        if encoder_hidden_states is None:
            raise ValueError(
                "encoder_hidden_states is missing: the decoder reads what the encoder made of a source; give it, or "
                "call SeqloomModel, which does both."
            )
        inputs_embeds = self.look_up(input_ids, inputs_embeds)  # (B, T, D)
        cache = self.prepare_cache(cache, use_cache)
        past = None if cache is None else cache.self_attention_cache
        if position_ids is None:
            position_ids = count_positions(attention_mask, inputs_embeds, past)  # (B, T)
        mask = create_causal_mask(self.config, inputs_embeds, attention_mask, past)  # (B, 1, T, past + T)
        encoder_mask = create_bidirectional_mask(
            self.config, inputs_embeds, encoder_attention_mask, encoder_hidden_states
        )  # (B, 1, T, S)
        hidden_states = self.embed(inputs_embeds, position_ids)
        rotation = self.rotation(hidden_states, position_ids)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states, encoder_hidden_states, mask, encoder_mask, rotation, cache=cache, **kwargs
            )
        return BaseModelOutputWithPastAndCrossAttentions(self.layer_norm(hidden_states), cache=cache)

    def prepare_cache(self, cache: Cache | None, use_cache: bool | None) -> EncoderDecoderCache | None:
        """Return the cache with its two halves: the given one, a new one, or none."""
        if cache is None and not use_cache:
            return None
        if isinstance(cache, EncoderDecoderCache):
            return cache
        self_cache = cache if cache is not None else DynamicCache(config=self.config)
        return EncoderDecoderCache(self_cache, DynamicCache(config=self.config))


class SeqloomModel(SeqloomPreTrainedModel):
    """Encoder and decoder without the LM head."""

    _tied_weights_keys = {"decoder.embed_tokens.weight": "encoder.embed_tokens.weight"}  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = ["lm_head.weight"]  # noqa: RUF012

    def __init__(self, config: SeqloomConfig) -> None:
        super().__init__(config)
        self.encoder = SeqloomEncoder(config)
        self.decoder = SeqloomDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the source's embedding table [V, D]; tied, it is the target's and the LM head's too."""
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the source's embedding table, and the target's where they are one."""
        self.encoder.embed_tokens = value
        if self.config.tie_word_embeddings:
            self.decoder.embed_tokens = value

    @known_keywords
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        decoder_position_ids: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqModelOutput:
        """Encode the source, then decode the target that is given.

        Args:
            input_ids: (B, S) source ids.
            attention_mask: (B, S), 1 at the source's real tokens; None: padding is where `pad_token_id` stands.
            decoder_input_ids: (B, T) what the decoder reads; None: the source shifted right, as in BART.
            decoder_attention_mask: (B, past + T), 1 at the target's real tokens.
            encoder_outputs: what the encoder returned before, or its parts in a tuple; the source is not read again.
            cache: keys and values of earlier steps.
            inputs_embeds: (B, S, D) rows of the embedding table instead of `input_ids`.
            decoder_inputs_embeds: (B, T, D) rows instead of `decoder_input_ids`.
            position_ids: (B, S) of the source, counted from 0; None: counted from the mask.
            decoder_position_ids: (B, T) likewise.
            use_cache: keep keys and values for the next step.
            **kwargs: `output_hidden_states`, `output_attentions`, and what attention kernels take.

        Returns:
            `last_hidden_state` (B, T, D) of the decoder, with the encoder's outputs and the cache beside it.
        """
        if not is_packed(kwargs, self.config) and attention_mask is None:
            attention_mask = real_tokens(input_ids, self.config)
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self.default_decoder_input_ids(input_ids)
        source = self.encode(encoder_outputs, input_ids, attention_mask, inputs_embeds, position_ids, **kwargs)
        target = self.decoder(
            decoder_input_ids,
            decoder_attention_mask,
            encoder_hidden_states=source.last_hidden_state,
            encoder_attention_mask=attention_mask,
            cache=cache,
            inputs_embeds=decoder_inputs_embeds,
            position_ids=decoder_position_ids,
            use_cache=use_cache,
            **kwargs,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=target.last_hidden_state,
            cache=target.cache,
            decoder_hidden_states=target.hidden_states,
            decoder_attentions=target.attentions,
            cross_attentions=target.cross_attentions,
            encoder_last_hidden_state=source.last_hidden_state,
            encoder_hidden_states=source.hidden_states,
            encoder_attentions=source.attentions,
        )

    def encode(
        self, encoder_outputs: BaseModelOutput | tuple[Tensor, ...] | None, *args: Any, **kwargs: Any
    ) -> BaseModelOutput:
        """Return what the encoder returned before, or else let it read the source."""
        if encoder_outputs is None:
            return self.encoder(*args, **kwargs)
        if isinstance(encoder_outputs, BaseModelOutput):
            return encoder_outputs
        return BaseModelOutput(*encoder_outputs[:3])

    def default_decoder_input_ids(self, input_ids: Tensor | None) -> Tensor:
        """Return the source shifted right, for callers such as feature extraction that have no target.

        Raises:
            ValueError: when there are no source ids either.
        """
        if input_ids is None:
            raise ValueError(
                "decoder_input_ids and decoder_inputs_embeds are both missing, and without input_ids nothing can "
                "stand in for them; give one of the three, or labels to SeqloomForConditionalGeneration."
            )
        return shift_right(input_ids, self.config.pad_token_id, self.config.decoder_start_token_id)


# ---------------------------------------------------------------------------------------------------------------------
# Chapter 7: the LM head scores every word of the vocabulary; the arg max is the next word (paper sections 3.4, 5.4)
# ---------------------------------------------------------------------------------------------------------------------


def label_smoothed_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy against (1 - epsilon) * one-hot + epsilon / V, summed over real targets.

    Args:
        logits: (B, T, V).
        labels: (B, T), -100 where there is nothing to predict; not shifted, `labels[:, t]` belongs to `logits[:, t]`.
        label_smoothing: epsilon.

    Returns:
        The sum, a scalar in float32 or wider.
    """
    logits = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))  # (B * T, V)
    labels = labels.flatten().to(logits.device)
    return nn.functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)


def per_item(total: Tensor, labels: Tensor, num_items: Tensor | int | None) -> Tensor:
    """Divide a summed loss once.

    Args:
        total: the sum over the targets in `labels`.
        labels: (B, T), -100 where there is nothing to predict.
        num_items: targets in the whole update, over all processes and accumulation steps, so that the loss does not
            depend on how the update was cut. None: those in `labels`.
    """
    num_items = (labels != -100).sum() if num_items is None else torch.as_tensor(num_items)
    return total / num_items.to(total.device).clamp(min=1)  # no targets, no loss: 0, not NaN


NO_TARGET = (
    "labels, decoder_input_ids and decoder_inputs_embeds are all missing; give one of them. Trainer takes the labels "
    "out when label_smoothing_factor is set: set model.config.label_smoothing instead, or collate with "
    "DataCollatorForSeq2Seq(tokenizer, model=model)."
)


class SeqloomForConditionalGeneration(SeqloomPreTrainedModel, GenerationMixin):
    """The whole Transformer: source in, a score for every word of the vocabulary out."""

    _tied_weights_keys = {  # noqa: RUF012
        "model.decoder.embed_tokens.weight": "model.encoder.embed_tokens.weight",
        "lm_head.weight": "model.encoder.embed_tokens.weight",
    }

    def __init__(self, config: SeqloomConfig) -> None:
        super().__init__(config)
        self.model = SeqloomModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """Ids for both sides, for whoever wants the model to run once."""
        ids = super().dummy_inputs["input_ids"]
        return {"input_ids": ids, "decoder_input_ids": ids}

    @known_keywords
    @can_return_tuple
    def forward(  # noqa: D417 - the others are those of SeqloomModel.forward
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        decoder_position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        smoothing: float | None = None,
        num_items_in_batch: Tensor | int | None = None,
        skip_logits: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqLMOutput:
        """Score the next word at every target position.

        Args:
            input_ids: (B, S) source ids; this and what is not named here as in `SeqloomModel.forward`.
            decoder_input_ids: (B, T) what the decoder reads; None, with `labels`: they, shifted right.
            labels: (B, T) target ids, not shifted; -100 is ignored.
            logits_to_keep: score the last so many positions only, or those that a tensor names; 0: all.
            smoothing: epsilon of the loss; None: the configuration's `label_smoothing`. (Trainer takes whatever has
                "label" in its name for a target, and evaluates nothing without it.)
            num_items_in_batch: targets in the whole update; the loss is the sum divided by it. None: the mean.
            skip_logits: return the loss of `labels` without logits: faster, and the memory of (B, T, V) is saved.

        Returns:
            `logits` (B, T, V), `loss` (scalar, with labels), the cache, and both sides' states.
        """
        target = {
            "decoder_input_ids": decoder_input_ids,
            "decoder_attention_mask": decoder_attention_mask,
            "decoder_inputs_embeds": decoder_inputs_embeds,
            "cache": cache,
            "use_cache": use_cache,
        }
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            encoder_outputs=encoder_outputs,
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            decoder_position_ids=decoder_position_ids,
            **self.complete_target(target, labels),
            **kwargs,
        )
        hidden_states = slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)
        logits = None if skip_logits else self.lm_head(hidden_states)  # (B, T, V)
        return Seq2SeqLMOutput(
            loss=self.exact_loss(hidden_states, logits, labels, smoothing, num_items_in_batch),
            logits=logits,
            **{name: value for name, value in outputs.items() if name != "last_hidden_state"},
        )

    def complete_target(self, target: dict[str, Any], labels: Tensor | None) -> dict[str, Any]:
        """Return the decoder's inputs with what labels imply: they are read shifted right, and nothing is cached.

        What a given cache holds already, as a trained prefix does, stands before them and is seen.

        Raises:
            ValueError: where nothing says what the decoder reads; the source in its place would train nonsense.
        """
        if labels is None:
            if target["decoder_input_ids"] is None and target["decoder_inputs_embeds"] is None:
                raise ValueError(NO_TARGET)
            return target
        target["use_cache"] = False
        if target["decoder_input_ids"] is None and target["decoder_inputs_embeds"] is None:
            target["decoder_input_ids"] = self.prepare_decoder_input_ids_from_labels(labels)
            if target["decoder_attention_mask"] is None:  # causality hides padding on the right
                past_length = 0 if target["cache"] is None else target["cache"].get_seq_length()
                seen = is_first_target(labels).cumsum(-1)
                target["decoder_attention_mask"] = nn.functional.pad(seen, (past_length, 0), value=1)
        elif target["decoder_attention_mask"] is None and target["cache"] is None:
            ids, pad = target["decoder_input_ids"], self.config.pad_token_id
            # shifted by a collator, padded anywhere
            if ids is not None and pad not in (None, self.config.decoder_start_token_id):
                target["decoder_attention_mask"] = ids.ne(pad).cumsum(-1).gt(0)
        return target

    def exact_loss(
        self,
        hidden_states: Tensor,
        logits: Tensor | None,
        labels: Tensor | None,
        smoothing: float | None,
        num_items: Tensor | int | None,
    ) -> Tensor | None:
        """Return the loss of `labels` (None: of nothing), summed over targets and divided once.

        Raises:
            ValueError: without logits and without labels, for then there would be no result at all.
        """
        if labels is None:
            if logits is not None:
                return None
            raise ValueError("skip_logits=True leaves the loss as the only result, and without labels there is none.")
        smoothing = self.config.label_smoothing if smoothing is None else smoothing
        is_plain = type(self.lm_head) is nn.Linear and not hasattr(self.lm_head, "_hf_hook")
        if logits is None and not is_plain:  # an adapter is more than its weight, and an offloaded one lies elsewhere
            logits = self.lm_head(hidden_states)
        if logits is None:
            total = linear_cross_entropy(hidden_states, self.lm_head.weight, labels, smoothing)
        else:
            total = label_smoothed_loss(logits, labels, smoothing)
        return per_item(total, labels, num_items)

    def as_causal_lm(self) -> "SeqloomForCausalLM":
        """Return this very network, weights shared, behind the causal-LM interface."""
        if isinstance(self, SeqloomForCausalLM):
            return self
        model = copy.copy(self)
        model.__class__ = SeqloomForCausalLM
        return model

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Return (B, T): the start token, then the labels but the last, as `DataCollatorForSeq2Seq` asks for."""
        return shift_right(labels, self.config.pad_token_id, self.config.decoder_start_token_id)

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> GenerateOutput | Tensor:
        """Write; all as in `GenerationMixin.generate`, but that a batch without a mask gets one, see `real_tokens`.

        The first time under a library that was not tested, the canary sings before anything is answered.

        Args:
            inputs: (B, S) source ids, padded on whichever side.
            generation_config: None: the folder's.
            *args: as there.
            **kwargs: as there; the cache by either of its names; `labels` are left out.

        Returns:
            (B * num_return_sequences, 1 + new) ids, the decoder's start token first; or an output object.

        Raises:
            TypeError, ValueError: for text, or ids that no vocabulary of this size has.
            UnknownKeywordError: for a keyword that neither generate nor the network reads.
            CanaryError: where this library makes another answer of these weights.
        """
        check_once(self)
        kwargs.pop("labels", None)  # transformers' Seq2SeqTrainer hands over the whole batch
        source = kwargs.get("input_ids") if inputs is None else inputs
        check_ids(source, self.config.vocab_size)
        if kwargs.get("attention_mask") is None:
            is_ids = isinstance(source, Tensor) and source.ndim == 2
            kwargs["attention_mask"] = real_tokens(source, self.config) if is_ids else None
        with naming_unknown_keywords(kwargs, self.forward, GenerationMixin.generate):
            output = super().generate(inputs, generation_config, *args, **by_one_name(kwargs, CACHE))
        return answer_to_both_names(output)

    def _prepare_generation_config(
        self, generation_config: GenerationConfig | None, **kwargs: Any
    ) -> tuple[GenerationConfig, dict[str, Any]]:
        """Let a `max_length` that somebody asks for win over the folder's `max_new_tokens`, and refuse the absurd.

        `max_new_tokens` that a caller wrote into the model are no longer the folder's, and win, as in transformers.

        Raises:
            ValueError: for settings beyond what any model of this shape can do.
        """
        named = {**({} if generation_config is None else vars(generation_config)), **kwargs}
        settings, others = super()._prepare_generation_config(generation_config, **kwargs)
        own = self.generation_config
        is_folders = own.max_new_tokens == self._folder_max_new_tokens
        if named.get("max_new_tokens") is None and (
            named.get("max_length") is not None or (is_folders and own.max_length not in (None, DEFAULT_MAX_LENGTH))
        ):
            settings.max_new_tokens = None
        check_generation(settings)
        return settings, others

    def _prepare_generated_length(self, *args: Any, **kwargs: Any) -> GenerationConfig:
        """End outputs where learned positions do."""
        return shorten(super()._prepare_generated_length(*args, **kwargs), self.config)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, decoder_attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Count positions from the target's 2D mask while it is one: static caches turn it into a 4D mask next.

        What nobody here knows is handed on, as transformers does, for the forward to refuse.
        """
        if decoder_attention_mask is not None:
            kwargs["decoder_attention_mask"] = decoder_attention_mask
            if decoder_attention_mask.ndim == 2 and kwargs.get("decoder_position_ids") is None:
                kwargs["decoder_position_ids"] = count_positions(
                    decoder_attention_mask, decoder_attention_mask[..., None]
                )
        return StepInputs(super().prepare_inputs_for_generation(input_ids, *args, **by_one_name(kwargs, CACHE)))


# ---------------------------------------------------------------------------------------------------------------------
# Beyond the paper: the same Transformer where a decoder-only model is expected
# ---------------------------------------------------------------------------------------------------------------------


class SeqloomForCausalLM(SeqloomForConditionalGeneration, GenerationMixin):
    """The same network and weights behind the causal-LM interface: the prompt goes to the encoder.

    `generate(prompt)` returns prompt ids + new ids, which is what the stock text-generation pipeline, chat templates
    and transformers' server expect of a causal LM.
    """

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        streamer: BaseStreamer | None = None,
        **kwargs: Any,
    ) -> GenerateOutput | Tensor:
        """Continue the prompt.

        Args:
            inputs: (B, S) prompt ids, padded on whichever side (or `input_ids=`). A prompt that does not end in the
                end-of-sequence token is read as if it did, for chat templates leave it out.
            generation_config: as in `GenerationMixin.generate`.
            *args: as there.
            streamer: gets the prompt first, then each new token.
            **kwargs: as there; `max_length` and `min_length` count prompt and continuation together.

        Returns:
            (B * num_return_sequences, S + new) ids; or transformers' output object with such `sequences`.
        """
        prompt = kwargs.pop("input_ids", None) if inputs is None else inputs
        check_ids(prompt, self.config.vocab_size)
        if prompt is None and kwargs.get("decoder_input_ids") is not None:  # the caller speaks to the decoder itself
            return super().generate(None, generation_config, *args, streamer=streamer, **kwargs)
        if prompt is not None:
            inputs, kwargs["attention_mask"] = self._close(prompt, kwargs.get("attention_mask"))
            streamer = None if streamer is None else _PromptFirstStreamer(streamer, prompt)
        output = super().generate(inputs, generation_config, *args, streamer=streamer, **kwargs)
        sequences = output if isinstance(output, Tensor) else output.sequences
        sequences = sequences[:, 1:]  # the decoder's start token is no part of the text
        if prompt is not None:
            prompts = prompt.to(sequences.device).repeat_interleave(sequences.shape[0] // prompt.shape[0], dim=0)
            sequences = torch.cat([prompts, sequences], dim=1)
        if isinstance(output, Tensor):
            return sequences
        output.sequences = sequences
        return output

    def _close(self, prompt: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Append a column: the end of sequence where a prompt lacks it, invisible padding elsewhere."""
        pad, eos = self.generation_config.pad_token_id, self.generation_config.eos_token_id
        if attention_mask is None:
            attention_mask = torch.ones_like(prompt) if pad is None else (prompt != pad).long()
        blank = prompt.new_full((prompt.shape[0], 1), pad or 0)
        if eos is None:
            return torch.cat([prompt, blank], dim=1), torch.cat([attention_mask, blank * 0], dim=1)
        ends = torch.as_tensor(eos, device=prompt.device).reshape(-1)
        positions = torch.arange(1, prompt.shape[1] + 1, device=prompt.device) * (attention_mask != 0)  # (B, S)
        last = torch.cat([blank * 0, positions], dim=1).amax(1, keepdim=True)  # (B, 1), counted from 1; 0: empty
        is_open = ~torch.isin(torch.cat([blank, prompt], dim=1).gather(1, last), ends)  # (B, 1)
        closed = torch.cat([prompt, torch.where(is_open, ends[0], blank)], dim=1)
        return closed, torch.cat([attention_mask, is_open.to(attention_mask)], dim=1)

    def _prepare_generated_length(
        self,
        generation_config: GenerationConfig,
        has_default_max_length: bool,
        has_default_min_length: bool,
        model_input_name: str,
        input_ids_length: int,
        inputs_tensor: Tensor,
    ) -> GenerationConfig:
        """Turn lengths that count the prompt, as a causal LM's do, into lengths of what the decoder writes."""
        is_ids = model_input_name == "input_ids"
        # generate has appended one column to ids, and none to embeddings; beside encoder_outputs, -100 stands for ids
        prompt_length = 0 if is_ids and bool(inputs_tensor[0, 0] == -100) else inputs_tensor.shape[1] - is_ids
        if generation_config.max_new_tokens is None and not has_default_max_length:
            if generation_config.max_length <= prompt_length:
                raise ValueError(
                    f"max_length={generation_config.max_length} counts the prompt too and leaves no room after its "
                    f"{prompt_length} tokens; raise it, or set max_new_tokens instead."
                )
            generation_config.max_length += 1 - prompt_length  # the decoder's start token is no part of the text
        if generation_config.min_new_tokens is None and not has_default_min_length:
            generation_config.min_length = max(generation_config.min_length + 1 - prompt_length, 0)
        return super()._prepare_generated_length(
            generation_config,
            has_default_max_length,
            has_default_min_length,
            model_input_name,
            input_ids_length,
            inputs_tensor,
        )


class _PromptFirstStreamer(BaseStreamer):
    """Hands a streamer the prompt where generate would hand it the decoder's start token."""

    def __init__(self, streamer: BaseStreamer, prompt: Tensor) -> None:
        self.streamer = streamer
        self.prompt: Tensor | None = prompt

    def put(self, value: Tensor) -> None:
        """Pass on the prompt first, then every new token."""
        if self.prompt is not None:  # behind the start token stands what the caller lets the decoder begin with
            value, self.prompt = torch.cat([self.prompt.cpu(), value[:, 1:]], dim=1), None
        self.streamer.put(value)

    def end(self) -> None:
        """Pass on the end."""
        self.streamer.end()


__all__ = ["SeqloomForCausalLM", "SeqloomForConditionalGeneration", "SeqloomModel", "SeqloomPreTrainedModel"]
