"""SeqloomConfig: every number and switch of the network, with the meaning written under each field.

The names are BART's and Marian's (`d_model`, `encoder_layers`, ...), so converters map one to one; `attribute_map` adds
the canonical ones. The defaults are the base model of Vaswani et al. 2017, "Attention Is All You Need" ("the paper").
"""

import re
from collections.abc import Callable
from dataclasses import fields
from os import PathLike
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.utils import logging

from seqloom.configuration.suggestion import did_you_mean

logger = logging.get_logger(__name__)

NORM_POSITIONS = ("post", "pre")
NORM_TYPES = ("layernorm", "rmsnorm")
POSITION_EMBEDDING_TYPES = ("sinusoidal", "learned", "rotary")
MOST_TOKENS = 1 << 17
"""Longest sequence that is tried; attention costs its square. No published model writes longer ones in one go."""
MOST_BEAMS = 1000
"""Memory grows with each beam, and texts get worse from about ten on (Stahlberg and Byrne 2019)."""
MOST_WEIGHTS = 20_000_000_000
"""As many as the largest dense encoder-decoder that was published has, UL2 of Tay et al. 2022."""
LANGUAGE_PAIR_TASK = re.compile(r"translation_[^_]+_to_[^_]+")


class _CustomPipelines(dict[str, Any]):
    """A folder's pipelines by task; "translation_xx_to_yy" is one of "translation", as in transformers 4."""

    def __contains__(self, task: object) -> bool:
        is_pair = super().__contains__("translation") and LANGUAGE_PAIR_TASK.fullmatch(str(task)) is not None
        return is_pair or super().__contains__(task)

    def __missing__(self, task: str) -> Any:
        if task not in self:
            raise KeyError(task)
        return self["translation"]


@strict
class SeqloomConfig(PreTrainedConfig):
    """The shape of a Seqloom encoder-decoder; `SeqloomConfig()` is the paper's base model.

    With `position_embedding_type="rotary"` there is one more attribute, `rope_parameters`: base and scaling as in
    transformers (`rope_theta`, `rope_type`, ...). Other models do not have it, which is how transformers tells them.

    Raises:
        ValueError: for values that contradict each other and for a misspelt field, naming the remedy.

    Example:
        >>> SeqloomConfig(vocab_size=8000, d_model=256, encoder_ffn_dim=1024, decoder_ffn_dim=1024)
    """

    model_type = "seqloom"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]  # noqa: RUF012 - Trainer adds to it as to a list
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    }
    after_save: ClassVar[Callable[[str | PathLike[str]], None] | None] = None
    """Called with the folder after config.json is written; `import seqloom` sets it to the Hub bundler."""
    when_made: ClassVar[Callable[[], None] | None] = None
    """Called whenever a configuration is made; set to what makes Seqloom known to CTranslate2's converter."""

    vocab_size: int = 37000
    """V, entries of the shared vocabulary; paper section 5.1."""
    d_model: int = 512
    """D, width of the residual stream; paper section 3.1."""
    encoder_layers: int = 6
    """Encoder depth; paper section 3.1."""
    decoder_layers: int = 6
    """Decoder depth; paper section 3.1."""
    encoder_attention_heads: int = 8
    """N, query heads of an encoder layer; paper section 3.2.2."""
    decoder_attention_heads: int = 8
    """N, query heads of a decoder layer; paper section 3.2.2."""
    num_key_value_heads: int | None = None
    """Key/value heads; fewer than the query heads is grouped-query attention. None: as many as query heads."""
    encoder_ffn_dim: int = 2048
    """Inner width of the encoder's feed-forward; paper section 3.3."""
    decoder_ffn_dim: int = 2048
    """Inner width of the decoder's feed-forward; paper section 3.3."""
    activation_function: str = "relu"
    """Nonlinearity of the feed-forward, a name of `transformers.activations.ACT2FN`."""
    use_gated_ffn: bool = False
    """fc2(act(fc1 x) * fc3 x) instead of fc2(act(fc1 x)); with "silu" this is SwiGLU (Shazeer 2020)."""
    norm_position: str = "post"
    """"post": norm(x + sublayer(x)), the paper; "pre": x + sublayer(norm(x)) with one more norm at the end."""
    norm_type: str = "layernorm"
    """"layernorm" or "rmsnorm" (Zhang and Sennrich 2019)."""
    norm_eps: float = 1e-5
    """Added to the variance before its square root."""
    position_embedding_type: str = "sinusoidal"
    """"sinusoidal" (paper section 3.5), "learned" (a table), or "rotary" (Su et al. 2021)."""
    max_position_embeddings: int = 1024
    """Longest sequence in tokens: a hard limit for "learned" only; rotary scaling reads it as the trained length."""
    scale_embedding: bool = True
    """Multiply embeddings by sqrt(D); paper section 3.4."""
    tie_word_embeddings: bool = True
    """One matrix for source, target and LM head (paper section 3.4), or three."""
    dropout: float | int = 0.1
    """On embeddings and on every sublayer's output; paper section 5.4."""
    attention_dropout: float | int = 0.0
    """On attention weights."""
    activation_dropout: float | int = 0.0
    """Inside the feed-forward, after the nonlinearity."""
    label_smoothing: float | int = 0.0
    """Epsilon of the loss in `forward(labels=...)`, as torch's cross_entropy defines it; paper section 5.4."""
    init_std: float | int | None = None
    """None: Xavier-uniform projections and N(0, 1/D) embeddings, as in tensor2tensor; a number: N(0, std^2) for all."""
    is_encoder_decoder: bool = True
    is_decoder: bool = False
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int | None = 1
    """The token that the decoder reads first."""

    def __post_init__(self, **kwargs: Any) -> None:
        self._refuse_misspelt(kwargs)
        if type(self).after_save is not None:  # the bundler writes these anew; in the bundle itself they stay
            kwargs.pop("auto_map", None)
            kwargs.pop("custom_pipelines", None)
        elif "custom_pipelines" in kwargs:
            kwargs["custom_pipelines"] = _CustomPipelines(kwargs["custom_pipelines"])
        if self.position_embedding_type == "rotary":
            self.rope_parameters = kwargs.pop("rope_parameters", None)
        elif ignored := [key for key in ("rope_parameters", "rope_theta", "rope_scaling") if kwargs.pop(key, None)]:
            logger.warning(f"{', '.join(ignored)}: ignored, only position_embedding_type='rotary' reads it.")
        super().__post_init__(**kwargs)
        # @strict calls it once more, as it does before every save; but would wrap the sentence in two lines of its own
        self.validate_architecture()
        when_made = type(self).when_made
        if when_made is not None:
            when_made()

    def validate_architecture(self) -> None:
        """Check what one field alone cannot show.

        Raises:
            ValueError: naming the value, the rule and the remedy.
        """
        self._check_choices()
        self._check_sizes()
        self._check_heads()
        self._check_positions()
        self._check_numbers()

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> "SeqloomConfig":
        """Return one side's view, in which `num_attention_heads`, `num_hidden_layers`, ... are that side's.

        Where the sides are alike, that is this configuration itself; else rotary parameters are shared with the view,
        not copied, so that a change reaches the model.
        """
        sides_are_alike = (self.encoder_layers, self.encoder_attention_heads) == (
            self.decoder_layers,
            self.decoder_attention_heads,
        )
        if sides_are_alike and self.num_key_value_heads is not None:
            return self
        side = super().get_text_config(decoder=decoder, encoder=encoder)
        if side is not self:
            side.num_key_value_heads = self.num_key_value_heads or side.num_attention_heads
            if self.position_embedding_type == "rotary":
                side.rope_parameters = self.rope_parameters
        return side

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, but for `num_key_value_heads` where it is None: PEFT multiplies by what it finds."""
        named = super().to_dict()
        if self.num_key_value_heads is None:
            del named["num_key_value_heads"]
        return named

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write config.json, then let the bundler make the folder self-contained (see `after_save`)."""
        super().save_pretrained(save_directory, *args, **kwargs)
        self._complete(save_directory)

    def _upload_modified_files(self, working_dir: str | PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Complete the folder first: with `push_to_hub=True` transformers uploads before `save_pretrained` is done."""
        self._complete(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def _complete(self, folder: str | PathLike[str]) -> None:
        after_save = type(self).after_save
        if after_save is not None:
            after_save(folder)

    def _refuse_misspelt(self, kwargs: dict[str, Any]) -> None:
        """Refuse a near miss of a field: transformers takes unknown keys in silence.

        A config.json (it names the version that wrote it) may come from other tools or later versions: there it warns.
        """
        ours = [field.name for field in fields(self)]
        for key, value in kwargs.items():
            if key.startswith("_") or key in _FOREIGN_KEYS or hasattr(type(self), key) or key in self.attribute_map:
                continue
            hint = did_you_mean(key, ours, "did you mean {}?", cutoff=0.8)
            if hint and self.transformers_version is None:
                raise ValueError(f"{key}={value!r} is not a field of SeqloomConfig; {hint}")
            logger.warning(f"{key}={value!r} is not a field of SeqloomConfig; it is kept and has no effect.")

    def _check_choices(self) -> None:
        for name, allowed in (
            ("norm_position", NORM_POSITIONS),
            ("norm_type", NORM_TYPES),
            ("position_embedding_type", POSITION_EMBEDDING_TYPES),
            ("activation_function", tuple(ACT2FN)),
        ):
            value = getattr(self, name)
            if value not in allowed:
                hint = did_you_mean(value, allowed, "did you mean {!r}? ")
                raise ValueError(f"{name}={value!r} is unknown; {hint}use one of {', '.join(allowed)}.")

    def _check_heads(self) -> None:
        for name in ("encoder_attention_heads", "decoder_attention_heads"):
            heads = getattr(self, name)
            if heads < 1 or self.d_model % heads:
                divisors = ", ".join(str(n) for n in range(1, self.d_model + 1) if self.d_model % n == 0)
                raise ValueError(f"{name}={heads} does not divide d_model={self.d_model}; use one of {divisors}.")
            groups = self.num_key_value_heads
            if groups is not None and (groups < 1 or heads % groups):
                raise ValueError(
                    f"num_key_value_heads={groups} does not divide {name}={heads}; "
                    f"use a divisor of it, or None for as many as query heads."
                )

    def _check_positions(self) -> None:
        if self.position_embedding_type == "sinusoidal" and self.d_model % 2:
            raise ValueError(
                f"d_model={self.d_model} is odd, and sinusoids come in sine/cosine pairs; "
                f"use an even d_model or position_embedding_type='learned'."
            )
        if self.position_embedding_type == "rotary":
            if (part := self.rope_parameters.get("partial_rotary_factor")) not in (None, 1):
                raise ValueError(
                    f"partial_rotary_factor={part} turns a part of each head, and Seqloom turns whole heads; leave it "
                    f"out of rope_parameters."
                )
            for name in ("encoder_attention_heads", "decoder_attention_heads"):
                heads = getattr(self, name)
                if (self.d_model // heads) % 2:
                    raise ValueError(
                        f"{name}={heads} gives heads of d_model/heads={self.d_model // heads} dimensions, and rotary "
                        f"positions turn pairs of them; use a number of heads that leaves an even head dimension."
                    )

    def _check_sizes(self) -> None:
        """Refuse what nobody could build, before anything is built: a config.json may name any number."""
        for name, most in LARGEST.items():
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
            if value > most:
                raise ValueError(f"{name}={value} is more than {most:,}, the largest that Seqloom builds; lower it.")
        if (count := self._count_weights()) > MOST_WEIGHTS:
            raise ValueError(
                f"these sizes make a network of about {count:,} weights, and Seqloom builds up to {MOST_WEIGHTS:,}; "
                f"lower d_model, the layers, the feed-forward widths or vocab_size."
            )

    def _count_weights(self) -> int:
        """Return about how many weights the network has, biases and norms left out."""
        d, ffn = self.d_model, 3 if self.use_gated_ffn else 2
        kept = d * (2 if self.num_key_value_heads is None else 1)  # keys and values; groups make them narrower
        tables = (1 if self.tie_word_embeddings else 3) * self.vocab_size
        tables += 2 * self.max_position_embeddings * (self.position_embedding_type == "learned")
        encoder = self.encoder_layers * (2 * d + kept + ffn * self.encoder_ffn_dim)
        return d * (tables + encoder + self.decoder_layers * (2 * (2 * d + kept) + ffn * self.decoder_ffn_dim))

    def _check_numbers(self) -> None:
        for name in ("dropout", "attention_dropout", "activation_dropout", "label_smoothing"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"{name}={value} is outside [0, 1); it is a share, e.g. 0.1.")
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
            value = getattr(self, name)
            for token in value if isinstance(value, list) else [value]:
                if token is not None and not 0 <= token < self.vocab_size:
                    raise ValueError(
                        f"{name}={token} is outside the vocabulary; with vocab_size={self.vocab_size} ids run from 0 "
                        f"to {self.vocab_size - 1}."
                    )
        if self.norm_eps <= 0:
            raise ValueError(f"norm_eps={self.norm_eps} must be above 0; 1e-5 is usual.")
        if self.init_std is not None and self.init_std < 0:
            raise ValueError(f"init_std={self.init_std} is a standard deviation; use 0.02, or None for Xavier's.")


LARGEST = {
    "vocab_size": 1 << 24,  # the largest in use have a million entries
    "d_model": 1 << 16,
    "encoder_layers": 1000,  # the deepest Transformer that was trained, Wang et al. 2022
    "decoder_layers": 1000,
    "encoder_ffn_dim": 1 << 18,
    "decoder_ffn_dim": 1 << 18,
    "max_position_embeddings": MOST_TOKENS,
}
"""Field -> its largest value."""

# Keys that transformers, the Hub or quantisers put into a config.json and that are not fields of ours.
_FOREIGN_KEYS = frozenset(
    {"name_or_path", "torch_dtype", "attn_implementation", "experts_implementation", "output_attentions", "num_labels"}
    | {"rope_parameters", "rope_theta", "rope_scaling", "partial_rotary_factor", "per_layer_config", "auto_map"}
    | {"custom_pipelines", "model_type", "quantization_config", "tokenizer_class", "task_specific_params"}
    | {"sep_token_id", "cls_token_id", "mask_token_id", "unk_token_id", "tie_encoder_decoder"}
    | {"encoder_layerdrop", "decoder_layerdrop", "forced_bos_token_id", "forced_eos_token_id"}
)

__all__ = ["LARGEST", "MOST_BEAMS", "MOST_TOKENS", "MOST_WEIGHTS", "SeqloomConfig"]
