"""A run checks its own mouth: does generate write what the model would say?

The training loop never calls generate. A library that loses a cache or forgets a mask leaves loss and token accuracy as
they are, and every text of the trained model is nonsense. So what generate writes is compared with forced passes, which
need neither cache nor beams nor padding:

    before the first update   `check_mouth`: the canary's comparisons (modeling/canary.py) on three sources of the
                              training text, by the model itself and by a folder of it, opened as users open one
    in each evaluation        `misread`: some greedy outputs, each read again alone, token by token
                              `spoken_sums` and `doubt_of`: over the whole set, how much of what the forced pass
                              foresaw was written

Greedy search must write a target up to the first token that the forced pass gets wrong. So a model whose token accuracy
is near 100 writes nearly all of it; where it does not, writing is broken, and no poor model can be mistaken for that.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, pipeline

from seqloom.hub.loading import no_loading_bar
from seqloom.modeling.canary import (
    CANARY_NAME,
    EXACT,
    LIBRARY_ERRORS,
    NARROW,
    STEPS,
    SWITCH,
    Row,
    ends_of,
    find_faults,
    misread,
    read_canary,
    sing_here,
    up_to_end,
)
from seqloom.modeling.library import TESTED_PAIR, describe_running, describe_tested, is_tested
from seqloom.training.collator import IGNORED_LABEL
from seqloom.training.examples import lengths_of
from seqloom.training.fault_tolerance.resumable import kept_random_state
from seqloom.training.fault_tolerance.run_health import MouthError
from seqloom.training.metrics import LOWER_IS_BETTER, METRICS
from seqloom.training.tokenizer import SeqloomTokenizers

LENGTHS = (4, 8, 16)
"""Tokens that the sources should have: few, for they are read dozens of times; different, so that some are padded."""

FOLDER_BYTES = 100_000_000
"""Weights up to which a folder is written and loaded before training; above, that takes longer than two seconds."""

READ_AGAIN = 8
"""Outputs that each process reads again in an evaluation, spread over its first batch: the longest and padded ones."""

NEARLY_PERFECT = 99.0
"""Token accuracy from which a set is judged: below, beams may write something else with good reason."""

WRITTEN, CUT, TEXT = 0.5, 0.9, 10.0
"""The least share of the foreseen tokens that must be written; the share of references that may be too long to be
written whole; and the least score, in percent, of outputs of which many are right token for token."""

JUDGED = 10
"""Sentences from which a set is judged, and outputs that are many."""

NOTHING_TRAINED = "Nothing was trained: it would learn, and its texts would be nonsense."
MODEL_KEPT = "The trained model is saved; started again under a tested pair, the same command scores it."


# Before the first update ----------------------------------------------------------------------------------------------


def check_mouth(
    model: Any, tokenizers: SeqloomTokenizers, encoded: Dataset, staging: Path, checkpoint: str | None = None
) -> str:
    """Let the model write before it learns, and refuse a library with which it does not write what it says.

    The sources stay with the model: the canary of every folder that it saves has them.

    Args:
        model: whole, on its device; left as it was.
        tokenizers: of both sides.
        encoded: the training set, with texts.
        staging: where a folder may be written; it is removed again.
        checkpoint: what the run goes on from, and then what is checked; None: it starts.

    Returns:
        A line for the person who watches.

    Raises:
        MouthError: with what differs, the versions, and what to do.
    """
    texts = texts_to_say(encoded)
    sources = tokenizers.source(texts).input_ids
    if len({len(source) for source in sources}) > 1:  # else nothing would be padded, and the canary makes sources up
        model.canary_sources = sources
    if os.environ.get(SWITCH) == "off":
        return f"not checked under {describe_running()}, for {SWITCH}=off"
    started = time.perf_counter()
    has_folder = sum(weight.nbytes for weight in model.parameters()) <= FOLDER_BYTES
    if has_folder:
        refuse_faults(lambda: faults_of_folder(model, tokenizers, texts, staging, checkpoint), NOTHING_TRAINED)
    else:
        refuse_faults(lambda: find_faults(model, sing_here(model)), NOTHING_TRAINED)
    model._canary_has_sung = True  # generate need not ask again
    place = "and out of a folder" if has_folder else "too large to be tried out of a folder"
    seconds = time.perf_counter() - started
    return f"writes what it says: with a cache, padded, with beams, {place} ({seconds:.1f} s)"


def texts_to_say(encoded: Dataset) -> list[str]:
    """Return the sources whose lengths are the nearest to `LENGTHS`, the first of each; longer ones are cut."""
    lengths, texts = lengths_of(encoded)[:, 0], []
    for wanted in LENGTHS:
        row = int(np.abs(lengths - wanted).argmin())
        text, length = encoded[row]["source"], int(lengths[row])
        texts.append(text if length <= wanted else text[: max(1, len(text) * wanted // length)])
    return texts


def faults_of_folder(
    model: Any, tokenizers: SeqloomTokenizers, texts: Sequence[str], staging: Path, checkpoint: str | None
) -> list[str]:
    """Return what is wrong with a model, and with the folder that is saved of it, or with a checkpoint."""
    if checkpoint is not None:
        return faults_of_doors(checkpoint, model, tokenizers, texts, read_rows(checkpoint))
    model.save_pretrained(staging)
    tokenizers.save(staging)
    rows = read_rows(staging)
    return find_faults(model, rows) or faults_of_doors(staging, model, tokenizers, texts, rows)


def read_rows(folder: str | Path) -> list[Row]:
    """Return what a model said when it was saved; none of a checkpoint that shards were gathered into."""
    path = Path(folder) / CANARY_NAME
    return read_canary(path).rows if path.is_file() else []


def faults_of_doors(
    folder: str | Path, model: Any, tokenizers: SeqloomTokenizers, texts: Sequence[str], rows: Sequence[Row]
) -> list[str]:
    """Return what is wrong with a folder as users open it, by the installed classes.

    Args:
        folder: with model and tokenizer.
        model: what was saved; its device is used.
        tokenizers: what was saved.
        texts: to be answered.
        rows: what the object said; none: the loaded model is held against itself.
    """
    loaded = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=False).to(model.device)
    if faults := find_faults(loaded, rows or sing_here(loaded)):
        return [f"out of a saved folder, {fault}" for fault in faults]
    write = pipeline("text-generation", model=str(folder), device=model.device, trust_remote_code=False)
    answers = write(list(texts), batch_size=len(texts), return_tensors=True, num_beams=1, max_new_tokens=STEPS)
    sources, faults = tokenizers.source(list(texts)).input_ids, []
    longest = max(map(len, sources))
    for text, source, [answer] in zip(texts, sources, answers, strict=True):
        ids = answer["generated_token_ids"]
        read = [token for token in ids[:longest] if token != loaded.config.pad_token_id]
        if read != source:
            faults.append(f"out of a saved folder, the pipeline reads {text!r} as {read}, not {source}")
        elif fault := misread(loaded, source, up_to_end(ids[longest:], ends_of(loaded.config)), most=STEPS):
            faults.append(f"out of a saved folder, the pipeline answers {text!r} with other tokens: {fault}")
    return faults


def check_trained(model: Any) -> None:
    """Test a trained model as `check_mouth` does, not out of a folder: it has more to say than the fresh one.

    Raises:
        MouthError: with what differs, the versions, and what to do.
    """
    if os.environ.get(SWITCH) != "off":
        refuse_faults(lambda: find_faults(model, sing_here(model)), MODEL_KEPT)


def refuse_faults(find: Callable[[], Sequence[str]], what_is_kept: str) -> None:
    """Refuse a library where faults are found, or looking for them fails; random states stay as they were.

    Args:
        find: returns what is wrong, in sentences.
        what_is_kept: of the run, in a sentence.
    """
    try:
        with kept_random_state(), no_loading_bar():
            faults = find()
    except LIBRARY_ERRORS as error:
        raise refused(what_is_kept, f"Writing failed with {type(error).__name__}: {error}") from error
    if faults:
        raise refused(what_is_kept, f"What differs: {in_brief(faults)}.")


def refused(what_is_kept: str, found: str) -> MouthError:
    """Return the error of a library under which a model does not write what it says."""
    return MouthError(
        f"This model does not write what it says under {describe_running()}. {what_is_kept} Tested was "
        f"{describe_tested()}. {remedy()} {SWITCH}=off in the environment goes on unchecked. {found}"
    )


def remedy() -> str:
    """Return what helps."""
    if is_tested():
        return (
            "As this very pair was tested, something else interferes: a package that patches transformers, the device "
            "or its driver; try another environment, and report this text if that does not help."
        )
    return f"To go on, {TESTED_PAIR}, or a newer Seqloom, pip install -U seqloom."


def in_brief(faults: Sequence[str]) -> str:
    """Return the first faults, and how many more there are."""
    more = f"; and {len(faults) - 2} more" if len(faults) > 2 else ""
    return "; ".join(faults[:2]) + more


# In each evaluation: some outputs, read again -------------------------------------------------------------------------


def broken_mouth(faults: Sequence[str]) -> str:
    """Return what outputs say that a forced pass does not confirm, and what helps."""
    return (
        f"Read again by a forced pass, greedy outputs are not what the model says: {in_brief(faults)}. Running is "
        f"{describe_running()}, tested was {describe_tested()}. {remedy()}"
    )


def misread_in(model: Any, inputs: dict[str, Tensor], ids: Tensor, *, most: int, is_exact: bool) -> list[str]:
    """Return what `misread` finds in `READ_AGAIN` rows of a batch, from its first to its last.

    Args:
        model: that wrote.
        inputs: `input_ids` and `attention_mask`, (B, S) each.
        ids: (B, 1 + T), as generate returns them.
        most: tokens after which an answer is cut.
        is_exact: logits are numbers of 32 bits; else near ones count as ties.
    """
    rows = np.unique(np.linspace(0, len(ids) - 1, READ_AGAIN, dtype=int)).tolist()
    faults = []
    for row in rows:
        source = inputs["input_ids"][row][inputs["attention_mask"][row].bool()].tolist()
        written = up_to_end(ids[row, 1:].tolist(), ends_of(model.config))
        if fault := misread(model, source, written, most=most, share=EXACT if is_exact else NARROW):
            faults.append(fault)
    return faults


# In each evaluation: the whole set ------------------------------------------------------------------------------------


def spoken_sums(logits: Tensor, labels: Tensor, ids: Tensor, *, suppressed: Sequence[int], most: int) -> Tensor:
    """Return, for each sentence, what was foreseen and what was written of it.

    Args:
        logits: (B, T, V) of the forced pass.
        labels: (B, T), -100 where there is no target.
        ids: (B, 1 + W), as generate returns them.
        suppressed: tokens that are never written.
        most: tokens after which an output is cut.

    Returns:
        (B, 4), as wide as the device has numbers: target tokens before the first that the forced pass gets wrong, as
        far as they may be written; how many of them were; whether the target does not fit into `most`; whether all of
        it was written.
    """
    labels_in_reach = labels[:, :most]
    may_be_said = ~torch.isin(labels_in_reach, torch.tensor(suppressed, dtype=labels.dtype, device=labels.device))
    foreseen = ((logits[:, :most].argmax(-1) == labels_in_reach) & may_be_said).cumprod(-1)
    room = max(0, labels_in_reach.shape[1] + 1 - ids.shape[1])
    written = nn.functional.pad(ids, (0, room), value=-1)[:, 1 : labels_in_reach.shape[1] + 1]
    said = ((written == labels_in_reach) & foreseen.bool()).cumprod(-1).sum(-1)
    num_tokens = (labels != IGNORED_LABEL).sum(-1)
    sums = (foreseen.sum(-1), said, num_tokens > most, said == num_tokens)
    return torch.stack([each.to(widest_floats(logits.device)) for each in sums], dim=-1)


def widest_floats(device: torch.device) -> torch.dtype:
    """Return the type in which sums of a sentence are kept on a device: Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(frozen=True)
class Doubt:
    """Why scores of decoded text say nothing of a model that has learned its task."""

    reason: str
    """Both numbers, what they mean, and what to do."""
    is_broken: bool
    """Whether what writes is broken, so that it makes no sense to go on."""


def doubt_of(scores: dict[str, Any], spoken: np.ndarray, most: int) -> Doubt | None:
    """Return what is wrong with scores of decoded text next to a token accuracy near 100; None: nothing is.

    Args:
        scores: of the set, without prefix.
        spoken: (sentences, 4), what `spoken_sums` says.
        most: tokens after which an output is cut.
    """
    count = len(spoken)
    if scores["token_accuracy"] < NEARLY_PERFECT or count < JUDGED:
        return None
    foreseen, said, cut, whole = spoken.sum(axis=0).astype(int)
    named = next((f" and {name} {scores[name]:.2f}" for name in ("exact_match", *METRICS) if name in scores), "")
    seen = f"token accuracy is {scores['token_accuracy']:.2f}{named}"
    texts = [scores[name] for name in METRICS if name in scores and name not in LOWER_IS_BETTER]
    if said < WRITTEN * foreseen:
        return Doubt(
            f"{seen}: of {foreseen:,} tokens that the model foresees when it reads the references, it wrote {said:,}. "
            f"It has learned the task, and what writes is broken, or its settings are. Running is "
            f"{describe_running()}, tested was {describe_tested()}. {remedy()}",
            is_broken=True,
        )
    if cut > CUT * count:
        return Doubt(
            f"{seen}: {cut:,} of {count:,} references have more than max_new_tokens={most} tokens, so their outputs "
            f"were cut; the weights are as good as the first number says. Start the same command with "
            f"--max_new_tokens null, and the data decides: nothing is trained again, all is scored anew.",
            is_broken=False,
        )
    if texts and max(texts) < TEXT and whole >= JUDGED:
        return Doubt(
            f"{seen}: {whole:,} of {count:,} outputs are their reference token for token, and still not as text. The "
            f"vocabulary does not give back what it has read: compare output and target in test_outputs.jsonl; "
            f"another normalization or kind of tokenizer helps, in a new --output.",
            is_broken=False,
        )
    return None
