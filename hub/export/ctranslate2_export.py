"""`seqloom export FOLDER --to ctranslate2`: the folder's network for another engine, compared before it is handed over.

    FOLDER --> ctranslate2_loader.build_spec --> quantise --> DIR/model.bin, config.json, shared_vocabulary.json
       |                                                      DIR/tokenizer.json, ...
       +--> sentences --> engine_parity.compare ------------> DIR/README.md, seqloom_export.json

What the folder's generation_config.json says stands as arguments of `translate_batch` in README.md and in the manifest.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

from seqloom.configuration.suggestion import did_you_mean
from seqloom.hub.export.compared_texts import scores_of, sentences_of, texts_of
from seqloom.hub.export.ctranslate2_loader import build_spec, positions_in_table, vocabulary_of
from seqloom.hub.export.ctranslate2_options import translate_options
from seqloom.hub.export.engine_parity import Engine, Parity, Scorer, ScoreRow, compare, ends_of, one_answer, write
from seqloom.hub.export.export_card import describe_parity, describe_score, refuse_other_answers, write_card
from seqloom.hub.export.output_folder import ExportError, new_export, refuse_foreign, seal_export
from seqloom.hub.files import files_made_from
from seqloom.hub.loading import load_folder
from seqloom.hub.model_card import CardFacts, read_facts
from seqloom.hub.quoting import Quoted
from seqloom.hub.word_alignment import MOST_SENTENCES, MOST_TOKENS, find_place

QUANTIZATIONS = ("float32", "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16")
"""Number formats of the stored weights, in CTranslate2's words. A machine that lacks one computes with another."""


@dataclass(frozen=True)
class Export:
    """What was made, as its manifest has it."""

    quantization: str
    num_bytes: int
    """Of model.bin."""
    original_bytes: int
    """Of the folder's weights."""
    longest: int | None
    """Tokens that it can read, or write; None: as many as memory holds."""
    options: dict[str, Any]
    """Arguments of `translate_batch`."""
    compared_on: str
    parity: Parity
    scores: tuple[ScoreRow, ...]


def export_ctranslate2(
    folder: str | PathLike[str],
    output: str | PathLike[str],
    *,
    quantization: str = "float32",
    text: Sequence[str] | None = None,
    scorer: Scorer | None = None,
) -> Export:
    """Convert a folder, compare the two, and only then put the result in its place.

    Args:
        folder: a trained model.
        output: the folder to write: a new or an empty one, or an earlier export of ours.
        quantization: one of `QUANTIZATIONS`.
        text: a file of sources, or two line-aligned files of sources and references; None: the run's test outputs, or
            where there are none the canary's rows.
        scorer: scores both on references; None: nothing is scored.

    Raises:
        ExportError: if the export does not answer as the folder does, or `output` holds something that is not ours.
        ConversionError: for a network that the engine cannot compute.
        ImportError: if CTranslate2 is not installed.
    """
    folder, output = Path(folder), Path(output)
    refuse_unknown_quantization(quantization)
    refuse_missing_engine()
    refuse_foreign(output.resolve())
    model, tokenizer = load_folder(folder)
    model = model.cpu().float()
    names = vocabulary_of(tokenizer, model.config.vocab_size)
    options = translate_options(model, names)
    facts = read_facts(folder)
    texts, compared_on = texts_of(folder, text, facts)
    sentences = sentences_of(folder, texts, tokenizer, model)
    place = find_place(model, own_outputs(model, [sentence.source for sentence in sentences]))
    spec = build_spec(model, tokenizer, place.layer)
    spec.validate()
    spec.optimize(quantization=quantization)
    with new_export(output) as staged:
        spec.save(str(staged))
        tokenizer.save_pretrained(staged)
        engine = Engine(str(staged), names, options)
        parity = compare(model, tokenizer, engine, sentences)
        if quantization == "float32":
            refuse_other_answers(parity, "CTranslate2", "ctranslate2")
        scored = scores_of(model, tokenizer, {quantization: engine}, texts, facts, scorer) if scorer else {}
        scores = tuple(scored.get(quantization, ()))
        sizes = (staged / "model.bin").stat().st_size, sum(f.stat().st_size for f in folder.glob("model*.safetensors"))
        longest = positions_in_table(model.config)
        export = Export(quantization, *sizes, longest, options, compared_on, parity, scores)
        write_card(
            staged,
            "export_card.md.jinja",
            "ctranslate2",
            "ctranslate2",
            facts,
            [("CTranslate2", "ctranslate2")],
            name=output.resolve().name,
            export=export,
            parity=describe_parity(parity),
            options=Quoted(", ".join(f"{option}={value!r}" for option, value in options.items())),
            megabytes=[f"{size / 1e6:,.1f} MB" for size in sizes],
        )
        made_from = files_made_from(folder)
        seal_export(staged, {**manifest_of(export, facts), "alignment": asdict(place), "made_from": made_from})
    return export


def refuse_unknown_quantization(quantization: str) -> None:
    """Refuse a number format that the engine does not know.

    Raises:
        ExportError: with the nearest.
    """
    if quantization not in QUANTIZATIONS:
        hint = did_you_mean(quantization, QUANTIZATIONS, "did you mean {}? ")
        raise ExportError(f"quantization={quantization!r} is unknown; {hint}use one of {', '.join(QUANTIZATIONS)}.")


def refuse_missing_engine() -> None:
    """Refuse to begin without CTranslate2.

    Raises:
        ImportError: naming the extra.
    """
    try:
        import ctranslate2  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"seqloom export --to ctranslate2 needs ctranslate2 ({error}); pip install 'seqloom[export]'."
        ) from error


def own_outputs(model: Any, sources: Sequence[Sequence[int]]) -> list[tuple[Sequence[int], Sequence[int]]]:
    """Return sources that are short enough to look at closely, and what the model writes for each, its end included."""
    short = [source for source in sources if len(source) <= MOST_TOKENS][: 2 * MOST_SENTENCES]
    written = write(model, short, num_beams=1, **one_answer(MOST_TOKENS))
    return [(source, [*ids, ends_of(model)[0]]) for source, ids in zip(short, written, strict=True)]


# What is said of it --------------------------------------------------------------------------------------------------


def describe_export(output: str | PathLike[str], export: Export) -> str:
    """Return what a person wants to know: where it is, how large, how exact, how to use it."""
    megabytes = export.num_bytes / 1e6, export.original_bytes / 1e6
    lines = [
        f"{output}: {export.quantization}, {megabytes[0]:,.1f} MB (the folder's weights: {megabytes[1]:,.1f} MB).",
        f"Compared on {export.compared_on}. {describe_parity(export.parity)}",
        *(describe_score(row) for row in export.scores),
    ]
    if not export.parity.compute_type.startswith(export.quantization):
        lines.append(
            f"This machine cannot compute {export.quantization}; the engine took {export.parity.compute_type} here, "
            f"and that is what was compared."
        )
    if export.longest is not None:
        lines.append(f"It reads and writes at most {export.longest:,} tokens; longer text is an error, not cut.")
    return "\n".join([*lines, f"{Path(output) / 'README.md'} shows the five lines of Python that use it."])


def manifest_of(export: Export, facts: CardFacts) -> dict[str, Any]:
    """Return what the manifest says beside the digests."""
    facts_of_export = asdict(export)
    return {
        "format": "ctranslate2",
        "seqloom_version": version("seqloom"),
        "ctranslate2_version": version("ctranslate2"),
        "weights": facts.weights,
        "translate_batch": facts_of_export.pop("options"),
        **facts_of_export,
    }


__all__ = ["QUANTIZATIONS", "Export", "describe_export", "export_ctranslate2"]
