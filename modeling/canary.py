"""A canary in every folder: does the installed library make of these weights what they gave when they were saved?

A folder outlives the library that wrote it. Where a later transformers or torch renames a keyword, forgets a mask or
loses a cache, a model goes on writing, and what it writes is nonsense. So `save_pretrained` leaves beside the weights a
few sources and what the model makes of them (its canary "sings"), computed by forced passes: the whole target so far,
one sentence alone, no `generate`, no cache, no padding. Under a library that the file does not name, the first
`generate` checks before it answers what forced passes do without:

    forced pass    a batch padded on the left and on the right    the same logits as alone, at every position
    greedy search  the same batch, with a cache                   every token the arg max of a forced pass over it
    beam search    likewise                                       the score that a forced pass gives, and no worse one

A difference is an error, and nothing is answered. Under a library that the file names, nothing is computed at all.

    R rows    S source length    T written tokens    V vocabulary
"""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.utils import cached_file

from seqloom.modeling.library import (
    REMEDY,
    UnknownKeywordError,
    describe_running,
    describe_tested,
    is_tested,
    running_library,
)

logger = logging.getLogger(__name__)

CANARY_NAME = "seqloom_canary.json"
"""The file in the folder."""

SWITCH = "SEQLOOM_CANARY"
"""This environment variable, set to "off", lets a model answer unchecked; a warning says so."""

LENGTHS = (3, 9, 5)
"""Tokens of the sources that are made up where nobody gives real ones. In a batch, two of them are padded: one on the
left, one on the right."""

MOST_ROWS, MOST_TOKENS = 8, 64
"""The most that a file may hold, so that somebody else's cannot cost time without end."""

STEPS, BEAMS, WORDS = 6, 3, 4
"""Tokens written, beams kept, and words whose logits are kept at each step: those on top."""

EXACT, NARROW, COARSE = 2e-3, 5e-2, 0.15
"""How far logits may differ, as a share of the largest: in 32 bits on any device, in fewer bits, and quantised (torch's
int8 scales a sentence by the batch it stands in). A forgotten mask moves them by a tenth and more."""


NO_ANSWERS = {
    *("_name_or_path", "architectures", "auto_map", "dtype", "quantization_config", "transformers_version"),
    *("activation_dropout", "attention_dropout", "dropout", "label_smoothing", "use_cache"),
}
"""Fields of a configuration that change no answer."""

LIBRARY_ERRORS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What comes of calling a library that has changed; a full disk and the like are none of them."""


class CanaryError(RuntimeError):
    """This library makes another answer of the weights than they gave when they were saved."""


@dataclass
class Row:
    """One source and what the model makes of it."""

    source: list[int]
    """Ids, the end of sequence included."""
    written: list[int] = field(default_factory=list)
    """Ids that greedy search writes, the end of sequence included if it is reached."""
    words: list[list[int]] = field(default_factory=list)
    """For each of them the ids with the highest logits, the highest first."""
    logits: list[list[float]] = field(default_factory=list)
    """Those logits."""
    beam_score: float = 0.0
    """Sum of the log-probabilities of the best of `BEAMS` beams."""


@dataclass
class Canary:
    """What the file holds."""

    rows: list[Row]
    tested: list[dict[str, str]]
    """Libraries, as `running_library` describes them, under which the folder answered rightly."""
    precision: str = "float32"
    """Type of the weights that gave the rows."""
    not_checked: str | None = None
    """Why there are no rows, if there are none."""


# Oracle: forced passes -----------------------------------------------------------------------------------------------


def sources_for(config: Any) -> list[list[int]]:
    """Return sources of `LENGTHS` tokens, and the end of sequence, from a vocabulary of which nothing is known."""
    special = {config.pad_token_id, config.bos_token_id, config.decoder_start_token_id, *ends_of(config)}
    words = [word for word in range(config.vocab_size) if word not in special] or [0]
    closing = ends_of(config)[:1]
    rows = [[words[(5 * n + 7 * i * i + 3) % len(words)] for i in range(n)] for n in LENGTHS]
    return [row[: most_tokens(config) - 1] + closing for row in rows]


def ends_of(config: Any) -> list[int]:
    """Return the ids that end a sentence."""
    ends = config.eos_token_id
    return [] if ends is None else list(ends) if isinstance(ends, list | tuple) else [ends]


def most_tokens(config: Any) -> int:
    """Return the longest sequence that a canary may use: learned positions end somewhere."""
    is_learned = config.position_embedding_type == "learned"
    return min(MOST_TOKENS, config.max_position_embeddings) if is_learned else MOST_TOKENS


def forced_logits(model: Any, source: Sequence[int], targets: Sequence[Sequence[int]]) -> Tensor:
    """Return the logits (R, T, V), in 32 bits, with which the model reads targets of one length after one source."""
    return read(model, encode(model, source), targets)


def encode(model: Any, source: Sequence[int]) -> Tensor:
    """Return what the encoder makes of one source, (1, S, D)."""
    ids = torch.tensor([list(source)], device=model.device)
    return model.get_encoder()(ids, attention_mask=torch.ones_like(ids)).last_hidden_state


def read(model: Any, states: Tensor, targets: Sequence[Sequence[int]]) -> Tensor:
    """Return the logits (R, T, V) of targets after a source that was encoded, (1, S, D)."""
    ids = torch.tensor([list(target) for target in targets], device=model.device)
    states = states.expand(len(targets), -1, -1)
    mask = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
    return model(encoder_outputs=(states,), attention_mask=mask, decoder_input_ids=ids, use_cache=False).logits.float()


def sing(model: Any, source: Sequence[int]) -> Row:
    """Return what forced passes make of a source: each asks for one more token of the target so far."""
    row, states = Row(list(source)), encode(model, source)
    for _ in range(steps_of(model.config)):
        logits = read(model, states, [[start_of(model.config), *row.written]])[0, -1]  # (V)
        top = logits.topk(min(WORDS, len(logits)))
        row.written.append(int(top.indices[0]))
        row.words.append(top.indices.tolist())
        row.logits.append([round(logit, 4) for logit in top.values.tolist()])
        if row.written[-1] in ends_of(model.config):
            break
    row.beam_score = round(best_beam(model, states), 4)
    return row


def best_beam(model: Any, states: Tensor) -> float:
    """Return the score of the best of `BEAMS` beams: beam search by the book, with a forced pass for every step."""
    beams, finished = [(0.0, [start_of(model.config)])], [float("-inf")]
    for _ in range(steps_of(model.config)):
        log_probs = read(model, states, [ids for _, ids in beams])[:, -1].log_softmax(-1)  # (beams, V)
        scores = log_probs + torch.tensor([[score] for score, _ in beams], device=log_probs.device)
        best = scores.flatten().topk(min(2 * BEAMS, scores.numel()))
        ranked = [
            (score, [*beams[index // scores.shape[1]][1], index % scores.shape[1]])
            for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        ends = ends_of(model.config)
        finished += [score for score, ids in ranked[:BEAMS] if ids[-1] in ends]
        beams = [beam for beam in ranked if beam[1][-1] not in ends][:BEAMS]
        if not beams:
            break
    return max(finished + [score for score, _ in beams])


def start_of(config: Any) -> int:
    """Return the token that the decoder reads first."""
    return 0 if config.decoder_start_token_id is None else config.decoder_start_token_id


def padding_of(config: Any) -> int:
    """Return the token that fills up."""
    return config.pad_token_id or 0


def steps_of(config: Any) -> int:
    """Return how many tokens are written."""
    return max(1, min(STEPS, most_tokens(config) - 1))


# The ways that are judged --------------------------------------------------------------------------------------------


def find_faults(model: Any, rows: Sequence[Row]) -> list[str]:
    """Return what the model does otherwise than these rows say, in sentences; none: all is well.

    Args:
        model: with `generate`, in whatever mode; it is left as it was.
        rows: what forced passes made of some sources, here or when the folder was saved.
    """
    with at_rest(model), torch.no_grad():
        batch = padded_on_both_sides([row.source for row in rows], model)
        return [
            *compare_forced(model, batch, rows),
            *compare_greedy(model, batch, rows),
            *compare_beams(model, batch, rows),
        ]


def compare_forced(model: Any, batch: dict[str, Tensor], rows: Sequence[Row]) -> Iterator[str]:
    """Yield where one pass over the padded batch gives other logits than each sentence alone, step by step."""
    steps = max(len(row.written) for row in rows)
    read = [[start_of(model.config), *row.written[:-1]] + [0] * (steps - len(row.written)) for row in rows]
    logits = model(**batch, decoder_input_ids=torch.tensor(read, device=model.device), use_cache=False).logits.float()
    for row, found in zip(rows, logits.cpu(), strict=True):  # found: (T, V)
        for step, (words, expected) in enumerate(zip(row.words, row.logits, strict=True)):
            differences = (found[step, words] - torch.tensor(expected)).abs()
            if not differences.max() <= margin(model, expected):
                worst = int(differences.argmax())
                yield (
                    f"for source {row.source} a forced pass over a padded batch gives token {words[worst]} the logit "
                    f"{found[step, words[worst]]:.3f} at step {step + 1}, where alone it had {expected[worst]:.3f}"
                )
                break


def compare_greedy(model: Any, batch: dict[str, Tensor], rows: Sequence[Row]) -> Iterator[str]:
    """Yield where greedy search writes what a forced pass over the same words would not, or does not know its end.

    A source may need more tokens than are written here, and then its end would never be seen. So the first row's second
    word ends a sentence, too.
    """
    ends = [*ends_of(model.config), *rows[0].written[1:2]]
    output = write(model, batch, num_beams=1, ends=ends)
    for row, ids in zip(rows, output.sequences[:, 1:].tolist(), strict=True):
        written = up_to_end(ids, ends)
        if fault := misread(model, row.source, written, most=steps_of(model.config), ends=ends, suppressed=()):
            yield f"greedy search writes {written} for source {row.source}: {fault}"
        elif rest := [token for token in ids[len(written) :] if token != padding_of(model.config)]:
            yield f"greedy search goes on behind the end of {written} for source {row.source}: {rest}"


@torch.no_grad()
def misread(
    model: Any,
    source: Sequence[int],
    written: Sequence[int],
    *,
    most: int,
    ends: Sequence[int] | None = None,
    suppressed: Sequence[int] | None = None,
    share: float | None = None,
) -> str | None:
    """Return where greedy search wrote another token than a forced pass over the same words; None: nowhere.

    Args:
        model: that wrote.
        source: ids of one source, without padding.
        written: the answer, its end of sequence included if there is one.
        most: tokens after which an answer is cut.
        ends: what ended it; None: the model's own.
        suppressed: tokens that are never right; None: those that the model's generation config suppresses.
        share: how far below the best logit counts as equal to it, see `EXACT`; None: as the weights' precision asks.
    """
    ends = ends_of(model.config) if ends is None else ends
    if len(written) < most and (not written or written[-1] not in ends):
        return f"it stops after {len(written)} tokens without an end of sequence"
    logits = forced_logits(model, source, [[start_of(model.config), *written[:-1]]])[0]  # (T, V)
    logits[:, suppressed_by(model) if suppressed is None else list(suppressed)] = -torch.inf
    best = logits.max(-1)
    own = logits.gather(-1, torch.tensor(written, device=logits.device)[:, None])[:, 0]
    allowed = (tolerance(model) if share is None else share) * best.values.abs().clamp(min=1.0)
    wrong = (~(best.values - own <= allowed)).nonzero()  # nan is wrong, too
    if not len(wrong):
        return None
    step = int(wrong[0])
    return f"token {step + 1} of the answer to {list(source)} is {written[step]}, and read again {best.indices[step]}"


def suppressed_by(model: Any) -> list[int]:
    """Return the tokens that a model is forbidden to write."""
    return list(model.generation_config.suppress_tokens or [])


def compare_beams(model: Any, batch: dict[str, Tensor], rows: Sequence[Row]) -> Iterator[str]:
    """Yield where beam search gives a score that is not its answer's, or an answer worse than by the book."""
    ends = ends_of(model.config)
    output = write(model, batch, num_beams=BEAMS, ends=ends)
    answers = [up_to_end(ids, ends) for ids in output.sequences[:, 1:].tolist()]
    for row, written, claimed in zip(rows, answers, output.sequences_scores.tolist(), strict=True):
        log_probs = forced_logits(model, row.source, [[start_of(model.config), *written[:-1]]])[0].log_softmax(-1)
        score = log_probs.gather(-1, torch.tensor(written, device=log_probs.device)[:, None]).sum().item()
        allowed = len(written) * margin(model, [log_probs.abs().max().item()])
        if not abs(score - claimed) <= allowed:
            yield f"beam search says {claimed:.3f} of {written} for source {row.source}, and a forced pass {score:.3f}"
        elif not score >= row.beam_score - allowed:
            best = f"by the book there is one of {row.beam_score:.3f}"
            yield f"beam search writes {written} for source {row.source} with the score {score:.3f}, and {best}"


def write(model: Any, batch: dict[str, Tensor], num_beams: int, ends: Sequence[int]) -> Any:
    """Return what `generate` makes of a batch, with settings of its own: the folder's may forbid or favour tokens."""
    own, config = model.generation_config, model.config
    settings = GenerationConfig(
        max_new_tokens=steps_of(config),
        num_beams=num_beams,
        do_sample=False,
        length_penalty=0.0 if num_beams > 1 else None,
        pad_token_id=padding_of(config),
        eos_token_id=list(ends) or None,
        decoder_start_token_id=start_of(config),
        return_dict_in_generate=True,
        output_scores=True,
    )
    model.generation_config = settings
    try:
        # the library's own, for ours asks the canary first
        return GenerationMixin.generate(model, batch["input_ids"], settings, attention_mask=batch["attention_mask"])
    finally:
        model.generation_config = own


def up_to_end(ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Return ids up to the first that ends a sentence, and it."""
    first = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return list(ids[: first + 1])


def padded_on_both_sides(sources: Sequence[Sequence[int]], model: Any) -> dict[str, Tensor]:
    """Return sources of different lengths as ids and mask (R, S), padded on the left and on the right in turns."""
    longest = max(map(len, sources))
    ids = torch.full((len(sources), longest), padding_of(model.config))
    mask = torch.zeros_like(ids)
    for row, source in enumerate(sources):
        first = 0 if row % 2 else longest - len(source)
        ids[row, first : first + len(source)] = torch.tensor(source)
        mask[row, first : first + len(source)] = 1
    return {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}


def margin(model: Any, logits: Sequence[float]) -> float:
    """Return by how much a logit may differ from these."""
    return tolerance(model) * max(1.0, *map(abs, logits))


def tolerance(model: Any) -> float:
    """Return how far logits may differ in the precision of a model's weights, as a share of the largest."""
    return EXACT if is_wide(model) else COARSE if precision_of(model) == "quantised" else NARROW


def is_wide(model: Any) -> bool:
    """Whether the weights are numbers of 32 bits or more."""
    return precision_of(model) in ("float32", "float64")


def precision_of(model: Any) -> str:
    """Return the type of the weights, "quantised" if they are none that one can train."""
    kinds = {str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()}
    is_packed = any("quantized" in type(module).__module__ for module in model.modules())  # torch's: no parameters
    is_quantised = is_packed or getattr(model, "hf_quantizer", None) is not None or any("int" in kind for kind in kinds)
    return "quantised" if is_quantised else min(kinds)  # bfloat16, float16, float32: the narrowest decides


@contextmanager
def at_rest(model: Any) -> Iterator[None]:
    """Let a model sing without dropout, in the precision of its weights, and leave it as it was.

    While it trains in 16 bits, accelerate has put a forward of its own before the model's.
    """
    modes, own = [(module, module.training) for module in model.modules()], vars(model)
    wrapper = own.pop("forward") if "_original_forward" in own and "forward" in own else None
    model.eval()
    try:
        yield
    finally:
        if wrapper is not None:
            model.forward = wrapper
        for module, training in modes:
            module.training = training


# The file ------------------------------------------------------------------------------------------------------------


def write_canary(model: Any, folder: str | os.PathLike[str], *, foreign_weights: bool = False) -> None:
    """Leave what a model makes of some sources in a folder.

    The sources are `model.canary_sources` if somebody set them (the trainer does), else those of the folder from which
    the model was loaded, else made up.

    Args:
        model: with the weights that the folder gets.
        folder: exists, or is made.
        foreign_weights: the folder gets other weights than the model has.
    """
    reason = why_it_cannot_sing(model, foreign_weights)
    rows = [] if reason else sing_here(model)
    tested = [running_library()] if rows and (is_tested() or answers_rightly(model, rows)) else []
    canary = Canary(rows, tested, precision_of(model), reason)
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_canary(canary, folder)


def answers_rightly(model: Any, rows: Sequence[Row]) -> bool:
    """Whether a library that nobody has tested may be named in the file: forced passes alone do not tell."""
    try:
        return not find_faults(model, rows)
    except LIBRARY_ERRORS:
        return False


def why_it_cannot_sing(model: Any, foreign_weights: bool) -> str | None:
    """Return why no forced pass of this model tells what the folder will say; None: it does."""
    if not model.can_generate():
        return "saved without an LM head, and so without words"
    if foreign_weights:
        return "saved from a state_dict of its own, as sharded training does"
    if any(weight.is_meta or weight.numel() == 0 or hasattr(weight, "device_mesh") for weight in model.parameters()):
        return "saved while the weights were sharded or not loaded"
    return None


def sources_of(model: Any) -> list[list[int]]:
    """Return the sources that a model's canary sings; see `write_canary`."""
    given = getattr(model, "canary_sources", None) or [row.source for row in rows_of(model)]
    fits = [list(source)[: most_tokens(model.config)] for source in given if max(source) < model.config.vocab_size]
    return fits[:MOST_ROWS] or sources_for(model.config)


def rows_of(model: Any) -> list[Row]:
    """Return the rows of the folder from which a model was loaded."""
    canary = vars(model).get("_canary")
    return canary.rows if canary else []


def save_canary(canary: Canary, folder: str | os.PathLike[str]) -> None:
    """Write the file, whole or not at all."""
    write_whole(Path(folder) / CANARY_NAME, canary_text(canary))


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file beside its place and move it there in one step: no reader sees half of it; a link is replaced.

    Raises:
        OSError: naming the file, whichever step the disk refused.
    """
    half = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        half.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(half, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        half.unlink(missing_ok=True)


def share(path: Path) -> None:
    """Let others read a file as the umask says; safetensors 0.8 lets its owner alone, whoever a folder is for."""
    umask = os.umask(0o077)  # it can only be asked by setting it
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def canary_text(canary: Canary) -> str:
    """Return what the file holds."""
    return json.dumps(asdict(canary)) + "\n"


def read_canary(path: str | os.PathLike[str]) -> Canary:
    """Read the file.

    Raises:
        ValueError: if it is none.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        rows = [Row(**row) for row in content.pop("rows")]
        tokens = [ids for row in rows for ids in (row.source, row.written, *row.words)]
        if len(rows) > MOST_ROWS or any(len(ids) > MOST_TOKENS for ids in tokens):
            raise ValueError(f"more than {MOST_ROWS} rows, or more than {MOST_TOKENS} tokens in one")
        return Canary(rows, **content)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is no canary ({error}); get the file again, or delete it: the folder works without, and is then "
            f"checked against itself alone."
        ) from error


def find_canary(folder: str | os.PathLike[str] | None, hub: dict[str, Any]) -> Canary | None:
    """Return the canary of a folder or of a repository on the Hub, None where there is none.

    Args:
        folder: as for `from_pretrained`.
        hub: its other arguments; those that say where to look are read.
    """
    if folder is None:
        return None
    try:
        path = cached_file(str(folder), CANARY_NAME, **where_to_look(hub))
    except OSError:
        return None
    return None if path is None else read_canary(path)


def where_to_look(hub: dict[str, Any]) -> dict[str, Any]:
    """Return those arguments of `from_pretrained` that say where files lie."""
    keys = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token", "proxies")
    return {key: hub[key] for key in keys if hub.get(key) is not None}


# When it sings -------------------------------------------------------------------------------------------------------


def adopt_canary(model: Any, folder: str | os.PathLike[str] | None, hub: dict[str, Any]) -> None:
    """Remember the canary of the folder from which a model was just loaded, and, if it will sing, the weights.

    Args:
        model: just loaded.
        folder: as given to `from_pretrained`.
        hub: its other arguments.
    """
    model._canary = find_canary(folder, hub)
    if model._canary is not None and running_library() not in model._canary.tested:
        model._canary_weights = sample_weights(model) if is_the_folders(model, folder, hub) else {}


def is_the_folders(model: Any, folder: str | os.PathLike[str] | None, hub: dict[str, Any]) -> bool:
    """Whether a model was loaded as the folder has it: a caller may stretch its positions, or fill in another head."""
    if hub.get("ignore_mismatched_sizes"):
        return False
    try:
        saved = type(model.config).from_pretrained(folder, **where_to_look(hub)).to_dict()
    except OSError:  # the caller brought all of it
        return True
    own = model.config.to_dict()
    return all(own.get(name) == saved.get(name) for name in {*own, *saved} - NO_ANSWERS)


def sample_weights(model: Any) -> dict[str, list[float]]:
    """Return some numbers of every weight, which any training or conversion changes."""
    sample = {}
    for name, weight in model.named_parameters():
        flat = weight.detach().flatten()
        sample[name] = [] if weight.is_meta else flat[:: max(1, flat.numel() // 3)][:4].float().tolist()
    return sample


def check_once(model: Any) -> None:
    """Refuse to answer under a library that makes another answer of these weights; see the module.

    Raises:
        CanaryError: with what differs, the versions, and what to do.
    """
    if not vars(model).get("_canary_has_sung"):
        if needs_check(model):
            check(model)
        model._canary_has_sung = True


def needs_check(model: Any) -> bool:
    """Whether this library is one under which neither the folder nor, where there is none, the code was tested."""
    if os.environ.get(SWITCH) == "off":
        logger.warning(f"{SWITCH}=off: answers are not checked under {describe_running()}.")
        return False
    canary = vars(model).get("_canary")
    return not (is_tested() if canary is None or canary.not_checked else running_library() in canary.tested)


def check(model: Any) -> None:
    """Let the canary sing.

    A model that was trained, resized or converted since it was loaded is compared with itself: forced passes over one
    sentence alone are the measure then.

    Raises:
        CanaryError: see `check_once`.
    """
    canary = vars(model).get("_canary")
    try:
        rows = rows_that_hold(model)
        if not rows:
            logger.warning(f"These weights are sharded, so answers are not checked under {describe_running()}.")
            return
        faults = find_faults(model, rows)
    except UnknownKeywordError:  # says all there is to say
        raise
    except LIBRARY_ERRORS as error:
        raise CanaryError(f"{refusal(canary)} It failed with {type(error).__name__}: {error}") from error
    if faults:
        raise CanaryError(f"{refusal(canary)} What differs: {'; '.join(faults)}.")
    logger.info(f"The canary was heard: answers under {describe_running()} are as they should be.")


def rows_that_hold(model: Any) -> list[Row]:
    """Return what a model has to say; nothing if it is sharded or not loaded.

    The rows of its folder, while it has the folder's weights in their precision; else what forced passes say now.
    """
    if why_it_cannot_sing(model, foreign_weights=False) is not None:
        return []
    rows, canary = rows_of(model), vars(model).get("_canary")
    is_as_saved = (
        rows
        and canary.precision == precision_of(model)
        and is_wide(model)
        and vars(model).get("_canary_weights") in (None, sample_weights(model))  # None: not noted, see adopt_canary
    )
    return rows if is_as_saved else sing_here(model)


def sing_here(model: Any) -> list[Row]:
    """Return what forced passes make of the model's sources now."""
    with at_rest(model), torch.no_grad():
        return [sing(model, source) for source in sources_of(model)]


def refusal(canary: Canary | None) -> str:
    """Return what a person has to know first: versions, rule, remedy."""
    where = (
        ", ".join(f"transformers {t['transformers']} with torch {t['torch']}" for t in canary.tested) if canary else ""
    )
    return (
        f"This model does not answer rightly under {describe_running()}, so it does not answer at all. Tested was "
        f"{where or describe_tested()}. To go on, {REMEDY} {SWITCH}=off in the environment lets it answer unchecked."
    )
