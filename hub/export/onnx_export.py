"""`seqloom export FOLDER --to onnx`: two graphs for ONNX Runtime and the browser, compared before they are handed over.

FOLDER --> onnx_graphs.write_graphs --> DIR/onnx/encoder_model.onnx, decoder_model_merged.onnx
   |       onnx_graphs.quantize_graphs            ..._quantized.onnx
   |                                        DIR/config.json, generation_config.json, tokenizer.json, ...
   +--> sentences --> engine_parity.compare --> DIR/README.md, seqloom_export.json
   +--> onnx_page.write_page ------------------> DIR/index.html, where the two packages of npm are installed
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

from tqdm import tqdm

from seqloom.hub.export.compared_texts import scores_of, sentences_of, texts_of
from seqloom.hub.export.engine_parity import Parity, Scorer, ScoreRow, compare
from seqloom.hub.export.export_card import describe_parity, describe_score, refuse_other_answers, write_card
from seqloom.hub.export.onnx_engine import GreedySettings, OnnxEngine
from seqloom.hub.export.onnx_graphs import DECODER, ENCODER, QUANTIZED, quantize_graphs, write_graphs
from seqloom.hub.export.onnx_page import describe_page, find_page_parts, write_page
from seqloom.hub.export.output_folder import new_export, refuse_foreign, seal_export
from seqloom.hub.files import files_made_from
from seqloom.hub.loading import load_folder
from seqloom.hub.model_card import CardFacts, read_facts

FORMATS = {"float32": "", "int8": QUANTIZED}
"""Number format of the weights -> what stands behind a graph's name."""


@dataclass(frozen=True)
class FormatFacts:
    """One pair of graphs."""

    num_bytes: int
    parity: Parity
    scores: tuple[ScoreRow, ...]
    """Greedy answers of these graphs against the folder's own search."""


@dataclass(frozen=True)
class OnnxExport:
    """What was made, as its manifest has it."""

    settings: GreedySettings
    own_beams: int
    """Beams with which the folder searches."""
    compared_on: str
    formats: dict[str, FormatFacts]
    """Number format -> what was found."""
    page: dict[str, str]
    """Package of npm -> version in index.html; empty: there is no page."""


def export_onnx(
    folder: str | PathLike[str],
    output: str | PathLike[str],
    *,
    text: Sequence[str] | None = None,
    scorer: Scorer | None = None,
) -> OnnxExport:
    """Convert a folder, compare the two, and only then put the result in its place.

    Args:
        folder: a trained model.
        output: the folder to write: a new or an empty one, or an earlier export of ours.
        text: a file of sources, or two line-aligned files of sources and references; None: the run's test outputs, or
            where there are none the canary's rows.
        scorer: scores both on references; None: nothing is scored.

    Raises:
        ExportError: if the export does not answer as the folder does, or `output` holds something that is not ours.
        ImportError: if a package of the extra is not installed.
    """
    folder, output = Path(folder), Path(output)
    refuse_missing_packages()
    refuse_foreign(output.resolve())
    parts = find_page_parts(Path.cwd())
    model, tokenizer = load_folder(folder)
    model = model.cpu().float()
    settings = GreedySettings.of(model)
    facts = read_facts(folder)
    texts, compared_on = texts_of(folder, text, facts)
    sentences = sentences_of(folder, texts, tokenizer, model)
    with new_export(output) as staged:
        graphs = staged / "onnx"
        graphs.mkdir()
        with tqdm(total=4, desc="export", unit="step") as bar:
            write_graphs(model, graphs)
            quantize_graphs(graphs)
            bar.update()
            write_settings(model, tokenizer, staged)
            engines = {name: OnnxEngine(graphs, model, settings, suffix) for name, suffix in FORMATS.items()}
            parities = {name: compare(model, tokenizer, engine, sentences) for name, engine in engines.items()}
            refuse_other_answers(parities["float32"], "ONNX Runtime", "onnxruntime")
            bar.update()
            scores = scores_of(model, tokenizer, engines, texts, facts, scorer) if scorer else {}
            bar.update()
            formats = {
                name: FormatFacts(size_of(graphs, suffix), parities[name], tuple(scores.get(name, ())))
                for name, suffix in FORMATS.items()
            }
            page = parts.versions if parts else {}
            export = OnnxExport(settings, model.generation_config.num_beams or 1, compared_on, formats, page)
            if parts:
                write_page(staged, output.resolve().name, facts, export.settings, parts)
            write_card(
                staged,
                "onnx_card.md.jinja",
                "transformers.js",
                "onnx",
                facts,
                [("torch", "torch"), ("ONNX Runtime", "onnxruntime")],
                name=output.resolve().name,
                export=export,
                parities=[describe_parity(found.parity) for found in formats.values()],
                megabytes={fmt: f"{found.num_bytes / 1e6:,.1f} MB" for fmt, found in formats.items()},
                parts=parts,
            )
            seal_export(staged, {**manifest_of(export, facts), "made_from": files_made_from(folder)})
            bar.update()
    return export


def refuse_missing_packages() -> None:
    """Refuse to begin without what writes and runs graphs.

    Raises:
        ImportError: naming the extra.
    """
    try:
        for name in ("onnx", "onnxscript", "onnxruntime"):
            import_module(name)
    except ImportError as error:
        raise ImportError(
            f"seqloom export --to onnx needs onnx, onnxscript and onnxruntime ({error}); pip install 'seqloom[onnx]'."
        ) from error


def size_of(graphs: Path, suffix: str) -> int:
    """Return the bytes of a pair of graphs."""
    return sum((graphs / f"{name}{suffix}.onnx").stat().st_size for name in (ENCODER, DECODER))


# What lies beside the graphs -----------------------------------------------------------------------------------------

OF_BEAMS = ("num_beams", "length_penalty", "early_stopping", "num_return_sequences")
"""Settings that transformers.js, which searches greedily or samples, would not read, or would stumble over."""

SHAPE = (
    *("vocab_size", "d_model", "encoder_layers", "decoder_layers", "encoder_attention_heads"),
    *("decoder_attention_heads", "encoder_ffn_dim", "decoder_ffn_dim", "max_position_embeddings"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"),
)
"""Fields of a configuration that both know by the same name."""


def write_settings(model: Any, tokenizer: Any, staged: Path) -> None:
    """Write the tokenizer, generation_config.json, and a config.json by which transformers.js knows what to do.

    It has no word for Seqloom. What it has to know of an encoder-decoder, which graphs there are and what their cache
    is called, it knows of Marian's; what the network computes stands in the graphs.
    """
    tokenizer.save_pretrained(staged)
    settings = {name: value for name, value in model.generation_config.to_diff_dict().items() if name not in OF_BEAMS}
    config = {
        "model_type": "marian",
        "architectures": ["MarianMTModel"],
        "is_encoder_decoder": True,
        **{name: getattr(model.config, name) for name in SHAPE},
    }
    for name, content in (("generation_config", settings), ("config", config)):
        (staged / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")


# What is said of it --------------------------------------------------------------------------------------------------


def describe_export(output: str | PathLike[str], export: OnnxExport) -> str:
    """Return what a person wants to know: where it is, how large, how exact, how to use it."""
    sizes = ", ".join(f"{name} {facts.num_bytes / 1e6:,.1f} MB" for name, facts in export.formats.items())
    lines = [f"{output}: {sizes}.", f"Compared on {export.compared_on}."]
    for name, facts in export.formats.items():
        lines += [describe_parity(facts.parity), *describe_scores(name, export.own_beams, facts.scores)]
    lines.append(describe_page(output, export.page))
    return "\n".join([*lines, f"{Path(output) / 'README.md'} shows how to use the graphs elsewhere."])


def describe_scores(name: str, own_beams: int, rows: Iterable[ScoreRow]) -> list[str]:
    """Return one line a metric."""
    own = f"with {own_beams} beams" if own_beams > 1 else "likewise"
    return [f"{name}, greedy, against torch {own}: {describe_score(row)}" for row in rows]


def manifest_of(export: OnnxExport, facts: CardFacts) -> dict[str, Any]:
    """Return what the manifest says beside the digests."""
    return {
        "format": "onnx",
        "seqloom_version": version("seqloom"),
        "onnxruntime_version": version("onnxruntime"),
        "weights": facts.weights,
        **asdict(export),
    }


__all__ = ["OnnxExport", "describe_export", "export_onnx"]
