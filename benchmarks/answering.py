"""How fast does one core answer? The same random weights in six engines, every answer as long as the others'.

    python benchmarks/answering.py SOURCE TARGET [--presets tiny base] [--beams 1 5] [--engines NAME ...] [-o ROWS.tsv]

SOURCE and TARGET are line-aligned text (Multi30k: train.de.gz train.en.gz): a joint vocabulary of 10,000 is learned
from them, and sentences spread over SOURCE are read. Every answer has --length tokens, no more and no less, so that
random weights do the work of trained ones. One thread; seconds are CPU-seconds, so that other jobs hardly count, and
engines take turns, so that a noisy minute hits all of them.

    seqloom          torch, `generate`, batches of 32 sentences of like length
    marian           transformers' Marian class with the same weights, the same batches
    ctranslate2      what `seqloom export` makes, float32 and int8
    ctranslate2-marian   what CTranslate2's own Marian conversion makes of the Marian class, float32 and int8
    onnx             what `seqloom export --to onnx` makes, float32 and int8, greedy alone; int8 sentence by sentence

Tidy rows: `sentences_per_s` in batches, `p50_ms` and `p95_ms` of one sentence alone, `mb` of the weights on disk.
"""

import argparse
import csv
import gzip
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import ctranslate2
import torch
from ctranslate2.converters.transformers import MarianMTLoader
from transformers import MarianConfig, MarianMTModel

from seqloom.configuration.configuration_seqloom import SeqloomConfig
from seqloom.configuration.presets import get_preset
from seqloom.hub.batches import plan_batches
from seqloom.hub.export.ctranslate2_loader import build_spec
from seqloom.hub.export.onnx_engine import GreedySettings, OnnxEngine
from seqloom.hub.export.onnx_export import FORMATS, size_of
from seqloom.hub.export.onnx_graphs import quantize_graphs, write_graphs
from seqloom.modeling.modeling_seqloom import SeqloomForConditionalGeneration
from seqloom.training.tokenizer import train_tokenizer

COLUMNS = "round engine preset beams quantization sentences_per_s p50_ms p95_ms mb".split()
VOCABULARY, BATCH = 10_000, 32
SHARED_FIELDS = (
    *("vocab_size", "d_model", "encoder_layers", "decoder_layers", "encoder_attention_heads"),
    *("decoder_attention_heads", "encoder_ffn_dim", "decoder_ffn_dim", "max_position_embeddings"),
    *("activation_function", "scale_embedding", "pad_token_id", "eos_token_id", "decoder_start_token_id"),
)

ENGINES = ("seqloom", "marian", "ctranslate2", "ctranslate2-marian", "onnx")

AS_MARIAN = {"norm_position": "post", "position_embedding_type": "sinusoidal", "norm_type": "layernorm"}
"""What Marian can be told of; presets that say otherwise are measured without."""

Ids = Sequence[Sequence[int]]
Answer = Callable[[Ids, int], Any]
"""Sources and beams -> answers, thrown away."""


def read_lines(path: str) -> list[str]:
    """Return the lines of a file, plain or .gz."""
    with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
        return file.read().decode("utf-8").splitlines()


def marian_twin(ours: Any) -> MarianMTModel:
    """Make a Marian with the weights of a Seqloom."""
    fields = {name: getattr(ours.config, name) for name in SHARED_FIELDS}
    marian = MarianMTModel(MarianConfig(**fields, forced_eos_token_id=None)).eval()
    weights = {"model.shared.weight": ours.get_input_embeddings().weight, **ours.state_dict()}
    assert not marian.load_state_dict(weights, strict=False).unexpected_keys
    return marian


class LastEntryLoader(MarianMTLoader):
    """CTranslate2's Marian conversion takes the last row of the vocabulary for padding, and drops it."""

    def get_vocabulary(self, model: Any, tokenizer: Any) -> list[str]:
        """Return the names of the rows that are kept."""
        return super().get_vocabulary(model, tokenizer)[:-1]


def torch_engine(model: Any, length: int) -> Answer:
    """Return what answers with a model's `generate`."""
    pad = model.config.pad_token_id

    @torch.inference_mode()
    def answer(sources: Ids, beams: int) -> Any:
        longest = max(map(len, sources))
        ids = torch.tensor([[*source, *[pad] * (longest - len(source))] for source in sources])
        options = {"num_beams": beams, "do_sample": False, "min_new_tokens": length, "max_new_tokens": length}
        return model.generate(input_ids=ids, attention_mask=(ids != pad).long(), **options)

    return answer


def ctranslate2_engine(folder: str, names: Sequence[str], length: int) -> Answer:
    """Return what answers with a converted model."""
    translator = ctranslate2.Translator(folder, intra_threads=1, inter_threads=1)

    def answer(sources: Ids, beams: int) -> Any:
        tokens = [[names[index] for index in source] for source in sources]
        lengths = {"max_input_length": 0, "min_decoding_length": length, "max_decoding_length": length}
        return translator.translate_batch(tokens, beam_size=beams, **lengths)

    return answer


def engines_of(
    model: Any, tokenizer: Any, length: int, home: Path, wanted: Sequence[str]
) -> Iterator[tuple[str, str, Answer, float]]:
    """Yield name, quantization, engine and megabytes on disk of those that are wanted."""
    size = sum(weight.numel() for weight in model.parameters()) * 4 / 1e6
    for name, kind in (("seqloom", lambda: model), ("marian", lambda: marian_twin(model))):
        if name in wanted:
            yield name, "float32", torch_engine(kind(), length), size
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    for name, convert in (
        ("ctranslate2", lambda: build_spec(model, tokenizer)),
        ("ctranslate2-marian", lambda: LastEntryLoader()(marian_twin(model), tokenizer)),  # quantised in place
    ):
        for quantization in ("float32", "int8") if name in wanted else ():
            with torch.no_grad():
                spec = convert()
            spec.validate()
            spec.optimize(quantization=quantization)
            folder = home / f"{name}-{quantization}"
            folder.mkdir()
            spec.save(str(folder))
            size = (folder / "model.bin").stat().st_size / 1e6
            yield name, quantization, ctranslate2_engine(str(folder), names, length), size
    if "onnx" in wanted:
        write_graphs(model, home)
        quantize_graphs(home)
        model.generation_config.update(max_new_tokens=length, min_new_tokens=length)
        for quantization, suffix in FORMATS.items():
            engine = OnnxEngine(home, model, GreedySettings.of(model), suffix)
            yield "onnx", quantization, engine.search, size_of(home, suffix) / 1e6


def measure(answer: Answer, sources: Ids, beams: int, alone: int) -> tuple[float, float, float]:
    """Return sentences a CPU-second, and the CPU-milliseconds of one sentence, median and 95th percentile."""
    answer(sources[:2], beams)  # what is only slow the first time
    batches = plan_batches([len(ids) for ids in sources], BATCH * max(map(len, sources)))
    start = time.process_time()
    for batch in batches:
        answer([sources[index] for index in batch], beams)
    rate = len(sources) / (time.process_time() - start)
    each = []
    for source in sources[:alone]:
        start = time.process_time()
        answer([source], beams)
        each.append(1000 * (time.process_time() - start))
    return rate, statistics.median(each), statistics.quantiles(each, n=20)[-1]


def run(arguments: argparse.Namespace, stream: TextIO) -> None:
    """Print one row for each engine, preset and number of beams."""
    torch.set_num_threads(1)
    lines = [read_lines(path) for path in (arguments.source, arguments.target)]
    tokenizer = train_tokenizer(*lines, kind="bpe", vocab_size=VOCABULARY, show_progress=False).source
    sources = tokenizer(lines[0][:: max(1, len(lines[0]) // arguments.sentences)][: arguments.sentences]).input_ids
    rows = csv.writer(stream, delimiter="\t", lineterminator="\n")
    rows.writerow(COLUMNS)
    for preset in arguments.presets:
        torch.manual_seed(0)
        config = SeqloomConfig(**{**get_preset(preset).model, **AS_MARIAN, "vocab_size": len(tokenizer)})
        model = SeqloomForConditionalGeneration(config).eval()
        with tempfile.TemporaryDirectory() as home:
            engines = list(engines_of(model, tokenizer, arguments.length, Path(home), arguments.engines))
            for number, beams in itertools.product(range(arguments.rounds), arguments.beams):
                for name, quantization, answer, size in engines:
                    if name == "onnx" and beams > 1:
                        continue
                    numbers = measure(answer, sources, beams, arguments.alone)
                    rows.writerow([number, name, preset, beams, quantization, *(f"{n:.1f}" for n in (*numbers, size))])
                    stream.flush()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--presets", nargs="+", default=["tiny", "base"])
    parser.add_argument("--beams", nargs="+", type=int, default=[1, 5])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sentences", type=int, default=200, help="answered in batches")
    parser.add_argument("--alone", type=int, default=40, help="answered one by one")
    parser.add_argument("--length", type=int, default=15, help="tokens of every answer")
    parser.add_argument("-o", "--output", help="file for the rows [stdout]")
    arguments = parser.parse_args()
    if arguments.output:
        with open(arguments.output, "w", encoding="utf-8") as stream:
            run(arguments, stream)
    else:
        run(arguments, sys.stdout)


if __name__ == "__main__":
    main()
