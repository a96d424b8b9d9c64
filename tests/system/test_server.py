"""`seqloom serve` as a user starts it, and the OpenAI client as a user calls it: a real process on loopback.

What the application answers to each kind of request: tests/hub/serving/test_chat_server.py, in one process.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest
from transformers import AutoTokenizer

import seqloom
from seqloom.training.tokenizer import CHAT_TEMPLATE

ROOT = Path(__file__).parents[2]
CHARACTERS = "abcdefghijklmnop今天气很ABCDEFGHIJKLMNOP"
SOURCES = ["abc", "hgfedcba", "今天", "mm", "ponm", "a b", "cdefg", "ff"]
START_SECONDS, END_SECONDS = 120, 60
"""Generous: a machine that others use may be ten times slower."""


class Server:
    """A running `seqloom serve`."""

    def __init__(self, process, folder, name):
        self.process, self.name = process, name
        line = process.stdout.readline()
        assert re.fullmatch(rf"Serving {re.escape(name)} at http://127\.0\.0\.1:\d+/v1; Ctrl-C ends it\.\n", line), line
        self.url = line.split()[-4].rstrip(";")
        self.client = openai.OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=START_SECONDS)
        self.model = seqloom.SeqloomForConditionalGeneration.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def wait_until_healthy(self):
        """Requests wait in the socket while the server starts, so one is enough."""
        with urllib.request.urlopen(self.url.replace("/v1", "/health"), timeout=START_SECONDS) as answer:
            assert json.load(answer) == {"status": "ok"}

    def create(self, source, **options):
        chat = [{"role": "user", "content": source}]
        return self.client.chat.completions.create(messages=chat, **{"model": self.name, **options})

    def ask(self, source, **options):
        return self.create(source, **options).choices[0].message.content

    def stream(self, source, **options):
        chunks = self.create(source, stream=True, **options)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    def written(self, source):
        """What `model.generate` of the local class writes."""
        tokens = self.model.generate(**self.tokenizer(source, return_tensors="pt"))
        return self.tokenizer.decode(tokens[0], skip_special_tokens=True)

    def end(self, number):
        """Send a signal; return exit code and what was printed."""
        self.process.send_signal(number)
        _, printed = self.process.communicate(timeout=END_SECONDS)
        return self.process.returncode, printed


@contextmanager
def serving(folder, typed, cwd, name, *options):
    process = subprocess.Popen(
        [sys.executable, "-m", "seqloom_cli", "serve", typed, "--port", "0", *options],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        server = Server(process, folder, name)
        server.wait_until_healthy()
        yield server
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def folders(tmp_path_factory, taught_model, char_tokenizer):
    root = tmp_path_factory.mktemp("served")
    tokenizer = char_tokenizer(CHARACTERS)
    tokenizer.chat_template, tokenizer.split_special_tokens = CHAT_TEMPLATE, True
    for name, beams in {"模型 greedy@1": 1, "beams": 3}.items():
        model = taught_model()
        model.generation_config.update(num_beams=beams, max_new_tokens=30, do_sample=False)
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def server(folders):
    """Serve a folder named by a relative path with a slash, blanks, Chinese and an @."""
    with serving(folders / "模型 greedy@1", "./模型 greedy@1/", folders, "模型 greedy@1") as server:
        yield server


def test_the_client_reads_what_generate_writes(server):
    for source in SOURCES:
        expected = server.written(source)
        assert server.ask(source) == expected
        assert server.stream(source) == expected
    assert len({server.ask(source) for source in SOURCES}) > 4
    assert server.client.completions.create(model=server.name, prompt="abc").choices[0].text == server.written("abc")
    assert server.client.responses.create(model=server.name, input="abc").output_text == server.written("abc")


def test_the_model_goes_by_what_was_typed_and_by_its_name(server):
    assert [model.id for model in server.client.models.list()] == ["模型 greedy@1"]
    for name in ("./模型 greedy@1/", "模型 greedy@1"):
        assert server.create("abc", model=name).model == "模型 greedy@1"


def test_requests_that_come_together_get_their_own_answers(server):
    expected = {source: server.written(source) for source in SOURCES}

    def both(source):
        return source, server.ask(source), server.stream(source)

    with ThreadPoolExecutor(8) as pool:
        for source, whole, streamed in pool.map(both, SOURCES * 3):
            assert whole == streamed == expected[source]


def test_bad_requests_raise_the_clients_own_errors_and_the_server_stays(server):
    for options, error, sentence in (
        ({"source": "a" * 300}, openai.BadRequestError, "has 301 tokens, and this server takes 64; shorten it"),
        ({"source": ""}, openai.BadRequestError, "The source text is empty; send a text."),
        ({"source": None}, openai.BadRequestError, "messages holds null where the source text is expected"),
        (
            {"source": "a", "model": "gpt"},
            openai.NotFoundError,
            "The model 'gpt' is not served here; use '模型 greedy@1'",
        ),
        ({"source": "a", "n": 3}, openai.BadRequestError, "n=3 is not something this server does"),
        (
            {"source": "a", "max_tokens": -1},
            openai.BadRequestError,
            "max_tokens=-1 must be a whole number from 1 to 64",
        ),
        ({"source": "a", "temperature": "x", "stream": True}, openai.BadRequestError, 'temperature="x" must be a numb'),
    ):
        with pytest.raises(error, match=re.escape(sentence)):
            server.create(**options)
    with pytest.raises(openai.BadRequestError) as raised:
        server.create("a" * 300)
    assert (raised.value.code, raised.value.param) == ("context_length_exceeded", "messages")
    assert server.ask("abc") == server.written("abc")


def test_a_reader_who_leaves_does_not_stop_the_others(server):
    forever = {"max_tokens": 64, "extra_body": {"logit_bias": {str(server.tokenizer.eos_token_id): -100}}}
    for _ in range(3):
        stream = server.create("abc", stream=True, **forever)
        next(iter(stream))
        stream.close()
    assert server.ask("abc") == server.written("abc")


def raw(server, *parts, end=True):
    """Send bytes as they are; return the first line of the answer."""
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port)), timeout=START_SECONDS) as connection:
        for part in parts:
            connection.sendall(part)
        if end:
            connection.shutdown(socket.SHUT_WR)
        return connection.makefile("rb").readline().decode("latin-1").strip()


POST = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
RAW = {
    "huge": (POST + b"Content-Length: 99999999999\r\n\r\n{}", "413"),
    "too many digits": (POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{}", "400"),
    "chunks": (POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", "400"),
    "no JSON": (POST + b"Content-Length: 2\r\n\r\n\xff\xfe", "400"),
    "gzip": (POST + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00", "400"),
    "odd path": (b"GET /%1b%5b2J%0aINFO:?\x7e HTTP/1.1\r\nHost: a\r\n\r\n", "404"),
    "bytes in the path": (b"GET /health?\xff\x9b2J HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
    "no HTTP": (b"\x16\x03\x01\x02\x00", "400"),
}


@pytest.mark.parametrize("name", RAW)
def test_bytes_that_are_no_request_are_refused(server, name):
    sent, status = RAW[name]
    assert raw(server, sent, end=False).startswith(f"HTTP/1.1 {status}")


def test_a_body_that_ends_early_leaves_the_server_standing(server):
    raw(server, POST + b"Content-Length: 100\r\n\r\n{")
    raw(server, POST + b"Transfer-Encoding: chunked\r\n\r\nff\r\n{")
    assert server.ask("abc") == server.written("abc")


def test_a_prompt_of_four_megabytes_holds_up_nobody(server):
    """It took 27 seconds on the event loop; here it is refused by its length."""
    with pytest.raises(openai.BadRequestError, match=r"has 4,000,000 characters, and this server takes 1,024: 64 tok"):
        server.client.completions.create(model=server.name, prompt="a" * 4_000_000)
    with pytest.raises(openai.APIStatusError, match=r"bytes, and this server takes 4,194,304; shorten it\.") as raised:
        server.client.completions.create(model=server.name, prompt="a" * 4_200_000)
    assert raised.value.status_code == 413


def test_the_readmes_example_runs(server, capsys):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "OpenAI(" in block]
    assert "http://127.0.0.1:8000/v1" in example
    example = example.replace("http://127.0.0.1:8000/v1", server.url).replace("seqloom-demo", server.name)
    exec(compile(example, "README.md", "exec"), {})
    expected = server.written("22 novembre 2026")
    assert capsys.readouterr().out == f"{expected}\n{expected}"


def test_sigterm_ends_it_as_done(folders):
    with serving(folders / "模型 greedy@1", "./模型 greedy@1/", folders, "模型 greedy@1") as server:
        sent, status = RAW["odd path"]
        assert raw(server, sent, end=False).startswith(f"HTTP/1.1 {status}")
        code, printed = server.end(signal.SIGTERM)
    assert code == 0, printed
    assert "Traceback" not in printed
    assert "Finished server process" in printed
    assert '"GET /%1B%5B2J%0AINFO%3A?~ HTTP/1.1" 404' in printed
    assert "\x1b" not in printed


def test_ctrl_c_ends_a_server_of_beams_after_the_answer_in_work(folders):
    with serving(folders / "beams", str(folders / "beams"), "/", "beams") as server:
        for source in SOURCES[:4]:
            assert server.ask(source) == server.stream(source) == server.written(source)
        answer = iter(server.create("ponmlkjihgfedcba", stream=True))
        next(answer)  # the role, sent before the search
        code, printed = server.end(signal.SIGINT)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in answer) == server.written("ponmlkjihgfedcba")
        assert code == 0, printed
        assert "Traceback" not in printed


def waiting_or_running(server):
    text = urllib.request.urlopen(server.url.replace("/v1", "/metrics"), timeout=START_SECONDS).read().decode()
    return sum(float(number) for number in re.findall(r"^seqloom_(?:waiting|running) (.+)$", text, re.MULTILINE))


def test_sigterm_loses_nothing_that_was_accepted(folders):
    """Whoever is answered while it ends gets the whole answer, all others are told to come again."""
    with serving(folders / "beams", str(folders / "beams"), "/", "beams") as server, ThreadPoolExecutor(24) as pool:
        expected = {source: server.written(source) for source in SOURCES}
        accepted, ended = 0, threading.Event()

        def ask(source):
            outcomes = []
            while True:
                try:
                    outcomes.append(server.ask(source, timeout=END_SECONDS) == expected[source])
                except openai.InternalServerError as error:
                    return [*outcomes, error.status_code]
                except openai.APIConnectionError:
                    return [*outcomes, ended.is_set()]  # nobody listens any more

        asking = [pool.submit(ask, source) for source in SOURCES * 3]
        deadline = time.monotonic() + END_SECONDS
        while accepted < 12 and time.monotonic() < deadline:
            accepted = waiting_or_running(server)
        ended.set()
        code, printed = server.end(signal.SIGTERM)
        outcomes = [outcome for future in asking for outcome in future.result()]
    assert accepted >= 12, "many are asked for at once, before it is told to end"
    assert code == 0, printed
    assert set(outcomes) <= {True, 503}, "no answer is half of one, and no accepted request is cut off"
    assert printed.count('"POST /v1/chat/completions HTTP/1.1" 200') >= accepted
    assert "Traceback" not in printed


def test_the_other_engine_answers_the_same_from_an_export_of_its_own(folders, tmp_path, monkeypatch):
    pytest.importorskip("ctranslate2")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    typed = str(folders / "模型 greedy@1")
    with serving(Path(typed), typed, "/", "模型 greedy@1", "--engine", "ctranslate2") as server:
        for source in SOURCES:
            assert server.ask(source) == server.stream(source) == server.written(source)
        code, printed = server.end(signal.SIGTERM)
    assert (code, "Traceback" in printed) == (0, False)
    assert len([*tmp_path.glob("seqloom/模型 greedy@1-ctranslate2-float32-*/seqloom_export.json")]) == 1
