"""The paper, once more, in float64 numpy: the oracle against which the model is held.

Vaswani et al. 2017, "Attention Is All You Need" (arXiv:1706.03762); section numbers refer to it. The switches come from
Xiong et al. 2020 (pre-norm), Zhang and Sennrich 2019 (RMSNorm), Shazeer 2020 (gated feed-forward), Ainslie et al. 2023
(grouped key/value heads), Su et al. 2021 (rotary) and Szegedy et al. 2016 (label smoothing).

Nothing here is shared with the model but the names of its weights. One sentence at a time, without batch and without
padding, so a padded batch is right exactly when each of its sentences is.

Shapes: S source, T target, D width, H head width, F feed-forward width, V vocabulary.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, Array]
"""Name -> weights of one module; a matrix is (out, in) as torch stores it."""


# ---- 3.2.1 Scaled dot-product attention ------------------------------------------------------------------------------


def softmax(scores: Array) -> Array:
    """Turn the last axis into probabilities."""
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def attention(query: Array, key: Array, value: Array, mask: NDArray[np.bool_] | None = None) -> tuple[Array, Array]:
    """Equation (1): softmax(Q K^T / sqrt(H)) V; returns the mixed values (T, H) and the weights (T, S).

    Args:
        query: (T, H).
        key: (S, H).
        value: (S, H).
        mask: (T, S), True = may attend; section 3.2.3 sets the rest to minus infinity.
    """
    scores = query @ key.T / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = np.where(mask, scores, -np.inf)
    weights = softmax(scores)
    return weights @ value, weights


# ---- 3.2.2 Multi-head attention --------------------------------------------------------------------------------------


def linear(x: Array, weights: Weights, name: str) -> Array:
    """Apply x W^T + b; the bias is optional."""
    product = x @ weights[f"{name}.weight"].T
    return product + weights[f"{name}.bias"] if f"{name}.bias" in weights else product


def multi_head_attention(
    x: Array,
    memory: Array,
    weights: Weights,
    *,
    heads: int,
    key_value_heads: int | None = None,
    mask: NDArray[np.bool_] | None = None,
    rotary_base: float | None = None,
) -> tuple[Array, Array]:
    """Concat(head_1, ..., head_h) W^O; returns the output (T, D) and the weights of each head (heads, T, S).

    With fewer key/value heads than heads, each is shared by `heads / key_value_heads` neighbours (Ainslie et al. 2023).
    """
    width = x.shape[-1] // heads
    query = linear(x, weights, "q_proj")
    key, value = linear(memory, weights, "k_proj"), linear(memory, weights, "v_proj")
    outputs, maps = [], []
    for head in range(heads):
        shared = head // (heads // (key_value_heads or heads))
        q = query[:, head * width : (head + 1) * width]
        k = key[:, shared * width : (shared + 1) * width]
        v = value[:, shared * width : (shared + 1) * width]
        if rotary_base is not None:
            q, k = rotate(q, rotary_base), rotate(k, rotary_base)
        output, weight = attention(q, k, v, mask)
        outputs.append(output)
        maps.append(weight)
    return linear(np.concatenate(outputs, axis=-1), weights, "out_proj"), np.stack(maps)


# ---- 3.3 Position-wise feed-forward networks -------------------------------------------------------------------------

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0.0),
    "gelu": lambda x: x * 0.5 * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0))),
    "silu": lambda x: x / (1.0 + np.exp(-x)),
}


def feed_forward(x: Array, weights: Weights, activation: str, gated: bool) -> Array:
    """Equation (2): act(x W1 + b1) W2 + b2; gated (Shazeer 2020): (act(x W1) * x W3) W2."""
    hidden = ACTIVATIONS[activation](linear(x, weights, "fc1"))
    if gated:
        hidden = hidden * linear(x, weights, "fc3")
    return linear(hidden, weights, "fc2")


# ---- 3.5 Positional encoding -----------------------------------------------------------------------------------------


def sinusoid_table(length: int, width: int) -> Array:
    """PE(pos, 2i) = sin(pos / 10000^(2i/D)), PE(pos, 2i+1) = cos(same); all sines first, then all cosines.

    The paper interleaves them; Tensor2Tensor and Marian store the same numbers as two halves: other column names.
    """
    table = np.zeros((length, width))
    for pos in range(length):
        for i in range(width // 2):
            angle = pos / 10000 ** (2 * i / width)
            table[pos, i] = math.sin(angle)
            table[pos, width // 2 + i] = math.cos(angle)
    return table


def rotate(x: Array, base: float = 10000.0) -> Array:
    """Turn the pair (x_i, x_{i + H/2}) at position pos by the angle pos * base^(-2i/H); Su et al. 2021, section 3.2."""
    length, width = x.shape
    rotated = np.zeros_like(x)
    half = width // 2
    for pos in range(length):
        for i in range(half):
            angle = pos * base ** (-2 * i / width)
            first, second = x[pos, i], x[pos, half + i]
            rotated[pos, i] = first * math.cos(angle) - second * math.sin(angle)
            rotated[pos, half + i] = first * math.sin(angle) + second * math.cos(angle)
    return rotated


# ---- 3.1 Residuals and norms -----------------------------------------------------------------------------------------


def layer_norm(x: Array, weights: Weights, eps: float) -> Array:
    """(x - mean) / sqrt(variance + eps) * weight + bias, over the last axis."""
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * weights["weight"] + weights["bias"]


def rms_norm(x: Array, weights: Weights, eps: float) -> Array:
    """x / sqrt(mean(x^2) + eps) * weight, over the last axis."""
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weights["weight"]


def inside(weights: Weights, prefix: str) -> dict[str, Array]:
    """Return the weights below `prefix.`, without the prefix."""
    return {name[len(prefix) + 1 :]: value for name, value in weights.items() if name.startswith(prefix + ".")}


# ---- 3.1 Encoder and decoder stacks ----------------------------------------------------------------------------------


class PaperTransformer:
    """The whole network of Figure 1 for one sentence.

    Args:
        weights: the model's `state_dict` as float64 arrays.
        config: any object with the fields of `SeqloomConfig`.
    """

    def __init__(self, weights: Weights, config: Any) -> None:
        self.weights = weights
        self.config = config

    @classmethod
    def of(cls, model: Any) -> "PaperTransformer":
        """Copy the weights of a torch model with an LM head."""
        return cls({name: value.double().numpy() for name, value in model.state_dict().items()}, model.config)

    # -- the pieces that the switches choose

    def norm(self, x: Array, name: str) -> Array:
        """Normalise with the kind that the configuration names."""
        function = {"layernorm": layer_norm, "rmsnorm": rms_norm}[self.config.norm_type]
        return function(x, inside(self.weights, name), self.config.norm_eps)

    def residual(self, x: Array, sublayer: Callable[[Array], Array], norm: str) -> Array:
        """Section 3.1: LayerNorm(x + Sublayer(x)); pre-norm (Xiong et al. 2020): x + Sublayer(LayerNorm(x))."""
        if self.config.norm_position == "post":
            return self.norm(x + sublayer(x), norm)
        return x + sublayer(self.norm(x, norm))

    def attend(
        self, name: str, heads: int, mask: NDArray[np.bool_] | None, rotary: bool
    ) -> Callable[[Array, Array], Array]:
        """Return the attention function (queries from, keys and values from) -> output of the module `name`."""
        base = self.config.rope_parameters["rope_theta"] if rotary else None
        options: dict[str, Any] = {"heads": heads, "key_value_heads": self.config.num_key_value_heads}
        weights = inside(self.weights, name)
        return lambda x, memory: multi_head_attention(x, memory, weights, mask=mask, rotary_base=base, **options)[0]

    def feed(self, name: str) -> Callable[[Array], Array]:
        """Return the feed-forward function of the layer `name`."""
        weights = inside(self.weights, name)
        return lambda x: feed_forward(x, weights, self.config.activation_function, self.config.use_gated_ffn)

    # -- the network

    def embed(self, ids: Sequence[int], side: str) -> Array:
        """Section 3.4: rows of the matrix times sqrt(D); section 3.5: plus positions, dropout aside. (length, D)."""
        table = self.weights[f"model.{side}.embed_tokens.weight"]
        scale = math.sqrt(self.config.d_model) if self.config.scale_embedding else 1.0
        x = table[list(ids)] * scale
        if self.config.position_embedding_type == "sinusoidal":
            x = x + sinusoid_table(len(ids), self.config.d_model)
        elif self.config.position_embedding_type == "learned":
            (table,) = inside(self.weights, f"model.{side}.embed_positions").values()
            x = x + table[: len(ids)]
        return x

    def encoder_layer(self, x: Array, name: str) -> Array:
        """Self-attention over the source, then feed-forward."""
        rotary = self.config.position_embedding_type == "rotary"
        attend = self.attend(f"{name}.self_attn", self.config.encoder_attention_heads, None, rotary)
        x = self.residual(x, lambda y: attend(y, y), f"{name}.self_attn_layer_norm")
        return self.residual(x, self.feed(name), f"{name}.final_layer_norm")

    def decoder_layer(self, x: Array, memory: Array, name: str) -> Array:
        """Self-attention over the past only, attention over the source, then feed-forward."""
        rotary = self.config.position_embedding_type == "rotary"
        heads = self.config.decoder_attention_heads
        past = np.tril(np.ones((len(x), len(x)), dtype=bool))
        look_back = self.attend(f"{name}.self_attn", heads, past, rotary)
        look_across = self.attend(f"{name}.encoder_attn", heads, None, rotary=False)
        x = self.residual(x, lambda y: look_back(y, y), f"{name}.self_attn_layer_norm")
        x = self.residual(x, lambda y: look_across(y, memory), f"{name}.encoder_attn_layer_norm")
        return self.residual(x, self.feed(name), f"{name}.final_layer_norm")

    def encode(self, source: Sequence[int]) -> list[Array]:
        """Return the embedded source and the output of each layer, (S, D) each; the last is what the decoder reads."""
        states = [self.embed(source, "encoder")]
        for layer in range(self.config.encoder_layers):
            states.append(self.encoder_layer(states[-1], f"model.encoder.layers.{layer}"))
        return self.closed(states, "encoder")

    def decode(self, target: Sequence[int], memory: Array) -> list[Array]:
        """Return the embedded target and the output of each layer, (T, D) each; the last is what the LM head reads."""
        states = [self.embed(target, "decoder")]
        for layer in range(self.config.decoder_layers):
            states.append(self.decoder_layer(states[-1], memory, f"model.decoder.layers.{layer}"))
        return self.closed(states, "decoder")

    def closed(self, states: list[Array], side: str) -> list[Array]:
        """Pre-norm stacks end with one more norm."""
        if self.config.norm_position == "pre":
            states[-1] = self.norm(states[-1], f"model.{side}.layer_norm")
        return states

    def logits(self, source: Sequence[int], target: Sequence[int]) -> Array:
        """Section 3.4: the last states times the LM head's matrix. (T, V)."""
        return self.decode(target, self.encode(source)[-1])[-1] @ self.weights["lm_head.weight"].T


# ---- 5.4 Label smoothing ---------------------------------------------------------------------------------------------


def smoothed_losses(logits: Array, labels: Sequence[int], epsilon: float = 0.0, ignore: int = -100) -> list[float]:
    """Return -sum_k q_k log p_k for each label that counts, with q = (1 - epsilon) one-hot + epsilon / V.

    Args:
        logits: (T, V).
        labels: T word ids; `ignore` drops the position.
        epsilon: the mass spread evenly over the whole vocabulary, the right word included.
    """
    losses = []
    for scores, label in zip(logits, labels, strict=True):
        if label == ignore:
            continue
        wanted = np.full(len(scores), epsilon / len(scores))
        wanted[label] += 1.0 - epsilon
        losses.append(float(-(wanted * np.log(softmax(scores))).sum()))
    return losses
