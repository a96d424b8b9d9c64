"""Pictures of an `Explanation` for papers and notebooks: attention, alignment, the next word's distribution.

Each function returns a matplotlib `Figure`; `figure.savefig("attention.pdf")` writes it, a notebook shows it.
"""

from collections.abc import Sequence
from typing import Any

from seqloom.hub.page.explain import Explanation
from seqloom.hub.word_alignment import middle_layer

FONTS = ["DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Microsoft YaHei", "Arial Unicode MS"]
"""matplotlib takes the first that has a character; those that are not installed are passed over."""


def attention_figure(explanation: Explanation, *, layer: int | None = None, head: int | None = None) -> Any:
    """Draw cross attention: output tokens down, source tokens across.

    Args:
        explanation: of one output.
        layer: of the decoder, counted from 0; None: the mean over layers.
        head: counted from 0; None: the mean over heads.

    Raises:
        ImportError: without matplotlib, naming the extra that brings it.
        IndexError: for a layer or a head that the model does not have.
    """
    import torch

    weights = torch.tensor(explanation.cross_attention)  # (L, N, T, S)
    weights = weights.mean(0) if layer is None else weights[layer]
    rows = (weights.mean(0) if head is None else weights[head]).tolist()
    figure, axes = _empty(0.34 * len(explanation.source_tokens) + 1.6, 0.3 * len(explanation.steps) + 1.4)
    image = axes.imshow(rows, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(explanation.source_tokens)), _shown(explanation.source_tokens), rotation=60, ha="right")
    axes.set_yticks(range(len(explanation.steps)), _shown(step.token for step in explanation.steps))
    figure.colorbar(image, ax=axes, label="attention weight")
    return _readable(figure)


def alignment_figure(explanation: Explanation, *, layer: int | None = None, shift: bool = True) -> Any:
    """Draw which output token belongs to which source token, as lines between two columns; see `Explanation.alignment`.

    Raises:
        ImportError: without matplotlib, naming the extra that brings it.
    """
    used = middle_layer(len(explanation.cross_attention)) if layer is None else layer
    written = [step.token for step in explanation.steps]
    longest = max(len(written), len(explanation.source_tokens))
    figure, axes = _empty(4.5, 0.28 * longest + 0.8)
    for row, column in enumerate(explanation.alignment(layer=layer, shift=shift)):
        if column is not None:
            axes.plot([0, 1], [column, row], color="#1d4ed8", linewidth=1.5, alpha=0.7)
    for place, names, side in ((-0.04, explanation.source_tokens, "right"), (1.04, written, "left")):
        for row, name in enumerate(_shown(names)):
            axes.text(place, row, name, ha=side, va="center")
    axes.set_xlim(-0.8, 1.8)
    axes.set_ylim(longest - 0.5, -0.5)
    axes.set_title(f"{'Shift-Att' if shift else 'naive'}, layer {used + 1}", fontsize=10)
    axes.set_axis_off()
    return _readable(figure)


def next_word_figure(explanation: Explanation, step: int = 0) -> Any:
    """Draw the most probable words at one place of the output, best first; green is the one that was written.

    Raises:
        ImportError: without matplotlib, naming the extra that brings it.
        IndexError: for a step that the output does not have.
    """
    chosen = explanation.steps[step]
    names = list(_shown(candidate.token for candidate in chosen.candidates))
    values = [candidate.probability for candidate in chosen.candidates]
    colors = ["#15803d" if candidate.token == chosen.token else "#1d4ed8" for candidate in chosen.candidates]
    figure, axes = _empty(5, 0.32 * len(names) + 1)
    axes.barh(range(len(names)), values, color=colors)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"probability at step {step + 1}")
    return _readable(figure)


def _empty(width: float, height: float) -> tuple[Any, Any]:
    """Return a figure and its axes, in inches; no pyplot, which keeps state and looks for a screen."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the picture needs matplotlib; pip install 'seqloom[plots]'.") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _readable(figure: Any) -> Any:
    """Let every text of a figure take fonts in which its characters are."""
    from matplotlib.font_manager import get_font_names
    from matplotlib.text import Text

    installed = set(get_font_names())
    if fonts := [name for name in FONTS if name in installed]:
        for text in figure.findobj(Text):
            text.set_fontfamily(fonts)
    return figure


def _shown(tokens: Any) -> Sequence[str]:
    """Tokens with signs for blanks, and without what matplotlib would read as a formula."""
    return [token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥").replace("$", r"\$") for token in tokens]


__all__ = ["alignment_figure", "attention_figure", "next_word_figure"]
