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

from huggingface_hub import ModelCardData

from seqloom.configuration.suggestion import did_you_mean
from seqloom.hub.export.ctranslate2_loader import build_spec, positions_in_table, vocabulary_of
from seqloom.hub.export.ctranslate2_options import greedy, translate_options
from seqloom.hub.export.engine_parity import Engine, Parity, Scorer, ScoreRow, Sentence, compare, decode, ends_of, write
from seqloom.hub.export.output_folder import ExportError, new_export, refuse_foreign, seal_export
from seqloom.hub.files import files_made_from, recorded_outputs
from seqloom.hub.lines import read_lines
from seqloom.hub.loading import load_folder, target_tokenizer
from seqloom.hub.model_card import CardFacts, card_environment, read_facts
from seqloom.hub.quoting import Quoted
from seqloom.hub.word_alignment import MOST_SENTENCES, MOST_TOKENS, find_place
from seqloom.modeling.canary import CANARY_NAME, read_canary, sources_for

QUANTIZATIONS = ("float32", "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16")
"""Number formats of the stored weights, in CTranslate2's words. A machine that lacks one computes with another."""

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
        refuse_other_answers(parity, quantization)
        scores = score(model, tokenizer, engine, texts, facts, scorer) if scorer else ()
        sizes = (staged / "model.bin").stat().st_size, sum(f.stat().st_size for f in folder.glob("model*.safetensors"))
        longest = positions_in_table(model.config)
        export = Export(quantization, *sizes, longest, options, compared_on, parity, tuple(scores))
        write_export_card(staged, output.resolve().name, export, facts)
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


def texts_of(folder: Path, files: Sequence[str] | None, facts: CardFacts) -> tuple[list[Text], str]:
    """Return what the two are compared on, blank lines left out, and what to call it; nothing: the canary's rows.

    Raises:
        ExportError: for files that are not line-aligned, or hold nothing.
    """
    if files:
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


def own_outputs(model: Any, sources: Sequence[Sequence[int]]) -> list[tuple[Sequence[int], Sequence[int]]]:
    """Return sources that are short enough to look at closely, and what the model writes for each, its end included."""
    short = [source for source in sources if len(source) <= MOST_TOKENS][: 2 * MOST_SENTENCES]
    written = write(model, short, num_beams=1, do_sample=False, num_return_sequences=1, max_new_tokens=MOST_TOKENS)
    return [(source, [*ids, ends_of(model)[0]]) for source, ids in zip(short, written, strict=True)]


def score(
    model: Any, tokenizer: Any, engine: Engine, texts: Sequence[Text], facts: CardFacts, scorer: Scorer
) -> Sequence[ScoreRow]:
    """Score torch and the engine on the same references, with the folder's beams; nothing without references."""
    referenced = [text for text in texts if text.target is not None]
    recorded = [text for text in referenced if text.output is not None]
    chosen = spread(recorded, SCORED) if recorded else spread(referenced, COMPARED)
    longest = positions_in_table(model.config)
    sources = [tokenizer(text.source).input_ids for text in chosen]
    fits = [longest is None or len(ids) <= longest for ids in sources]
    chosen = [text for text, fit in zip(chosen, fits, strict=True) if fit]
    sources = [ids for ids, fit in zip(sources, fits, strict=True) if fit]
    if len(chosen) < 2:  # no interval
        return ()
    settings = {**greedy(engine.options), "beam_size": engine.options["beam_size"]}
    theirs = decode(tokenizer, engine.write(sources, **settings))
    if recorded:
        ours = [str(text.output) for text in chosen]
    else:
        beams = {"num_beams": settings["beam_size"], "max_new_tokens": settings["max_decoding_length"]}
        ours = decode(tokenizer, write(model, sources, do_sample=False, num_return_sequences=1, **beams))
    metrics = [name.removeprefix("test_") for name in facts.results if name.startswith("test_")]
    return scorer(ours, theirs, [str(text.target) for text in chosen], metrics or DEFAULT_METRICS)


def spread(texts: Sequence[Text], count: int) -> list[Text]:
    """Return at most so many texts, at even distances."""
    step = max(1, -(-len(texts) // count))
    return list(texts[::step])


def refuse_other_answers(parity: Parity, quantization: str) -> None:
    """Refuse an export in float32 that differs from torch by more than rounding.

    Raises:
        ExportError: with what was found.
    """
    if quantization == "float32" and not parity.is_exact:
        raise ExportError(
            f"in CTranslate2 {version('ctranslate2')} this model does not answer as it does in torch, so nothing was "
            f"written: {describe_parity(parity)} Install another ctranslate2 and try again; if it stays so, report it "
            f"with the folder's config.json and generation_config.json."
        )


# What is said of it --------------------------------------------------------------------------------------------------


def describe_parity(parity: Parity) -> str:
    """Return what was found as sentences."""
    ties = f", {parity.greedy_ties:,} more part at a tie" if parity.greedy_ties else ""
    return (
        f"Of {parity.sentences:,} sentences, torch against the engine in {parity.compute_type}: forced "
        f"log-probabilities differ by at most {parity.forced_difference:.1e} on {parity.forced_tokens:,} tokens; "
        f"greedy search writes the same tokens for {parity.greedy_equal:,}{ties}; 5 beams write the same text for "
        f"{parity.beam_equal:,} (chrF of the one against the other {parity.beam_chrf:.1f})."
    )


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


def describe_score(row: ScoreRow) -> str:
    """Return one score as a line."""
    low, high = row.export_interval
    worse, better = row.difference_interval
    return (
        f"{row.metric}: torch {row.torch:.2f}, export {row.export:.2f} (95 % interval {low:.2f} to {high:.2f}); "
        f"difference {row.export - row.torch:+.2f} (95 % interval {worse:+.2f} to {better:+.2f})."
    )


def write_export_card(staged: Path, name: str, export: Export, facts: CardFacts) -> None:
    """Write README.md."""
    head = ModelCardData(
        language=list(facts.languages) or None,
        license=facts.license,
        library_name="ctranslate2",
        pipeline_tag=facts.pipeline_tag,
        tags=["seqloom", "ctranslate2"],
    )
    text = (
        card_environment()
        .get_template("export_card.md.jinja")
        .render(
            metadata=Quoted(head.to_yaml()),
            name=name,
            facts=facts,
            export=export,
            parity=describe_parity(export.parity),
            options=Quoted(", ".join(f"{option}={value!r}" for option, value in export.options.items())),
            versions=f"Seqloom {version('seqloom')}, CTranslate2 {version('ctranslate2')}",
            megabytes=[f"{size / 1e6:,.1f} MB" for size in (export.num_bytes, export.original_bytes)],
        )
    )
    (staged / "README.md").write_text(text.rstrip("\n") + "\n", encoding="utf-8", newline="\n")


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
