"""What a lesson shows: one page that needs no network, in English and Chinese, and a picture for a talk."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seqloom.modeling.canary import write_whole
from seqloom.training.monitoring.gradient_flow import PREFIX, draw_side, ratio
from seqloom.training.monitoring.history import filled_page

LESSON_PAGE = Path(__file__).with_name("lesson_page.html")


@dataclass(frozen=True)
class Outcome:
    """What came of one of the two models."""

    rows: list[dict[str, Any]]
    """Readings, of `history.rows_of`."""
    right: float
    """Percent of the new dates that it writes as they are."""
    outputs: list[str]
    """Of the lesson's examples."""

    @property
    def losses(self) -> list[tuple[int, float]]:
        """Updates and losses."""
        return [(row["update"], row["loss"]) for row in self.rows if "loss" in row]

    @property
    def gradients(self) -> list[dict[str, Any]]:
        """Readings as `gradient_flow.draw_side` takes them."""
        readings = [row for row in self.rows if any(name.startswith(PREFIX) for name in row)]
        return [{name.removeprefix(PREFIX): value for name, value in row.items()} for row in readings]

    def ratio(self, side: str) -> float:
        """Return how much of the gradient that reaches a side's last layer is left at its first: the median."""
        layers = sorted((name for name in self.gradients[0] if name.startswith(f"{side}.")), key=_depth)
        return ratio(self.gradients, layers[0], layers[-1])


def _depth(layer: str) -> int:
    return int(layer.rpartition(".")[2])


def write_lesson(path: Path, outcomes: Sequence[Outcome], about: Mapping[str, Any]) -> None:
    """Write the page.

    Args:
        path: where.
        outcomes: of the model with the part, and of the one without.
        about: what the page says of them; see lesson_page.html.
    """
    write_whole(path, filled_page(LESSON_PAGE, {**about, "outcomes": [asdict(each) for each in outcomes]}))


def draw_lesson(path: Path, outcomes: Sequence[Outcome], title: str, names: Sequence[str], *, gradients: bool) -> None:
    """Draw both losses, and where asked the gradient in each layer of the decoder, on one scale.

    Args:
        path: the picture; its ending names the format, .png or .svg.
        outcomes: of the model with the part, and of the one without.
        title: of the lesson.
        names: of the two models.
        gradients: draw them.
    """
    from matplotlib.figure import Figure  # no pyplot: it keeps state and looks for a screen

    figure = Figure(figsize=(14 if gradients else 6, 4.5), layout="constrained")
    panels = figure.subplots(1, 3 if gradients else 1, squeeze=False)[0]
    for outcome, name in zip(outcomes, names, strict=True):
        panels[0].plot(*zip(*outcome.losses, strict=True), label=name, linewidth=2)
    panels[0].set_title("loss")
    panels[0].set_xlabel("update")
    panels[0].set_ylim(bottom=0)
    panels[0].grid(visible=True, alpha=0.25)
    panels[0].legend()
    for panel, outcome, name in zip(panels[1:], outcomes, names):
        panel.sharey(panels[1])
        draw_side(panel, outcome.gradients, "decoder")
        panel.set_title(f"gradient, {name}\n{panel.get_title()}", fontsize="medium")
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


__all__ = ["Outcome", "draw_lesson", "write_lesson"]
