"""The application behind `seqloom serve`, called in this process: the text of `generate`, and no way to bring it down.

The real process and the real client are in tests/system/test_server.py.
"""

import asyncio
import json
import re
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from transformers import AutoTokenizer

import seqloom
from seqloom.hub.generate import generate_lines
from seqloom.hub.loading import load_folder
from seqloom.hub.serving import chat_request, chat_server, job_queue
from seqloom.hub.serving.serve import _ended_by_signals, limits_of, load_service, read_config
from seqloom.training.tokenizer import CHAT_TEMPLATE, train_tokenizer

CHARACTERS = "abcdefghijklmnop今天气很ABCDEFGHIJKLMNOP"
SOURCES = ["abc", "hgfedcba", "今天", "a</s>b", " mm ", "ponmlkjihgfedcba"]
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
BEAMS = {"greedy": 1, "束 beams": 4}


def serve(folder, max_tokens=None, **options):
    """Return a served folder: its client and service, and the model and tokenizer as users load them."""
    service = load_service(folder, limits_of(read_config(folder), folder, max_tokens), **options)
    return SimpleNamespace(
        client=TestClient(chat_server.build_app(service), raise_server_exceptions=False),
        service=service,
        model=seqloom.SeqloomForConditionalGeneration.from_pretrained(folder).eval(),
        tokenizer=AutoTokenizer.from_pretrained(folder),
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory, taught_model, char_tokenizer):
    root = tmp_path_factory.mktemp("served")
    tokenizer = char_tokenizer(CHARACTERS)
    tokenizer.chat_template, tokenizer.split_special_tokens = CHAT_TEMPLATE, True
    for name, beams in BEAMS.items():
        model = taught_model()
        model.generation_config.update(num_beams=beams, max_new_tokens=6, do_sample=False)
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def greedy(folders):
    return serve(folders / "greedy")


@pytest.fixture(scope="module")
def beams(folders):
    return serve(folders / "束 beams")


@pytest.fixture(params=BEAMS)
def server(request, greedy, beams):
    return {"greedy": greedy, "束 beams": beams}[request.param]


def written(server, source, **options):
    """What `model.generate` of the local class writes."""
    tokens = server.model.generate(**server.tokenizer(source, return_tensors="pt"), **options)
    return server.tokenizer.decode(tokens[0], skip_special_tokens=True)


def messages(source):
    return [{"role": "user", "content": source}]


def ask(server, source, **options):
    response = server.client.post(CHAT, json={"messages": messages(source), **options})
    assert response.status_code == 200, response.text
    return response.json()


def text_of(answer):
    return answer["choices"][0]["message"]["content"]


def events(server, route, body):
    """Return the events of a streamed answer."""
    response = server.client.post(route, json={**body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    found = [event.removeprefix("data: ") for event in response.text.split("\n\n") if event]
    if route != RESPONSES:
        assert found.pop() == "[DONE]"
    return [json.loads(event) for event in found]


def pieces(server, source, **options):
    chunks = events(server, CHAT, {"messages": messages(source), **options})
    return [piece for chunk in chunks if (piece := chunk["choices"][0]["delta"].get("content"))], chunks


# The same text -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES)
def test_every_door_writes_what_generate_writes(server, source):
    expected = written(server, source)
    assert text_of(ask(server, source)) == expected
    assert "".join(pieces(server, source)[0]) == expected

    answer = server.client.post(COMPLETIONS, json={"prompt": source}).json()
    assert answer["choices"][0]["text"] == expected
    chunks = events(server, COMPLETIONS, {"prompt": source})
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == expected

    answer = server.client.post(RESPONSES, json={"input": source, "instructions": "not read"}).json()
    assert answer["output"][0]["content"][0]["text"] == expected
    chunks = events(server, RESPONSES, {"input": source})
    assert "".join(chunk["delta"] for chunk in chunks if chunk["type"] == "response.output_text.delta") == expected
    assert chunks[-1]["response"]["output"][0]["content"][0]["text"] == expected


def test_the_two_folders_differ(greedy, beams):
    assert len({text_of(ask(greedy, source)) for source in SOURCES}) > 3
    assert [text_of(ask(greedy, source)) for source in SOURCES] != [text_of(ask(beams, source)) for source in SOURCES]


def test_an_answer_comes_in_pieces_and_is_counted(server):
    answer = ask(server, "abc")
    found, chunks = pieces(server, "abc")
    assert len(found) == len(text_of(answer)) > 1
    new = len(server.tokenizer(text_of(answer)).input_ids)  # the end of sequence is written as well
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": new, "total_tokens": 3 + new}
    assert chunks[-1]["usage"] == answer["usage"]
    assert chunks[-1]["choices"][0]["finish_reason"] == answer["choices"][0]["finish_reason"] == "stop"


def test_the_folders_length_holds_until_the_request_names_another(server):
    """transformers' server would allow 1,024 tokens."""
    source = "ponmlkjihgfedcba"
    assert server.model.generation_config.max_new_tokens == 6
    short, cut, long = ask(server, source), ask(server, source, max_tokens=2), ask(server, source, max_tokens=40)
    assert short["choices"][0]["finish_reason"] == cut["choices"][0]["finish_reason"] == "length"
    assert (short["usage"]["completion_tokens"], cut["usage"]["completion_tokens"]) == (6, 2)
    assert text_of(long) == written(server, source, max_new_tokens=40)
    assert len(text_of(long)) > 6


@pytest.mark.parametrize("kind", ["bpe", "unigram", "char", "word"])
def test_blanks_and_characters_of_several_tokens_stream_whole(kind, tmp_path, tiny_model, monkeypatch):
    """The answer is dictated, for a random model writes no whole characters; 🙂 is four bytes to each tokenizer."""
    answer = "the mat 天气🙂 cat, on on"
    tokenizer = train_tokenizer(["the cat sat on the mat 今天的天气很好"] * 20, kind=kind, vocab_size=300).source
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    server = serve(tmp_path)
    new = tokenizer(answer).input_ids

    def dictate(jobs):
        for job in jobs:
            job.take_all(new)

    monkeypatch.setattr(server.service.queue.engine, "write", dictate)
    assert text_of(ask(server, "the cat 天气")) == answer
    found, chunks = pieces(server, "the cat 天气")
    assert "".join(found) == answer
    assert "\ufffd" not in found
    assert chunks[-1]["usage"]["completion_tokens"] == len(new)
    assert "".join(pieces(server, "the cat 天气", stop=["🙂 c"])[0]) == "the mat 天气"


# Settings ------------------------------------------------------------------------------------------------------------


def test_temperature_samples_and_a_seed_repeats_it(server):
    drawn = {text_of(ask(server, "abcdefg", temperature=1.5, seed=seed)) for seed in range(8)}
    assert len(drawn) > 3
    first = text_of(ask(server, "abcdefg", temperature=1.5, seed=7))
    assert first == text_of(ask(server, "abcdefg", temperature=1.5, seed=7)) in drawn
    assert "".join(pieces(server, "abcdefg", temperature=1.5, seed=7)[0]) == first
    for searching in ({"temperature": 0}, {"top_p": 1}, {"seed": 7}):
        assert text_of(ask(server, "abcdefg", **searching)) == written(server, "abcdefg")


def test_seeds_hold_when_requests_come_together(greedy):
    def draw(seed):
        return text_of(ask(greedy, "abcdefg", temperature=1.5, seed=seed))

    alone = [draw(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(draw, range(6))) == alone


def test_an_answer_ends_before_a_stop_string(server):
    whole = text_of(ask(server, "hgfedcba", max_tokens=20))
    stop = whole[2:4]
    expected = whole[: whole.find(stop)]
    assert text_of(ask(server, "hgfedcba", max_tokens=20, stop=[stop, "今"])) == expected
    assert "".join(pieces(server, "hgfedcba", max_tokens=20, stop=stop)[0]) == expected


def test_a_folder_that_samples_draws_what_generate_draws(tmp_path, tiny_model, char_tokenizer):
    """From 50 words, as transformers does where a folder says nothing; the vocabulary has 100."""
    model = tiny_model(vocab_size=100)
    model.generation_config.update(do_sample=True, temperature=9.0, max_new_tokens=8, num_beams=1)
    model.save_pretrained(tmp_path)
    char_tokenizer("".join(map(chr, range(0x4E00, 0x4E60)))).save_pretrained(tmp_path)
    server, found, expected = serve(tmp_path), [], []
    for seed in range(4):
        found.append(text_of(ask(server, "丁一", seed=seed)))
        torch.manual_seed(seed)
        expected.append(written(server, "丁一"))
    assert found == expected
    assert len(set(found)) > 1


@pytest.mark.parametrize("beams", [1, 4])
def test_a_folders_stop_strings_end_an_answer_unless_a_request_has_its_own(folders, tmp_path, beams):
    shutil.copytree(folders / "greedy", tmp_path, dirs_exist_ok=True)
    whole = text_of(ask(serve(folders / "greedy"), "hgfedcba", max_tokens=20))
    settings = tmp_path / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"stop_strings": [whole[2:4]]}))
    server, options = serve(tmp_path), {"max_tokens": 20, "generation_config": json.dumps({"num_beams": beams})}
    answer = ask(server, "hgfedcba", **options)
    assert text_of(ask(server, "hgfedcba", max_tokens=20, stop="今")) == whole
    assert text_of(answer) == text_of(ask(serve(folders / "greedy"), "hgfedcba", stop=whole[2:4], **options))
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_a_generation_config_changes_the_search(greedy, beams):
    options = {"generation_config": json.dumps({"num_beams": 4})}
    assert [text_of(ask(greedy, source, **options)) for source in SOURCES] == [written(beams, each) for each in SOURCES]


def test_biases_reach_the_model(greedy):
    letter = text_of(ask(greedy, "abc"))[0]
    number = str(greedy.tokenizer.convert_tokens_to_ids(letter))
    assert letter not in text_of(ask(greedy, "abc", logit_bias={number: -100}))


def test_a_tokenizer_without_a_chat_template_reads_the_message(folders, tmp_path, taught_model, char_tokenizer):
    taught_model().save_pretrained(tmp_path)
    char_tokenizer(CHARACTERS).save_pretrained(tmp_path)
    server = serve(tmp_path)
    assert text_of(ask(server, "abc")) == written(server, "abc", max_new_tokens=20)


def with_template(template, root, taught_model, char_tokenizer):
    taught_model().save_pretrained(root)
    tokenizer = char_tokenizer(CHARACTERS)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(root)
    return serve(root)


def test_the_folders_chat_template_is_obeyed_by_chat_and_responses_alone(tmp_path, taught_model, char_tokenizer):
    template = "ab{% for message in messages %}{{ message.content | upper }}{% endfor %}"
    server = with_template(template, tmp_path, taught_model, char_tokenizer)
    expected = written(server, "abCDE", max_new_tokens=20)
    assert text_of(ask(server, "cde")) == "".join(pieces(server, "cde")[0]) == expected
    answer = server.client.post(RESPONSES, json={"input": "cde", "stream": False}).json()
    assert answer["output"][0]["content"][0]["text"] == expected
    answer = server.client.post(COMPLETIONS, json={"prompt": "cde"}).json()
    assert answer["choices"][0]["text"] == written(server, "cde", max_new_tokens=20) != expected
    server.service.close()


def test_a_chat_template_that_fails_with_a_text_is_a_sentence_and_the_advice_helps(
    tmp_path, taught_model, char_tokenizer
):
    template = "{% if 'm' in messages[0].content %}{% for i in range(10 ** 9) %}{% endfor %}{% endif %}{{ 'a' * 300 }}"
    server = with_template(template, tmp_path, taught_model, char_tokenizer)
    response = server.client.post(CHAT, json={"messages": messages("mm")})
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert message.startswith("The chat template of this model fails with this text: OverflowError: Range too big. ")
    assert message.endswith("; send another text, or this one to /v1/completions, which uses no template.")
    assert server.client.post(COMPLETIONS, json={"prompt": "mm"}).status_code == 200
    response = server.client.post(CHAT, json={"messages": messages("a")})
    assert response.json()["error"]["message"].startswith("The source text has 301 tokens, and this server takes 256; ")
    server.service.close()


# Wrong requests ------------------------------------------------------------------------------------------------------

BODIES = {
    "unknown model": (
        404,
        CHAT,
        {"model": "gpt", "messages": messages("a")},
        "The model 'gpt' is not served here; use ",
    ),
    "no name": (404, CHAT, {"model": 3, "messages": messages("a")}, "The model '3' is not served here"),
    "no messages": (400, CHAT, {}, "messages=null must be a list of messages"),
    "empty": (400, CHAT, {"messages": messages("")}, "The source text is empty; send a text."),
    "too long": (
        400,
        CHAT,
        {"messages": messages("a" * 64)},
        "The source text has 65 tokens, and this server takes 64; shorten it, or start the server with a larger --m",
    ),
    "setting": (400, CHAT, {"messages": messages("a"), "temperature": "x"}, 'temperature="x" must be a number'),
    "streamed": (400, CHAT, {"messages": messages("a"), "n": 2, "stream": True}, "n=2 is not something this server do"),
    "stream": (400, CHAT, {"messages": messages("a"), "stream": 1}, "stream=1 must be true or false."),
    "field": (
        422,
        CHAT,
        {"messages": messages("a"), "colour": 1},
        'Unexpected fields in the request: "colour"; leave them out.',
    ),
    "list": (400, CHAT, [1], "The request is no JSON object: it is [1]."),
    "long": (
        400,
        CHAT,
        {"messages": messages("a" * 1025)},
        "The source text has 1,025 characters, and this server takes 1,024: 64 tokens of at most 16; shorten it, or ",
    ),
    "tokens": (400, COMPLETIONS, {"prompt": "a", "max_tokens": 10**9}, "max_tokens=1000000000 must be a whole number"),
    "stops": (400, COMPLETIONS, {"prompt": "a", "stop": ["a"] * 10_000}, 'stop=["a", "a", '),
    "many fields": (
        422,
        CHAT,
        {f"colour{number}": 1 for number in range(9999)},
        "Unexpected fields in the request: ",
    ),
    "prompt": (400, COMPLETIONS, {"prompt": ["a"]}, 'prompt holds "a"; this model reads text'),
    "input": (400, RESPONSES, {"input": {}}, "input holds {} where the source text is expected"),
    "no such route": (404, "/v1/chat", {}, "Not Found. This server has GET /v1/models, "),
    "base_url without /v1": (404, "/chat/completions", {}, f"Not Found. {chat_server._ROUTES}"),
    "not to be asked so": (405, "/v1/models", {}, "Method Not Allowed. This server has GET /v1/models, "),
    "other folder": (404, "/load_model", {"model": "/"}, "The model '/' is not served here; "),
    "unloading": (404, "/reset", {}, "Not Found."),
    "sound": (404, "/v1/audio/transcriptions", {}, "Not Found."),
}


CODES = {"unknown model": "model_not_found", "no name": "model_not_found", "other folder": "model_not_found"}
CODES |= {"too long": "context_length_exceeded", "long": "context_length_exceeded"}


@pytest.mark.parametrize("name", BODIES)
def test_a_bad_request_is_answered_in_openais_words(greedy, name):
    status, route, body, sentence = BODIES[name]
    response = greedy.client.post(route, json=body)
    assert response.status_code == status
    error = response.json()["error"]
    assert error["message"].startswith(sentence)
    assert error["type"] == "invalid_request_error"
    assert error["code"] == CODES.get(name)
    assert len(error["message"]) < 1000
    assert text_of(ask(greedy, "abc")) == written(greedy, "abc")


@pytest.mark.parametrize(
    ("content", "status", "sentence"),
    [
        (b"{", 400, "The request is no JSON object: Expecting property name enclosed in double quotes at character 2."),
        (b"", 400, "The request is no JSON object: "),
        (b"\xff\xfe", 400, "The request is no JSON object: "),
        (
            b"[" * 100_000,
            400,
            "The request is no JSON object: lists and objects stand in each other more than 32 deep.",
        ),
        (
            b'{"prompt": "a", "n": ' + b"[" * 900 + b"]" * 900 + b"}",
            400,
            "The request is no JSON object: lists and obj",
        ),
        (b'{"messages": [], "seed": ' + b"9" * 5000 + b"}", 400, "The request is no JSON object: a number has more th"),
        (b'{"messages": [], "messages": []}', 400, 'The request is no JSON object: "messages" stands in it twice.'),
        (b'{"temperature": Infinity}', 400, "The request is no JSON object: Infinity is no number of JSON."),
        (
            b'{"messages": [{"role": "user", "content": "a\\ud83d"}]}',
            400,
            "Character 2 of the source text is half of a",
        ),
        (b" " * 5_000_000, 413, "The request has 5,000,000 bytes, and this server takes 4,194,304; shorten it."),
        (iter([b"{", b"}"]), 400, "messages=null must be a list of messages"),  # in chunks, of unknown length
        (
            iter([b" " * 3_000_000] * 2),
            413,
            "The request has at least 6,000,000 bytes, and this server takes 4,194,304",
        ),
    ],
    ids=lambda value: repr(value)[:12] if isinstance(value, bytes) else None,
)
def test_bytes_that_are_no_request_are_refused(greedy, content, status, sentence):
    response = greedy.client.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["message"][: len(sentence)]) == (status, sentence)


@pytest.mark.parametrize("media_type", [None, "text/plain", "application/x-www-form-urlencoded", "\x1b[2J"])
def test_what_is_not_said_to_be_json_is_refused_as_a_web_page_could_send_it(greedy, media_type):
    headers = {} if media_type is None else {"content-type": media_type}
    content = json.dumps({"messages": messages("abc")}).encode()
    response = greedy.client.post(CHAT, content=content, headers=headers)
    assert response.status_code == 415
    shown = json.dumps((media_type or "").lower())
    expected = f"The request is of type {shown}; send it with Content-Type: application/json."
    assert response.json()["error"]["message"] == expected
    for good in ("application/json", "Application/JSON; charset=utf-8"):
        assert greedy.client.post(CHAT, content=content, headers={"content-type": good}).status_code == 200


async def send(server, path, events, go_on=None):
    """Send a request as events of ASGI, the last when told to; return status and body. Without events it is a GET."""
    sent, waiting = [], list(events)

    async def receive():
        if not waiting:
            await asyncio.sleep(3600)
        if go_on and len(waiting) == 1:
            await go_on.wait()
        return waiting.pop(0)

    async def take(message):
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "path": path, "query_string": b"", "headers": headers}
    await server.client.app({**scope, "method": "POST" if events else "GET"}, receive, take)
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent))


def test_a_body_that_ends_early_or_never_is_refused(greedy, monkeypatch):
    half = {"type": "http.request", "body": b'{"messages": [', "more_body": True}
    status, body = asyncio.run(send(greedy, CHAT, [half, {"type": "http.disconnect"}]))
    assert (status, body["error"]["message"]) == (400, "The request ended before its body did.")
    monkeypatch.setattr(chat_server, "BODY_SECONDS", 0.05)
    status, body = asyncio.run(send(greedy, CHAT, [half]))
    assert status == 408
    assert body["error"]["message"] == "The request did not arrive whole within 0.05 seconds; send it again."


def test_a_requests_name_comes_back_if_it_can_be_printed(greedy):
    def name(asked):
        headers = {"x-request-id": asked}
        return greedy.client.post(CHAT, json={"messages": messages("abc")}, headers=headers).headers["x-request-id"]

    assert name("mine 7") == "mine 7"
    for odd in (b"\x80", b"\x1b[2J", b"a" * 501, b""):
        assert len(name(odd)) == 36


def test_health_is_quick_while_a_text_is_cut_into_tokens(greedy, monkeypatch):
    """The tokenizer waits here until /health has been answered: on the event loop it would wait for ever."""
    started, go_on = threading.Event(), threading.Event()
    cut = greedy.service.ids_of

    def slow(kind, source):
        started.set()
        assert go_on.wait(60)
        return cut(kind, source)

    monkeypatch.setattr(greedy.service, "ids_of", slow)

    async def talk():
        body = json.dumps({"messages": messages("abc")}).encode()
        answer = asyncio.create_task(send(greedy, CHAT, [{"type": "http.request", "body": body}]))
        await asyncio.to_thread(started.wait, 60)
        _, health = await send(greedy, "/health", [])
        is_open = not answer.done()
        go_on.set()
        return health, is_open, text_of((await answer)[1])

    assert asyncio.run(talk()) == ({"status": "ok"}, True, written(greedy, "abc"))


def test_a_text_without_end_never_reaches_the_tokenizer(greedy, monkeypatch):
    monkeypatch.setattr(greedy.service, "tokenizer", pytest.fail)
    response = greedy.client.post(COMPLETIONS, json={"prompt": "a" * 4_000_000})
    assert response.json()["error"]["message"].startswith("The source text has 4,000,000 characters, and this server t")


def test_an_answer_that_takes_too_long_is_refused_and_the_advice_helps(server, monkeypatch):
    body = {"messages": messages("abc"), "logit_bias": {str(server.tokenizer.eos_token_id): -100}}
    clock = iter(range(10_000))
    monkeypatch.setattr(job_queue, "time", SimpleNamespace(monotonic=lambda: next(clock)))  # a second a token
    monkeypatch.setattr(job_queue, "ANSWER_SECONDS", 20)
    response = server.client.post(CHAT, json={**body, "max_tokens": 40})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["message"] == (
        "The answer takes more than the 20 seconds that this server gives one; ask for fewer tokens (max_tokens) or "
        "beams, or send a shorter text."
    )
    assert error["code"] == "timeout"
    assert events(server, CHAT, {**body, "max_tokens": 40})[-1] == {"error": error}
    assert server.client.post(CHAT, json={**body, "max_tokens": 10}).status_code == 200


def test_learned_positions_end_where_they_end(tmp_path, tiny_model, char_tokenizer):
    tiny_model(position_embedding_type="learned", max_position_embeddings=9).save_pretrained(tmp_path)
    char_tokenizer(CHARACTERS).save_pretrained(tmp_path)
    server = serve(tmp_path)
    assert ask(server, "a" * 8, max_tokens=9)["usage"]["prompt_tokens"] == 8
    response = server.client.post(CHAT, json={"messages": messages("a" * 9)})
    assert response.json()["error"]["message"].endswith("has 10 tokens, and this server takes 9; shorten it.")
    response = server.client.post(CHAT, json={"messages": messages("a"), "max_tokens": 10})
    assert response.json()["error"]["message"] == "max_tokens=10 must be a whole number from 1 to 9."


def test_models_lists_the_folder_and_every_name_of_it_works(beams, folders):
    (entry,) = beams.client.get("/v1/models").json()["data"]
    assert (entry["id"], entry["object"], entry["owned_by"]) == ("束 beams", "model", "seqloom")
    for name in ("束 beams", str(folders / "束 beams")):
        assert ask(beams, "abc", model=name)["model"] == "束 beams"
        loading = beams.client.post("/load_model", json={"model": name})
        assert loading.text == 'data: {"status": "ready", "model": "\\u675f beams", "cached": true}\n\n'
    assert beams.client.get("/health").json() == {"status": "ok"}


# When something breaks -----------------------------------------------------------------------------------------------


def test_an_error_of_the_model_is_a_500_and_a_readable_event(greedy, monkeypatch, caplog):
    def fail(jobs):
        raise RuntimeError('no "memory"\nleft')

    with monkeypatch.context() as patch:
        patch.setattr(greedy.service.queue.engine, "write", fail)
        response = greedy.client.post(CHAT, json={"messages": messages("abc")})
        assert response.status_code == 500
        assert response.json()["error"]["message"] == "RuntimeError while answering; the server's own output says more."
        last = events(greedy, CHAT, {"messages": messages("abc")})[-1]["error"]
        assert (last["message"], last["type"]) == ('no "memory"\nleft', "server_error")
    assert "An answer could not be streamed to its end." in caplog.text
    assert text_of(ask(greedy, "abc")) == written(greedy, "abc")


@pytest.mark.parametrize("stop", ["user", ["user", "今"], ["zzz"]])
def test_a_stop_string_that_no_token_spells_stops_nothing(greedy, stop):
    expected = written(greedy, "abc").partition("今")[0] if "今" in stop else written(greedy, "abc")
    assert text_of(ask(greedy, "abc", stop=stop)) == expected
    assert "".join(pieces(greedy, "abc", stop=stop)[0]) == expected


# Together ------------------------------------------------------------------------------------------------------------


class Gate:
    """Keeps an engine from writing until it is opened, so that what comes meanwhile waits."""

    def __init__(self, service, monkeypatch):
        self.sizes, self.is_open, self.began = [], threading.Event(), threading.Event()
        write = service.queue.engine.write

        def wait(jobs):
            self.began.set()
            assert self.is_open.wait(60)
            self.sizes.append(len(jobs))
            write(jobs)

        monkeypatch.setattr(service.queue.engine, "write", wait)


def wait_until(condition):
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it did not come to that")


def ask_together(server, monkeypatch, bodies, ask):
    """Return the answers to requests that waited together, and the sizes of the batches they were written in."""
    with monkeypatch.context() as patch, ThreadPoolExecutor(len(bodies) + 1) as pool:
        gate = Gate(server.service, patch)
        first = pool.submit(ask, bodies[0])
        assert gate.began.wait(60)
        others = [pool.submit(ask, body) for body in bodies[1:]]
        wait_until(lambda: len(server.service.queue.waiting) == len(others))
        gate.is_open.set()
        return [future.result() for future in (first, *others)], gate.sizes


LONG = ["abc", "ponmlkjihgfedcba" * 3, "今天", "h", "gfedcbaabcdefg", "a b c", "mm" * 20, "ab", "dcba", "气气气"]


@pytest.mark.parametrize("name", BEAMS)
def test_a_batch_of_mixed_lengths_writes_what_seqloom_generate_writes(name, folders, greedy, beams, monkeypatch):
    server = {"greedy": greedy, "束 beams": beams}[name]
    model, tokenizer = load_folder(folders / name)
    expected = [best.text for (best,) in generate_lines(model, tokenizer, LONG)]
    found, sizes = ask_together(server, monkeypatch, LONG, lambda source: text_of(ask(server, source)))
    assert found == expected
    assert sizes == [1, len(LONG) - 1]
    streamed, sizes = ask_together(server, monkeypatch, LONG, lambda source: "".join(pieces(server, source)[0]))
    assert streamed == expected
    assert sizes == [1, len(LONG) - 1]


def test_each_row_of_a_batch_has_its_own_length_stops_seed_and_reader(greedy, monkeypatch):
    """What `generate` says to each alone, with torch's seed set."""

    def alone(**options):
        if "seed" in options:
            torch.manual_seed(options.pop("seed"))
            options |= {"do_sample": True, "top_k": 0}
        return written(greedy, "ponmlkjihgfedcba", **options)

    asked = [{}, {"max_tokens": 2}, {"max_tokens": 30}, {"seed": 5, "temperature": 1.5, "max_tokens": 20}]
    asked += [{"seed": 6, "temperature": 0.7, "top_p": 0.8, "max_tokens": 25}, {"seed": 5, "temperature": 1.5}]
    names = {"max_tokens": "max_new_tokens"}
    expected = [alone(**{names.get(name, name): value for name, value in options.items()}) for options in asked]
    assert len(set(expected)) == len(asked)
    stop = expected[2][3:5]
    asked += [{"max_tokens": 30, "stop": stop}]
    expected += [expected[2].partition(stop)[0]]
    found, sizes = ask_together(
        greedy, monkeypatch, asked, lambda options: text_of(ask(greedy, "ponmlkjihgfedcba", **options))
    )
    assert found == expected
    assert sizes == [1, len(asked) - 1]


def test_what_does_not_go_together_is_written_apart(greedy, monkeypatch):
    settings = [{"num_beams": 4}, {"repetition_penalty": 1.5}, {"repetition_penalty": 1.5}, {}]
    asked = [{"generation_config": json.dumps(each)} for each in [{}, *settings]]
    alone = [text_of(ask(greedy, "hgfedcba", **options)) for options in asked]
    found, sizes = ask_together(greedy, monkeypatch, asked, lambda options: text_of(ask(greedy, "hgfedcba", **options)))
    assert found == alone
    assert sorted(sizes) == [1, 1, 1, 2]


def test_one_bad_row_fails_alone(greedy, monkeypatch):
    write = greedy.service.queue.engine.write

    def write_or_fail(jobs):
        if any(len(job.source) == 3 for job in jobs):
            raise RuntimeError("no")
        write(jobs)

    monkeypatch.setattr(greedy.service.queue.engine, "write", write_or_fail)
    found, _ = ask_together(
        greedy,
        monkeypatch,
        ["a", "ab", "abc", "abcd"],
        lambda source: greedy.client.post(CHAT, json={"messages": messages(source)}),
    )
    assert [response.status_code for response in found] == [200, 500, 200, 200]
    assert [text_of(found[place].json()) for place in (2, 3)] == [written(greedy, source) for source in ("abc", "abcd")]


def test_a_full_queue_says_when_to_come_again_and_a_reader_who_leaves_makes_room(folders, monkeypatch):
    server = serve(folders / "greedy", max_waiting=2)
    gate, queue = Gate(server.service, monkeypatch), server.service.queue

    async def talk():
        body = json.dumps({"messages": messages("abc")}).encode()
        request = {"type": "http.request", "body": body}
        tasks = [asyncio.create_task(send(server, CHAT, [request]))]
        await asyncio.to_thread(gate.began.wait, 60)
        gone = {"type": "http.disconnect"}
        leaving = asyncio.Event()
        tasks += [asyncio.create_task(send(server, CHAT, [request])) for _ in range(2)]
        await asyncio.to_thread(wait_until, lambda: len(queue.waiting) == 2)
        refused = await asyncio.to_thread(server.client.post, CHAT, json={"messages": messages("abc"), "stream": True})
        tasks.pop().cancel()
        await asyncio.to_thread(wait_until, lambda: len(queue.waiting) == 1)
        left = asyncio.create_task(send(server, CHAT, [request, gone], leaving))
        await asyncio.to_thread(wait_until, lambda: len(queue.waiting) == 2)
        leaving.set()
        await left
        seen = len(queue.waiting)
        gate.is_open.set()
        return refused, seen, [text_of((await task)[1]) for task in tasks]

    refused, seen, answers = asyncio.run(talk())
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"] == {
        "message": "2 requests wait already, and no more may; ask again later.",
        "type": "rate_limit_error",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    assert seen == 1
    assert answers == [written(server, "abc")] * 2
    server.service.close()


def test_what_was_accepted_is_answered_and_what_comes_later_is_told_so(folders, monkeypatch):
    server = serve(folders / "greedy")
    gate, queue = Gate(server.service, monkeypatch), server.service.queue
    with ThreadPoolExecutor(8) as pool:
        accepted = [pool.submit(lambda source: text_of(ask(server, source)), source) for source in SOURCES[:3]]
        wait_until(lambda: len(queue.waiting) + len(queue.running) == 3)
        end = pool.submit(server.service.close)
        wait_until(lambda: queue.is_stopping)
        health = server.client.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "stopping"})
        for stream in (False, True):
            late = server.client.post(CHAT, json={"messages": messages("abc"), "stream": stream})
            assert (late.status_code, late.headers["retry-after"]) == (503, "5")
            assert late.json()["error"]["message"] == "The server is shutting down; ask again when it is back."
        gate.is_open.set()
        assert [future.result() for future in accepted] == [written(server, source) for source in SOURCES[:3]]
        end.result()


@pytest.mark.parametrize("name", BEAMS)
def test_a_second_signal_refuses_what_is_not_answered(name, folders, monkeypatch):
    server = serve(folders / name)
    gate, queue = Gate(server.service, monkeypatch), server.service.queue
    with ThreadPoolExecutor(8) as pool:
        whole = pool.submit(server.client.post, CHAT, json={"messages": messages("abc")})
        streamed = pool.submit(events, server, CHAT, {"messages": messages("abc")})
        wait_until(lambda: len(queue.waiting) + len(queue.running) == 2)
        with _ended_by_signals(server.service) as is_asked:
            signal.raise_signal(signal.SIGTERM)
            first = is_asked.is_set(), queue.is_stopping
            signal.raise_signal(signal.SIGTERM)
            gate.is_open.set()
        assert first == (True, False)
        assert whole.result().status_code == 503
        sentence = "The server is shutting down; ask again when it is back."
        assert whole.result().json()["error"]["message"] == streamed.result()[-1]["error"]["message"] == sentence


def test_before_the_model_is_there_the_server_says_so(folders):
    client = TestClient(chat_server.build_app())
    assert (client.get("/health").status_code, client.get("/health").json()) == (503, {"status": "loading"})
    response = client.post(CHAT, json={"messages": messages("abc")})
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")
    assert response.json()["error"]["message"] == "The model is being loaded; ask again in a moment."


def test_metrics_count_what_was_asked(folders):
    server = serve(folders / "greedy")
    answer = ask(server, "abc")
    events(server, CHAT, {"messages": messages("abc")})
    server.client.post(CHAT, json={})
    server.client.get("/nowhere/7")
    text = server.client.get("/metrics").text
    usage = {name: 2 * number for name, number in answer["usage"].items()}
    for line in (
        f'seqloom_requests_total{{route="{CHAT}",status="200"}} 2.0',
        f'seqloom_requests_total{{route="{CHAT}",status="400"}} 1.0',
        'seqloom_requests_total{route="other",status="404"} 1.0',
        f'seqloom_request_seconds_count{{route="{CHAT}"}} 3.0',
        f'seqloom_tokens_total{{kind="read"}} {usage["prompt_tokens"]}.0',
        f'seqloom_tokens_total{{kind="written"}} {usage["completion_tokens"]}.0',
        "seqloom_batch_size_count 2.0",
        "seqloom_waiting 0.0",
        "seqloom_running 0.0",
    ):
        assert line in text.splitlines()


def test_the_page_needs_nothing_from_elsewhere(greedy):
    page = greedy.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "//" not in re.sub(r"<!doctype.*?>", "", page.text)


# The other engine ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engines(folders):
    pytest.importorskip("ctranslate2")
    return {name: serve(folders / name, engine="ctranslate2") for name in BEAMS}


@pytest.mark.parametrize("name", BEAMS)
def test_ctranslate2_writes_what_torch_writes_alone_and_together(name, engines, monkeypatch):
    server = engines[name]
    expected = [written(server, source) for source in LONG]
    assert [text_of(ask(server, source)) for source in LONG] == expected
    found, _ = ask_together(server, monkeypatch, LONG, lambda source: "".join(pieces(server, source)[0]))
    assert found == expected


def test_ctranslate2_obeys_or_refuses(engines, monkeypatch):
    server = engines["greedy"]
    source = "ponmlkjihgfedcba"
    whole = text_of(ask(server, source, max_tokens=30))
    assert whole == written(server, source, max_new_tokens=30)
    cut = ask(server, source, max_tokens=2)
    assert (text_of(cut), cut["choices"][0]["finish_reason"]) == (whole[:2], "length")
    assert text_of(ask(server, source, max_tokens=30, stop=whole[3])) == whole.partition(whole[3])[0]
    config = {"generation_config": json.dumps({"num_beams": 4, "length_penalty": 0.5})}
    assert text_of(ask(server, source, **config)) == written(server, source, num_beams=4, length_penalty=0.5)
    expected = written(server, source, repetition_penalty=1.2)
    assert text_of(ask(server, source, frequency_penalty=0.2)) == expected
    more_than_there_are = {"generation_config": json.dumps({"do_sample": True, "top_k": 1000})}
    assert len(text_of(ask(server, source, **more_than_there_are))) > 0
    assert len({text_of(ask(server, source, temperature=2)) for _ in range(8)}) > 2
    assert text_of(ask(server, source, temperature=1e-6)) == whole[:6]
    assert text_of(ask(server, source, seed=3)) == whole[:6]
    monkeypatch.setitem(server.service.queue.engine.options, "min_decoding_length", 11)
    assert text_of(ask(server, source, max_tokens=2)) == whole[:2], "shorter than the folder's shortest"
    for options in (
        {"temperature": 1, "seed": 3},
        {"logit_bias": {"4": 1}},
        {"generation_config": '{"num_beams": 2, "do_sample": true}'},
    ):
        response = server.client.post(CHAT, json={"messages": messages("abc"), **options})
        assert response.status_code == 400
        assert response.json()["error"]["message"].endswith("leave it out, or start the server with --engine torch.")
    body = {"messages": messages("abc"), "frequency_penalty": 0.5}
    refused = engines["束 beams"].client.post(CHAT, json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == (
        "repetition_penalty=1.5 (a request's frequency_penalty adds to 1) with num_beams=4 is another search in "
        "CTranslate2 than in transformers; ask for num_beams 1, or start the server with --engine torch."
    )


# Anything at all -----------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 100)
    | st.floats(-2, 2)
    | st.sampled_from(["", "a", "user", "text", "{}"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "4"]), inner)
    ),
    max_leaves=6,
)
GOOD = {CHAT: {"messages": messages("abc")}, COMPLETIONS: {"prompt": "abc"}, RESPONSES: {"input": "abc"}}


@pytest.mark.parametrize("route", GOOD)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_whatever_comes_is_answered_or_refused(greedy, route, data):
    fields = sorted({*chat_request.OPENAI_FIELDS, *chat_request.NOT_DONE, *chat_request.WITHOUT_EFFECT, *GOOD[route]})
    changed = data.draw(st.dictionaries(st.sampled_from(fields), VALUES, min_size=1, max_size=3))
    response = greedy.client.post(route, json={**GOOD[route], **changed})
    assert response.status_code in (200, 400, 404, 422), response.text
    if response.status_code != 200:
        assert response.json()["error"]["message"].endswith(".")
    else:
        assert '"error": "' not in response.text


HOSTS = ["127.0.0.1:8000", "localhost", "localhost.:8000", "[::1]:8000", "me.localhost", "laptop", "10.0.0.7", ""]
HOSTS += ["host.docker.internal:8000", "laptop.local"]
OTHERS = ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "evil.example."]


@pytest.mark.parametrize("host", HOSTS)
def test_a_server_of_one_machine_is_asked_by_its_names(greedy, host):
    client = TestClient(chat_server.build_app(greedy.service, is_for_this_machine=True))
    assert client.get("/health", headers={"host": host}).json() == {"status": "ok"}


@pytest.mark.parametrize("host", OTHERS)
def test_a_name_of_another_site_that_leads_to_this_machine_reads_nothing(greedy, host):
    client = TestClient(chat_server.build_app(greedy.service, is_for_this_machine=True))
    response = client.post(CHAT, json={"messages": messages("abc")}, headers={"host": host})
    assert response.status_code == 421
    assert response.json()["error"]["message"] == (
        f'This server listens for its machine alone, and the request\'s Host is "{host}"; ask 127.0.0.1 or localhost, '
        "let a proxy send that as Host, or serve with --host 0.0.0.0."
    )
    assert greedy.client.get("/health", headers={"host": host}).status_code == 200, "one that listens for others, too"
