"""Columns and keys: what is read from a line, and what is written for it."""

import json

import pytest

from seqloom.hub.decoding.rows import Layout, RowError, format_of

OUTPUTS = [("A", -0.1), ("B", -0.2)]
PLAIN = [("A", None)]


def through(layout: Layout, lines: list[str], outputs=PLAIN, *, n_best: bool = False) -> list[str]:
    """Return header and lines of output."""
    layout, is_header = layout.with_first_line(lines[0])
    header = layout.header_line(n_best=2 if n_best else None, with_score=n_best)
    rows = [layout.parse(line, number) for number, line in enumerate(lines[is_header:], start=1 + is_header)]
    return (header + "".join(layout.render(row, outputs, n_best=n_best) for row in rows)).split("\n")[:-1]


def test_formats_go_by_the_name() -> None:
    names = ["a.tsv", "a.TSV.gz", "b.jsonl", "b.ndjson.gz", "b.json", "c.txt", "d", None]
    assert [format_of(name) for name in names] == ["tsv", "tsv", "jsonl", "jsonl", "jsonl", "text", "text", "text"]


@pytest.mark.parametrize(
    ("layout", "lines", "expected"),
    [
        (Layout("f"), ["a\tb"], ["A"]),
        (Layout("f", "tsv", "tsv"), ["a\tb"], ["a\tb\tA"]),
        (Layout("f", "tsv", "tsv", "2"), ["a\tb"], ["a\tb\tA"]),
        (Layout("f", "tsv", "tsv"), ["id\tsource", "1\ta"], ["id\tsource\toutput", "1\ta\tA"]),
        (Layout("f", "tsv", "tsv", "de"), ["id\tde", "1\ta"], ["id\tde\toutput", "1\ta\tA"]),
        (Layout("f", "tsv", "tsv", "de"), ["de\toutput\tn", "a\tB\t1"], ["de\tn\toutput", "a\t1\tA"]),
        (Layout("f", "tsv", "tsv", "de"), ["de\tscore", "a\t7", ""], ["de\tscore\toutput", "a\t7\tA", "\t\tA"]),
        (Layout("f", "tsv", "text", "de"), ["id\tde", "1\ta"], ["A"]),
        (Layout("f", "tsv", "jsonl", "de"), ["id\tde", "1\ta"], ['{"id": "1", "de": "a", "output": "A"}']),
        (Layout("f", "text", "tsv"), ["a\tb"], ["source\toutput", "a b\tA"]),
        (Layout("f", "text", "jsonl"), ["ä"], ['{"source": "ä", "output": "A"}']),
        (Layout("f", "jsonl", "jsonl"), ['{"source": "a", "n": 1}'], ['{"source": "a", "n": 1, "output": "A"}']),
        (Layout("f", "jsonl", "tsv"), ['{"source": "a\\nb"}'], ["source\toutput", "a b\tA"]),
        (Layout("f", "jsonl", "text", "t.de"), ['{"t": {"de": "a"}}'], ["A"]),
    ],
)
def test_lines_in_and_out(layout: Layout, lines: list[str], expected: list[str]) -> None:
    assert through(layout, lines) == expected


def test_several_outputs() -> None:
    assert through(Layout("f"), ["a"], OUTPUTS, n_best=True) == ["-0.1000\tA", "-0.2000\tB"]
    rows = through(Layout("f", "tsv", "tsv"), ["source", "a"], OUTPUTS, n_best=True)
    assert rows == ["source\toutput\tscore", "a\tA\t-0.1000", "a\tB\t-0.2000"]
    (line,) = through(Layout("f", "text", "jsonl"), ["a"], OUTPUTS, n_best=True)
    expected = [{"output": "A", "score": -0.1}, {"output": "B", "score": -0.2}]
    assert json.loads(line) == {"source": "a", "outputs": expected}


def test_the_right_column_is_read() -> None:
    layout, _ = Layout("f", "tsv", source="en", prefix="begin").with_first_line("begin\tde\ten")
    row = layout.parse("Ja\tja\tyes", 2)
    assert (row.source, row.prefix) == ("yes", "Ja")


@pytest.mark.parametrize(
    ("layout", "lines", "message"),
    [
        (Layout("f.tsv", "tsv", source="end"), ["de\ten", "a\tb"], "line 1 has no column 'end'; did you mean en"),
        (Layout("f.tsv", "tsv", source="3"), ["a\tb"], "line 1 has 2 columns, and '3' is number 3"),
        (Layout("f.tsv", "tsv", source="de"), ["en\tde", "a"], "line 2 has 1 columns and the first line 2; mend it"),
        (Layout("f.jsonl", "jsonl"), ["[1]"], "line 1 is no JSON object"),
        (Layout("f.jsonl", "jsonl"), ["{"], "line 1 is no JSON"),
        (Layout("f.jsonl", "jsonl"), ["[" * 100_000], "line 1 is no JSON"),
        (Layout("f.jsonl", "jsonl", source="t.en"), ['{"t": {"de": "a"}}'], "line 1 has no 't.en'; its keys: t"),
        (Layout("f.jsonl", "jsonl"), ['{"source": 1}'], "line 1 has 1 as 'source'; a source is a text"),
    ],
)
def test_a_line_that_does_not_fit_is_named(layout: Layout, lines: list[str], message: str) -> None:
    with pytest.raises(RowError, match=r"f\.\w+: ") as error:
        through(layout, lines)
    assert message in str(error.value)
