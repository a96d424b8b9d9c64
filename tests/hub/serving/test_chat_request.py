"""What a request may ask: every wrong value gets a sentence, every setting its meaning."""

import json
import pkgutil
from dataclasses import replace
from typing import get_type_hints

import pytest

from seqloom.hub.serving.chat_request import (
    CHAT,
    COMPLETION,
    MAX_DEPTH,
    NOT_DONE,
    RESPONSE,
    Limits,
    RequestError,
    check_characters,
    check_fields,
    check_length,
    is_stream,
    parse_object,
    settings_of,
    source_of,
    tagged,
)
from seqloom.hub.tags import Tags

LIMITS = Limits(max_tokens=100, vocab_size=40)
SAMPLES = {"do_sample": True, "num_beams": 1, "top_k": 0, "top_p": 1.0, "temperature": 1.0}


def user(content):
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    ("door", "body"),
    [
        (CHAT, {"messages": [user("今天 ")]}),
        (CHAT, {"messages": [{"role": "system", "content": "x"}, user("no"), {"role": "assistant"}, user("今天 ")]}),
        (CHAT, {"messages": [user([{"type": "text", "text": "今"}, {"type": "text", "text": "天 "}])]}),
        (COMPLETION, {"prompt": "今天 "}),
        (RESPONSE, {"input": "今天 "}),
        (RESPONSE, {"input": [{"type": "input_text", "text": "今天 "}]}),
        (RESPONSE, {"input": [user("no"), {"type": "reasoning"}, user([{"type": "input_text", "text": "今天 "}])]}),
    ],
)
def test_the_source_is_the_last_user_message_to_the_letter(door, body):
    assert source_of(door, body) == "今天 "


@pytest.mark.parametrize(
    ("door", "body", "sentence"),
    [
        (CHAT, {}, "messages=null must be a list of messages such as"),
        (CHAT, {"messages": "hello"}, 'messages="hello" must be a list of messages such as {"role": "user", "content"'),
        (CHAT, {"messages": ["hello"]}, 'messages=["hello"] must be a list of messages'),
        (CHAT, {"messages": []}, "The chat has no user message; the last user message is the source text, so add one."),
        (CHAT, {"messages": [{"role": "assistant", "content": "a"}]}, "The chat has no user message"),
        (CHAT, {"messages": [{"role": ["user"], "content": "a"}]}, "The chat has no user message"),
        (CHAT, {"messages": [{"role": "user"}]}, "messages holds null where the source text is expected; send a text."),
        (CHAT, {"messages": [user(7)]}, "messages holds 7 where the source text is expected"),
        (CHAT, {"messages": [user([])]}, "messages holds [] where the source text is expected"),
        (CHAT, {"messages": [user("")]}, "The source text is empty; send a text."),
        (CHAT, {"messages": [user(" \n\u3000")]}, "The source text is empty; send a text."),
        (
            CHAT,
            {"messages": [user([{"type": "image_url", "image_url": {"url": "x" * 99}}])]},
            "this model reads text, in parts of type text.",
        ),
        (CHAT, {"messages": [user(["a"])]}, 'messages holds "a"; this model reads text'),
        (CHAT, {"messages": [user([{"type": "text", "text": None}])]}, "this model reads text"),
        (CHAT, {"messages": [user([{"type": ["text"], "text": "a"}])]}, "this model reads text"),
        (
            CHAT,
            {"messages": [user("ab\ud83d")]},
            "Character 3 of the source text is half of a surrogate pair; send who",
        ),
        (COMPLETION, {}, "prompt holds null where the source text is expected"),
        (COMPLETION, {"prompt": ["a", "b"]}, 'prompt holds "a"; this model reads text'),
        (COMPLETION, {"prompt": [[1, 2]]}, "prompt holds [1, 2]; this model reads text"),
        (COMPLETION, {"prompt": ""}, "The source text is empty"),
        (RESPONSE, {}, "input holds null where the source text is expected"),
        (RESPONSE, {"input": []}, "input holds [] where the source text is expected"),
        (RESPONSE, {"input": [{"role": "system", "content": "a"}]}, "The chat has no user message"),
    ],
)
def test_no_text_is_refused(door, body, sentence):
    with pytest.raises(RequestError) as raised:
        source_of(door, body)
    assert sentence in str(raised.value)
    assert len(str(raised.value)) < 250
    assert raised.value.status == 400
    assert raised.value.param == {CHAT: "messages", COMPLETION: "prompt", RESPONSE: "input"}[door]


def test_a_long_source_is_refused_with_openais_code():
    check_length(100, LIMITS, "messages")
    with pytest.raises(
        RequestError, match="The source text has 1,001 tokens, and this server takes 100; shor"
    ) as raised:
        check_length(1001, LIMITS, "messages")
    assert raised.value.code == "context_length_exceeded"


def test_a_source_without_tokens_is_refused():
    check_length(2, LIMITS, "prompt")
    with pytest.raises(
        RequestError, match="Nothing is left of the source text when it is cut into tokens; send a text"
    ):
        check_length(1, LIMITS, "prompt")


def test_a_text_that_cannot_fit_is_refused_before_it_is_cut_into_tokens():
    check_characters("a" * 2000, 20, LIMITS, "prompt")
    check_characters("a" * 1600, 3, LIMITS, "prompt")  # blanks may stand together in one token
    with pytest.raises(RequestError) as raised:
        check_characters("a" * 2001, 20, LIMITS, "prompt")
    assert str(raised.value) == (
        "The source text has 2,001 characters, and this server takes 2,000: 100 tokens of at most 20; shorten it."
    )
    assert (raised.value.code, raised.value.param, raised.value.status) == ("context_length_exceeded", "prompt", 400)


# Bytes ---------------------------------------------------------------------------------------------------------------


def nested(depth, inner="1"):
    """An object in which lists stand, `depth` deep in all."""
    return '{"a":' + "[" * (depth - 1) + inner + "]" * (depth - 1) + "}"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"{}", {}),
        (' {"a": "今"}\n'.encode(), {"a": "今"}),
        (b'{"a": [1e400, -0.0, 1e-400]}', {"a": [float("inf"), 0.0, 0.0]}),  # numbers are looked at where they are used
        (b'{"a": {"b": 1}, "b": {"b": 2}}', {"a": {"b": 1}, "b": {"b": 2}}),
        ('{"a": ' + "9" * 4300 + "}", {"a": int("9" * 4300)}),
    ],
)
def test_json_is_read(data, expected):
    assert parse_object(data) == expected


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "Expecting value at character 1"),
        (b"{", "Expecting property name enclosed in double quotes at character 2"),
        (b'{"a": 1}x', "Extra data at character 9"),
        (b"[1]", "it is [1]"),
        (b"null", "it is null"),
        (b'{"a": "\xff"}', "byte 8 is not UTF-8"),
        ("{}".encode("utf-16"), "byte 1 is not UTF-8"),
        (b'{"a": "\xed\xa0\xbd"}', "byte 8 is not UTF-8"),  # half of a surrogate pair, as bytes
        (b'{"a": NaN}', "NaN is no number of JSON"),
        (b'{"a": [-Infinity]}', "-Infinity is no number of JSON"),
        (b'{"a": 1, "a": 1}', '"a" stands in it twice'),
        (b'{"x": {"\\ud83d": 1, "\\ud83d": 1}}', "'\\ud83d' stands in it twice"),
        ('{"a": ' + "9" * 4301 + "}", "a number has more than 4,300 digits"),
        (nested(MAX_DEPTH + 1), f"lists and objects stand in each other more than {MAX_DEPTH} deep"),
        (nested(900), f"lists and objects stand in each other more than {MAX_DEPTH} deep"),
        (nested(100_000), f"lists and objects stand in each other more than {MAX_DEPTH} deep"),
        ('{"a":' * 990 + "1" + "}" * 990, f"lists and objects stand in each other more than {MAX_DEPTH} deep"),
        ("[" * 900 + "]" * 900, "it is a list"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_what_python_reads_and_json_does_not_allow_is_refused(data, reason):
    with pytest.raises(RequestError) as raised:
        parse_object(data)
    assert str(raised.value) == f"The request is no JSON object: {reason}."
    assert str(raised.value).encode(), "it has to be sent"
    assert raised.value.status == 400


def test_the_deepest_json_may_be_shown():
    parsed = parse_object(nested(MAX_DEPTH))
    with pytest.raises(RequestError, match=r"n=\{.*\[.* is not something this server does"):
        settings_of({"n": parsed}, LIMITS)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, {}),
        ({"model": "m", "messages": [], "user": "me", "metadata": {}, "store": True}, {}),
        ({"temperature": None, "top_p": None, "stop": None, "n": None, "tools": None, "max_tokens": None}, {}),
        ({"stop": [], "logit_bias": {}}, {}),
        ({"n": 1, "tools": [], "logprobs": False, "response_format": {"type": "text"}, "modalities": ["text"]}, {}),
        ({"max_tokens": 7}, {"max_new_tokens": 7}),
        ({"max_tokens": 7, "max_completion_tokens": 8}, {"max_new_tokens": 8}),
        ({"max_output_tokens": 100}, {"max_new_tokens": 100}),
        ({"stop": "。"}, {"stop_strings": ["。"]}),
        ({"stop": ["。", "\n"]}, {"stop_strings": ["。", "\n"]}),
        ({"seed": 3}, {"seed": 3}),
        ({"frequency_penalty": 0.5}, {"repetition_penalty": 1.5}),
        ({"logit_bias": {"39": -100, "4": 2}}, {"sequence_bias": {(39,): -100.0, (4,): 2.0}}),
        ({"temperature": 0}, {"do_sample": False}),
        ({"temperature": 0, "top_p": 0.5}, {"do_sample": False}),
        ({"temperature": 0.3}, {**SAMPLES, "temperature": 0.3}),
        ({"temperature": 1, "top_p": 1}, SAMPLES),
        ({"top_p": 0.5}, {**SAMPLES, "top_p": 0.5}),
        ({"top_p": 1}, {}),
    ],
)
def test_settings_are_what_differs_from_the_folder(body, expected):
    assert settings_of(body, LIMITS) == expected


@pytest.mark.parametrize(
    ("fields", "more", "expected"),
    [
        ({"num_beams": 4, "length_penalty": 0.5}, {}, {"num_beams": 4, "length_penalty": 0.5}),
        # `transformers chat` sends this
        (
            {"do_sample": True, "max_new_tokens": 50, "transformers_version": "5.23.0", "eos_token_id": None},
            {},
            {**SAMPLES, "max_new_tokens": 50},
        ),
        ({"do_sample": True, "num_beams": 3, "top_k": 5}, {}, {**SAMPLES, "num_beams": 3, "top_k": 5}),
        ({"do_sample": False, "temperature": 0.7}, {}, {"do_sample": False}),
        ({"max_new_tokens": 50}, {"max_tokens": 9}, {"max_new_tokens": 9}),
        ({"repetition_penalty": 3}, {"frequency_penalty": 0.5}, {"repetition_penalty": 1.5}),
    ],
)
def test_a_generation_config_is_taken_on_top_of_the_folders(fields, more, expected):
    assert settings_of({"generation_config": json.dumps(fields), **more}, LIMITS) == expected


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"temperature": "hot"}, 'temperature="hot" must be a number from 0 to 10.'),
        ({"temperature": True}, "temperature=true must be a number from 0 to 10."),
        ({"temperature": -1}, "temperature=-1 must be a number from 0 to 10."),
        ({"temperature": float("nan")}, "temperature=NaN must be a number"),
        ({"temperature": [1]}, "temperature=[1] must be a number"),
        ({"temperature": 10**400}, "... must be a number from 0 to 10."),
        ({"temperature": 1e-320}, "must be 0, which searches, or a number from 1e-06 to 10."),
        ({"temperature": 9.9e-7}, "temperature=9.9e-07 must be 0, which searches, or a number from 1e-06 to 10."),
        ({"max_tokens": 10**9}, "max_tokens=1000000000 must be a whole number from 1 to 100."),
        ({"max_tokens": 1e9}, "max_tokens=1000000000.0 must be a whole number from 1 to 100."),
        ({"best_of": 10**9}, "best_of=1000000000 is not something this server does; it gives one answer a request."),
        ({"top_p": 0}, "top_p=0 must be a number from 1e-06 to 1."),
        ({"frequency_penalty": -1}, "frequency_penalty=-1 must be a number from -0.99 to 2."),
        ({"max_tokens": 0}, "max_tokens=0 must be a whole number from 1 to 100."),
        ({"max_tokens": 101}, "max_tokens=101 must be a whole number from 1 to 100."),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens=1.5 must be a whole number"),
        ({"max_tokens": "9"}, 'max_tokens="9" must be a whole number'),
        ({"seed": 2**63}, "seed=9223372036854775808 must be a whole number"),
        ({"stop": ""}, 'stop="" must be a text of 1 to 200 characters, or a list of up to 16.'),
        ({"stop": [1]}, "stop=[1] must be a text"),
        ({"stop": ["a"] * 17}, "must be a text of 1 to 200 characters, or a list of up to 16."),
        ({"logit_bias": [1]}, "logit_bias=[1] must be an object of token ids below 40 and numbers."),
        ({"logit_bias": {"40": 1}}, "must be an object of token ids below 40 and numbers."),
        ({"logit_bias": {"-1": 1}}, "must be an object of token ids below 40 and numbers."),
        ({"logit_bias": {"9" * 5000: 1}}, "must be an object of token ids below 40 and numbers."),
        ({"logit_bias": {"4": "x"}}, 'logit_bias.4="x" must be a number from -100 to 100.'),
        ({"n": 2}, "n=2 is not something this server does; it gives one answer a request, so send several."),
        ({"logprobs": True}, "logprobs=true is not something this server does; "),
        ({"tools": [{}]}, "tools=[{}] is not something this server does; the model calls no tools."),
        ({"response_format": {"type": "json_object"}}, "the model writes plain text."),
        (
            {"generation_config": "{"},
            "generation_config is no JSON object: Expecting property name enclosed in double quotes at character 2.",
        ),
        ({"generation_config": '{"top_k": NaN}'}, "generation_config is no JSON object: NaN is no number of JSON."),
        ({"generation_config": "[" * 5000}, "generation_config is no JSON object: lists and objects stand in each ot"),
        ({"generation_config": '{"top_k": ' + "9" * 5000 + "}"}, "a number has more than 4,300 digits."),
        ({"generation_config": {}}, "generation_config={} must be a JSON object as text."),
        ({"generation_config": "[]"}, "generation_config is no JSON object: it is []."),
        ({"generation_config": '{"length_penalty": 100}'}, "length_penalty=100 must be a number from -5 to 5."),
        ({"generation_config": '{"num_beams": 65}'}, "num_beams=65 must be a whole number from 1 to 64."),
        ({"generation_config": '{"do_sample": 1}'}, "do_sample=1 must be true or false."),
        ({"generation_config": '{"\\ud83d": 1}'}, "generation_config holds '\\ud83d'; this server takes"),
        (
            {"generation_config": '{"return_dict_in_generate": true}'},
            'generation_config holds "return_dict_in_generate"; this server takes do_sample, length_penalty, max_',
        ),
    ],
)
def test_wrong_settings_are_refused(body, sentence):
    with pytest.raises(RequestError) as raised:
        settings_of(body, LIMITS)
    assert sentence in str(raised.value)
    assert str(raised.value).encode(), "it has to be sent"
    assert raised.value.param.split(".")[0] in {*body, "num_beams", "do_sample", "length_penalty"}
    assert len(str(raised.value)) < 250


def test_everything_that_is_not_done_is_refused_and_may_be_switched_off():
    for name, (neutral, _) in NOT_DONE.items():
        assert settings_of({name: None}, LIMITS) == {}
        for value in neutral:
            assert settings_of({name: value}, LIMITS) == {}
        with pytest.raises(RequestError, match=f"{name}="):
            settings_of({name: ["x"]}, LIMITS)


def test_stream_is_a_boolean():
    assert is_stream({"stream": True}) is True
    assert is_stream({"stream": None}) is is_stream({}) is is_stream({"stream": False}) is False
    with pytest.raises(RequestError, match='stream="yes" must be true or false'):
        is_stream({"stream": "yes"})


def test_errors_look_like_openais():
    assert RequestError("No.", param="n", code="c").body == {
        "error": {"message": "No.", "type": "invalid_request_error", "param": "n", "code": "c"}
    }
    assert RequestError("Oh.", status=500).body["error"]["type"] == "server_error"


TYPES = {
    CHAT: "chat.completion_create_params.CompletionCreateParamsStreaming",
    COMPLETION: "completion_create_params.CompletionCreateParamsStreaming",
    RESPONSE: "responses.response_create_params.ResponseCreateParamsStreaming",
}


@pytest.mark.parametrize("door", TYPES)
def test_every_field_of_the_installed_client_is_known(door):
    fields = get_type_hints(pkgutil.resolve_name(f"openai.types.{TYPES[door]}"))
    fields = fields.keys() - (
        {"prompt"} if door == RESPONSE else set()
    )  # a prompt that OpenAI keeps; none is kept here
    check_fields(door, dict.fromkeys(fields))


def test_a_misspelt_field_is_refused_with_a_guess():
    with pytest.raises(RequestError) as raised:
        check_fields(CHAT, {"temprature": 1, "prompt": "a"})
    assert str(raised.value) == ('Unexpected fields in the request: "temprature", "prompt"; did you mean temperature?')
    assert raised.value.status == 422
    check_fields(CHAT, {"temperature": 1})


def test_a_folder_that_samples_is_told_how():
    sampler, whole = replace(LIMITS, is_sampler=True), {"top_p": 1}
    assert settings_of(whole, LIMITS) == {}
    assert settings_of(whole, sampler) == {"top_p": 1.0}
    assert settings_of({"generation_config": '{"top_k": 1}'}, sampler) == {"top_k": 1}
    assert settings_of({"temperature": 0}, sampler) == {"do_sample": False}


def test_what_columns_say_is_quoted():
    tags = Tags(("language",), ("<language=hun>",))
    assert tagged("a", {"metadata": {"language": "hun"}}, tags) == "<language=hun>a"
    with pytest.raises(RequestError, match="metadata: language=") as refusal:
        tagged("a", {"metadata": {"language": "\ud800" + "x" * 9999}}, tags)
    assert len(str(refusal.value).encode()) < 2000


def test_a_name_that_stands_twice_is_found_in_one_pass():
    names = [f'"{number}":0' for number in range(200_000)]
    with pytest.raises(RequestError, match='"199999" stands in it twice'):
        parse_object("{" + ",".join([*names, names[-1]]) + "}")


def test_no_number_is_taken_for_a_truth_value():
    with pytest.raises(RequestError, match="logprobs=0 is not something this server does"):
        settings_of({"logprobs": 0}, LIMITS)
    assert settings_of({"logprobs": False, "n": 1, "presence_penalty": 0.0}, LIMITS) == {}
