"""An explanation as two HTML tables: where each output token looked, and what else could have stood there.

Only HTML, colours included, and nothing but the standard library: `seqloom space` copies this file into the folder of a
Space. Texts are escaped; colours are translucent, so that they show on light and dark pages.
"""

from collections.abc import Sequence
from html import escape
from typing import Any

# !important: pages have styles of their own for tables, Gradio's among them, which would stretch these.
STYLE = """<style>
.seqloom { overflow-x: auto; }
.seqloom table { border-collapse: collapse; width: auto !important; font: 13px/1.4 system-ui, sans-serif; }
.seqloom th, .seqloom td {
  padding: 3px 5px !important; min-width: 22px; text-align: center !important;
  border: 1px solid rgba(128, 128, 128, 0.25) !important;
}
.seqloom th { font-weight: 600; white-space: pre; }
.seqloom tbody th { text-align: right !important; }
.seqloom .heat { font-size: 11px; }
.seqloom .bar { min-width: 90px; text-align: left !important; white-space: pre; }
.seqloom .share { opacity: 0.65; font-size: 11px; }
</style>"""

SIGNS = {" ": "␣", "\n": "⏎", "\t": "⇥"}
"""What stands for characters that would not be seen."""


def attention_table(explanation: Any) -> str:
    """Return the heat map of an `Explanation`: output tokens down, source tokens across, weights in percent.

    A weight is the mean over layers and heads.
    """
    head = "".join(f"<th>{_visible(token)}</th>" for token in explanation.source_tokens)
    rows = zip(explanation.steps, explanation.mean_attention(), strict=True)
    body = "".join(f"<tr><th>{_visible(step.token)}</th>{_heat_cells(row)}</tr>" for step, row in rows)
    return _table(f"<th></th>{head}", body)


def candidate_table(explanation: Any) -> str:
    """Return a row for each output token with the tokens that the model found most probable there, best first."""
    num_columns = max((len(step.candidates) for step in explanation.steps), default=0)
    head = "<th></th>" + "".join(f"<th>{rank}</th>" for rank in range(1, num_columns + 1))
    body = "".join(f"<tr><th>{_visible(step.token)}</th>{_candidate_cells(step)}</tr>" for step in explanation.steps)
    return _table(head, body)


def _table(head: str, body: str) -> str:
    return f'{STYLE}<div class="seqloom"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _heat_cells(weights: Sequence[float]) -> str:
    """Only what is at least a tenth gets its number; every cell says it when the pointer rests there."""
    return "".join(
        f'<td class="heat" style="background: rgba(37, 99, 235, {weight:.3f})" title="{weight:.1%}">'
        f"{f'{100 * weight:.0f}' if weight >= 0.1 else ''}</td>"
        for weight in weights
    )


def _candidate_cells(step: Any) -> str:
    cells = []
    for candidate in step.candidates:
        share = candidate.probability
        colour = "22, 163, 74" if candidate.token == step.token else "128, 128, 128"
        bar = f"linear-gradient(90deg, rgba({colour}, 0.4) {share:.1%}, transparent {share:.1%})"
        percent = f"{share:.1%}" if share >= 0.0005 else "<0.1%"
        text = f'{_visible(candidate.token)} <span class="share">{escape(percent)}</span>'
        cells.append(f'<td class="bar" style="background: {bar}">{text}</td>')
    return "".join(cells)


def _visible(token: str) -> str:
    """A token as it is, but with signs for characters that would not be seen."""
    return escape("".join(SIGNS.get(character, character) for character in token))


__all__ = ["attention_table", "candidate_table"]
