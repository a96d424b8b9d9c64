"""Pictures of an `Explanation` for papers and notebooks: attention, alignment, the next word's distribution.

Each function returns a matplotlib `Figure`; `figure.savefig("attention.pdf")` writes it, a notebook shows it.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from io import BytesIO
from typing import Any

from seqloom.hub.page.explain import Explanation
from seqloom.hub.word_alignment import middle_layer

logger = logging.getLogger(__name__)

FONTS = ["DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Microsoft YaHei", "Arial Unicode MS"]
"""Tried first, in this order, before all others that are installed."""


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
    figure: Any = Figure(figsize=(width, height), layout="constrained")
    figure._repr_png_ = partial(_png_of, figure)  # what a notebook looks for
    return figure, figure.subplots()


def _png_of(figure: Any) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _readable(figure: Any) -> Any:
    """Let every text of a figure take fonts in which its characters are."""
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    fonts = _fonts_for({character for text in texts for character in text.get_text() if not character.isspace()})
    for text in texts:
        text.set_fontfamily(fonts)
    return figure


def _fonts_for(characters: set[str]) -> list[str]:
    """Return installed fonts that have these characters between them, and say which no font has."""
    from matplotlib.font_manager import get_font

    chosen, missing = [FONTS[0]], set(characters)  # matplotlib brings the first
    for name, file in _installed_fonts():
        if not missing:
            break
        with suppress(OSError, RuntimeError):  # a font of pictures alone
            font = get_font(file)
            if found := {character for character in missing if font.get_char_index(ord(character))}:
                chosen.append(name)
                missing -= found
    if missing:
        logger.warning(
            f"no installed font has {''.join(sorted(missing))!r}, and the figure shows boxes there; install a font "
            f"that has them, for most scripts one of Noto Sans, and draw again."
        )
    return list(dict.fromkeys(chosen))


def _installed_fonts() -> Iterator[tuple[str, str]]:
    """Yield names and files: `FONTS`, then what matplotlib knows, then what was installed since it made its list."""
    from matplotlib.font_manager import findSystemFonts, fontManager, get_font

    known = {font.name: font.fname for font in fontManager.ttflist if not font.name.startswith("Last Resort")}
    for name in [*(name for name in FONTS if name in known), *sorted(known.keys() - set(FONTS), key=_plainest_first)]:
        yield name, known[name]
    for file in sorted(set(findSystemFonts()) - {font.fname for font in fontManager.ttflist}, key=_plainest_first):
        with suppress(OSError, RuntimeError):
            fontManager.addfont(file)
            yield get_font(file).family_name, file


def _plainest_first(font: str) -> tuple[bool, bool, str]:
    return "Sans" not in font, "Regular" not in font, font


def _shown(tokens: Any) -> Sequence[str]:
    """Tokens with signs for blanks, and without what matplotlib would read as a formula."""
    return [token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥").replace("$", r"\$") for token in tokens]


__all__ = ["alignment_figure", "attention_figure", "next_word_figure"]
