"""What kind of value each setting of a folder holds: a wrong one is named, before a library stumbles over it."""

from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from typing import Any

from seqloom.configuration.configuration_seqloom import SeqloomConfig
from seqloom.hub.quoting import shown

_REMEDY = "correct the entry, or delete it."


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_whole(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_whole, value))


def _are_pipelines(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(each, dict) and "impl" in each for each in value.values())


Kind = tuple[Callable[[Any], bool], str]
"""Tells whether a value is of this kind; what it is called."""

WHOLE: Kind = _is_whole, "a whole number"
NUMBER: Kind = _is_number, "a number"
SWITCH: Kind = lambda value: isinstance(value, bool), "true or false"
TOKENS: Kind = lambda value: _is_whole(value) or _are_whole(value), "the number of a token, or a list of them"
TOKEN_LIST: Kind = _are_whole, "a list of tokens' numbers"
WORD: Kind = lambda value: isinstance(value, str), "a word"
WORDS: Kind = lambda value: isinstance(value, list) and all(isinstance(word, str) for word in value), "a list of words"
OBJECT: Kind = lambda value: isinstance(value, dict), "an object, {...}"

GENERATION_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("*_token_id", "*_tokens_id"), TOKENS),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"), TOKEN_LIST),
    "*_schedule": WORD,
    **dict.fromkeys(("max_length", "min_length", "*_new_tokens", "num_*", "*ngram_size", "top_k"), WHOLE),
    **dict.fromkeys(("max_cache_len", "prefill_chunk_size", "*_num_tokens", "*_lookbehind"), WHOLE),
    **dict.fromkeys(("temperature", "top_p", "top_h", "min_p", "typical_p", "*_cutoff"), NUMBER),
    **dict.fromkeys(("length_penalty", "repetition_penalty", "*repetition_penalty", "diversity_penalty"), NUMBER),
    **dict.fromkeys(("penalty_alpha", "guidance_scale", "max_time", "*_threshold"), NUMBER),
    **dict.fromkeys(("do_sample", "use_cache", "renormalize_logits", "remove_invalid_values"), SWITCH),
    **dict.fromkeys(("output_*", "return_dict_in_generate", "token_healing", "disable_compile"), SWITCH),
}
"""Pattern of settings in generation_config.json -> what transformers takes there; it checks few of them itself.
The first that fits counts."""


CONFIG_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("dtype", "torch_dtype", "transformers_weights"), WORD),
    **dict.fromkeys(("attn_implementation", "_attn_implementation"), WORD),
    **dict.fromkeys(("auto_map", "quantization_config"), OBJECT),
    "custom_pipelines": (_are_pipelines, 'an object of pipelines, each with its class as "impl"'),
    "architectures": WORDS,
    **GENERATION_KINDS,
}
"""The same for config.json, as far as its class leaves it to transformers; older folders have settings of `generate`
there."""

TOKENIZER_KINDS: dict[str, Kind] = {"model_max_length": NUMBER}
"""The same for tokenizer_config.json; most of it is refused when it is read."""


def config_fault(settings: Mapping[str, Any]) -> str | None:
    """Return why config.json describes no model of ours, in the words of its class; another model's is not judged."""
    if settings.get("model_type") != SeqloomConfig.model_type:
        return None
    try:
        SeqloomConfig.from_dict(dict(settings))
    except Exception as error:  # also what transformers does with an entry before the class looks at it
        reason = shown(" ".join(str(error).split()) or type(error).__name__, 300).rstrip(".")
        return f"it describes no model ({reason}); correct the entry, or get the folder anew."
    return None


def kind_faults(settings: Mapping[str, Any], kinds: Mapping[str, Kind], vocab_size: Any) -> Iterator[str]:
    """Yield what is wrong with the kinds of values in one of a folder's files of settings.

    Args:
        settings: its content; null is allowed everywhere.
        kinds: of its settings.
        vocab_size: of config.json, beyond which there is no token.
    """
    for key, value in settings.items():
        kind = next((kind for pattern, kind in kinds.items() if fnmatch(key, pattern)), None)
        if value is None or kind is None:
            continue
        fits, name = kind
        if not fits(value):
            yield f"{key} is {shown(repr(value), 100)}, and should be {name}; {_REMEDY}"
        elif kind in (TOKENS, TOKEN_LIST) and _is_whole(vocab_size):
            ids = value if isinstance(value, list) else [value]
            if odd := next((token for token in ids if not 0 <= token < vocab_size), None):
                yield f"{key} names token {shown(str(odd), 30)}, and they run from 0 to {vocab_size - 1:,}; {_REMEDY}"


__all__ = ["CONFIG_KINDS", "GENERATION_KINDS", "TOKENIZER_KINDS", "config_fault", "kind_faults"]
