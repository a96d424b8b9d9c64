"""Gradient flow: how much of the gradient reaches each layer, logged while it trains and drawn at the end.

A loss speaks to the last layer and is heard by the first one through all the others. Each step back multiplies the
gradient by a layer's derivative; where those are small it vanishes, and the first layers stop learning. The residual
connections of section 3.1 are the way around: `x + f(x)` passes the gradient on unchanged whatever `f` does to it. With
`--log_gradient_flow` a run shows what arrives.

What a run without residuals shows, `seqloom lesson residual` trains and tests/training/monitoring/test_gradient_flow.py
measures: taken out of a fresh model of 6+6 layers, they leave of the decoder's gradient 1e-7 one layer below the last,
1e-36 at the first.
Each cross attention then makes of the target nothing but weights over the source, and fresh weights are all alike. In
the encoder the norms alone keep the gradient's size. With residuals a fresh pre-norm decoder loses nothing (first /
last layer 1.5 at six layers, 1.8 at twelve). A post-norm one, whose norms stand in the way of the residual stream,
loses some (0.2 and 0.006), and with a high learning rate more while it trains: why deep models are pre-norm
(LOG: residuals).

The norm of a layer is that of all its parameters' gradients together, of the whole update (all micro-batches and
processes) and before clipping.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState

PREFIX = "gradient_norm/"
"""Before a layer's name in Trainer's log; trackers make a group of it."""

SIDES = ("encoder", "decoder")


class GradientFlow(TrainerCallback):
    """Measures the gradient's norm in every layer for the log, and draws what was logged."""

    def __init__(self, model: nn.Module, folder: Path) -> None:
        """Watch a model.

        Args:
            model: what is trained.
            folder: where gradient_flow.png goes.
        """
        self.layers = parameters_by_layer(model)
        self.picture = folder / "gradient_flow.png"
        self._norms: dict[str, Tensor] = {}

    def measure(self, total: Tensor | float, max_norm: float) -> None:
        """Take the norms of an update's gradients, after they were clipped and before they are used.

        Args:
            total: norm over all layers before clipping.
            max_norm: what it was clipped to; 0: it was not.
        """
        undo = max(1.0, (float(total) + 1e-6) / max_norm) if max_norm > 0 else 1.0  # as clip_grad_norm_ divides
        for name, parameters in self.layers.items():
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            if gradients:
                self._norms[name] = get_total_norm(gradients) * undo

    def read(self) -> dict[str, float]:
        """Return the latest norms as Trainer logs them, e.g. `gradient_norm/encoder.0`."""
        return {f"{PREFIX}{name}": float(_whole(norm)) for name, norm in self._norms.items()}

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take the parameters that are trained; FSDP has put shards in the place of those that were."""
        self.layers = parameters_by_layer(kwargs["model"])

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Draw what was read, over all starts of the run."""
        rows = gradient_rows(state.log_history)
        if state.is_world_process_zero and rows and can_draw():
            draw(rows, self.picture)


def gradient_rows(log_history: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the readings of a run's log that have gradients: `update`, and the norm of each layer by its name."""
    readings = [entry for entry in log_history if any(name.startswith(PREFIX) for name in entry)]
    return [
        {"update": entry["step"], **{n.removeprefix(PREFIX): v for n, v in entry.items() if n.startswith(PREFIX)}}
        for entry in readings
    ]


def parameters_by_layer(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the parameters of each layer: "encoder.0", ..., "decoder.5", and "embeddings"; tied ones count once."""
    layers: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if match := re.search(r"(encoder|decoder)\.layers\.(\d+)\.", name):
            layers.setdefault(f"{match[1]}.{match[2]}", []).append(parameter)
        elif "embed_tokens" in name:
            layers.setdefault("embeddings", []).append(parameter)
    return layers


def _whole(norm: Tensor) -> Tensor:
    """Return the norm over all shards of a sharded model."""
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


# The picture ---------------------------------------------------------------------------------------------------------


def can_draw() -> bool:
    """Return whether matplotlib is installed; the numbers are kept either way."""
    return find_spec("matplotlib") is not None


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the norm of each layer over training, encoder beside decoder, on one logarithmic scale.

    Args:
        rows: of `gradient_rows`.
        path: the picture; its ending names the format, .png or .svg.

    Raises:
        ImportError: without matplotlib, naming the extra that brings it.
    """
    try:
        from matplotlib.figure import Figure  # no pyplot: it keeps state and looks for a screen
    except ImportError as error:
        raise ImportError("the picture needs matplotlib; pip install 'seqloom[plots]'.") from error

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for side, panel in zip(SIDES, axes, strict=True):
        draw_side(panel, rows, side)
    axes[0].set_ylabel("norm of the gradient")
    figure.suptitle("What reaches each layer of the gradient")
    figure.savefig(path, dpi=150)


def draw_side(panel: Any, rows: Sequence[Mapping[str, Any]], side: str) -> None:
    """Draw the norms of one side's layers into a panel, with how much of the last layer's gradient the first hears."""
    from matplotlib import colormaps

    names = sorted((name for name in rows[0] if name.startswith(side)), key=lambda name: int(name.split(".")[1]))
    updates = [row["update"] for row in rows]
    colors = colormaps["viridis"].resampled(max(2, len(names)))
    for depth, name in enumerate(names):
        norms = [row[name] for row in rows]
        mark = "o" if len(rows) == 1 else None
        panel.plot(updates, norms, color=colors(depth), label=f"layer {depth + 1}", linewidth=1.5, marker=mark)
    panel.set_yscale("log", nonpositive="mask")
    panel.set_xlabel("update")
    panel.set_title(f"{side}: first layer / last layer = {ratio(rows, names[0], names[-1]):.2g}")
    panel.grid(visible=True, which="both", alpha=0.25)
    panel.legend(loc="best", fontsize="small", ncols=2)


def ratio(rows: Sequence[Mapping[str, Any]], first: str, last: str) -> float:
    """Return the first layer's norm divided by the last layer's, the median over the readings."""
    ratios = sorted(row[first] / row[last] for row in rows if row[last])
    return ratios[len(ratios) // 2] if ratios else float("nan")
