"""Lines for the person who watches: above the progress bar, and at the end how to use what was trained."""

import shlex
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState

from seqloom_cli.command import visible

USAGE = """
Use it from the command line
    echo {shell_prompt} | seqloom generate {shell_folder}
or in Python
    from transformers import pipeline
    write = pipeline("text-generation", model={folder!r}, trust_remote_code=True)
    print(write({prompt!r}, return_full_text=False)[0]["generated_text"])
"""


LEARNED = "  (a training line)"
"""Stands behind an example that proves nothing, for its source was learned."""


def say(text: str) -> None:
    """Print a line above whatever progress bar is running; what a terminal would obey is shown."""
    tqdm.write(visible(text), file=sys.stdout)


def say_how_to_use(
    folder: str,
    results: dict[str, Any],
    prompts: Sequence[str],
    outputs: Sequence[str],
    learned: Collection[str] = (),
) -> None:
    """Print scores, three outputs, and the exact lines that use the folder; sources that were `learned` are marked."""
    say(f"\n{folder}: {results['updates']:,} updates in {results['seconds']:.0f} s")
    for split in ("validation", "test"):
        shown = {k.removeprefix(f"{split}_"): v for k, v in results.items() if k.startswith(split) and is_score(k, v)}
        if shown:
            say(f"{split:12}" + ", ".join(f"{name} {value:.2f}" for name, value in shown.items()))
    say("")
    for prompt, output in zip(prompts, outputs, strict=False):  # none, where writing failed
        say(f"  {prompt}  ->  {output}{LEARNED * (prompt in learned)}")
    quoted = {"shell_prompt": shlex.quote(prompts[0]), "shell_folder": shlex.quote(folder)}
    say(USAGE.format(folder=folder, prompt=prompts[0], **quoted))


def is_score(name: str, value: Any) -> bool:
    """Return whether a result of an evaluation is a score, and not a duration, a speed or a signature."""
    others = ("runtime", "per_second", "preparation_time", "epoch", "in_training")
    return isinstance(value, (int, float)) and not name.endswith(others)


class SampleOutputs(TrainerCallback):
    """Prints a few validation examples at each evaluation, so that a person sees the model learn."""

    def __init__(
        self,
        validation: Dataset,
        count: int,
        write: Callable[[Sequence[str]], list[str]],
        learned: Callable[[Sequence[str]], set[str]] = lambda _: set(),
    ) -> None:
        """Pick what to show.

        Args:
            validation: rows with texts.
            count: how many of them, evenly picked.
            write: returns the model's output for each source.
            learned: returns those of some sources that are training sources.
        """
        picked = np.linspace(0, len(validation) - 1, min(count, len(validation)), dtype=int)
        self.examples = validation.select(picked)
        self.write = write
        self.learned = learned(self.examples["source"][:])

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Print source, output and reference of each example."""
        outputs = self.write(self.examples["source"][:])  # on every process
        if not state.is_world_process_zero:
            return
        lines = [f"step {state.global_step}"]
        for source, output, reference in zip(self.examples["source"], outputs, self.examples["target"], strict=True):
            mark = "=" if output == reference else "x"
            lines += [f"    source     {source}{LEARNED * (source in self.learned)}"]
            lines += [f"  {mark} output     {output}", f"    reference  {reference}"]
        say("\n".join(lines))
