"""Requests that nobody means well by: whatever JSON allows, and bytes that are no JSON at all, sent to a real server.

    python -m tests.fuzz.fuzz_requests --seconds 3600
    python -m tests.fuzz.fuzz_requests --examples 10000

Every one has to be answered, or refused with a 4xx in OpenAI's words; a 5xx, or an error within a stream, is a find.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

import seqloom
from seqloom.hub.serving import chat_request, chat_server
from seqloom.hub.serving.serve import limits_of, load_service, read_config
from seqloom.training.tokenizer import train_tokenizer
from tests.toy import TINY

MAX_TOKENS = 8
"""Answers are short: what is looked for is not in their length."""

STATUSES = {200, 400, 404, 405, 408, 413, 415, 422}

ERROR_EVENTS = ('data: {"error"', '"type": "error"', '"response.failed"')
"""How the doors write an error into a stream that has begun."""

BATCH = 500
"""Examples between two looks at the clock."""

# Requests as text: JSON's own writer knows neither a name twice nor 1e400 ---------------------------------------------

KINDS = {"/v1/chat/completions": "chat", "/v1/completions": "completion", "/v1/responses": "response"}
FIELDS = sorted({"model", "stream", *chat_request.OPENAI_FIELDS, *chat_request.NOT_DONE, *chat_request.WITHOUT_EFFECT})
ROUTES = [*KINDS, "/load_model"]
SOURCES = {route: chat_request.SOURCE_FIELD[kind] for route, kind in KINDS.items()}

NUMBERS = (
    st.sampled_from(
        "0 -0 -0.0 1 -1 2 64 65 0.5 1e-320 5e-324 1e-6 9.9e-7 1e-45 1e38 1e39 1.7976931348623157e308 1e400 -1e400"
        " 1e-400 1e9 1000000000 2147483647 2147483648 9223372036854775807 9223372036854775808 -9223372036854775809"
        " 18446744073709551616 NaN Infinity -Infinity 01 1. .5 0x10 5 -5 -100 100 -99.999 0.01 10 0.999999".split()
    )
    | st.sampled_from([309, 401, 4300, 4301, 5000]).map(lambda length: "9" * length)
    | st.sampled_from(["-" + "9" * 5000, "0." + "0" * 400 + "1", "1" + "0" * 400 + ".0"])
    | st.floats().map(json.dumps)
    | st.integers().map(str)
)
ODD_TEXTS = 'a|abc|user|text|input_text|{}|</s>|<s>|天气🙂|"|\\|x\0|\x1b[2J|\u202e|\ufffd| |e\u0301|\r\n\r\ndata: {}'
TEXTS = (
    st.text(max_size=12).map(json.dumps)
    | st.text(st.characters(codec=None), max_size=6).map(json.dumps)
    | st.sampled_from(["", *ODD_TEXTS.split("|"), "a" * 200, "a" * 201, "x" * 3000]).map(json.dumps)
    | st.sampled_from([r'"\ud83d"', r'"\udc00"', r'"a\ud83d\ud83db"', '"\x01"', '"', r'"\u12"', r'"\x41"', "'a'"])
)
SCALARS = NUMBERS | TEXTS | st.sampled_from("true false null True None undefined".split())
NAMES = (
    st.sampled_from(
        [
            json.dumps(name)
            for name in ("role", "content", "type", "text", "4", "0", "299", "300", "-1", "1e1", "", "９")
        ]
    )
    | TEXTS
)


def _list(items: list[str]) -> str:
    return f"[{','.join(items)}]"


def _object(pairs: list[tuple[str, str]]) -> str:
    return f"{{{','.join(f'{name}:{value}' for name, value in pairs)}}}"


VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4).map(_list) | st.lists(st.tuples(NAMES, inner), max_size=4).map(_object),
    max_leaves=6,
)
DEEP = st.tuples(st.sampled_from([("[", "]"), ('{"a":', "}")]), st.sampled_from([8, 31, 33, 64, 500, 990, 5000])).map(
    lambda drawn: drawn[0][0] * drawn[1] + "1" + drawn[0][1] * drawn[1]
)
ALLOWED = {
    **{name: [low, high] for name, (low, high) in chat_request._RANGES.items()},
    "temperature": [0, chat_request.MIN_TEMPERATURE, 1, chat_request.MAX_TEMPERATURE],
    "frequency_penalty": [-0.99, 2.0],
    "max_tokens": [1, MAX_TOKENS],
    "do_sample": [True, False],
    "stop": ["a", ["\ufffd"], ["a" * 200] * 16, ["\x00", "🙂"]],
    "logit_bias": [{str(number): bias for number in range(299)} for bias in (-100, 100)],
    "stream": [True, False],
}
"""Field -> the ends of what the server takes: arithmetic has to bear them in any company."""


@st.composite
def _allowed(draw: Any, names: set[str]) -> dict[str, Any]:
    known = sorted(names & set(ALLOWED))
    chosen = draw(st.sets(st.sampled_from(known), max_size=6)) if known else ()
    return {name: draw(st.sampled_from(ALLOWED[name])) for name in sorted(chosen)}


@st.composite
def bodies(draw: Any, route: str) -> bytes:
    """Draw what is sent: an object near to a good one, or anything else."""
    kind = draw(st.sampled_from(["near"] * 6 + ["any", "bytes"]))
    if kind == "bytes":
        return draw(st.binary(max_size=40) | st.sampled_from([b"\xef\xbb\xbf{}", "{}".encode("utf-16"), b" " * 5000]))
    if kind == "any":
        return draw(VALUES | DEEP).encode("utf-8", "surrogatepass")
    known = {*FIELDS, SOURCES[route], "generation_config"} if route in KINDS else {"model"}
    fields = {name: json.dumps(value) for name, value in draw(_allowed(known)).items()}
    if route in KINDS:
        text = draw(st.sampled_from(["abc", "the cat", "天气🙂", "a" * 300, "\0\x1b", " a\u2028b "]))
        good = [{"role": "user", "content": text}] if route == "/v1/chat/completions" else text
        fields[SOURCES[route]] = json.dumps(good)
        if draw(st.integers(0, 3)) == 0:
            fields["generation_config"] = json.dumps(json.dumps(draw(_allowed(set(chat_request.GENERATION_FIELDS)))))
    pairs = [(json.dumps(name), value) for name, value in fields.items()]
    for name in draw(st.lists(st.sampled_from(sorted(known)), max_size=2)):
        value = draw(VALUES | DEEP)
        pairs.append((json.dumps(name), json.dumps(value) if name == "generation_config" else value))
    body = _object(pairs).encode("utf-8", "surrogatepass")
    return body[: draw(st.integers(0, len(body)))] if draw(st.integers(0, 9)) == 0 else body


HEADERS = st.fixed_dictionaries(
    {
        "content-type": st.sampled_from(
            ["application/json"] * 9
            + ["Application/JSON; charset=latin-1", "text/plain", "", "application/x-www-form-u"]
        )
    },
    optional={
        "x-request-id": st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=9),
        "content-length": st.sampled_from(["0", "-1", "x", "99999999999999999999999", "\xb2", "9" * 5000]),
        "content-encoding": st.just("gzip"),
    },
).map(lambda headers: {name: value.encode("latin-1") for name, value in headers.items()})


# The server -----------------------------------------------------------------------------------------------------------


def make_client(folder: Path) -> TestClient:
    """Write a tiny model with random weights and serve it."""
    tokenizer = train_tokenizer(["the cat sat on the mat 今天的天气很好"] * 20, kind="bpe", vocab_size=300).source
    torch.manual_seed(0)
    fields = {**TINY, "vocab_size": len(tokenizer)}
    seqloom.SeqloomForConditionalGeneration(seqloom.SeqloomConfig(**fields)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    service = load_service(folder, limits_of(read_config(folder), folder, MAX_TOKENS))
    return TestClient(chat_server.build_app(service), raise_server_exceptions=False)


def check(response: Any) -> None:
    """Fail unless a request was answered or refused as it should be."""
    assert response.status_code in STATUSES, response.text
    if response.status_code != 200:
        error = response.json()["error"]
        assert error["message"].endswith((".", "?")), error
        assert len(error["message"]) < 1000
    assert not any(sign in response.text for sign in ERROR_EVENTS), response.text


def run(seconds: float | None, examples: int, *, counts: Counter[int] | None = None) -> int:
    """Send requests.

    Args:
        seconds: go on with other requests until they are over; None: `examples` that are the same each time.
        examples: how many, at most.
        counts: takes how often each status came.

    Returns:
        How many were sent.

    Raises:
        AssertionError: for one that was not answered as it should be, as small as Hypothesis can make it.
    """
    counts = Counter() if counts is None else counts
    end = None if seconds is None else time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        client = make_client(Path(folder))

        def send(data: Any) -> None:
            route = data.draw(st.sampled_from(ROUTES))
            response = client.post(route, content=data.draw(bodies(route)), headers=data.draw(HEADERS))
            counts[response.status_code] += 1
            check(response)

        while counts.total() < examples and (end is None or time.monotonic() < end):
            batch = examples if end is None else min(BATCH, examples - counts.total())
            attack = settings(
                max_examples=batch,
                deadline=None,
                database=None,
                derandomize=end is None,
                suppress_health_check=list(HealthCheck),
            )(given(data=st.data())(send))
            (attack if end is None else seed(time.time_ns())(attack))()
            if end is None:
                break
    return counts.total()


def main() -> None:
    """Run by hand."""
    disable_progress_bar()  # for the whole process, so not in `run`, which a test calls
    set_verbosity_error()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--examples", type=int, default=10**9)
    arguments = parser.parse_args()
    counts: Counter[int] = Counter()
    seconds = 1e9 if arguments.seconds is None else arguments.seconds
    print(f"{run(seconds, arguments.examples, counts=counts):,} requests; status: {dict(sorted(counts.items()))}")


if __name__ == "__main__":
    main()
