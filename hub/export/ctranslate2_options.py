"""What a folder's generation_config.json says, in the words of CTranslate2's `translate_batch`.

The engine's own defaults cut in silence: sources behind 1,024 tokens and answers behind 256, and no answer may be
empty. So every option that could cut is named, and a setting without a counterpart is refused.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from transformers import GenerationConfig

from seqloom.hub.export.ctranslate2_loader import positions_in_table
from seqloom.hub.export.output_folder import ExportError
from seqloom.hub.loading import answer_length

DIRECT = {
    "length_penalty": "length_penalty",
    "no_repeat_ngram_size": "no_repeat_ngram_size",
    "num_return_sequences": "num_hypotheses",
    "repetition_penalty": "repetition_penalty",
}
"""Setting of transformers -> option of the same meaning."""

SAMPLING = {"top_k": "sampling_topk", "top_p": "sampling_topp", "temperature": "sampling_temperature"}
"""The same, where the folder samples."""

DEFAULT_TOP_K = 50
"""What transformers takes where a folder that samples says nothing."""

CARRIED = ("bad_words_ids", "suppress_tokens")
"""Settings of the same meaning that are no single option."""

ELSEWHERE = frozenset(
    {"num_beams", "do_sample", "max_new_tokens", "max_length", "min_new_tokens", "min_length", "bad_words_ids"}
    | {"pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "suppress_tokens", "early_stopping"}
)
"""Settings that are carried over otherwise: into options, the vocabulary's names, the weights. Beam search always stops
by the engine's own rule."""

BEAMS_ALONE = ("length_penalty", "num_return_sequences")
"""Settings that greedy search does not have."""

HARMLESS = frozenset(
    {"transformers_version", "longest_trained_source", "use_cache", "cache_implementation", "cache_config"}
    | {"max_cache_len", "compile_config"}
    | {"disable_compile", "output_scores", "output_logits", "output_attentions", "output_hidden_states", "remove_token"}
    | {"return_dict_in_generate", "renormalize_logits", "remove_invalid_values", "low_memory", "is_assistant"}
    | {"num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold", "use_mtp"}
    | {"assistant_lookbehind", "target_lookbehind", "assistant_early_exit", "assistant_ensemble_weight"}
    | {"prompt_lookup_num_tokens", "max_matching_ngram_size", "prefill_chunk_size", "continuous_batching_config"}
)
"""Settings that change how an answer is found, and not the answer."""

OFF_AT_ONE = frozenset(
    {"num_beam_groups", "typical_p", "guidance_scale", "encoder_repetition_penalty", "repetition_penalty"}
)
"""Settings that do nothing when they are 1; all others when they are 0, false or empty."""


def translate_options(model: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return the keyword arguments of `translate_batch` with which a converted model answers as its folder does.

    Args:
        model: with its generation config.
        names: of every id.

    Raises:
        ExportError: for a setting that the engine lacks.
    """
    config: GenerationConfig = model.generation_config
    given = {name: value for name, value in config.to_diff_dict().items() if value is not None and name[0] != "_"}
    refuse_unknown_settings(
        given, ELSEWHERE | HARMLESS | DIRECT.keys() | SAMPLING.keys(), "CTranslate2", {*DIRECT, *SAMPLING, *CARRIED}
    )
    longest = longest_answer(model)
    options: dict[str, Any] = {
        "beam_size": config.num_beams or 1,
        "max_input_length": 0,
        "max_decoding_length": longest,
        "min_decoding_length": min(config.min_new_tokens or max(0, (config.min_length or 0) - 1), longest),
    }
    options |= {option: given[name] for name, option in DIRECT.items() if name in given}
    if words := given.get("bad_words_ids"):
        options["suppress_sequences"] = [[names[token] for token in word] for word in words]
    ends = given.get("eos_token_id", model.config.eos_token_id)
    if isinstance(ends, list) and len(ends) > 1:
        options["end_token"] = [names[token] for token in ends]
    if is_punished_otherwise(config.repetition_penalty, options["beam_size"]):
        raise ExportError(
            f"repetition_penalty={config.repetition_penalty} with num_beams={config.num_beams} is another search in "
            f"CTranslate2 than in transformers, which punishes log-probabilities; set num_beams (and --beams, where it "
            f"is given) or repetition_penalty to 1 in generation_config.json, or stay with torch."
        )
    if config.do_sample and options["beam_size"] > 1:
        raise ExportError(
            f"generation_config.json says do_sample=true with num_beams={config.num_beams}, and CTranslate2 samples "
            f"without beams only; set num_beams to 1, or do_sample to false."
        )
    if config.do_sample:
        options["sampling_topk"] = DEFAULT_TOP_K
        options |= {option: given[name] for name, option in SAMPLING.items() if name in given}
        options["sampling_topk"] = min(options["sampling_topk"], len(names))
    return options


def is_punished_otherwise(repetition_penalty: float | None, num_beams: int) -> bool:
    """Return whether repetition is punished in the engine's logits and, of transformers, in log-probabilities."""
    return num_beams > 1 and repetition_penalty not in (None, 1)


def greedy(options: dict[str, Any]) -> dict[str, Any]:
    """Return options that search greedily and otherwise do the same."""
    left_out = {"num_hypotheses", *SAMPLING.values()}
    return {name: value for name, value in options.items() if name not in left_out} | {"beam_size": 1}


def refuse_unknown_settings(given: dict[str, Any], known: Collection[str], engine: str, carried: Iterable[str]) -> None:
    """Refuse settings that change answers and that an engine does not have.

    Args:
        given: what the folder sets.
        known: what need not be refused.
        engine: what to call it.
        carried: what it has, to be named.

    Raises:
        ExportError: naming the first.
    """
    for name, value in given.items():
        if name not in known and value and not (name in OFF_AT_ONE and value == 1):
            raise ExportError(
                f"generation_config.json says {name}={value!r}, and {engine} has nothing of the kind; remove it there, "
                f"or make do with what it has: {', '.join(sorted(carried))}."
            )


def longest_answer(model: Any) -> int:
    """Return the most tokens of an answer, its end included: the folder's number, if the position table is as long."""
    longest = answer_length(model.generation_config)
    return min(longest, positions_in_table(model.config) or longest)


__all__ = ["greedy", "longest_answer", "translate_options"]
