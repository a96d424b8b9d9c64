"""How fast does one core answer, and in how much memory? The same weights in six engines.

    python benchmarks/answering.py SOURCE TARGET [--presets tiny base] [--beams 1 5] [--engines NAME ...] [-o ROWS.tsv]
    python benchmarks/answering.py SOURCE TARGET --folders FOLDER ... [--tokenize none]

SOURCE and TARGET are line-aligned text, and sentences spread over SOURCE are read. Presets have random weights and a
joint vocabulary of 10,000 learned from both files (Multi30k: train.de.gz train.en.gz); every answer has --length
tokens, no more and no less, so that random weights do the work of trained ones. Folders are trained models, which end
where they end, at --length at the latest, and are scored by BLEU on TARGET. One thread; seconds are CPU-seconds, so
that other jobs hardly count, and engines take turns, so that a noisy minute hits all of them.

    seqloom          torch, `generate`, batches of 32 sentences of like length
    marian           transformers' Marian class with the same weights, the same batches
    ctranslate2      what `seqloom export` makes, float32 and int8
    ctranslate2-marian   what CTranslate2's own Marian conversion makes of the Marian class, float32 and int8
    onnx             what `seqloom export --to onnx` makes, float32 and int8, greedy alone; int8 sentence by sentence

The Marian class knows post-norm, sinusoids and LayerNorm alone: presets are measured as such, and of other folders
there are no rows of it. Tidy rows: `sentences_per_s` in batches, `p50_ms` and `p95_ms` of one sentence alone, `mb` of
the weights on disk, `peak_mb` of memory that a fresh process takes with its libraries, torch among them in every case,
to open the engine and to answer all batches; `bleu` of folders.
"""

import argparse
import csv
import gzip
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import ctranslate2
import torch
from ctranslate2.converters.transformers import MarianMTLoader
from sacrebleu import corpus_bleu
from transformers import MarianConfig, MarianMTModel

from seqloom.configuration.configuration_seqloom import SeqloomConfig
from seqloom.configuration.presets import get_preset
from seqloom.hub.batches import before_end, plan_batches
from seqloom.hub.export.ctranslate2_loader import build_spec
from seqloom.hub.export.onnx_engine import GreedySettings, OnnxEngine
from seqloom.hub.export.onnx_export import FORMATS, size_of
from seqloom.hub.export.onnx_graphs import quantize_graphs, write_graphs
from seqloom.hub.loading import load_folder, no_loading_bar
from seqloom.modeling.modeling_seqloom import SeqloomForConditionalGeneration
from seqloom.training.tokenizer import train_tokenizer

COLUMNS = "round engine model beams quantization sentences_per_s p50_ms p95_ms mb peak_mb bleu".split()
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
Answer = Callable[[Ids, int], list[list[int]]]
"""Sources and beams -> the best answer for each."""


@dataclass(frozen=True)
class Subject:
    """One network, and how long its answers are."""

    name: str
    folder: Path
    """Where the files of its engines lie, a folder each."""
    names: Sequence[str]
    """Of the vocabulary's entries, those of both sides."""
    shortest: int
    longest: int


@dataclass(frozen=True)
class Engine:
    """One engine with one network, in files, so that another process can open it as well."""

    name: str
    quantization: str
    subject: Subject
    mb: float = 0.0
    """Of the weights on disk."""

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return self.subject.folder / self.name / self.quantization

    def open(self) -> Answer:
        """Return what answers."""
        torch.set_num_threads(1)
        if self.name == "onnx":
            return self._onnx()
        if self.name.startswith("ctranslate2"):
            return self._ctranslate2()
        kind = {"seqloom": SeqloomForConditionalGeneration, "marian": MarianMTModel}[self.name]
        return self._torch(kind.from_pretrained(self.folder).eval())

    def _torch(self, model: Any) -> Answer:
        config, limits = model.config, {"min_new_tokens": self.subject.shortest, "max_new_tokens": self.subject.longest}

        @torch.inference_mode()
        def answer(sources: Ids, beams: int) -> list[list[int]]:
            longest = max(map(len, sources))
            ids = torch.tensor([[*source, *[config.pad_token_id] * (longest - len(source))] for source in sources])
            mask = (ids != config.pad_token_id).long()
            rows = model.generate(input_ids=ids, attention_mask=mask, num_beams=beams, do_sample=False, **limits)
            return [before_end(row[1:], [config.eos_token_id]) for row in rows.tolist()]

        return answer

    def _ctranslate2(self) -> Answer:
        translator = ctranslate2.Translator(str(self.folder), intra_threads=1, inter_threads=1)
        names, index_of = self.subject.names, {name: index for index, name in enumerate(self.subject.names)}
        limits = {"min_decoding_length": self.subject.shortest, "max_decoding_length": self.subject.longest}

        def answer(sources: Ids, beams: int) -> list[list[int]]:
            tokens = [[names[index] for index in source] for source in sources]
            found = translator.translate_batch(tokens, beam_size=beams, max_input_length=0, **limits)
            return [[index_of[name] for name in result.hypotheses[0]] for result in found]

        return answer

    def _onnx(self) -> Answer:
        with torch.device("meta"):  # shapes alone are read
            model = SeqloomForConditionalGeneration(
                SeqloomConfig.from_pretrained(self.subject.folder / "seqloom/float32")
            )
        model.generation_config.update(max_new_tokens=self.subject.longest, min_new_tokens=self.subject.shortest)
        return OnnxEngine(self.folder, model, GreedySettings.of(model), FORMATS[self.quantization]).search


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


def prepare(model: Any, tokenizer: Any, subject: Subject, wanted: Sequence[str]) -> Iterator[Engine]:
    """Write the files of the engines that are wanted, and yield these."""
    is_marian = all(getattr(model.config, name) == value for name, value in AS_MARIAN.items())
    size = sum(weight.numel() for weight in model.parameters()) * 4 / 1e6
    torch_engine = Engine("seqloom", "float32", subject, size)
    model.save_pretrained(torch_engine.folder)
    if "seqloom" in wanted:
        yield torch_engine
    if "marian" in wanted and is_marian:
        engine = replace(torch_engine, name="marian")
        marian_twin(model).save_pretrained(engine.folder)
        yield engine
    for name, convert in (
        ("ctranslate2", lambda: build_spec(model, tokenizer)),
        ("ctranslate2-marian", lambda: LastEntryLoader()(marian_twin(model), tokenizer)),  # quantised in place
    ):
        for quantization in ("float32", "int8") if name in wanted and (is_marian or name == "ctranslate2") else ():
            with torch.no_grad():
                spec = convert()
            spec.validate()
            spec.optimize(quantization=quantization)
            engine = Engine(name, quantization, subject)
            engine.folder.mkdir(parents=True)
            spec.save(str(engine.folder))
            yield replace(engine, mb=(engine.folder / "model.bin").stat().st_size / 1e6)
    if "onnx" in wanted:
        home = Engine("onnx", "float32", subject).folder
        home.mkdir(parents=True)
        write_graphs(model, home)
        quantize_graphs(home)
        (home.parent / "int8").symlink_to(home)
        for quantization, suffix in FORMATS.items():
            yield Engine("onnx", quantization, subject, size_of(home, suffix) / 1e6)


def peak_of(engine: Engine, sources: Ids, beams: int) -> float:
    """Return the megabytes that this process has held at most, after it has opened an engine and answered."""
    with no_loading_bar():
        answer = engine.open()
    for batch in batches_of(sources):
        answer([sources[index] for index in batch], beams)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1000


def batches_of(sources: Ids) -> list[list[int]]:
    """Return which sources are answered together."""
    return plan_batches([len(ids) for ids in sources], BATCH * max(map(len, sources)))


def measure(answer: Answer, sources: Ids, beams: int, alone: int) -> tuple[float, float, float, list[list[int]]]:
    """Return sentences a CPU-second, the CPU-milliseconds of one sentence, median and 95th percentile, and answers."""
    answer(sources[:2], beams)  # what is only slow the first time
    answers: dict[int, list[int]] = {}
    batches = batches_of(sources)
    start = time.process_time()
    for batch in batches:
        answers |= zip(batch, answer([sources[index] for index in batch], beams), strict=True)
    rate = len(sources) / (time.process_time() - start)
    each = []
    for source in sources[:alone]:
        start = time.process_time()
        answer([source], beams)
        each.append(1000 * (time.process_time() - start))
    ordered = [answers[index] for index in range(len(sources))]
    return rate, statistics.median(each), statistics.quantiles(each, n=20)[-1], ordered


def bleu_of(answers: Ids, references: Sequence[str], tokenizer: Any, tokenize: str) -> str:
    """Return sacreBLEU's score of answers in token ids."""
    written = tokenizer.batch_decode(answers, skip_special_tokens=True)
    return f"{corpus_bleu(written, [references], tokenize=tokenize).score:.1f}"


def names_of(tokenizer: Any) -> list[str]:
    """Return what the entries of a vocabulary are called."""
    return tokenizer.convert_ids_to_tokens(range(len(tokenizer)))


def subjects_of(
    arguments: argparse.Namespace, lines: Sequence[Sequence[str]], home: Path
) -> Iterator[tuple[Any, Any, Subject]]:
    """Yield networks with their tokenizers: of the folders that are named, else of the presets."""
    for number, folder in enumerate(arguments.folders):
        model, tokenizer = load_folder(folder, "cpu")
        yield model, tokenizer, Subject(Path(folder).name, home / str(number), names_of(tokenizer), 0, arguments.length)
    if arguments.folders:
        return
    tokenizer = train_tokenizer(*lines, kind="bpe", vocab_size=VOCABULARY, show_progress=False).source
    names = names_of(tokenizer)
    for preset in arguments.presets:
        torch.manual_seed(0)
        config = SeqloomConfig(**{**get_preset(preset).model, **AS_MARIAN, "vocab_size": len(tokenizer)})
        model = SeqloomForConditionalGeneration(config).eval()
        subject = Subject(preset, home / preset, names, arguments.length, arguments.length)
        yield model, tokenizer, subject


def run(arguments: argparse.Namespace, stream: TextIO) -> None:
    """Print one row for each round, engine, network and number of beams."""
    lines = [read_lines(path) for path in (arguments.source, arguments.target)]
    spread = slice(0, arguments.sentences * (step := max(1, len(lines[0]) // arguments.sentences)), step)
    texts, references = (side[spread] for side in lines)
    rows = csv.writer(stream, delimiter="\t", lineterminator="\n")
    rows.writerow(COLUMNS)
    with (
        tempfile.TemporaryDirectory() as home,
        multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as fresh,
    ):
        for model, tokenizer, subject in subjects_of(arguments, lines, Path(home)):
            sources = tokenizer(texts).input_ids
            engines = [(each, each.open()) for each in prepare(model, tokenizer, subject, arguments.engines)]
            cases = [
                (*each, beams)
                for beams in arguments.beams
                for each in engines
                if not (each[0].name == "onnx" and beams > 1)
            ]
            peaks = [fresh.apply(peak_of, (engine, sources, beams)) for engine, _, beams in cases]
            for number in range(arguments.rounds):
                for (engine, answer, beams), peak in zip(cases, peaks, strict=True):
                    *numbers, answers = measure(answer, sources, beams, arguments.alone)
                    shown = [f"{value:.1f}" for value in (*numbers, engine.mb, peak)]
                    shown.append(
                        bleu_of(answers, references, tokenizer, arguments.tokenize) if arguments.folders else ""
                    )
                    rows.writerow([number, engine.name, subject.name, beams, engine.quantization, *shown])
                    stream.flush()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--presets", nargs="+", default=["tiny", "base"])
    parser.add_argument("--folders", nargs="+", default=[], help="trained models, in place of presets")
    parser.add_argument("--tokenize", default="13a", help="how sacreBLEU cuts words")
    parser.add_argument("--beams", nargs="+", type=int, default=[1, 5])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sentences", type=int, default=200, help="answered in batches")
    parser.add_argument("--alone", type=int, default=40, help="answered one by one")
    parser.add_argument("--length", type=int, default=15, help="tokens of every answer")
    parser.add_argument("-o", "--output", help="file for the rows [stdout]")
    arguments = parser.parse_args()
    with (
        no_loading_bar(),
        open(arguments.output, "w", encoding="utf-8") if arguments.output else nullcontext(sys.stdout) as stream,
    ):
        run(arguments, stream)


if __name__ == "__main__":
    main()
