"""How fast does one core, or one GPU, train? Seqloom through its own train.py, beside what a user would pick instead.

    python benchmarks/training_speed.py SOURCE TARGET [--geometry tiny] [--systems NAME ...] [--rounds 3] [-o ROWS.tsv]

SOURCE and TARGET are line-aligned training files (Multi30k: train.de.gz train.en.gz). Every system gets the same joint
10,000 BPE vocabulary, the same geometry, dropout and label smoothing, and as many target tokens an update on average.
The unit is target tokens without padding per second, from one optimizer step to another: data, forward, backward and
step are in it, start-up is not. On a processor each system has one thread and the seconds are CPU-seconds, so that
other jobs on the machine hardly count; on a GPU they are the clock's (try --tokens_per_update 65536 --warm_up 20).
Systems take turns, each in a process of its own, so that a noisy hour hits all of them.

MFU is the share of the machine that the model's own products use: their FLOPs at real tokens over the rate of one large
matrix product in the same numbers, measured in the same process.

    seqloom                     seqloom.training.train, fp32
    seqloom-bf16                the same with --precision bf16
    seqloom-auto                and with --precision auto: the faster of the two, as it finds on a processor
    seqloom-bf16-packing        and --packing, a matter of GPUs
    seqloom-bf16-compile        and --torch_compile, a matter of GPUs
    seqloom-bf16-packing-compile
    trainer                     transformers' Marian class, Seq2SeqTrainer, DataCollatorForSeq2Seq: the defaults
    trainer-grouped             the same, group_by_length
    trainer-bf16                group_by_length, bf16, the faster attention there: SDPA on GPUs, eager elsewhere
    hand-loop                   torch.nn.Transformer, batches of one length, fused AdamW: what an expert writes
"""

import argparse
import functools
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

GEOMETRIES = {
    "tiny": {"layers": 4, "width": 128, "ffn": 256, "heads": 4},
    "base": {"layers": 6, "width": 512, "ffn": 2048, "heads": 8},
    "big": {"layers": 6, "width": 1024, "ffn": 4096, "heads": 16},
}
DROPOUT, SMOOTHING, VOCABULARY, SEED = 0.1, 0.1, 10_000, 1


class Recorder:
    """Keeps every batch and reads the clocks at every optimizer step."""

    def __init__(self, geometry: str, updates: int, *, warm_up: int, bf16: bool) -> None:
        self.geometry, self.updates, self.warm_up, self.bf16 = geometry, updates, warm_up, bf16
        self.batches: list[tuple[Any, Any]] = []
        self.marks: list[tuple[float, float, int]] = []
        self.started = time.perf_counter()

    def count(self, mask: Any, labels: Any) -> None:
        """Keep one batch, source mask (B, S) and labels (B, T); what is in them is read at the end."""
        self.batches.append((mask, labels))

    def step(self, *_: Any) -> None:
        """Note one optimizer step; after the last the process ends."""
        if len(self.marks) in (0, self.warm_up, self.warm_up + self.updates):
            finish_gpu_work()
        self.marks.append((time.process_time(), time.perf_counter(), len(self.batches)))
        if len(self.marks) > self.warm_up + self.updates:
            print("ROW " + json.dumps(self.row()), flush=True)
            os._exit(0)

    def row(self) -> dict[str, float]:
        """Return what was measured from the last warm-up step on."""
        (cpu_from, wall_from, first), (cpu_to, wall_to, last) = self.marks[self.warm_up], self.marks[-1]
        cpu, wall = cpu_to - cpu_from, wall_to - wall_from
        seconds = wall if on_gpu() else cpu
        peak_mb = peak_bytes() // 1_000_000
        real = padded = targets = flops = 0
        for mask, labels in self.batches[first:last]:
            sources, outputs = mask.sum(1), (labels != -100).sum(1)
            targets += int(outputs.sum())
            real += int(sources.sum() + outputs.sum())
            padded += mask.numel() + labels.numel()
            flops += model_flops(self.geometry, sources.double(), outputs.double())
        return {
            "target_tokens": targets,
            "cpu_s": round(cpu, 2),
            "wall_s": round(wall, 2),
            "target_tokens_per_s": round(targets / seconds, 1),
            "mfu_percent": round(100 * flops / seconds / matmul_rate(bf16=self.bf16), 1),
            "padding_percent": round(100 * (1 - real / padded), 1),
            "peak_mb": peak_mb,
            "first_update_after_s": round(self.marks[0][1] - self.started, 2),
        }


def model_flops(geometry: str, sources: Any, targets: Any) -> float:
    """Return the FLOPs of training on sentences of these lengths, (B) each: backward costs two forward passes."""
    shape = GEOMETRIES[geometry]
    width, ffn = shape["width"], shape["ffn"]
    projections = 4 * width**2  # of one attention: query, key, value, output
    encoder = sources * (projections + 2 * width * ffn) + 2 * width * sources**2
    decoder = targets * (projections + projections / 2 + 2 * width * ffn) + width * targets * (targets + 1)
    cross = sources * projections / 2 + 2 * width * sources * targets
    products = shape["layers"] * (encoder + decoder + cross) + targets * width * VOCABULARY
    return float(3 * 2 * products.sum())


def matmul_rate(*, bf16: bool) -> float:
    """Return the FLOPs per second of a large square matrix product: the median of ten."""
    import torch

    size, clock = (8192, time.perf_counter) if on_gpu() else (1024, time.process_time)
    square = torch.randn(size, size, device=device(), dtype=torch.bfloat16 if bf16 else torch.float32)
    seconds = []
    for _ in range(12):
        finish_gpu_work()
        started = clock()
        square @ square
        finish_gpu_work()
        seconds.append(clock() - started)
    return 2 * size**3 / statistics.median(seconds[2:])


def on_gpu() -> bool:
    """Return whether a GPU is trained on."""
    import torch

    return torch.cuda.is_available()


def device() -> str:
    """Return where the models are."""
    return "cuda" if on_gpu() else "cpu"


def finish_gpu_work() -> None:
    """Wait until the GPU has done what it was given."""
    import torch

    if on_gpu():
        torch.cuda.synchronize()


def peak_bytes() -> int:
    """Return the most memory that was taken: the GPU's, or the process's."""
    import torch

    if on_gpu():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def record(recorder: Recorder) -> None:
    """Let every optimizer and every Trainer of this process report to `recorder`."""
    from torch.optim.optimizer import register_optimizer_step_post_hook
    from transformers import Trainer

    collect = Trainer.get_batch_samples

    def collect_and_count(self: Any, *args: Any) -> Any:
        batches, num_items = collect(self, *args)
        for batch in batches:
            recorder.count(*_padded(batch))
        return batches, num_items

    Trainer.get_batch_samples = collect_and_count
    register_optimizer_step_post_hook(recorder.step)


def _padded(batch: Any) -> tuple[Any, Any]:
    """Return mask and labels, a sentence a row, also of a batch whose sentences stand in one."""
    import torch

    if "attention_mask" in batch:
        return batch["attention_mask"], batch["labels"]
    sources, targets = batch["cu_seq_lens_k"].diff(), batch["cu_seq_lens_q"].diff()
    mask = torch.arange(int(sources.max()))[None] < sources.cpu()[:, None]
    return mask.long(), torch.where(torch.arange(int(targets.max()))[None] < targets.cpu()[:, None], 0, -100)


def run_seqloom(options: argparse.Namespace, recorder: Recorder, *, precision: str = "fp32", **switches: bool) -> None:
    """Train through Seqloom's own door."""
    from seqloom.training.train import main

    shape = GEOMETRIES[options.geometry]
    record(recorder)
    keys = {
        "output": options.work / options.run,
        "preset": "base",
        "d_model": shape["width"],
        **both_sides(shape),
        "dropout": DROPOUT,
        "label_smoothing_factor": SMOOTHING,
        "vocab_size": VOCABULARY,
        "tokens_per_update": options.tokens_per_update,
        "tokens_per_device": options.tokens_per_update,
        "max_steps": 10**6,
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_steps": 1000,
        "seed": SEED,
        "precision": precision,
        "disable_tqdm": True,
        **switches,
    }
    main(["--train", options.source, options.target, *as_flags(keys)])


def both_sides(shape: dict[str, int]) -> dict[str, int]:
    """Return a geometry's layers, widths and heads as the keys that configurations have for encoder and decoder."""
    names = {"layers": "layers", "ffn": "ffn_dim", "heads": "attention_heads"}
    return {f"{side}_{name}": shape[key] for side in ("encoder", "decoder") for key, name in names.items()}


def as_flags(keys: dict[str, Any]) -> list[str]:
    """Return keys as a command line has them."""
    return [text for key, value in keys.items() for text in (f"--{key}", str(value))]


def run_trainer(options: argparse.Namespace, recorder: Recorder, *, grouped: bool = False, bf16: bool = False) -> None:
    """Train transformers' Marian class with transformers' own tools."""
    import transformers

    tokenizer, rows = encoded(options)
    shape = GEOMETRIES[options.geometry]
    model = transformers.MarianMTModel(
        transformers.MarianConfig(
            vocab_size=len(tokenizer),
            d_model=shape["width"],
            dropout=DROPOUT,
            attention_dropout=0.0,
            activation_dropout=0.0,
            activation_function="relu",
            max_position_embeddings=512,
            scale_embedding=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.bos_token_id,
            forced_eos_token_id=None,
            attn_implementation="eager" if bf16 and not on_gpu() else "sdpa",
            **both_sides(shape),
        )
    )
    arguments = transformers.Seq2SeqTrainingArguments(
        output_dir=str(options.work / options.run),
        per_device_train_batch_size=sentences_per_update(options, rows),
        label_smoothing_factor=SMOOTHING,
        max_steps=10**6,
        save_strategy="no",
        report_to=[],
        use_cpu=not on_gpu(),
        dataloader_num_workers=2 if on_gpu() and grouped else 0,
        bf16=bf16,
        disable_tqdm=True,
        seed=SEED,
        train_sampling_strategy="group_by_length" if grouped else "random",
    )
    record(recorder)
    transformers.Seq2SeqTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer, model=model),
    ).train()


def run_hand_loop(options: argparse.Namespace, recorder: Recorder) -> None:
    """Train torch.nn.Transformer with length-sorted batches."""
    import torch
    from torch import nn

    tokenizer, rows = encoded(options)
    shape = GEOMETRIES[options.geometry]
    width = shape["width"]
    torch.manual_seed(SEED)
    table = nn.Embedding(len(tokenizer), width, padding_idx=tokenizer.pad_token_id)
    nn.init.normal_(table.weight, std=width**-0.5)
    layers = {"num_encoder_layers": shape["layers"], "num_decoder_layers": shape["layers"]}
    network = nn.Transformer(
        width, shape["heads"], **layers, dim_feedforward=shape["ffn"], dropout=DROPOUT, batch_first=True
    )
    for part in network.modules():  # as in the other systems, neither attention nor the inner layer drops anything
        if isinstance(part, nn.MultiheadAttention):
            part.dropout = 0.0
        elif isinstance(part, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            part.dropout.p = 0.0
    table, network = table.to(device()), network.to(device())
    dropout = nn.Dropout(DROPOUT)
    weights = [*table.parameters(), *network.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=5e-4, betas=(0.9, 0.98), fused=True)
    record(recorder)
    network.train()

    def embed(ids: Any) -> Any:
        half = torch.exp(torch.arange(0, width, 2, device=ids.device) * (-9.21034 / width))
        angles = torch.arange(ids.shape[1], device=ids.device)[:, None] * half
        return dropout(table(ids) * width**0.5 + torch.cat([angles.sin(), angles.cos()], dim=1))

    for source, labels in bucketed(rows, options.tokens_per_update, tokenizer.pad_token_id):
        mask = source != tokenizer.pad_token_id
        recorder.count(mask, labels)
        source, labels, mask = (x.to(device()) for x in (source, labels, mask))
        start = torch.full_like(labels[:, :1], tokenizer.bos_token_id)
        read = torch.cat([start, labels[:, :-1]], dim=1).masked_fill(torch.cat([start, labels[:, :-1]], 1) < 0, 0)
        causal = nn.Transformer.generate_square_subsequent_mask(read.shape[1], device=read.device)
        hidden = network(
            embed(source),
            embed(read),
            tgt_mask=causal,
            src_key_padding_mask=~mask,
            memory_key_padding_mask=~mask,
            tgt_is_causal=True,
        )
        logits = hidden @ table.weight.T
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=SMOOTHING)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()


def bucketed(rows: Any, tokens: int, pad: int) -> Iterator[tuple[Any, Any]]:
    """Yield batches of near-equal lengths under a token budget, in random order."""
    import torch

    pairs = sorted(zip(rows["input_ids"], rows["labels"], strict=True), key=lambda pair: (len(pair[1]), len(pair[0])))
    batches: list[list[Any]] = [[]]
    for pair in pairs:
        if batches[-1] and sum(map(sum_of_lengths, batches[-1])) + sum_of_lengths(pair) > tokens:
            batches.append([])
        batches[-1].append(pair)
    rng = random.Random(SEED)
    while True:
        rng.shuffle(batches)
        for batch in batches:
            sides = ([torch.tensor(pair[side]) for pair in batch] for side in (0, 1))
            yield tuple(
                torch.nn.utils.rnn.pad_sequence(side, batch_first=True, padding_value=value)
                for side, value in zip(sides, (pad, -100), strict=True)
            )


def sum_of_lengths(pair: tuple[list[int], list[int]]) -> int:
    """Return the tokens of both sides."""
    return len(pair[0]) + len(pair[1])


def encoded(options: argparse.Namespace) -> tuple[Any, Any]:
    """Return the vocabulary that Seqloom's run has trained, and the training pairs in it."""
    from seqloom.training.preparation import encode
    from seqloom.training.reading.corpus import load_corpus
    from seqloom.training.tokenizer import SeqloomTokenizers, train_tokenizer

    corpus = load_corpus([options.source, options.target]).dataset
    home = options.work / "tokenizer"
    if not home.is_dir():
        train_tokenizer(corpus["source"], corpus["target"], kind="bpe", vocab_size=VOCABULARY).save(home)
    tokenizers = SeqloomTokenizers.load(home)
    rows = encode(corpus, tokenizers, "train")
    return tokenizers.source, rows.select_columns(["input_ids", "labels"])


def sentences_per_update(options: argparse.Namespace, rows: Any) -> int:
    """Return how many sentences have as many tokens as an update of Seqloom."""
    mean = statistics.fmean(len(s) + len(t) for s, t in zip(rows["input_ids"], rows["labels"], strict=True))
    return round(options.tokens_per_update / mean)


def seqloom_with(precision: str, *switches: str) -> Callable[..., None]:
    """Return Seqloom's run in these numbers, with these keys set."""
    return functools.partial(run_seqloom, precision=precision, **dict.fromkeys(switches, True))


RUNS: dict[str, Callable[..., None]] = {
    "trainer": run_trainer,
    "trainer-grouped": functools.partial(run_trainer, grouped=True),
    "trainer-bf16": functools.partial(run_trainer, grouped=True, bf16=True),
    "hand-loop": run_hand_loop,
    "seqloom": run_seqloom,
    "seqloom-bf16": seqloom_with("bf16"),
    "seqloom-auto": seqloom_with("auto"),
    "seqloom-bf16-packing": seqloom_with("bf16", "packing"),
    "seqloom-bf16-compile": seqloom_with("bf16", "torch_compile"),
    "seqloom-bf16-packing-compile": seqloom_with("bf16", "packing", "torch_compile"),
}
FOR_GPUS = {name for name in RUNS if "packing" in name or "compile" in name}


def measure(options: argparse.Namespace, system: str, work: str) -> dict[str, Any] | None:
    """Run one system in a process of its own and return its row."""
    keys = {name: getattr(options, name) for name in ("geometry", "tokens_per_update", "updates", "warm_up")}
    keys |= {"run": system, "work": tempfile.mkdtemp(dir=work) if system.startswith("seqloom") else work}
    command = [sys.executable, __file__, options.source, options.target, *as_flags(keys)]
    threads = {} if on_gpu() else {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, **threads})
    rows = [line for line in done.stdout.splitlines() if line.startswith("ROW ")]
    if not rows:
        print(f"{system} failed: {(done.stderr or done.stdout)[-800:]}", file=sys.stderr)
        return None
    return json.loads(rows[0].removeprefix("ROW "))


def main() -> None:
    """Let the systems take turns; print rows as they come, then medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--geometry", choices=sorted(GEOMETRIES), default="tiny")
    parser.add_argument("--systems", nargs="+", choices=RUNS, help="all, but packing and compile on a GPU only")
    parser.add_argument("--tokens_per_update", type=int, default=4096)
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--warm_up", type=int, default=5, help="updates that are not counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--run", choices=RUNS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.source, options.target = (os.path.abspath(path) for path in (options.source, options.target))
    if options.run:
        recorder = Recorder(options.geometry, options.updates, warm_up=options.warm_up, bf16="bf16" in options.run)
        RUNS[options.run](options, recorder)
        return
    systems = options.systems or [name for name in RUNS if on_gpu() or name not in FOR_GPUS]
    lines: list[str] = []
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as work:
        for number in range(options.rounds):
            for system in systems:
                measured = measure(options, system, work)
                if measured is None:
                    continue
                row = {"system": system, "geometry": options.geometry, "round": number, "updates": options.updates}
                row |= measured
                new = [] if lines else ["\t".join(row)]
                new.append("\t".join(map(str, row.values())))
                rates.setdefault(system, []).append(measured["target_tokens_per_s"])
                print(*new, sep="\n", flush=True)
                lines += new
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    unit = "second" if on_gpu() else "CPU-second"
    medians = {system: statistics.median(values) for system, values in rates.items()}
    for system, median in medians.items():
        ratios = ", ".join(f"{median / other:.2f} x {name}" for name, other in medians.items() if name != system)
        print(f"# {system}: {median:,.0f} target tokens per {unit}; {ratios}")


if __name__ == "__main__":
    main()
