"""`translation`, `summarization` and `text2text-generation`, gone from transformers 5, and a safe `text-generation`.

Signatures, options, defaults and output keys are those of transformers 4.57:
https://github.com/huggingface/transformers/blob/v4.57.1/src/transformers/pipelines/text2text_generation.py
New are `return_scores` and readable errors; `max_length` is obeyed where 4.57 took its own default of 256 new tokens,
and `stop_sequence` stops at the whole sequence, no longer at its first token. The file is copied into every checkpoint
folder, where `custom_pipelines` in config.json names its classes.

    text -> preprocess -> ids (B, S) -> _forward -> ids (B, R, T), scores (B, R) -> postprocess -> R records

    B batch    S source length    R num_return_sequences    T target length    V vocabulary
"""

import enum
from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding, GenerationConfig, pipelines
from transformers.pipelines import PIPELINE_REGISTRY, Pipeline
from transformers.utils import logging

logger = logging.get_logger(__name__)

LOGITS_PER_PASS = 1 << 26
"""Most float32 logits that scoring holds at once, 256 MiB."""


class ReturnType(enum.Enum):
    """What a record holds."""

    TENSORS = 0
    TEXT = 1


class Text2TextGenerationPipeline(Pipeline):
    """Text in, text out, with any encoder-decoder.

    What neither the caller nor the folder's generation_config.json sets is `max_new_tokens=256` and `num_beams=4`.

    Example:
        >>> from transformers import pipeline
        >>> write = pipeline("text2text-generation", model="seqloom-demo", trust_remote_code=True)
        >>> write("22 novembre 2026")
        [{'generated_text': '2026-11-22'}]
    """

    _pipeline_calls_generate = True
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True
    _default_generation_config = GenerationConfig(max_new_tokens=256, num_beams=4)

    return_name = "generated"
    """What the keys of a record start with."""

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        refuse_other_models(model, kwargs.get("task") or type(self).__name__)
        super().__init__(model, *args, **kwargs)

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Answer one text or many.

        Args:
            inputs: a text, a list of texts, or a data set or generator of texts.
            *args: ignored, as every pipeline ignores them.
            **kwargs: `return_tensors`: token ids instead of text.
                `return_scores`: with every record its `score`, the sum of the tokens' log-probabilities divided by
                length ** length_penalty: what beam search ranks by, for greedy search and sampling too.
                `clean_up_tokenization_spaces`: remove blanks before punctuation; default False.
                `truncation`: cut long inputs, as the tokenizer's argument of that name; default: never.
                `stop_sequence`: end the answer behind this text. `batch_size`: texts decoded together; default 1.
                All others go to `generate`: `max_length` and `min_length` (of the answer, counting the decoder's
                start token), `max_new_tokens`, `num_beams`, `num_return_sequences`, `do_sample`, ...

        Returns:
            For a text a list of records, one for each returned sequence. For a list a list: of records if there is one
            for each text, else of such lists. A record is {"generated_text": str}, or, with `return_tensors`,
            {"generated_token_ids": Tensor}; "summary" and "translation" stand for "generated" in those pipelines.

        Raises:
            ValueError: for an input that is no text.
        """
        if isinstance(inputs, list) and not inputs:
            return []
        result = super().__call__(inputs, *args, **kwargs)
        if isinstance(inputs, list) and all(len(records) == 1 for records in result):
            return [records[0] for records in result]
        return result

    def _sanitize_parameters(
        self,
        *,
        return_tensors: bool | None = None,
        return_text: bool | None = None,
        return_type: ReturnType | None = None,
        return_scores: bool | None = None,
        clean_up_tokenization_spaces: bool | None = None,
        truncation: Any = None,
        stop_sequence: str | list[str] | None = None,
        **generate_kwargs: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if return_tensors is not None and return_type is None:
            return_type = ReturnType.TENSORS if return_tensors else ReturnType.TEXT
        preprocess = {"truncation": truncation}
        forward = {"return_scores": return_scores, "stop_strings": stop_sequence}
        if self.assistant_model is not None:
            forward |= {"assistant_model": self.assistant_model}
        if self.assistant_tokenizer is not None:
            forward |= {"tokenizer": self.tokenizer, "assistant_tokenizer": self.assistant_tokenizer}
        postprocess = {"return_type": return_type, "clean_up_tokenization_spaces": clean_up_tokenization_spaces}
        return _given(preprocess), generate_kwargs | _given(forward), _given(postprocess)

    def check_inputs(self, input_length: int, min_length: int, max_length: int) -> bool:
        """Warn where the tokens of an input and the least and most of an answer do not go together; return True."""
        return True

    def preprocess(self, inputs: str, truncation: Any = False, **options: Any) -> BatchEncoding:
        """Return the ids (1, S) and the mask of one text.

        Raises:
            ValueError: if it is none.
        """
        encoding = self.tokenizer((self.prefix or "") + self._text(inputs), truncation=truncation, return_tensors="pt")
        encoding.pop("token_type_ids", None)  # some tokenizers make them, and generate refuses them
        return encoding

    def _text(self, text: str) -> str:
        if not isinstance(text, str):
            task, kind = self.task or type(self).__name__, type(text).__name__
            raise ValueError(
                f"{task} got {_shorten(text)} of type {kind}; it takes a text or a list of texts. Chat messages are "
                f"for the text-generation pipeline."
            )
        return text

    def _forward(
        self, model_inputs: dict[str, Tensor], return_scores: bool = False, **generate_kwargs: Any
    ) -> dict[str, Tensor]:
        generate_kwargs = self._prepare_lengths(self._prepare_generate_kwargs(generate_kwargs))
        settings = self._get_set_generation_params(generate_kwargs)
        if settings.get("stop_strings") is not None:
            generate_kwargs.setdefault("tokenizer", self.tokenizer)
        batch, input_length = model_inputs["input_ids"].shape
        max_length = settings.get("max_new_tokens") or settings.get("max_length")
        if max_length is not None:
            self.check_inputs(input_length, settings.get("min_length") or 0, max_length)

        output = self.model.generate(**model_inputs, **generate_kwargs)
        sequences = output if isinstance(output, Tensor) else output.sequences  # (B * R, T)
        outputs = {"output_ids": sequences.unflatten(0, (batch, -1))}  # (B, R, T)
        if return_scores:
            outputs["scores"] = score_sequences(self.model, model_inputs, sequences, settings).unflatten(0, (batch, -1))
        return outputs

    def _prepare_lengths(self, generate_kwargs: dict[str, Any]) -> dict[str, Any]:
        """Let the caller's `max_length` win over the folder's `max_new_tokens`, which generate would prefer."""
        max_length = generate_kwargs.get("max_length")
        if max_length is None or generate_kwargs.get("max_new_tokens") is not None:
            return generate_kwargs
        if self.model.generation_config.max_new_tokens is None:
            return generate_kwargs
        others = {name: value for name, value in generate_kwargs.items() if name != "max_length"}
        return {**others, "max_new_tokens": max_length - 1}  # without the decoder's start token

    def postprocess(
        self,
        model_outputs: dict[str, Tensor],
        return_type: ReturnType = ReturnType.TEXT,
        clean_up_tokenization_spaces: bool = False,
    ) -> list[dict[str, Any]]:
        """Return a record for each of one text's sequences."""
        sequences = model_outputs["output_ids"][0]  # (R, T)
        if return_type == ReturnType.TENSORS:
            records = [{f"{self.return_name}_token_ids": sequence} for sequence in sequences]
        else:
            texts = self.tokenizer.batch_decode(
                sequences, skip_special_tokens=True, clean_up_tokenization_spaces=clean_up_tokenization_spaces
            )
            records = [{f"{self.return_name}_text": text} for text in texts]
        if "scores" not in model_outputs:
            return records
        scores = model_outputs["scores"][0].tolist()
        return [{**record, "score": score} for record, score in zip(records, scores, strict=True)]


class SummarizationPipeline(Text2TextGenerationPipeline):
    """A text in, its summary out, under the key `summary_text`; all else as in `Text2TextGenerationPipeline`."""

    return_name = "summary"

    def check_inputs(self, input_length: int, min_length: int, max_length: int) -> bool:
        """Warn where the limits contradict each other, or allow a summary longer than its text; return True."""
        if max_length < min_length:
            logger.warning(f"min_length={min_length} is above max_length={max_length}; lower it or raise max_length.")
        if input_length < max_length:
            logger.warning(
                f"max_length={max_length} allows a summary longer than its text of {input_length} tokens; consider "
                f"lowering it, e.g. summarizer('...', max_length={input_length // 2})."
            )
        return True


class TranslationPipeline(Text2TextGenerationPipeline):
    """A text in, its translation out, under the key `translation_text`; all else as in `Text2TextGenerationPipeline`.

    `src_lang` and `tgt_lang`, or the task's name, as in "translation_en_to_fr", name the languages for a tokenizer that
    serves several; models of one pair know theirs.
    """

    return_name = "translation"

    def check_inputs(self, input_length: int, min_length: int, max_length: int) -> bool:
        """Warn where a translation may be cut; return True."""
        if input_length > 0.9 * max_length:
            logger.warning(
                f"max_length={max_length} may cut the translation of a text of {input_length} tokens; consider raising "
                f"it, e.g. translator('...', max_length={2 * input_length})."
            )
        return True

    def _sanitize_parameters(
        self, *, src_lang: str | None = None, tgt_lang: str | None = None, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        words = self.task.split("_")
        if src_lang is not None or tgt_lang is not None:
            if not self._tokenizer_knows_languages():
                logger.warning_once("src_lang and tgt_lang are ignored: the tokenizer serves one pair of languages.")
        elif len(words) == 4:  # translation, xx, to, yy
            src_lang, tgt_lang = words[1], words[3]
        return preprocess | _given({"src_lang": src_lang, "tgt_lang": tgt_lang}), forward, postprocess

    def _tokenizer_knows_languages(self) -> bool:
        return getattr(self.tokenizer, "_build_translation_inputs", None) is not None

    def preprocess(
        self,
        inputs: str,
        truncation: Any = False,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        **options: Any,
    ) -> BatchEncoding:
        """Return ids (1, S), mask, and what a tokenizer of several languages adds.

        Raises:
            ValueError: if the input is no text.
        """
        if not self._tokenizer_knows_languages():
            return super().preprocess(inputs, truncation)
        return self.tokenizer._build_translation_inputs(
            self._text(inputs), return_tensors="pt", truncation=truncation, src_lang=src_lang, tgt_lang=tgt_lang
        )


PIPELINES: dict[str, type[Text2TextGenerationPipeline]] = {
    "text2text-generation": Text2TextGenerationPipeline,
    "summarization": SummarizationPipeline,
    "translation": TranslationPipeline,
}
"""Task -> class."""


class TextGenerationPipeline(pipelines.TextGenerationPipeline):
    """transformers' own, which may be handed a `SeqloomForConditionalGeneration` too.

    Its `generate` returns the answer alone, and the stock pipeline would take the answer's first tokens for the prompt
    and cut them off. So the same network is put behind its causal-LM interface. Other models are left as they are.
    """

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        refuse_trained_prompts(model)
        super().__init__(model.as_causal_lm() if _is_ours(model) else model, *args, **kwargs)

    def check_model_type(self, supported_models: Any) -> None:
        """Complain of others' models only; the table of names hears of ours when AutoModelForCausalLM loads it."""
        if not _is_ours(self.model):
            super().check_model_type(supported_models)


def _is_ours(model: Any) -> bool:
    return hasattr(model, "as_causal_lm")


def make_text_generation_safe() -> None:
    """Let `pipeline("text-generation")` build ours; a folder's name leads to the causal-LM class by itself."""
    PIPELINE_REGISTRY.supported_tasks["text-generation"]["impl"] = TextGenerationPipeline


def refuse_trained_prompts(model: Any) -> None:
    """Let pass only what lies inside the network; PEFT keeps prompts and prefixes around it, and they would be lost.

    Raises:
        ValueError: for a model of ours with such an adapter.
    """
    if _is_ours(model) and getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise ValueError(
            f"text-generation would lose the trained prompt of {type(model).__name__}; load the model with "
            f"AutoModelForSeq2SeqLM, put the adapter on it, and use the text2text-generation pipeline."
        )


def refuse_other_models(model: Any, task: str) -> None:
    """Let pass only what returns the answer alone; a causal LM's prompt would be taken for a part of it.

    Raises:
        ValueError: for a causal LM and for a model without a language-model head.
    """
    name = type(model).__name__
    is_sequence_to_sequence = getattr(model.config, "is_encoder_decoder", False) and model.can_generate()
    if not is_sequence_to_sequence or name.endswith("ForCausalLM"):
        raise ValueError(
            f"{task} reads what a sequence-to-sequence model writes, and {name} is none; load the model with "
            f"AutoModelForSeq2SeqLM, or use the text-generation pipeline."
        )


def score_sequences(model: Any, model_inputs: dict[str, Tensor], sequences: Tensor, settings: dict[str, Any]) -> Tensor:
    """Score what was written by reading it again: sum of log-probabilities / length ** length_penalty.

    So greedy search, sampling and beams get the same quantity, and no step's logits have to be kept.

    Args:
        model: the encoder-decoder that wrote.
        model_inputs: `input_ids` (B, S) and `attention_mask` (B, S).
        sequences: (B * R, T) ids, the decoder's start token first.
        settings: generation parameters; read are `length_penalty`, `eos_token_id` and `pad_token_id`.

    Returns:
        (B * R) scores.
    """
    copies = len(sequences) // len(model_inputs["input_ids"])
    sources = {
        name: model_inputs[name].repeat_interleave(copies, dim=0)
        for name in ("input_ids", "attention_mask")
        if name in model_inputs
    }
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    rows = max(1, LOGITS_PER_PASS // (sequences.shape[1] * vocab_size))
    scores = [
        _score_rows(model, {name: ids[start : start + rows] for name, ids in sources.items()}, part, settings)
        for start, part in zip(range(0, len(sequences), rows), sequences.split(rows), strict=True)
    ]
    return torch.cat(scores)


def _score_rows(model: Any, sources: dict[str, Tensor], sequences: Tensor, settings: dict[str, Any]) -> Tensor:
    """(B, S) and (B, T) -> (B)."""
    written = sequences[:, 1:]
    logits = model(**sources, decoder_input_ids=sequences[:, :-1]).logits.float()  # (B, T - 1, V)
    log_probs = logits.gather(-1, written[..., None]).squeeze(-1) - logits.logsumexp(-1)  # (B, T - 1)
    ids_of = {name: settings.get(name) for name in ("eos_token_id", "pad_token_id")}
    ends, pads = (
        torch.isin(written, torch.as_tensor([] if ids is None else ids, dtype=torch.long, device=written.device))
        for ids in ids_of.values()
    )
    is_real = (ends.cumsum(-1) - ends.long() == 0) & (ends | ~pads)  # up to the first end of sentence, and it
    length_penalty = settings.get("length_penalty")
    lengths = is_real.sum(-1).clamp(min=1) ** (1.0 if length_penalty is None else length_penalty)
    return log_probs.masked_fill(~is_real, 0).sum(-1) / lengths


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Drop what the caller has not given, so that later defaults stand."""
    return {name: value for name, value in options.items() if value is not None}


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


__all__ = [
    "PIPELINES",
    "ReturnType",
    "SummarizationPipeline",
    "Text2TextGenerationPipeline",
    "TextGenerationPipeline",
    "TranslationPipeline",
]
