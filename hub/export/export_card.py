"""What is said of an export: how exact it is, in its card and on the screen."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from seqloom.hub.export.engine_parity import Parity, ScoreRow
from seqloom.hub.export.output_folder import ExportError
from seqloom.hub.model_card import CardFacts, card_environment
from seqloom.hub.quoting import Quoted


def describe_parity(parity: Parity) -> str:
    """Return what was found as sentences."""
    ties = f", {parity.greedy_ties:,} more part at a tie" if parity.greedy_ties else ""
    beams = ""
    if parity.beam_equal is not None:
        likeness = f"chrF of the one against the other {parity.beam_chrf:.1f}"
        beams = f"; 5 beams write the same text for {parity.beam_equal:,} ({likeness})"
    return (
        f"Of {parity.sentences:,} sentences, torch against the engine in {parity.compute_type}: forced "
        f"log-probabilities differ by at most {parity.forced_difference:.1e} on {parity.forced_tokens:,} tokens; "
        f"greedy search writes the same tokens for {parity.greedy_equal:,}{ties}{beams}."
    )


def describe_score(row: ScoreRow) -> str:
    """Return one score as a line."""
    low, high = row.export_interval
    worse, better = row.difference_interval
    return (
        f"{row.metric}: torch {row.torch:.2f}, export {row.export:.2f} (95 % interval {low:.2f} to {high:.2f}); "
        f"difference {row.export - row.torch:+.2f} (95 % interval {worse:+.2f} to {better:+.2f})."
    )


def refuse_other_answers(parity: Parity, engine: str, package: str) -> None:
    """Refuse an export in float32 that differs from torch by more than rounding.

    Args:
        parity: what was found.
        engine: as a person calls it.
        package: of Python, that has it.

    Raises:
        ExportError: with what was found.
    """
    if not parity.is_exact:
        raise ExportError(
            f"in {engine} {version(package)} this model does not answer as it does in torch, so nothing was "
            f"written: {describe_parity(parity)} Install another {package} and try again; if it stays so, report it "
            f"with the folder's config.json and generation_config.json."
        )


def write_card(
    staged: Path,
    template: str,
    library: str,
    tag: str,
    facts: CardFacts,
    engines: Sequence[tuple[str, str]],
    **said: Any,
) -> None:
    """Write README.md.

    Args:
        staged: the folder of the export.
        template: of the card.
        library: that loads the export, as the Hub calls it.
        tag: for the Hub.
        facts: of the folder that was exported.
        engines: names for a person, and packages, of what took part.
        said: what else the template says.
    """
    head = ModelCardData(
        language=list(facts.languages) or None,
        license=facts.license,
        library_name=library,
        pipeline_tag=facts.pipeline_tag,
        tags=["seqloom", tag],
    )
    versions = ", ".join(f"{name} {version(package)}" for name, package in (("Seqloom", "seqloom"), *engines))
    known = {"metadata": Quoted(head.to_yaml()), "facts": facts, "versions": versions}
    text = card_environment().get_template(template).render(**known, **said)
    (staged / "README.md").write_text(text.rstrip("\n") + "\n", encoding="utf-8", newline="\n")


__all__ = ["describe_parity", "describe_score", "refuse_other_answers", "write_card"]
