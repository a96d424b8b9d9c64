"""Does an export answer as its folder does? Asked of real sentences before an export says that it is done.

    sentences --+--> torch    forced log-probabilities, greedy tokens, beams of 5
                +--> engine   the same, beams where it has them                 --> Parity --> README.md, the screen

In float32 the two differ by rounding alone: a forced log-probability that differs by more than 1e-4, or greedy tokens
that part where torch sees no tie, refuse the export. Beam search stops by another rule, so beams are counted and no
ground to refuse. In any other number format everything is counted, and the scores say what it cost.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from sacrebleu.metrics import CHRF
from torch import Tensor

from seqloom.hub.batches import before_end, padded, plan_batches
from seqloom.hub.export.ctranslate2_loader import suppressing_bias
from seqloom.hub.export.ctranslate2_options import greedy
from seqloom.hub.export.exported import TOKENS_PER_PASS, Exported
from seqloom.modeling import canary

TOLERANCE = 1e-4
"""By how much a forced log-probability may differ in float32; 1e-6 to 2e-5 was seen."""

TIE = 1e-3
"""Words whose log-probabilities are as near as this may change places."""

FLOOR = -100.0
"""Log-probabilities below are alike: of words that are never written the engine has -1e4."""

BEAMS = 5


@dataclass(frozen=True)
class Sentence:
    """One sentence to ask about."""

    source: list[int]
    """Ids, the end of sequence included."""
    target: list[int] | None = None
    """Ids of the reference, the end of sequence included; None: there is none."""


@dataclass(frozen=True)
class ScoreRow:
    """One metric of torch's answers and of the export's, on the same sentences."""

    metric: str
    torch: float
    export: float
    export_interval: tuple[float, float]
    """95 %, by bootstrap over sentences."""
    difference_interval: tuple[float, float]
    """95 % of export minus torch, by paired bootstrap."""


@dataclass(frozen=True)
class Parity:
    """What was found."""

    sentences: int
    compute_type: str
    """What the engine computed with here."""
    forced_tokens: int
    forced_difference: float
    """The largest of a forced token's log-probability."""
    greedy_equal: int
    """Sentences with the same tokens."""
    greedy_ties: int
    """Sentences that part where two words are as likely as each other."""
    beam_equal: int | None
    """Sentences with the same text; None: the engine has no beams."""
    beam_chrf: float | None
    """chrF of the export's beams against torch's, 100: the same."""

    @property
    def is_exact(self) -> bool:
        """Whether the two differ by rounding alone."""
        return self.forced_difference <= TOLERANCE and self.greedy_equal + self.greedy_ties == self.sentences


class Answering(Protocol):
    """What an export must be able to do, so that it can be compared with torch."""

    has_beams: bool

    @property
    def compute_type(self) -> str:
        """What it computes with here."""

    @property
    def longest_answer(self) -> int:
        """The most tokens that it writes."""

    def search(self, sources: Sequence[Sequence[int]], num_beams: int) -> list[list[int]]:
        """Return the best answer for each source, without the end of sequence, and without sampling."""

    def score(self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return the log-probability of each token of each target, and of the end of sequence."""


class Engine(Exported):
    """A loaded export that answers with its options."""

    has_beams = True

    def __init__(self, folder: str, names: Sequence[str], options: dict[str, Any]) -> None:
        super().__init__(folder, names)
        self.options = options

    def write(self, sources: Sequence[Sequence[int]], **changes: Any) -> list[list[int]]:
        """Return the best answer for each source, without the end of sequence."""
        options = {**self.options, **changes, "max_batch_size": TOKENS_PER_PASS, "batch_type": "tokens"}
        results = self.translator.translate_batch(self.spell(sources), **options)
        return [self.read(result.hypotheses[0]) for result in results]

    @property
    def compute_type(self) -> str:
        """What it computes with here."""
        return str(self.translator.compute_type)

    @property
    def longest_answer(self) -> int:
        """The most tokens that it writes."""
        return int(self.options["max_decoding_length"])

    def search(self, sources: Sequence[Sequence[int]], num_beams: int) -> list[list[int]]:
        """Return the best answer for each source, without the end of sequence, and without sampling."""
        return self.write(sources, **{**greedy(self.options), "beam_size": num_beams})


def compare(model: Any, tokenizer: Any, engine: Answering, sentences: Sequence[Sentence]) -> Parity:
    """Ask torch and the engine the same.

    Args:
        model: in float32, on the CPU, in eval mode.
        tokenizer: decodes the ids of both sides.
        engine: the export, with the folder's options.
        sentences: not empty.
    """
    sources = [sentence.source for sentence in sentences]
    search = one_answer(engine.longest_answer)
    ours = write(model, sources, num_beams=1, **search)
    theirs = engine.search(sources, num_beams=1)
    differing = [i for i in range(len(sources)) if ours[i] != theirs[i]]
    ties = [i for i in differing if parts_at_tie(model, sources[i], ours[i], theirs[i])]
    targets = [s.target[:-1] if s.target else written for s, written in zip(sentences, ours, strict=True)]
    forced = [force(model, source, target) for source, target in zip(sources, targets, strict=True)]
    claimed = [torch.tensor(scores) for scores in engine.score(sources, targets)]
    apart = [(a.clamp(min=FLOOR) - b.clamp(min=FLOOR)).abs().max() for a, b in zip(forced, claimed, strict=True)]
    beam_equal, beam_chrf = (
        compare_beams(model, tokenizer, engine, sources, search) if engine.has_beams else (None, None)
    )
    return Parity(
        sentences=len(sources),
        compute_type=engine.compute_type,
        forced_tokens=sum(map(len, forced)),
        forced_difference=float(torch.stack(apart).max()),
        greedy_equal=len(sources) - len(differing),
        greedy_ties=len(ties),
        beam_equal=beam_equal,
        beam_chrf=beam_chrf,
    )


def compare_beams(
    model: Any, tokenizer: Any, engine: Answering, sources: Sequence[Sequence[int]], search: dict[str, Any]
) -> tuple[int, float]:
    """Return for how many sources both write the same text with beams, and the chrF of the one against the other."""
    ours = decode(tokenizer, write(model, sources, num_beams=BEAMS, **search))
    theirs = decode(tokenizer, engine.search(sources, num_beams=BEAMS))
    equal = sum(a == b for a, b in zip(ours, theirs, strict=True))
    return equal, 100.0 if ours == theirs else CHRF().corpus_score(theirs, [ours]).score


def one_answer(longest: int) -> dict[str, Any]:
    """Return options of `generate` for one answer a source, without sampling."""
    return {"do_sample": False, "num_return_sequences": 1, "max_new_tokens": longest}


@torch.inference_mode()
def write(model: Any, sources: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
    """Return what torch writes for each source, without the end of sequence."""
    answers: list[list[int]] = [[] for _ in sources]
    ends = ends_of(model)
    for batch in plan_batches([len(ids) for ids in sources], TOKENS_PER_PASS // options["num_beams"]):
        inputs = padded([sources[i] for i in batch], model.config.pad_token_id)
        written = model.generate(**inputs, **options)[:, 1:].tolist()
        for i, row in zip(batch, written, strict=True):
            answers[i] = before_end(row, ends)
    return answers


@torch.inference_mode()
def force(model: Any, source: Sequence[int], target: Sequence[int]) -> Tensor:
    """Return the (T + 1,) log-probabilities of a target's tokens and of the end of sequence."""
    end = ends_of(model)[0]
    log_probs = log_probs_of(model, source, target)
    return log_probs.gather(-1, torch.tensor([*target, end])[:, None])[:, 0]


def log_probs_of(model: Any, source: Sequence[int], target: Sequence[int]) -> Tensor:
    """Return (T + 1, V) log-probabilities after the start token and after each token of a target."""
    settings = model.generation_config
    start = settings.decoder_start_token_id
    start = model.config.decoder_start_token_id if start is None else start
    logits = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[start, *target]])).logits[0]
    if settings.suppress_tokens:
        logits = logits + suppressing_bias(model.lm_head.weight, settings.suppress_tokens)
    return logits.log_softmax(-1)


@torch.inference_mode()
def parts_at_tie(model: Any, source: Sequence[int], ours: Sequence[int], theirs: Sequence[int]) -> bool:
    """Whether two answers first differ in words that torch finds equally likely."""
    end = ends_of(model)[0]
    same = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b),
        min(len(ours), len(theirs)),
    )
    last = log_probs_of(model, source, ours[:same])[-1]
    one, other = (answer[same] if same < len(answer) else end for answer in (ours, theirs))
    return bool((last[one] - last[other]).abs() <= TIE)


def ends_of(model: Any) -> list[int]:
    """Return the ids that end an answer."""
    settings = model.generation_config
    return canary.ends_of(model.config if settings.eos_token_id is None else settings)


def decode(tokenizer: Any, answers: Sequence[Sequence[int]]) -> list[str]:
    """Return the texts of answers, each on one line."""
    return [" ".join(text.split("\n")) for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]


Scorer = Callable[[Sequence[str], Sequence[str], Sequence[str], Sequence[str]], list[ScoreRow]]
"""Texts of torch, of the export, references, names of metrics -> a row a metric; `seqloom.training` has the metrics."""

__all__ = [
    "Answering",
    "Engine",
    "Parity",
    "ScoreRow",
    "Scorer",
    "Sentence",
    "compare",
    "decode",
    "ends_of",
    "one_answer",
    "write",
]
