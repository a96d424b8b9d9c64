"""What a step of Muon costs: ours and torch's, in fp32 and bf16, and Adam's on the same matrices.

    python benchmarks/muon_step.py [PRESET ...]
    ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/muon_step.py tiny      (a processor without bf16)

Tidy rows on stdout, in CPU-seconds of one thread, the median of five steps. Without a batch, for that costs the same.
"""

import csv
import sys
import time
from collections.abc import Iterator
from statistics import median

import torch

from seqloom import SeqloomForConditionalGeneration
from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.training.quality.muon import Muon, matrices_of


def main(presets: list[str]) -> None:
    """Print one row an optimizer and preset."""
    torch.set_num_threads(1)
    writer = csv.writer(sys.stdout)
    writer.writerow(["preset", "matrices", "optimizer", "cpu_seconds"])
    for preset in presets:
        for matrices, name, optimizer in optimizers_for(preset):
            writer.writerow([preset, matrices, name, f"{seconds(optimizer):.4f}"])
            sys.stdout.flush()


def optimizers_for(preset: str) -> Iterator[tuple[int, str, torch.optim.Optimizer]]:
    """Yield the number of matrices, a name, and an optimizer that has the matrices of a fresh model."""
    recipe = resolve_recipe(None, {"preset": preset})
    matrices = sorted(
        matrices_of(SeqloomForConditionalGeneration(recipe.model_config(vocab_size=300))), key=torch.numel
    )
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    yield len(matrices), "adam", torch.optim.AdamW(matrices, fused=True)
    for dtype in (torch.float32, torch.bfloat16):
        name = f"muon, {str(dtype).removeprefix('torch.')}"
        yield len(matrices), name, Muon(matrices, lr=1e-3, weight_decay=0.0, dtype=dtype)
    if hasattr(torch.optim, "Muon"):
        yield len(matrices), "torch.optim.Muon, bfloat16", torch.optim.Muon(matrices, weight_decay=0.0)


def seconds(optimizer: torch.optim.Optimizer) -> float:
    """Return the CPU-seconds of a step."""
    optimizer.step()
    times = []
    for _ in range(5):
        started = time.process_time()
        optimizer.step()
        times.append(time.process_time() - started)
    return median(times)


if __name__ == "__main__":
    main(sys.argv[1:] or ["tiny", "small"])
