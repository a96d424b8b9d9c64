"""Files that nobody would train on: each is read, or refused in one paragraph that names it.

python -m tests.fuzz.fuzz_corpora --seconds 3600
"""

import gzip
import tempfile
from pathlib import Path
from unittest.mock import patch

import datasets
from hypothesis import strategies as st

from seqloom.training.reading.corpus import CorpusError, load_corpus
from tests.fuzz.fuzzing import fuzz, main

PIECES = [
    *(b"a\tb\n", b"source\ttarget\n", b"a,b\n", b'"a","b"\r\n', b'{"source": "a", "target": "b"}\n', b"text\n", b"\n"),
    *(
        b"\t",
        b'"',
        b"\r",
        b"\r\n",
        b"\x00",
        b"\xff",
        b"\xef\xbb\xbf",
        "今天\t天气\n".encode(),
        "\u2028\x85".encode(),
        b"\\",
    ),
    *(
        b'{"source": ' * 30,
        b"[" * 500,
        b'{"source": "\\ud800", "target": "b"}\n',
        b"1e999",
        b"PAR1",
        b"PK\x03\x04",
        b"\x1f\x8b",
    ),
]
NAMES = [
    "a.tsv",
    "a.csv",
    "a.jsonl",
    "a.json",
    "a.txt",
    "a.parquet",
    "a.tsv.gz",
    "a.csv.gz",
    "a.parquet.gz",
    "a",
    "a.zip",
]

contents = st.one_of(st.binary(max_size=80), st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join))
columns = st.one_of(
    st.none(), st.sampled_from([["source", "target"], ["1", "2"], ["2", "1"], ["a.b", "text"], ["", "\n"]])
)
corpora = st.tuples(
    st.lists(st.tuples(st.sampled_from(NAMES), contents, st.booleans()), min_size=1, max_size=2),
    columns,
    st.sampled_from(["pairs", "continuation"]),
    st.sampled_from(["train", "valid", "test"]),
)


def check(corpus: tuple[list[tuple[str, bytes, bool]], list[str] | None, str, str]) -> None:
    """Read one; whole rows come out, or a CorpusError that names a file."""
    files, names, task, split = corpus
    with tempfile.TemporaryDirectory() as folder, patch.object(datasets.config, "HF_DATASETS_CACHE", folder):
        paths = []
        for number, (name, content, packed) in enumerate(files):
            path = Path(folder) / f"{number}-{name}"
            path.write_bytes(gzip.compress(content) if packed else content)
            paths.append(str(path))
        wanted = names if names is None or task == "pairs" else names[:1]
        try:
            loaded = load_corpus(paths, columns=wanted, task=task, split=split)
        except CorpusError as error:
            refused = str(error)
        else:
            assert len(loaded) == loaded.facts.num_rows > 0
            assert all(isinstance(text, str) and text.strip() for row in loaded.dataset for text in row.values())
            return
    assert len(refused) > 20
    assert "\n" not in refused, "one paragraph"


def run(*, seconds: float | None = None, examples: int = 300) -> int:
    """Fuzz; see `fuzz`."""
    return fuzz(check, corpora, seconds=seconds, examples=examples)


if __name__ == "__main__":
    main(run)
