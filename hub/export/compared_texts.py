"""The texts that torch and an export both answer before the export is handed over."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqloom.hub.export.ctranslate2_loader import positions_in_table
from seqloom.hub.export.engine_parity import Answering, Scorer, ScoreRow, Sentence, decode, one_answer, write
from seqloom.hub.export.output_folder import ExportError
from seqloom.hub.files import recorded_outputs
from seqloom.hub.lines import read_lines
from seqloom.hub.loading import target_tokenizer
from seqloom.hub.model_card import CardFacts
from seqloom.modeling.canary import CANARY_NAME, read_canary, sources_for

COMPARED = 200
"""Sentences that torch and the engine both answer; base takes half a minute of one thread."""

SCORED = 2000
"""Sentences at most that are scored, where the run has recorded what torch answers."""

DEFAULT_METRICS = ("chrf", "exact_match")


@dataclass(frozen=True)
class Text:
    """One sentence of a text that the two are compared on."""

    source: str
    target: str | None = None
    """The reference; None: there is none."""
    output: str | None = None
    """What the run has recorded of torch's answer; None: nothing."""


def texts_of(folder: Path, files: Sequence[str] | None, facts: CardFacts) -> tuple[list[Text], str]:
    """Return what the two are compared on, blank lines left out, and what to call it; nothing: the canary's rows.

    Raises:
        ExportError: for files that are not line-aligned, or hold nothing.
    """
    if files:
        if len(files) > 2:
            raise ExportError(f"--text {' '.join(files)} names {len(files)} files; sources, and one of references.")
        columns = [read_lines(file) for file in files]
        if len({len(column) for column in columns}) > 1:
            raise ExportError(
                f"{files[0]} has {len(columns[0]):,} lines and {files[1]} {len(columns[1]):,}; they must be "
                f"line-aligned."
            )
        texts, name = [Text(*row) for row in zip(*columns, strict=True)], " and ".join(Path(f).name for f in files)
    elif (rows := recorded_outputs(folder)) is not None:
        texts = [Text(row["source"], row["target"], row["output"] if facts.has_run else None) for row in rows]
        name = "the run's test set"
    else:
        return [], "the canary's rows"
    filled = [text for text in texts if text.source.strip()]
    if not filled:
        raise ExportError(f"{name} holds no sentence to compare the two on; name another file with --text.")
    return filled, name


def sentences_of(folder: Path, texts: Sequence[Text], tokenizer: Any, model: Any) -> list[Sentence]:
    """Return what is compared: sentences spread over the texts, or the canary's rows; those that fit the positions.

    Raises:
        ExportError: if there is none.
    """
    if texts:
        sample = spread(texts, COMPARED)
        targets = target_tokenizer(folder, tokenizer)
        found = [
            Sentence(tokenizer(text.source).input_ids, targets(text.target).input_ids if text.target else None)
            for text in sample
        ]
    else:
        canary = folder / CANARY_NAME
        rows = read_canary(canary).rows if canary.is_file() else []
        found = [Sentence(ids) for ids in [list(row.source) for row in rows] or sources_for(model.config)]
    longest = positions_in_table(model.config) or max([len(s.source) + len(s.target or ()) for s in found], default=0)
    fitting = [s for s in found if len(s.source) <= longest and len(s.target or ()) <= longest]
    if not fitting:
        raise ExportError(f"{folder} holds no sentence to compare the two on; name a file of sources with --text.")
    return fitting


def scored_texts(texts: Sequence[Text], tokenizer: Any, model: Any) -> tuple[list[Text], list[list[int]]]:
    """Return the texts that both are scored on, those that fit the positions, and their ids.

    They have a reference; and where the run has recorded what torch answers, that too.
    """
    referenced = [text for text in texts if text.target is not None]
    recorded = [text for text in referenced if text.output is not None]
    longest = positions_in_table(model.config)
    chosen = spread(recorded, SCORED) if recorded else spread(referenced, COMPARED)
    pairs = [(text, tokenizer(text.source).input_ids) for text in chosen]
    fitting = [(text, ids) for text, ids in pairs if longest is None or len(ids) <= longest]
    return [text for text, _ in fitting], [ids for _, ids in fitting]


def metrics_of(facts: CardFacts) -> Sequence[str]:
    """Return the names of the metrics that the run has used, or the usual ones."""
    return [name.removeprefix("test_") for name in facts.results if name.startswith("test_")] or DEFAULT_METRICS


def spread(texts: Sequence[Text], count: int) -> list[Text]:
    """Return at most so many texts, at even distances."""
    step = max(1, -(-len(texts) // count))
    return list(texts[::step])


def scores_of(
    model: Any,
    tokenizer: Any,
    engines: Mapping[str, Answering],
    texts: Sequence[Text],
    facts: CardFacts,
    scorer: Scorer,
) -> dict[str, Sequence[ScoreRow]]:
    """Score the folder's own search and each engine's answers on the same references; without two of them nothing.

    An engine searches with the folder's beams, if it has any.

    Args:
        model: the folder's.
        tokenizer: of both sides.
        engines: the exports, by name; they write answers of the same length.
        texts: of `texts_of`.
        facts: of the folder; says the metrics.
        scorer: scores.
    """
    chosen, sources = scored_texts(texts, tokenizer, model)
    if len(chosen) < 2:  # no interval
        return {}
    beams = model.generation_config.num_beams or 1
    if chosen[0].output is not None:
        ours = [str(text.output) for text in chosen]
    else:
        longest = next(iter(engines.values())).longest_answer
        ours = decode(tokenizer, write(model, sources, num_beams=beams, **one_answer(longest)))
    references = [str(text.target) for text in chosen]
    found: dict[str, Sequence[ScoreRow]] = {}
    for name, engine in engines.items():
        theirs = decode(tokenizer, engine.search(sources, num_beams=beams if engine.has_beams else 1))
        found[name] = scorer(ours, theirs, references, metrics_of(facts))
    return found


__all__ = ["Text", "metrics_of", "scored_texts", "scores_of", "sentences_of", "spread", "texts_of"]
