"""The graphs of an export in ONNX Runtime: greedy search and forced passes, as a page in a browser does them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from seqloom.hub.batches import before_end, padded, plan_batches
from seqloom.hub.export.ctranslate2_options import (
    BEAMS_ALONE,
    ELSEWHERE,
    HARMLESS,
    SAMPLING,
    longest_answer,
    refuse_unknown_settings,
)
from seqloom.hub.export.engine_parity import ends_of
from seqloom.hub.export.exported import TOKENS_PER_PASS
from seqloom.hub.export.onnx_graphs import DECODER, ENCODER, past_names

CARRIED = ("no_repeat_ngram_size", "repetition_penalty", "min_new_tokens", "max_new_tokens", "suppress_tokens")
"""Settings of generation_config.json that the graphs, the engine and the page obey."""


@dataclass(frozen=True)
class GreedySettings:
    """How an answer is searched for: what Python, the page and the manifest of an export know of it."""

    start: int
    """The token that the decoder reads first."""
    ends: tuple[int, ...]
    pad: int
    max_new_tokens: int
    min_new_tokens: int
    repetition_penalty: float
    """1: none."""
    no_repeat_ngram_size: int
    """0: words may repeat."""
    num_heads: int
    """G, of the decoder's keys and values."""
    head_dim: int
    """H."""
    longest_source: int | None
    """Tokens; None: as many as memory holds."""

    @classmethod
    def of(cls, model: Any) -> "GreedySettings":
        """Return a folder's settings.

        Raises:
            ExportError: for one that greedy search in a page does not know.
        """
        config: GenerationConfig = model.generation_config
        given = {name: value for name, value in config.to_diff_dict().items() if value is not None and name[0] != "_"}
        known = {*CARRIED, *ELSEWHERE, *HARMLESS, *SAMPLING, *BEAMS_ALONE} - {"bad_words_ids"}
        refuse_unknown_settings(given, known, "an ONNX export", CARRIED)
        start, shape = config.decoder_start_token_id, model.config
        has_table = shape.position_embedding_type == "learned"
        return cls(
            start=shape.decoder_start_token_id if start is None else start,
            ends=tuple(ends_of(model)),
            pad=shape.pad_token_id or 0,
            max_new_tokens=longest_answer(model),
            min_new_tokens=config.min_new_tokens or max(0, (config.min_length or 0) - 1),
            repetition_penalty=config.repetition_penalty or 1.0,
            no_repeat_ngram_size=config.no_repeat_ngram_size or 0,
            num_heads=shape.num_key_value_heads or shape.decoder_attention_heads,
            head_dim=shape.d_model // shape.decoder_attention_heads,
            longest_source=shape.max_position_embeddings if has_table else None,
        )

    def processors(self) -> LogitsProcessorList:
        """Return what changes scores (B, V) at each step, in the order in which `generate` has them."""
        found = LogitsProcessorList()
        if self.repetition_penalty != 1:
            found.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.no_repeat_ngram_size:
            found.append(NoRepeatNGramLogitsProcessor(self.no_repeat_ngram_size))
        if self.min_new_tokens:
            found.append(MinNewTokensLengthLogitsProcessor(1, self.min_new_tokens, list(self.ends)))
        return found


class OnnxEngine:
    """Both graphs, loaded; what `engine_parity.compare` asks of an engine."""

    has_beams = False

    def __init__(self, folder: Path, model: Any, settings: GreedySettings, suffix: str = "") -> None:
        """Load the graphs.

        Args:
            folder: where they lie.
            model: of which they were made; read for shapes only.
            settings: of the search.
            suffix: behind the graphs' names.
        """
        from onnxruntime import InferenceSession, SessionOptions

        options = SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self.encoder, self.decoder = (
            InferenceSession(folder / f"{name}{suffix}.onnx", options, providers=["CPUExecutionProvider"])
            for name in (ENCODER, DECODER)
        )
        self.settings, self.past_names = settings, past_names(model)
        self.empty_past = (settings.num_heads, 0, settings.head_dim)
        self.compute_type = "int8" if suffix else "float32"
        self.longest_answer = settings.max_new_tokens
        # Bytes are scaled by the largest number of a whole batch: alone a sentence is answered as the page does it.
        self.tokens_per_pass = 1 if suffix else TOKENS_PER_PASS

    def search(self, sources: Sequence[Sequence[int]], num_beams: int = 1) -> list[list[int]]:
        """Return the greedy answer for each source, without the end of sequence."""
        assert num_beams == 1, "the graphs are searched greedily"
        answers: list[list[int]] = [[] for _ in sources]
        for batch in plan_batches([len(ids) for ids in sources], self.tokens_per_pass):
            rows = self._write([sources[i] for i in batch])
            for i, row in zip(batch, rows, strict=True):
                answers[i] = before_end(row, self.settings.ends)
        return answers

    def score(self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return the log-probability of each token of each target, and of the end of sequence, which is not given."""
        scores = []
        for source, target in zip(sources, targets, strict=True):
            memory = self._encode([source])
            logits, _ = self._step(torch.tensor([[self.settings.start, *target]]), memory, self._no_past(1))
            wanted = torch.tensor([*target, self.settings.ends[0]])
            scores.append(logits[0].log_softmax(-1).gather(-1, wanted[:, None])[:, 0].tolist())
        return scores

    def _write(self, sources: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return the ids written for a batch, ends and padding included."""
        settings, processors = self.settings, self.settings.processors()
        memory, past = self._encode(sources), self._no_past(len(sources))
        written = torch.full((len(sources), 1), settings.start)  # (B, 1 + steps)
        is_done = torch.zeros(len(sources), dtype=torch.bool)
        while not is_done.all() and written.shape[1] <= settings.max_new_tokens:
            logits, past = self._step(written[:, -1:], memory, past)
            words = processors(written, logits[:, -1]).argmax(-1).where(~is_done, settings.pad)  # (B,)
            written = torch.cat([written, words[:, None]], dim=1)
            is_done |= torch.isin(words, torch.tensor(settings.ends))
        return [row[1:] for row in written.tolist()]

    def _encode(self, sources: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Return what the decoder reads at every step."""
        inputs = {name: tensor.numpy() for name, tensor in padded(sources, self.settings.pad).items()}
        (states,) = self.encoder.run(None, inputs)
        return {"encoder_hidden_states": states, "encoder_attention_mask": inputs["attention_mask"]}

    def _step(self, ids: Tensor, memory: dict[str, Any], past: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Return (B, T, V) logits and the next past."""
        logits, *present = self.decoder.run(None, {"input_ids": ids.numpy(), **memory, **past})
        return torch.from_numpy(logits), dict(zip(self.past_names, present, strict=True))

    def _no_past(self, batch_size: int) -> dict[str, Any]:
        empty = torch.zeros(batch_size, *self.empty_past).numpy()
        return dict.fromkeys(self.past_names, empty)


__all__ = ["GreedySettings", "OnnxEngine"]
