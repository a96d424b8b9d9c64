"""What a request to the server may ask, and what it means for `generate`: pure functions over its bytes.

Everything is looked at before a model sees it; what changes the answer is obeyed or refused, never ignored.

    bytes --parse_object--> body --source_of--> the text that goes to the encoder
                                 --settings_of--> fields of a GenerationConfig that differ from the folder's
"""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seqloom.configuration.suggestion import did_you_mean
from seqloom.hub.quoting import shown
from seqloom.hub.tags import TagError, Tags

CHAT, COMPLETION, RESPONSE = "chat", "completion", "response"
"""The doors: /v1/chat/completions, /v1/completions, /v1/responses."""

SOURCE_FIELD = {CHAT: "messages", COMPLETION: "prompt", RESPONSE: "input"}
"""Door -> field of a request that holds the source."""

MAX_STOPS, MAX_STOP_LENGTH, MAX_BEAMS, MAX_TEMPERATURE, MAX_BIAS = 16, 200, 64, 10.0, 100.0
"""What one request may cost: each is far above what makes sense and below what hurts."""

MIN_TEMPERATURE = 1e-6
"""Logits are divided by it, and below 1e-38 float32 ends; here the likeliest token is drawn each time anyway."""

MAX_LENGTH_PENALTY = 5.0
"""Scores of beams are divided by length to this power: 1,000,000 tokens give 1e30, and float32 ends at 3e38."""

MAX_DEPTH = 32
"""Lists and objects inside each other; OpenAI's API needs eight, Python's recursion ends near a thousand."""

MIN_CHARACTERS_PER_TOKEN = 16
"""What a token may stand for where the vocabulary's longest is shorter: blanks and unknown characters are joined."""

MAX_SHOWN = 80
"""Characters of a wrong value in a message."""


@dataclass(eq=False)
class RequestError(ValueError):
    """A request that is answered with an HTTP error."""

    message: str
    """For whoever wrote the request: what is wrong, and what helps."""
    param: str | None = None
    """Field of the request."""
    code: str | None = None
    """A word of OpenAI's, for programs."""
    status: int = 400
    retry_after: int | None = None
    """Seconds after which it may be asked again."""

    def __str__(self) -> str:
        return self.message

    @property
    def body(self) -> dict[str, Any]:
        """The error as OpenAI's servers write it, which is where the client looks for its text."""
        kind = {429: "rate_limit_error"}.get(self.status, "server_error" if self.status >= 500 else KIND)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


KIND = "invalid_request_error"


@dataclass(frozen=True)
class Limits:
    """What the served folder can take."""

    max_tokens: int
    """Longest source, end of sequence included, and longest answer, in tokens."""
    vocab_size: int
    """Token ids lie below it."""
    remedy: str = "shorten it"
    """What helps when a source is too long."""
    is_sampler: bool = False
    """Whether the folder samples where a request does not say otherwise."""


# The body ------------------------------------------------------------------------------------------------------------


def parse_object(data: bytes | str, what: str = "The request", param: str | None = None) -> dict[str, Any]:
    """Return a JSON object as the standard has it: no NaN, no name twice, UTF-8, and no deeper than `MAX_DEPTH`.

    Args:
        data: the text.
        what: begins the sentence when it is none.
        param: field of the request that held it; None: it is the request.

    Raises:
        RequestError: if it is anything else.
    """
    try:
        text = data.decode() if isinstance(data, bytes) else data
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_name_twice)
        if not _is_flat(value):
            raise _NotJSONError(_TOO_DEEP if isinstance(value, dict) else "it is a list")
        if isinstance(value, dict):
            return value
        reason = f"it is {_show(value)}"
    except UnicodeDecodeError as error:
        reason = f"byte {error.start + 1:,} is not UTF-8"
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at character {error.pos + 1:,}"
    except _NotJSONError as error:
        reason = str(error)
    except ValueError:  # Python's own limit, against numbers that take minutes to read
        reason = f"a number has more than {sys.get_int_max_str_digits():,} digits"
    except RecursionError:
        reason = _TOO_DEEP
    raise RequestError(f"{what} is no JSON object: {reason}.", param)


_TOO_DEEP = f"lists and objects stand in each other more than {MAX_DEPTH} deep"


class _NotJSONError(ValueError):
    """What Python reads and JSON does not allow."""


def _no_constant(name: str) -> Any:
    raise _NotJSONError(f"{name} is no number of JSON")


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise _NotJSONError(f"{_show(twice)} stands in it twice")
    return fields


def _is_flat(value: Any) -> bool:
    """Return whether nothing in it is deeper than allowed; level by level, for recursion is what this is against."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        holders = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, list | dict)]
        level = [each for holder in holders for each in holder]
    return not level


def check_fields(door: str, body: Mapping[str, Any]) -> None:
    """Refuse fields that OpenAI's API does not know.

    Raises:
        RequestError: naming them.
    """
    known = {
        "model",
        "stream",
        "generation_config",
        "metadata",
        SOURCE_FIELD[door],
        *OPENAI_FIELDS,
        *NOT_DONE,
        *WITHOUT_EFFECT,
    }
    if unknown := [name for name in body if name not in known]:
        names = ", ".join(_show(name) for name in unknown[:5]) + ", ..." * (len(unknown) > 5)
        hint = did_you_mean(unknown[0][:MAX_SHOWN], sorted(known), "did you mean {}?")
        raise RequestError(f"Unexpected fields in the request: {names}; {hint or 'leave them out.'}", status=422)


# The source ----------------------------------------------------------------------------------------------------------


def source_of(door: str, body: Mapping[str, Any]) -> str:
    """Return the text that goes to the encoder: the last user message, or the prompt.

    Raises:
        RequestError: if there is none, it is blank, or it is not text alone.
    """
    param = SOURCE_FIELD[door]
    read = {CHAT: _last_user_text, COMPLETION: _text, RESPONSE: _input_text}[door]
    text = read(body.get(param), param)
    if not text.strip():
        raise RequestError("The source text is empty; send a text.", param)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"Character {error.start + 1} of the source text is half of a surrogate pair"
        raise RequestError(f"{found}; send whole characters.", param) from error
    return text


def tagged(source: str, body: Mapping[str, Any], tags: Tags) -> str:
    """Put in front of a source what `metadata` says of the columns that the model was trained with.

    Raises:
        RequestError: for a value that no training source had.
    """
    given = body.get("metadata")
    if not isinstance(given, dict) or not given.keys() & set(tags.columns):
        return source
    try:
        return tags.put_before(source, lambda column: str(given.get(column, "")))
    except TagError as error:
        raise RequestError(f"metadata: {shown(error)}", "metadata") from error


def check_length(num_tokens: int, limits: Limits, param: str) -> None:
    """Refuse a source that is too long, or has no tokens but the end of sequence, which is counted.

    Raises:
        RequestError: with OpenAI's code for what is too long.
    """
    if num_tokens < 2:
        raise RequestError("Nothing is left of the source text when it is cut into tokens; send a text.", param)
    if num_tokens > limits.max_tokens:
        raise _too_long(f"{num_tokens:,} tokens, and this server takes {limits.max_tokens:,}", limits, param)


def check_characters(text: str, longest_token: int, limits: Limits, param: str) -> None:
    """Refuse a text that has too many tokens however it is cut, before anybody cuts it: that takes long.

    Raises:
        RequestError: with OpenAI's code for what is too long.
    """
    longest = max(longest_token, MIN_CHARACTERS_PER_TOKEN)
    if len(text) > (most := limits.max_tokens * longest):
        found = f"{len(text):,} characters, and this server takes {most:,}: {limits.max_tokens:,} tokens of at most "
        raise _too_long(f"{found}{longest}", limits, param)


def _too_long(found: str, limits: Limits, param: str) -> RequestError:
    return RequestError(f"The source text has {found}; {limits.remedy}.", param, "context_length_exceeded")


def _input_text(value: Any, param: str) -> str:
    """`input` of /v1/responses: a text, the parts of one message, or messages."""
    items = value if isinstance(value, list) else []
    messages = [item for item in items if isinstance(item, dict) and "role" in item]
    return _last_user_text(messages, param) if messages else _text(value, param)


def _last_user_text(messages: Any, param: str) -> str:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise _wrong(param, messages, 'a list of messages such as {"role": "user", "content": "a text"}')
    of_user = [message for message in messages if message.get("role") == "user"]
    if not of_user:
        raise RequestError("The chat has no user message; the last user message is the source text, so add one.", param)
    return _text(of_user[-1].get("content"), param)


def _text(value: Any, param: str) -> str:
    """A text, or parts of type text, joined as the folder's chat template joins them: without a blank."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise RequestError(f"{param} holds {_show(value)} where the source text is expected; send a text.", param)
    return "".join(_part(part, param) for part in value)


def _part(part: Any, param: str) -> str:
    if not isinstance(part, dict) or not isinstance(part.get("text"), str) or part.get("type") not in _TEXT_PARTS:
        raise RequestError(f"{param} holds {_show(part)}; this model reads text, in parts of type text.", param)
    return str(part["text"])


_TEXT_PARTS = ("text", "input_text", "output_text")


# The settings --------------------------------------------------------------------------------------------------------


def settings_of(body: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """Return what a request changes in the folder's generation config; nothing, if it asks for nothing.

    `temperature` above 0 or `top_p` below 1 samples, from the whole vocabulary and without beams; temperature 0
    searches as the folder does. `frequency_penalty` p is read as transformers' server reads it: repetition penalty
    1 + p. `generation_config`, a JSON text as transformers' own client sends it, may hold `GENERATION_FIELDS`.

    Returns:
        Field of GenerationConfig -> value; and `seed`, if there is one.

    Raises:
        RequestError: for a value of the wrong type or out of range, and for what this server does not do.
    """
    _refuse_what_is_not_done(body)
    asked = _read_generation_config(body.get("generation_config"), limits)
    given = {name: body[name] for name in OPENAI_FIELDS if body.get(name) not in (None, [], {})}
    asked |= {OPENAI_FIELDS[name]: _check(name, value, limits) for name, value in given.items()}
    return _decide_on_sampling(asked, is_sampler=limits.is_sampler)


def is_stream(body: Mapping[str, Any]) -> bool:
    """Return whether the answer is wanted piece by piece.

    Raises:
        RequestError: if `stream` is no boolean.
    """
    return body.get("stream") is not None and _flag("stream", body["stream"])


def _decide_on_sampling(asked: dict[str, Any], *, is_sampler: bool) -> dict[str, Any]:
    temperature, top_p = asked.get("temperature"), asked.get("top_p", 1.0)
    if temperature == 0 or asked.get("do_sample") is False:
        return {**{name: asked[name] for name in asked if name not in _SAMPLING_FIELDS}, "do_sample": False}
    if asked.get("do_sample") or temperature is not None or top_p < 1:
        return {"do_sample": True, "num_beams": 1, "top_k": 0, "top_p": 1.0, "temperature": 1.0, **asked}
    return asked if is_sampler else {name: asked[name] for name in asked if name not in _SAMPLING_FIELDS}


_SAMPLING_FIELDS = frozenset({"temperature", "top_p", "top_k"})
"""Without effect on a search."""


def _read_generation_config(text: Any, limits: Limits) -> dict[str, Any]:
    if text is None:
        return {}
    if not isinstance(text, str):
        raise _wrong("generation_config", text, "a JSON object as text")
    fields = parse_object(text, "generation_config", "generation_config")
    given = {name: value for name, value in fields.items() if value is not None and name != "transformers_version"}
    for name in given.keys() - GENERATION_FIELDS:
        known = ", ".join(sorted(GENERATION_FIELDS))
        raise RequestError(f"generation_config holds {_show(name)}; this server takes {known}.", "generation_config")
    return {name: _check(name, value, limits) for name, value in given.items()}


def _check(name: str, value: Any, limits: Limits) -> Any:
    """Return a setting's value in the type that `generate` wants."""
    if OPENAI_FIELDS.get(name, name) == "max_new_tokens":
        return _number(name, value, 1, limits.max_tokens)
    if name == "frequency_penalty":
        return 1.0 + _number(name, value, -0.99, 2.0)
    if name == "temperature" and isinstance(value, float) and 0 < value < MIN_TEMPERATURE:
        raise _wrong(name, value, f"0, which searches, or a number from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}")
    if name in _RANGES:
        return _number(name, value, *_RANGES[name])
    if name == "do_sample":
        return _flag(name, value)
    if name == "stop":
        return _stops(value)
    return _biases(value, limits.vocab_size)


OPENAI_FIELDS = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",  # the newer name wins
    "max_output_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "frequency_penalty": "repetition_penalty",
    "logit_bias": "sequence_bias",
    "stop": "stop_strings",
    "seed": "seed",
}
"""Field of a request -> field of GenerationConfig."""

_RANGES = {
    "temperature": (0.0, MAX_TEMPERATURE),
    "top_p": (1e-6, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "length_penalty": (-MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY),
    "seed": (-(2**63), 2**63 - 1),
    "num_beams": (1, MAX_BEAMS),
    "top_k": (0, 2**31 - 1),
    "no_repeat_ngram_size": (0, 2**31 - 1),
}
"""Field -> smallest and largest value; where these are whole numbers, it has to be one."""

GENERATION_FIELDS = frozenset({"do_sample", "max_new_tokens", *_RANGES}) - {"seed"}
"""What `generation_config` in a request may hold."""


def _number(name: str, value: Any, low: float, high: float) -> float:
    """Return a number in a range, a whole one if its ends are."""
    is_whole = isinstance(low, int)
    is_number = isinstance(value, int if is_whole else int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:  # as nan is not
        ends = f"a whole number from {low:,} to {high:,}" if is_whole else f"a number from {low:g} to {high:g}"
        raise _wrong(name, value, ends)
    return int(value) if is_whole else float(value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


def _stops(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    is_right = isinstance(stops, list) and len(stops) <= MAX_STOPS
    if not is_right or not all(isinstance(stop, str) and 1 <= len(stop) <= MAX_STOP_LENGTH for stop in stops):
        raise _wrong("stop", value, f"a text of 1 to {MAX_STOP_LENGTH} characters, or a list of up to {MAX_STOPS}")
    return list(stops)


def _biases(value: Any, vocab_size: int) -> dict[tuple[int], float]:
    rule = f"an object of token ids below {vocab_size:,} and numbers"
    if not isinstance(value, dict) or not all(_is_token(key, vocab_size) for key in value):
        raise _wrong("logit_bias", value, rule)
    return {(int(key),): _number(f"logit_bias.{key}", bias, -MAX_BIAS, MAX_BIAS) for key, bias in value.items()}


def _is_token(key: str, vocab_size: int) -> bool:
    return key.isascii() and key.isdecimal() and len(key) <= len(str(vocab_size)) and int(key) < vocab_size


def _refuse_what_is_not_done(body: Mapping[str, Any]) -> None:
    for name, (neutral, advice) in NOT_DONE.items():
        if body.get(name) is not None and not any(_is_same(body[name], value) for value in neutral):
            raise RequestError(f"{name}={_show(body[name])} is not something this server does; {advice}.", param=name)


def _is_same(value: Any, other: Any) -> bool:
    """Whether two are equal, and no number is taken for a truth value."""
    return bool(value == other and isinstance(value, bool) == isinstance(other, bool))


NOT_DONE: dict[str, tuple[Sequence[Any], str]] = {
    "n": ([1], "it gives one answer a request, so send several"),
    "best_of": ([1], "it gives one answer a request"),
    "echo": ([False], "the answer never holds the source"),
    "suffix": ([""], "leave it out"),
    "logprobs": ([False], "leave it out, or use return_scores of Seqloom's pipelines"),
    "top_logprobs": ([0], "leave it out"),
    "presence_penalty": ([0], "use frequency_penalty"),
    "response_format": ([{"type": "text"}], "the model writes plain text"),
    "text": ([{}, {"format": {"type": "text"}}], "the model writes plain text"),
    "tools": ([[]], "the model calls no tools"),
    "functions": ([[]], "the model calls no functions"),
    "modalities": ([["text"]], "the model writes text only"),
    "audio": ([], "the model writes text only"),
    "chat_template_kwargs": ([{}], "the chat template takes none"),
    "previous_response_id": ([], "nothing is kept between requests; the model reads one text"),
    "conversation": ([], "nothing is kept between requests; the model reads one text"),
    "background": ([False], "wait for the answer"),
    "image": ([], "the model reads text only"),
    "moderation": ([], "nothing is moderated"),
    "web_search_options": ([], "the model searches nothing"),
}
"""Field -> values that ask for nothing, and advice for all others."""

WITHOUT_EFFECT = frozenset(
    """access_programs background_options context_management function_call include instructions max_tool_calls
    parallel_tool_calls prediction prompt_cache_key prompt_cache_options prompt_cache_retention reasoning
    reasoning_effort safety_identifier service_tier store stream_options tool_choice truncation user
    verbosity""".split()
)
"""Fields about bills, caches, tools and thoughts: a model that reads one text answers the same without them."""


def _wrong(name: str, value: Any, rule: str) -> RequestError:
    return RequestError(f"{name}={_show(value)} must be {rule}.", param=name)


def _show(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError):
        text = ascii(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


__all__ = [
    "Limits",
    "RequestError",
    "check_characters",
    "check_fields",
    "check_length",
    "is_stream",
    "parse_object",
    "settings_of",
    "source_of",
    "tagged",
]
