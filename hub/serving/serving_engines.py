"""What writes the answers to several requests at once: torch, through `generate`, and CTranslate2.

Each answer is what `generate` writes for that request alone. What belongs to one request stays with its row: how long
its answer may be, how it samples and with which seed, and whether its reader is still there. What belongs to the search
as a whole makes the key by which requests go together.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.generation import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from seqloom.hub.batches import padded
from seqloom.hub.export.ctranslate2_options import DEFAULT_TOP_K, DIRECT, SAMPLING, greedy, is_punished_otherwise
from seqloom.hub.export.exported import Exported
from seqloom.hub.export.output_folder import EXPORT_NAME
from seqloom.hub.files import read_object
from seqloom.hub.serving.chat_request import RequestError
from seqloom.hub.serving.job_queue import Job

ROW_SETTINGS = frozenset({"seed", "stop_strings", "max_new_tokens", "num_beams"})
"""Settings that each row of a batch may have for itself, and one that is a part of every key."""

SAMPLING_SETTINGS = frozenset({"do_sample", *SAMPLING})
"""The same, where nothing but these decides how a row samples."""

MOST_THREADS = 4
"""Batches that CTranslate2 writes at a time, if there are as many cores."""

OTHER_SAMPLING = {"typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "min_p": None, "top_h": None}
"""Settings of a folder that change how one samples, beside `SAMPLING`, and what switches them off."""


def frozen(settings: dict[str, Any], but: frozenset[str]) -> str:
    """Return settings as a key."""
    return repr(sorted((name, value) for name, value in settings.items() if name not in but))


class TorchEngine:
    """A model of torch."""

    num_threads = 1  # torch itself computes with all cores

    def __init__(self, model: Any) -> None:
        """Take a sequence-to-sequence model, in eval mode, on its device."""
        self.model, self.settings = model, model.generation_config
        model.generation_config = GenerationConfig()  # `generate` would take from it what `_config` leaves None

    def admit(self, job: Job) -> None:
        """Set a job's key and beams; torch has every setting."""
        config = self._config([job])
        job.num_beams = config.num_beams or 1
        is_by_row = job.num_beams == 1 and not self._has_other_sampling(config)
        if config.do_sample and not is_by_row:
            job.key = object()  # one generator for all rows: nobody else may draw from it
        else:
            leaves_room = job.num_beams > 1 or config.forced_eos_token_id is not None
            but = (ROW_SETTINGS | SAMPLING_SETTINGS) if is_by_row else ROW_SETTINGS
            job.key = frozen(job.settings, but), job.num_beams, job.max_new_tokens if leaves_room else None

    def write(self, jobs: Sequence[Job]) -> None:
        """Write the answers of jobs with one key."""
        config = self._config(jobs)
        processors = LogitsProcessorList()
        if config.num_beams == 1 and not self._has_other_sampling(config):
            dice = [_Dice(self._config([job]), job.settings.get("seed"), self.model.device) for job in jobs]
            processors = LogitsProcessorList([_Draw(dice)] if any(die.is_used for die in dice) else [])
            # The defaults, which no one warns of.
            config.update(do_sample=False, temperature=1.0, top_k=DEFAULT_TOP_K, top_p=1.0)
        elif config.do_sample and jobs[0].settings.get("seed") is not None:
            torch.manual_seed(jobs[0].settings["seed"])
        with torch.inference_mode():
            written = self.model.generate(
                **padded([job.source for job in jobs], config.pad_token_id, self.model.device),
                generation_config=config,
                logits_processor=processors,
                stopping_criteria=StoppingCriteriaList([_Rows(jobs, is_beams=config.num_beams > 1)]),
            )
        if config.num_beams > 1:  # they know their answer only at the end
            for job, row in zip(jobs, written[:, 1:].tolist(), strict=True):
                job.take_all(row)

    def _config(self, jobs: Sequence[Job]) -> Any:
        """Return the folder's settings with what jobs of one key change."""
        config = copy.deepcopy(self.settings)
        config.update(**{name: value for name, value in jobs[0].settings.items() if name != "seed"})
        config.update(
            max_new_tokens=max(job.max_new_tokens for job in jobs),
            num_beams=config.num_beams or 1,
            num_return_sequences=1,
            return_dict_in_generate=False,
            stop_strings=None,  # the text is cut where it is read
        )
        return config

    @staticmethod
    def _has_other_sampling(config: Any) -> bool:
        return bool(config.do_sample) and (
            getattr(config, "watermarking_config", None) is not None
            or any(getattr(config, name, None) not in (None, off) for name, off in OTHER_SAMPLING.items())
        )


class _Rows(StoppingCriteria):
    """Hands each job its tokens, and ends the rows of those that are over."""

    def __init__(self, jobs: Sequence[Job], *, is_beams: bool) -> None:
        self.jobs, self.is_beams = jobs, is_beams

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if self.is_beams:
            done = [all(job.is_given_up() for job in self.jobs)] * len(input_ids)
        else:
            done = [job.take(token) for job, token in zip(self.jobs, input_ids[:, -1].tolist(), strict=True)]
        return torch.tensor(done, device=input_ids.device)


class _Dice:
    """How one row samples."""

    def __init__(self, config: Any, seed: int | None, device: torch.device) -> None:
        self.is_used = bool(config.do_sample)
        self.generator = torch.Generator(device=device)
        self.generator.manual_seed(self.generator.seed() if seed is None else seed)
        self.warpers = LogitsProcessorList()
        if config.temperature not in (None, 1.0):
            self.warpers.append(TemperatureLogitsWarper(config.temperature))
        if top_k := DEFAULT_TOP_K if config.top_k is None else config.top_k:
            self.warpers.append(TopKLogitsWarper(top_k))
        if config.top_p is not None and config.top_p < 1.0:
            self.warpers.append(TopPLogitsWarper(config.top_p))


class _Draw(LogitsProcessor):
    """Draws for each row that samples, as `generate` does, and leaves the search no other token."""

    def __init__(self, dice: Sequence[_Dice]) -> None:
        self.dice = dice

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        for row, die in enumerate(self.dice):
            if die.is_used:
                warped = die.warpers(input_ids[row : row + 1], scores[row : row + 1])
                token = torch.multinomial(warped.softmax(-1), 1, generator=die.generator)  # (1, 1)
                scores[row : row + 1] = torch.full_like(warped, -torch.inf).scatter(1, token, 0.0)
        return scores


class CTranslate2Engine:
    """An export of the folder."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        """Load an export; `names` are those of its ids."""
        manifest = read_object(folder / EXPORT_NAME) or {}
        self.options: dict[str, Any] = manifest["translate_batch"]
        self.longest: int | None = manifest["longest"]
        self.num_threads = min(MOST_THREADS, torch.get_num_threads())
        threads = {"inter_threads": self.num_threads, "intra_threads": torch.get_num_threads() // self.num_threads}
        self.exported = Exported(folder, names, **threads)

    def admit(self, job: Job) -> None:
        """Set a job's key and beams.

        Raises:
            RequestError: for settings that the engine does not have.
        """
        asked, samples = job.settings, job.settings.get("do_sample", "sampling_topk" in self.options)
        job.num_beams = asked.get("num_beams", self.options["beam_size"])
        for name, is_asked in {
            "logit_bias": "sequence_bias" in asked,
            "seed": samples and "seed" in asked,
            "num_beams": samples and job.num_beams > 1,
        }.items():
            if is_asked:
                raise RequestError(
                    f"{name} is not something that CTranslate2 does{' when it samples' * samples}; leave it out, or "
                    f"start the server with --engine torch.",
                    param=name,
                )
        penalty = asked.get("repetition_penalty", self.options.get("repetition_penalty"))
        if is_punished_otherwise(penalty, job.num_beams):
            raise RequestError(
                f"repetition_penalty={penalty:g} (a request's frequency_penalty adds to 1) with num_beams="
                f"{job.num_beams} is another search in CTranslate2 than in transformers; ask for num_beams 1, or start "
                f"the server with --engine torch.",
                param="repetition_penalty",
            )
        job.key = frozen(asked, ROW_SETTINGS), job.num_beams, job.max_new_tokens if job.num_beams > 1 else None

    def write(self, jobs: Sequence[Job]) -> None:
        """Write the answers of jobs with one key."""
        options, asked, num_beams = self.options, jobs[0].settings, jobs[0].num_beams
        if asked.get("do_sample") is False or num_beams > 1:
            options = greedy(options)
        words = DIRECT | (SAMPLING if asked.get("do_sample") else {})
        options = {
            **options,
            **{words[name]: value for name, value in asked.items() if name in words},
            "beam_size": num_beams,
            "num_hypotheses": 1,
            "max_decoding_length": max(job.max_new_tokens for job in jobs),
        }
        # An answer may be asked for that is shorter than the folder's shortest, and more words than there are.
        for option, most in (
            ("min_decoding_length", options["max_decoding_length"]),
            ("sampling_topk", len(self.exported.names)),
        ):
            if option in options:
                options[option] = min(options[option], most)
        translate, sources = self.exported.translator.translate_batch, self.exported.spell([job.source for job in jobs])
        if num_beams == 1:
            hear = {"callback": lambda step: jobs[step.batch_id].take(step.token_id)}
            translate(sources, **options, **hear)
            return
        results = translate(sources, return_end_token=True, **options)
        for job, result in zip(jobs, results, strict=True):
            job.take_all(self.exported.read(result.hypotheses[0]))


__all__ = ["CTranslate2Engine", "TorchEngine"]
