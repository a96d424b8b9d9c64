"""A share of the requests of tests/fuzz/fuzz_requests.py, the same each time."""

from collections import Counter

from tests.fuzz.fuzz_requests import run

EXAMPLES = 400


def test_no_request_brings_the_server_down():
    counts = Counter()
    assert run(None, EXAMPLES, counts=counts) >= EXAMPLES * 0.9
    assert counts[200] > EXAMPLES / 20, "the good ones reach the model"
    assert counts[400] > EXAMPLES / 5
    assert counts[415] > 0
