"""Lines for the person who watches: above the progress bar, and at the end how to use what was trained."""

import contextlib
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState

from seqloom.hub.loading import no_loading_bar
from seqloom.hub.quoting import shell
from seqloom_cli.command import visible

USAGE = """
Use it from the command line
    {echo} | seqloom generate {folder}
or in Python
    from transformers import pipeline
    write = pipeline("text-generation", model={folder_text!r}, trust_remote_code=True)
    print(write({prompt!r}, return_full_text=False)[0]["generated_text"])
Give it away ({sizes})
    seqloom copy {folder} {copy}
    seqloom push {folder} {repo}
"""


LEARNED = "  (a training line)"
"""Stands behind an example that proves nothing, for its source was learned."""


def say(text: str) -> None:
    """Print a line above whatever progress bar is running; what a terminal would obey is shown."""
    tqdm.write(visible(text), file=sys.stdout)


@contextlib.contextmanager
def library_bars(*, wanted: bool) -> Iterator[None]:
    """Let transformers and datasets draw bars where they are wanted and a terminal shows them, and nowhere else."""
    if wanted and sys.stderr.isatty():
        yield
        return
    was_off = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with no_loading_bar():
            yield
    finally:
        if not was_off:
            enable_progress_bars()


def say_how_to_use(
    folder: str,
    results: dict[str, Any],
    prompts: Sequence[str],
    outputs: Sequence[str],
    sizes: str,
    num_beams: int = 1,
    learned: Collection[str] = (),
) -> None:
    """Print scores, three outputs, and the exact lines that use the folder and send it.

    Args:
        folder: with the model.
        results: of the run.
        prompts: three sources.
        outputs: what the model made of them; none, where writing failed.
        sizes: what of the folder is sent, and what stays.
        num_beams: of the search that was scored; readings during the training are greedy.
        learned: sources that the training text holds; they are marked.
    """
    scores = score_lines(results)
    searched = f"; scored with {num_beams} beams, and greedily in training" if num_beams > 1 and scores else ""
    say(f"\n{folder}: {results['updates']:,} updates in {results['seconds']:.0f} s{searched}")
    for split, line in scores.items():
        say(f"{split:12}{line}")
    say("")
    for prompt, output in zip(prompts, outputs, strict=False):
        say(f"  {prompt}  ->  {output}{LEARNED * (prompt in learned)}")
    name = Path(folder).absolute().name
    known = {"folder": shell(as_argument(folder)), "folder_text": folder, "prompt": prompts[0], "sizes": sizes}
    known |= {"copy": shell(as_argument(f"{folder.rstrip('/')}-to-go")), "repo": shell(f"OWNER/{as_repo(name)}")}
    say(USAGE.format(echo=echo(prompts[0]), **known))


def score_lines(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the scores of each split that has some, on one line."""
    lines = {}
    for split in ("validation", "test"):
        shown = {k.removeprefix(f"{split}_"): v for k, v in results.items() if k.startswith(split) and is_score(k, v)}
        lines[split] = ", ".join(f"{n} {v:,}" if isinstance(v, int) else f"{n} {v:.2f}" for n, v in shown.items())
    return {split: line for split, line in lines.items() if line}


def echo(text: str) -> str:
    """Return the command that prints a text as it is, in every shell: `echo` obeys a backslash in some, and -n."""
    plain = "\\" not in text and not text.startswith("-")
    return f"echo {shell(text)}" if plain else f"printf '%s\\n' {shell(text)}"


def as_argument(folder: str) -> str:
    """Return a path that no command takes for a flag."""
    return f"./{folder}" if folder.startswith("-") else folder


def as_repo(name: str) -> str:
    """Return a name that the Hub accepts for a repository, as near as can be to one of a folder."""
    return re.sub(r"(?:[^A-Za-z0-9_.]|\.{2,})+", "-", name)[:80].strip("-._") or "seqloom-model"


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
        """Print source, output and reference of each example, and keep them in the log, for checkpoint and report."""
        outputs = self.write(self.examples["source"][:])  # on every process
        texts = zip(self.examples["source"], outputs, self.examples["target"], strict=True)
        samples = [dict(zip(("source", "output", "reference"), row, strict=True)) for row in texts]
        state.log_history.append({"step": state.global_step, "epoch": state.epoch, "samples": samples})
        if not state.is_world_process_zero:
            return
        lines = [f"samples at update {state.global_step:,}"]
        for sample in samples:
            mark = "=" if sample["output"] == sample["reference"] else "x"
            learned = LEARNED * (sample["source"] in self.learned)
            lines += [
                f"  {mark if name == 'output' else ' '} {name:9}  {text}{learned * (name == 'source')}"
                for name, text in sample.items()
            ]
        say("\n".join(lines))
