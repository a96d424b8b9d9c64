"""What answers: the folder's model in torch, or its export in CTranslate2. Both take and give ids.

B sources of a batch    R outputs of each    S source length    T output length, without the end of sequence
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, LogitsProcessorList, StopStringCriteria

from seqloom.hub.batches import before_end, padded, plan_batches
from seqloom.hub.decoding.ensemble import MeanOfModels, log_probs_of
from seqloom.hub.export.ctranslate2_loader import positions_in_table, vocabulary_of
from seqloom.hub.export.ctranslate2_options import translate_options
from seqloom.hub.export.exported import Exported
from seqloom.hub.export.output_folder import EXPORT_NAME
from seqloom.hub.files import read_object, recorded_outputs
from seqloom.hub.loading import FALLBACK_MAX_NEW_TOKENS, explained_loading, load_folder, target_tokenizer
from seqloom.hub.verify import check_folder
from seqloom.hub.word_alignment import Place, eager_attention, find_place
from seqloom.modeling.canary import ends_of
from seqloom.modeling.limits import DEFAULT_MAX_LENGTH

TOKENS_PER_BATCH = 4096
"""Padded source tokens x outputs searched at once in torch; well under 1 GB for the base model.

CPU seconds for 400 lines, tiny model, one core: 1.45 at 512, 0.95 at 4,096, 0.99 at 16,384; with 5 beams 8.7, 4.9, 4.8.
"""

SAMPLE = 50
"""Recorded outputs that are looked through for some on which the model is asked where its alignments stand."""

MOST_SOURCE_TOKENS = 16_384
"""Source tokens that are tried at least; attention costs their square. A model that knows longer ones reads those."""


class SearchError(ValueError):
    """Settings of a search that do not fit each other, or the engine."""


@dataclass(frozen=True)
class Search:
    """How outputs are looked for; None: what the folder's generation_config.json says."""

    num_beams: int | None = None
    n_best: int | None = None
    """Outputs for each source, with their scores; None: one, without."""
    max_new_tokens: int | None = None
    sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    length_penalty: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse what does not fit.

        Raises:
            SearchError: with the remedy.
        """
        if self.num_beams is not None and self.n_best is not None and self.num_beams < self.n_best and not self.sample:
            raise SearchError(
                f"n_best={self.n_best} needs as many beams, and beams={self.num_beams}; use --beams {self.n_best} or "
                f"more."
            )
        if self.sample and (self.num_beams or 1) > 1:
            raise SearchError(f"sample draws word by word, and beams={self.num_beams}; leave --beams or --sample away.")
        for name in ("temperature", "top_k", "top_p", "seed"):
            if getattr(self, name) is not None and not self.sample:
                raise SearchError(f"{name}={getattr(self, name)} belongs to sampling; add --sample, or leave it away.")
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise SearchError(f"temperature={self.temperature} must be above 0; --beams 1 takes the likeliest word.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise SearchError(f"top_p={self.top_p} must be a share of the probability, above 0 and at most 1.")

    def settings(self, folder: GenerationConfig) -> GenerationConfig:
        """Return the folder's settings with these in their place."""
        copies = self.n_best or 1
        given = {"max_new_tokens": self.max_new_tokens, "length_penalty": self.length_penalty}
        given |= {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if self.sample:
            changes |= {"do_sample": True, "num_beams": 1}
        elif not folder.do_sample or self.num_beams is not None:
            changes |= {"num_beams": max(self.num_beams or folder.num_beams or 1, copies), "do_sample": False}
        says_nothing = folder.max_new_tokens is None and folder.max_length in (None, DEFAULT_MAX_LENGTH)
        if self.max_new_tokens is None and says_nothing:
            changes["max_new_tokens"] = FALLBACK_MAX_NEW_TOKENS
        settings = GenerationConfig(**folder.to_dict())
        settings.update(**changes, num_return_sequences=copies)
        return settings


@dataclass(frozen=True)
class Written:
    """One output, as ids."""

    tokens: list[int]
    is_cut: bool
    """Whether it ended because no more tokens were allowed."""
    log_probs: list[float] = field(default_factory=list)
    """Of each token, and of the end of sequence if it was written; empty where nobody asked."""
    attention: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    """(T', S) of the step that chose each token, the end too, in the layer of `Engine.place`; empty: nobody asked."""


class Engine(ABC):
    """Answers ids with ids."""

    tokenizer: Any
    target_tokenizer: Any
    settings: GenerationConfig
    config: Any
    search: Search
    place: Place | None = None
    """Where alignments stand, once details were asked for."""

    @property
    def ends(self) -> list[int]:
        """The ids that end a sequence."""
        return ends_of(self.config if self.settings.eos_token_id is None else self.settings)

    @property
    def longest_source(self) -> tuple[int, str]:
        """The most tokens of a source, and why."""
        return longest_source_of(self.config)

    @property
    def trained_source(self) -> int | None:
        """Tokens of the longest source that the model was trained on, where its folder says so."""
        known = getattr(self.settings, "longest_trained_source", None)
        return known if isinstance(known, int) and known > 0 else None

    @abstractmethod
    def write(
        self, sources: Sequence[list[int]], prefixes: Sequence[list[int]] | None, *, seed: int | None, in_detail: bool
    ) -> list[list[Written]]:
        """Return R outputs for each source, best first; samples as they were drawn.

        Args:
            sources: ids, the end of sequence included.
            prefixes: ids that each output has to begin with; None: none has to.
            seed: for sampling; None: another one each time. CTranslate2 goes by `Search.seed` alone.
            in_detail: with attention. Log-probabilities are there if it is so, or if several outputs are asked for.
        """


def longest_source_of(config: Any) -> tuple[int, str]:
    """Return the most tokens of a source that a model in torch is given, and why."""
    known = getattr(config, "max_position_embeddings", 0)
    if getattr(config, "position_embedding_type", None) == "learned":
        return known, f"the {known:,} positions that the model has learned"
    longest = max(known, MOST_SOURCE_TOKENS)
    return longest, f"{longest:,}, the most that is tried"


class TorchEngine(Engine):
    """The folder's own model."""

    folder: str | PathLike[str] | None = None
    others: Sequence[Any] = ()
    """Models that write together with it; see `ensemble.py`."""

    def __init__(
        self,
        folder: str | PathLike[str],
        search: Search,
        device: str | None = None,
        ensemble: Sequence[str | PathLike[str]] = (),
    ) -> None:
        """Load the folder, and those that write together with it; see `load_folder`."""
        model, tokenizer = load_folder(folder, device)
        self._set(model, tokenizer, target_tokenizer(folder, tokenizer), search)
        self.folder = folder
        self.others = [load_folder(other, device)[0] for other in ensemble]

    @classmethod
    def of(cls, model: Any, tokenizer: Any, search: Search) -> "TorchEngine":
        """Make an engine of a model that is loaded."""
        engine = cls.__new__(cls)
        engine._set(model, tokenizer, tokenizer, search)
        return engine

    def _set(self, model: Any, tokenizer: Any, target_tokenizer: Any, search: Search) -> None:
        self.model, self.tokenizer, self.target_tokenizer, self.search = model, tokenizer, target_tokenizer, search
        self.config, self.settings = model.config, search.settings(model.generation_config)

    @property
    def longest_source(self) -> tuple[int, str]:
        """See `Engine.longest_source`; all models of an ensemble read it."""
        return min(longest_source_of(model.config) for model in (self.model, *self.others))

    @torch.inference_mode()
    def write(
        self, sources: Sequence[list[int]], prefixes: Sequence[list[int]] | None, *, seed: int | None, in_detail: bool
    ) -> list[list[Written]]:
        """See `Engine.write`."""
        if seed is not None:
            torch.manual_seed(seed)
        found: list[list[Written]] = [[] for _ in sources]
        settings = self.settings
        searched = max(settings.num_beams or 1, settings.num_return_sequences or 1)
        for batch in plan_batches([len(ids) for ids in sources], TOKENS_PER_BATCH // searched):
            inputs = padded([sources[place] for place in batch], self.config.pad_token_id, self.model.device)
            options: dict[str, Any] = {"tokenizer": self.tokenizer}  # for stop strings
            if self.others:
                options["logits_processor"] = LogitsProcessorList([MeanOfModels(self.others, inputs)])
            if prefixes is not None:
                options["prefix_allowed_tokens_fn"] = self._beginning([prefixes[place] for place in batch])
            sequences = self.model.generate(**inputs, generation_config=settings, **options)  # (B * R, 1 + T)
            outputs = self._read_again(inputs, sequences, in_detail)
            for number, place in enumerate(batch):
                copies = settings.num_return_sequences or 1
                found[place] = outputs[number * copies : (number + 1) * copies]
        return found

    def _beginning(self, prefixes: Sequence[list[int]]) -> Any:
        """Return what tells `generate` which tokens may come next: the prefix's, then all."""
        everything = list(range(self.model.config.vocab_size))

        def allowed(row: int, written: Tensor) -> list[int]:
            place = len(written) - 1  # behind the start token
            return [prefixes[row][place]] if place < len(prefixes[row]) else everything

        return allowed

    def _read_again(self, inputs: dict[str, Tensor], sequences: Tensor, in_detail: bool) -> list[Written]:
        """Cut outputs at their ends, and ask a forced pass for what is wanted of them."""
        stops = self.settings.stop_strings
        ends = [*self.ends, self.settings.pad_token_id] if stops else self.ends  # padding stands behind a stop string
        rows = [before_end(row, ends) for row in sequences[:, 1:].tolist()]
        is_stopped = [False] * len(rows)
        if stops:
            stopping = StopStringCriteria(tokenizer=self.tokenizer, stop_strings=stops)
            is_stopped = [bool(row and stopping(torch.tensor([row]), None)) for row in rows]
        is_cut = [
            len(row) == sequences.shape[1] - 1 and not stopped  # else an end stands behind it
            for row, stopped in zip(rows, is_stopped, strict=True)
        ]
        if not in_detail and self.search.n_best is None:
            return [Written(row, cut) for row, cut in zip(rows, is_cut, strict=True)]
        if in_detail and self.place is None:
            self.place = self._find_place(inputs, rows)
        copies = len(sequences) // len(inputs["input_ids"])
        sources = {name: ids.repeat_interleave(copies, dim=0) for name, ids in inputs.items()}
        log_probs, attention = self._forced(sources, sequences, in_detail)
        found = []
        for number, (row, cut, stopped) in enumerate(zip(rows, is_cut, is_stopped, strict=True)):
            steps = len(row) + (not cut and not stopped)
            length = int(sources["attention_mask"][number].sum())
            looked = attention[number, : len(row) + 1, :length].cpu() if in_detail else torch.empty(0, 0)
            found.append(Written(row, cut, log_probs[number, :steps].tolist(), looked))
        return found

    def _forced(self, sources: dict[str, Tensor], sequences: Tensor, in_detail: bool) -> tuple[Tensor, Tensor]:
        """Read outputs: (B * R, 1 + T) -> (B * R, T) log-probabilities, (B * R, T, S) attention."""
        from seqloom.hub.pipeline_seqloom import LOGITS_PER_PASS

        rows = max(1, LOGITS_PER_PASS // (sequences.shape[1] * self.model.config.vocab_size))
        log_probs, attention = [], []
        with eager_attention(self.model) if in_detail else nullcontext():
            for start in range(0, len(sequences), rows):
                part = {name: ids[start : start + rows] for name, ids in sources.items()}
                written = sequences[start : start + rows]
                read = {**part, "decoder_input_ids": written[:, :-1], "use_cache": False}
                output = self.model(**read, output_attentions=in_detail)
                others = (log_probs_of(other(**read).logits, written) for other in self.others)
                said = [log_probs_of(output.logits, written), *others]
                log_probs.append(torch.stack(said).mean(dim=0))
                if in_detail and self.place is not None:
                    attention.append(output.cross_attentions[self.place.layer].float().mean(dim=1))
        return torch.cat(log_probs), torch.cat(attention) if attention else torch.empty(0)

    def _find_place(self, inputs: dict[str, Tensor], outputs: Sequence[list[int]]) -> Place:
        """Ask the model where its alignments stand, on what the run has recorded, else on these outputs."""
        recorded = recorded_outputs(Path(self.folder), SAMPLE) if self.folder else None
        recorded = [row for row in recorded or () if row["source"].strip() and row["output"].strip()]
        if recorded:
            sources = self.tokenizer([row["source"] for row in recorded]).input_ids
            targets = self.target_tokenizer([row["output"] for row in recorded]).input_ids
        else:
            lengths = inputs["attention_mask"].sum(-1).tolist()
            copies = len(outputs) // len(lengths)
            sources = [ids[:length] for ids, length in zip(inputs["input_ids"].tolist(), lengths, strict=True)]
            targets = [[*ids, self.ends[0]] for ids in outputs[::copies]]
        return find_place(self.model, list(zip(sources, targets, strict=True)))


class CTranslate2Engine(Engine):
    """The folder's export, made when it is first asked for."""

    def __init__(
        self, folder: str | PathLike[str], search: Search, quantization: str = "float32", processes: int = 1
    ) -> None:
        """Load the export in the cache, or make it.

        Raises:
            ExportError: if the engine cannot do what the folder or the search asks for.
            FolderError: if the folder is none, or dangerous to open.
        """
        check_folder(folder)
        with explained_loading(folder, "settings"):
            self.config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            settings = GenerationConfig.from_pretrained(folder)
        with explained_loading(folder, "tokenizer"):
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.target_tokenizer = target_tokenizer(folder, self.tokenizer)
        self.search, self.settings = search, search.settings(settings)
        names = vocabulary_of(self.tokenizer, self.config.vocab_size)
        self.options = translate_options(SimpleNamespace(config=self.config, generation_config=self.settings), names)
        from seqloom.hub.export.engine_folder import engine_folder  # the card's writer and more, for the first use

        place = engine_folder(folder, quantization)
        import ctranslate2

        if search.seed is not None:
            ctranslate2.set_random_seed(search.seed)  # counts for threads that begin after it
        device = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
        threads = max(1, torch.get_num_threads() // processes)
        self.place = Place(**(read_object(place / EXPORT_NAME) or {})["alignment"])
        self.exported = Exported(place, names, device=device, inter_threads=processes, intra_threads=threads)

    @property
    def longest_source(self) -> tuple[int, str]:
        """See `Engine.longest_source`; an export has an end where torch computes further positions."""
        longest, why = super().longest_source
        table = positions_in_table(self.config) or longest
        return (table, f"the {table:,} positions that the export computes") if table < longest else (longest, why)

    def write(
        self, sources: Sequence[list[int]], prefixes: Sequence[list[int]] | None, *, seed: int | None, in_detail: bool
    ) -> list[list[Written]]:
        """See `Engine.write`."""
        results = self.exported.translator.translate_batch(
            self.exported.spell(sources),
            target_prefix=None if prefixes is None else self.exported.spell(prefixes),
            return_end_token=True,
            return_attention=in_detail,
            max_batch_size=TOKENS_PER_BATCH,
            batch_type="tokens",
            **self.options,
        )
        found = [
            [
                self._cut(tokens, torch.tensor(result.attention[number]) if in_detail else torch.empty(0, 0))
                for number, tokens in enumerate(result.hypotheses)
            ]
            for result in results
        ]
        return self._scored(sources, found) if in_detail or self.search.n_best is not None else found

    def _cut(self, names: Sequence[str], attention: Tensor) -> Written:
        tokens = before_end(self.exported.read(names), self.ends)
        return Written(tokens, len(tokens) == len(names), attention=attention)

    def _scored(self, sources: Sequence[list[int]], found: list[list[Written]]) -> list[list[Written]]:
        """Add log-probabilities, by a forced pass over all outputs."""
        pairs = [(source, written) for source, group in zip(sources, found, strict=True) for written in group]
        scores = self.exported.score([source for source, _ in pairs], [written.tokens for _, written in pairs])
        outputs = iter(
            replace(written, log_probs=log_probs[: len(written.tokens) + (not written.is_cut)])
            for (_, written), log_probs in zip(pairs, scores, strict=True)
        )
        return [[next(outputs) for _ in group] for group in found]


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


__all__ = ["CTranslate2Engine", "Engine", "Search", "SearchError", "TorchEngine", "Written", "cores"]
