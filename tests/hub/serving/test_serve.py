"""`seqloom serve` before it serves: every way not to start says so in a sentence, and nothing is loaded for it."""

import asyncio
import json
import logging
import re
import shutil
import signal
import socket

import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount
from transformers import GenerationConfig

from seqloom.hub.loading import answer_length
from seqloom.hub.serving import connection, serve
from seqloom.hub.serving.serve import (
    limits_of,
    load_service,
    names_of,
    open_socket,
    read_config,
    serve_folder,
)
from seqloom_cli import verbs


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model, char_tokenizer):
    path = tmp_path_factory.mktemp("folder") / "模型"
    tiny_model().save_pretrained(path)
    char_tokenizer("abc").save_pretrained(path)
    return path


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture
def unloaded(monkeypatch):
    """Fail if weights are read or a server starts."""
    monkeypatch.setattr(serve, "load_service", pytest.fail)
    monkeypatch.setattr(serve, "listening", pytest.fail)


def raise_(error):
    """Return a function that raises."""

    def function(*args, **kwargs):
        raise error

    return function


def fails(line, capsys):
    """Return what a command line that cannot work says."""
    assert verbs.main(line) in (1, 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


DEFAULTS = {"engine": "torch", "quantization": "float32", "max_waiting": 256}


def test_the_command_hands_over_its_flags(monkeypatch):
    calls = []
    monkeypatch.setattr(serve, "serve_folder", lambda folder, **options: calls.append((folder, options)))
    assert verbs.main(["serve", "dir/"]) == 0
    assert verbs.main("serve dir --host ::1 --port 0 --max-tokens 9".split()) == 0
    other = {"engine": "ctranslate2", "quantization": "int8", "max_waiting": 7}
    assert verbs.main("serve dir --engine ctranslate2 --quantization int8 --max-waiting 7".split()) == 0
    assert calls == [
        ("dir/", {**DEFAULTS, "host": "127.0.0.1", "port": 8000, "max_tokens": None}),
        ("dir", {**DEFAULTS, "host": "::1", "port": 0, "max_tokens": 9}),
        ("dir", {"host": "127.0.0.1", "port": 8000, "max_tokens": None, **other}),
    ]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("serve", "the following arguments are required: FOLDER; "),
        ("serve dir --port 65536", "argument --port: '65536' must be a whole number from 0 to 65535; "),
        ("serve dir --port x", "argument --port: 'x' must be a whole number from 0 to 65535; "),
        ("serve dir --max_tokens 0", "argument --max_tokens/--max-tokens: '0' must be a whole number of at least 1; "),
        ("serve dir --prot 1", "--prot is not an argument of seqloom serve; did you mean --port?"),
        (
            "serve dir --quantization int8",
            "--quantization int8 is of CTranslate2's weights, and torch takes the",
        ),
        ("serve nowhere", "nowhere holds no config.json; name "),
    ],
)
def test_a_wrong_command_is_one_line(line, sentence, capsys, unloaded):
    assert fails(line.split(), capsys).startswith(sentence)


def test_the_missing_extra_is_named(folder, monkeypatch, capsys, unloaded):
    monkeypatch.setattr(serve, "NEEDED", ("uvicorn", "no_such_package"))
    expected = 'seqloom serve needs no_such_package; pip install "seqloom[serving]" brings it all.\n'
    assert fails(["serve", str(folder)], capsys) == expected


def test_a_folder_that_is_none_of_ours_is_refused(copy, capsys, unloaded):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "marian"}))
    assert "holds a model of type marian, not seqloom; transformers serve serves those." in fails(
        ["serve", str(copy)], capsys
    )
    (copy / "config.json").write_text("{")
    assert "config.json" in fails(["serve", str(copy)], capsys)


def test_a_folder_without_a_tokenizer_is_refused(copy, capsys, unloaded):
    (copy / "tokenizer.json").unlink()
    assert f"{copy} holds no tokenizer.json; name the folder that" in fails(["serve", str(copy)], capsys)


def test_a_dangerous_folder_is_refused(copy, capsys, unloaded):
    (copy / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    assert "pytorch_model.bin" in fails(["serve", str(copy)], capsys)


def test_missing_or_broken_weights_end_the_command(copy, capsys):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    assert fails(["serve", str(copy), "--port", "0"], capsys) == (
        f"{weights}: no whole safetensors file: it does not begin as a safetensors file; get it anew, or save the "
        "model again.\n"
    )
    weights.unlink()
    expected = re.escape(f"The model in {copy} cannot be read (") + r".+\); copy the folder again\.\n"
    assert re.fullmatch(expected, fails(["serve", str(copy), "--port", "0"], capsys))


def test_a_port_in_use_is_found_before_anything_is_loaded(folder, capsys, unloaded):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        expected = (
            f"Port {port} of 127.0.0.1 is in use; choose another one with --port N, or any free one with --port 0.\n"
        )
        assert fails(["serve", str(folder), "--port", port], capsys) == expected


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host"])
def test_a_foreign_address_is_refused(host, monkeypatch):
    if not host[0].isdecimal():  # no name server is asked
        monkeypatch.setattr(socket, "getaddrinfo", raise_(socket.gaierror(-2, "Name or service not known")))
    with pytest.raises(ValueError, match=f"--host {host} is no address of this machine .*; use 127.0.0.1, or 0.0.0.0 "):
        open_socket(host, 0)


def test_a_reserved_port_is_named(monkeypatch):
    monkeypatch.setattr(socket, "create_server", raise_(PermissionError(13, "Permission denied")))
    with pytest.raises(
        ValueError, match=r"Port 80 of 127.0.0.1 is reserved for the system; choose one above 1023 with"
    ):
        open_socket("127.0.0.1", 80)


def test_only_an_open_address_is_warned_about(capsys):
    with open_socket("127.0.0.1", 0) as listener:
        serve._announce("name", listener)
        captured = capsys.readouterr()
        assert captured.err == ""
        assert captured.out == f"Serving name at http://127.0.0.1:{listener.getsockname()[1]}/v1; Ctrl-C ends it.\n"
    with open_socket("0.0.0.0", 0) as listener:
        serve._announce("name", listener)
        assert (
            capsys.readouterr().err == "Whoever reaches 0.0.0.0 can use the model: the server asks for no password.\n"
        )


def test_a_folder_goes_by_its_name_and_by_every_path_to_it(tmp_path, monkeypatch):
    (tmp_path / "模型 a@b").mkdir()
    monkeypatch.chdir(tmp_path)
    for typed in ("模型 a@b", "模型 a@b/", "./模型 a@b", str(tmp_path / "模型 a@b"), f"{tmp_path}/模型 a@b//"):
        names = names_of(typed)
        assert names[0] == "模型 a@b"
        assert {typed, typed.rstrip("/"), str(tmp_path / "模型 a@b")} <= set(names)
    monkeypatch.chdir("模型 a@b")
    assert names_of(".") == ("模型 a@b", ".", str(tmp_path / "模型 a@b"))


def test_limits_come_from_positions_answers_and_the_user(folder, tiny_config):
    assert limits_of(tiny_config(), folder, 9).max_tokens == 9
    assert limits_of(tiny_config(), folder, None).max_tokens == 256  # the fallback for answers, above 64 positions
    assert limits_of(tiny_config(max_position_embeddings=1024), folder, None).max_tokens == 1024
    learned = tiny_config(position_embedding_type="learned")
    assert limits_of(learned, folder, None).max_tokens == 64
    assert "--max_tokens" in limits_of(tiny_config(), folder, None).remedy
    assert "--max_tokens" not in limits_of(learned, folder, None).remedy
    with pytest.raises(ValueError, match=r"--max_tokens 65 is more than the 64 positions that .* has learned; use 64"):
        limits_of(learned, folder, 65)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({"max_new_tokens": 7}, 7), ({"max_length": 7}, 6), ({"max_length": 7, "max_new_tokens": 9}, 9), ({}, 256)],
)
def test_answers_are_as_long_as_the_folder_says(fields, expected):
    assert answer_length(GenerationConfig(**fields)) == expected


def test_what_an_export_cannot_compute_is_said(copy, caplog):
    limits = limits_of(read_config(copy), copy, 1_000_000)
    assert load_service(copy, limits).limits.max_tokens == 1_000_000
    service = load_service(copy, limits, engine="ctranslate2")
    assert service.limits.max_tokens < 1_000_000
    assert f"max_tokens=1000000 is lowered to {service.limits.max_tokens}, the positions that the" in caplog.text
    assert service.limits.remedy == "shorten it, or serve with --engine torch"


def test_the_folders_settings_stay_and_its_length_fits_the_limit(copy):
    GenerationConfig(max_length=40, num_beams=3, suppress_tokens=[3], decoder_start_token_id=1).save_pretrained(copy)
    config = read_config(copy)
    service = load_service(copy, limits_of(config, copy, None))
    generation = service.generation_config
    assert (generation.max_new_tokens, generation.max_length) == (39, None)
    assert (generation.num_beams, generation.suppress_tokens) == (3, [3])
    assert load_service(copy, limits_of(config, copy, 20)).generation_config.max_new_tokens == 20


def test_serve_folder_raises_for_python_callers_too(tmp_path):
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        serve_folder(tmp_path)


def test_a_chat_template_that_cannot_be_rendered_is_refused_and_the_advice_helps(copy, capsys, monkeypatch):
    monkeypatch.setattr(serve, "_set_up_log", lambda: None)
    monkeypatch.setattr(serve, "_announce", lambda *_: signal.raise_signal(signal.SIGTERM))
    template = copy / "chat_template.jinja"
    template.write_text("{% for a in range(99999) %}{{ 'x' * 99999 }}{% endfor %}")
    assert fails(["serve", str(copy), "--port", "0"], capsys) == (
        f"{template}: a chat template that is not done with a conversation of four messages: it writes more than "
        "1,048,576 characters; delete the template, or get the folder anew.\n"
    )
    template.write_text("{{ nothing.of.that }}")
    assert fails(["serve", str(copy), "--port", "0"], capsys).startswith(
        f"The chat template of {copy} cannot be used: "
    )
    template.unlink()
    assert verbs.main(["serve", str(copy), "--port", "0"]) == 0


def test_nothing_in_the_log_moves_a_cursor_or_begins_a_line(capsys):
    before = {name: vars(logging.getLogger(name)).copy() for name in ("uvicorn", "seqloom")}
    try:
        serve._set_up_log()
        logging.getLogger("uvicorn.access").info('%s - "GET %s"', "host", "/\x1b[2J\r\nINFO: forged\u202e")
        try:
            raise ValueError("\x1b[2J")
        except ValueError:
            logging.getLogger("seqloom.hub").exception("It failed: %s", "\x9b2J")
        logging.getLogger("uvicorn.error").debug("unseen")
    finally:
        for name, fields in before.items():
            vars(logging.getLogger(name)).update(fields)
    first, second, *traceback = capsys.readouterr().err.splitlines()
    assert first == r'INFO: host - "GET /\x1b[2J\r\nINFO: forged\u202e"'
    assert second == r"ERROR: It failed: \x9b2J"
    assert traceback[0] == "Traceback (most recent call last):"
    assert traceback[-1] == r"ValueError: \x1b[2J"


def test_half_a_head_ends_and_a_long_answer_does_not(monkeypatch):
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)

    async def slow(scope, receive, send):
        await asyncio.sleep(1)
        await Response("done")(scope, receive, send)

    request = b"GET / HTTP/1.1\r\nHost: a\r\n"
    with open_socket(serve.HOST, 0) as listener, serve.listening(listener, Starlette(routes=[Mount("/", slow)])):
        sockets = [socket.create_connection(listener.getsockname(), timeout=30) for _ in range(4)]
        for client, sent in zip(sockets, (b"", request, request + b"\r\n", request + b"\r\n" + request), strict=True):
            client.sendall(sent)
        answers = [client.makefile("rb").read() for client in sockets]  # to its end
    assert answers[:2] == [b"", b""]
    assert [answer.count(b"200 OK") for answer in answers[2:]] == [1, 1]
