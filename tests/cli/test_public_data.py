"""`seqloom data`: what is fetched, what is made of it, and what a person is told when it cannot be had.

The server is on loopback and its corpus is small; of the real ones the table is looked at, and what the recipes name.
"""

import gzip
import hashlib
import json
import re
import shlex
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from seqloom.configuration.recipe_layers import resolve_recipe, shipped_recipes
from seqloom.training.reading.text_file import CorpusError, FileFacts
from seqloom_cli import public_data
from seqloom_cli.public_data import CORPORA, Corpus, Output
from seqloom_cli.verbs import main

PLACE = f"someone/something/{'0123456789' * 4}"
PAIRS, WORDS = f"{PLACE}/a/pairs.txt", f"{PLACE}/b/words.tsv.gz"


LOWER, UPPER, SOUNDS = b"a\tb\nc\td\n", b"A\tB\nC\tD\n", "Haus\th aʊ s\n".encode()


def upper(text: str) -> str:
    return text.upper()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Mirror:
    """Files under a base address, and the paths that were asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, asked = folder, []

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                asked.append(self.path)

        self.asked: list[str] = asked
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def put(self, address: str, content: bytes) -> None:
        path = self.folder / address
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """Serve a corpus of two files, `toy`, and stand in an empty folder."""
    served = Mirror(tmp_path / "mirror")
    monkeypatch.setenv("SEQLOOM_DATA_MIRROR", f"{served.url}/")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    words = gzip.compress(SOUNDS)
    served.put(PAIRS, LOWER)
    served.put(WORDS, words)
    outputs = {
        "train.tsv.gz": Output((PAIRS,), upper, sha256(UPPER)),
        "more/test.tsv.gz": Output((WORDS,)),
    }
    toy = Corpus("Toy text.", "CC0, by Nobody.", "Official.", outputs, "seqloom train --recipe toy")
    monkeypatch.setitem(CORPORA, "toy", toy)
    known = {PAIRS: sha256(LOWER), WORDS: sha256(words)}
    monkeypatch.setattr(public_data, "digests", lambda: known)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    yield served
    served.server.shutdown()
    served.server.server_close()


def unpacked(path: str) -> bytes:
    return gzip.decompress(Path(path).read_bytes())


def complaint(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(shlex.split(line)) == 1
    return capsys.readouterr().err.splitlines()[-1]


def test_a_corpus_is_fetched_made_and_described(mirror: Mirror, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "toy"]) == 0
    assert unpacked("data/toy/train.tsv.gz") == UPPER
    assert unpacked("data/toy/more/test.tsv.gz") == SOUNDS
    said = capsys.readouterr().out
    assert "data/toy/train.tsv.gz  2 rows\n" in said
    assert "Licence: CC0, by Nobody.\n" in said
    assert said.endswith("Use: seqloom train --recipe toy\n")
    note = Path("data/toy/SOURCE.md").read_text(encoding="utf-8")
    assert f"https://github.com/someone/something/tree/{PLACE[-40:]}\n" in note
    assert f"| more/test.tsv.gz | 1 | {sha256(SOUNDS)} |" in note
    assert "CC0, by Nobody." in note
    assert not list(Path("data").rglob("*.part"))


def test_what_is_there_is_not_fetched_again(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["data", "toy"]) == 0
    assert len(mirror.asked) == 2
    before = Path("data/toy/train.tsv.gz").read_bytes()
    Path("data/toy/train.tsv.gz").unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["data", "toy"]) == 0
    assert Path("data/toy/train.tsv.gz").read_bytes() == before
    assert len(mirror.asked) == 2


def test_a_damaged_download_is_fetched_again(mirror: Mirror) -> None:
    assert main(["data", "toy", "-o", "there"]) == 0
    Path("there/downloads/a/pairs.txt").write_text("a\tb\n")
    assert main(["data", "toy", "-o", "there"]) == 0
    assert Path("there/downloads/a/pairs.txt").read_bytes() == LOWER
    assert [path for path in mirror.asked if path.endswith("pairs.txt")] == [f"/{PAIRS}"] * 2


REMEDY = (
    f"Save https://raw.githubusercontent.com/{PAIRS} by other means as data/toy/downloads/a/pairs.txt and run the "
    "command again, or let SEQLOOM_DATA_MIRROR name a server that has it."
)


def test_offline(mirror: Mirror, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    url = f"{mirror.url}/{PAIRS}"
    assert complaint("data toy", capsys) == f"HF_HUB_OFFLINE=1 forbids to fetch {url}; unset it. Or: {REMEDY}"


def test_the_remedy_works(mirror: Mirror, capsys: pytest.CaptureFixture[str]) -> None:
    content = (mirror.folder / PAIRS).read_bytes()
    (mirror.folder / PAIRS).unlink()
    url = f"{mirror.url}/{PAIRS}"
    assert complaint("data toy", capsys) == f"{url} answers 404 instead of the file. {REMEDY}"
    by_hand = Path("data/toy/downloads/a/pairs.txt")
    by_hand.parent.mkdir(parents=True)
    by_hand.write_bytes(b"<html>a page about the file</html>")
    assert f"What lies at {by_hand} is not that file: its digest is another. {REMEDY}" in complaint("data toy", capsys)
    by_hand.write_bytes(content)
    assert main(["data", "toy"]) == 0


def test_nobody_answers(mirror: Mirror, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQLOOM_DATA_MIRROR", "http://127.0.0.1:1")
    said = complaint("data toy", capsys)
    assert said.startswith(f"http://127.0.0.1:1/{PAIRS} cannot be reached (")
    assert said.endswith(f"). {REMEDY}")


def test_another_content_is_not_written(mirror: Mirror, capsys: pytest.CaptureFixture[str]) -> None:
    mirror.put(PAIRS, b"<html>log in, please</html>")
    said = complaint("data toy", capsys)
    known = public_data.digests()[PAIRS]
    assert f"holds 27 bytes that are not the file of this address: its digest is {known}." in said
    assert said.endswith(REMEDY)
    assert not Path("data").exists()


@pytest.mark.parametrize(
    "content", [gzip.compress(b"mine\n"), b"mine", gzip.compress(UPPER)[:-9]], ids=["whole", "plain", "cut"]
)
def test_a_file_of_somebody_is_kept(mirror: Mirror, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    mine = Path("my data/train.tsv.gz")
    mine.parent.mkdir()
    mine.write_bytes(content)
    said = complaint("data toy -o 'my data'", capsys)
    assert said.startswith(
        "my data/train.tsv.gz exists and holds something else, which is not overwritten: move it away"
    )
    assert mine.read_bytes() == content
    assert not Path("my data/more").exists()
    assert main(shlex.split(said.rpartition("seqloom ")[2])) == 0


def test_what_is_made_is_held_against_its_digest(
    mirror: Mirror, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Output((PAIRS,), str.swapcase, "0" * 64)
    monkeypatch.setitem(CORPORA, "toy", Corpus("", "", "", {"train.tsv.gz": wrong}, ""))
    said = complaint("data toy", capsys)
    assert said.startswith(f"train.tsv.gz was made with SHA-256 {sha256(UPPER)} and should have 0000")
    assert not Path("data/toy/train.tsv.gz").exists()


@pytest.mark.parametrize(
    ("name", "hint"), [("scn", "did you mean scan?"), ("wmt14", "there are cogs, cogs-gen, g2p-cmudict")]
)
def test_an_unknown_name(name: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(f"data {name}", capsys)
    assert said.startswith(f"{name} is no corpus that seqloom data knows; {hint}")


@pytest.mark.parametrize("line", ["data", "data --list"])
def test_the_list(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 0
    said = capsys.readouterr().out
    assert [each for each in said.splitlines() if not each.startswith(" ")] == list(CORPORA)
    assert said.count("Licence: ") == len(CORPORA)


def test_a_digest_of_git() -> None:
    """Of Pro Git, 10.2: echo 'test content' | git hash-object -w --stdin."""
    assert public_data._is_right(b"test content\n", "d670460b4b4aece5915caf5c68d12f560a9fe3e4")
    assert not public_data._is_right(b"test content", "d670460b4b4aece5915caf5c68d12f560a9fe3e4")


# the real corpora -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CORPORA)
def test_an_entry_is_complete(name: str) -> None:
    corpus = CORPORA[name]
    assert all((corpus.about, corpus.licence, corpus.split))
    for address in corpus.sources:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+/[0-9a-f]{40}(/[\w.-]+)+", address)
        assert re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", public_data.digests()[address])
    downloads = {address.split("/", 3)[3] for address in corpus.sources}
    assert len(downloads) == len(corpus.sources)
    for file, output in corpus.outputs.items():
        assert file.endswith(".gz")
        if output.make is None:
            assert (len(output.sources), output.sha256) == (1, None)
        else:
            assert re.fullmatch(r"[0-9a-f]{64}", output.sha256 or "")
    words = corpus.use.split()
    assert words[:3] == ["seqloom", "train", "--recipe"]
    assert words[3] in shipped_recipes()


def test_every_digest_belongs_to_a_corpus() -> None:
    assert set(public_data.digests()) == {address for corpus in CORPORA.values() for address in corpus.sources}


@pytest.mark.parametrize("name", sorted({*shipped_recipes()} - {"demo"}))
def test_what_a_recipe_reads_is_made_by_a_command(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = resolve_recipe(name)
    assert recipe.train
    assert recipe.test
    for path in (*recipe.train, *recipe.valid, *recipe.test):
        corpus = Path(path).parts[1]
        assert path.removeprefix(f"data/{corpus}/") in CORPORA[corpus].outputs
        with pytest.raises(CorpusError) as raised:
            FileFacts.of(path)
        command = f"seqloom data {corpus}"
        assert str(raised.value) == f"{path} does not exist; `{command}` fetches its public corpus and writes it."


@pytest.mark.parametrize(
    ("path", "command"),
    [
        ("./data/scan/train.tsv.gz", "seqloom data scan"),
        ("/some where/scan/train.tsv.gz", "seqloom data scan -o '/some where/scan'"),
        ("multi30k/tok/train.en.gz", "seqloom data multi30k -o multi30k"),
        ("data/scan/train.tsv", ""),
        ("data/scandal/train.tsv.gz", ""),
        ("data/my-scan/train.tsv.gz", ""),
    ],
)
def test_which_command_makes_a_file(path: str, command: str) -> None:
    assert public_data.how_to_make(path) == command


def test_scan_becomes_rows_and_no_command_stands_in_two_parts() -> None:
    commands = [f"jump {number}" for number in range(300)]
    text = "".join(f"IN: {command} OUT: I_JUMP I_JUMP\n" for command in commands)
    outputs = CORPORA["scan"].outputs
    train, valid, test = (
        outputs[f"{part}.tsv.gz"].make(text).splitlines()  # type: ignore[misc]
        for part in ("train", "valid", "test")
    )
    assert test == [f"{command}\tI_JUMP I_JUMP" for command in commands]
    assert sorted(train + valid) == sorted(test)
    assert 0 < len(valid) < 40


def test_a_word_of_cmudict_stays_with_all_its_pronunciations() -> None:
    text = "".join(f"W{number}\tAH\nW{number}\tEH\n" for number in range(400))
    outputs = CORPORA["g2p-cmudict"].outputs
    train, valid = (outputs[f"{part}.tsv.gz"].make(text).splitlines() for part in ("train", "valid"))  # type: ignore[misc]
    assert sorted(train + valid) == sorted(text.splitlines())
    words = {row.split("\t")[0] for row in valid}
    assert 2 * len(words) == len(valid) > 0


def test_a_chinese_text_is_kept_once_and_a_dialogue_stays_whole() -> None:
    tatoeba = "".join(f"It is {n}.\t现在是第{n}个。\tCC-BY\n" for n in range(200)) + "Hi.\t嗨。\tCC-BY\n\n"
    told = [{"messages": [{"message": "你好，请问。"}, {"message": f"第{n}句话吧。"}]} for n in range(200)]
    outputs = CORPORA["zh-continuation"].outputs
    parts = {
        name: [json.loads(line) for line in output.make(tatoeba, json.dumps(told), "[]").splitlines()]  # type: ignore[misc]
        for name, output in outputs.items()
    }
    texts = [row["text"] for rows in parts.values() for row in rows]
    assert sorted(texts) == sorted(
        {f"现在是第{n}个。" for n in range(200)} | {f"第{n}句话吧。" for n in range(200)} | {"你好，请问。"}
    )
    assert {"text": "你好，请问。", "source": "kdconv"} in parts["train.jsonl.gz"]
    assert min(len(rows) for rows in parts.values()) > 0
