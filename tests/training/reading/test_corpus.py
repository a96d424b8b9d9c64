"""What `load_corpus` promises about good data: every format, exact alignment, a cache of content, and the facts."""

import ast
import gzip
import json
import logging
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from seqloom.training.reading import readers, sources, text_file
from seqloom.training.reading.corpus import Corpus, CorpusError, CorpusFacts, load_corpus
from tests.loopback_hub import LoopbackHub, Repository

PAIRS = [("Guten Tag", "Good day"), ("今天的天气很好", "The weather is fine today"), ("Wie geht's?", "How are you?")]
SOURCES, TARGETS = (list(side) for side in zip(*PAIRS))


@pytest.fixture
def load(tmp_path, monkeypatch):
    """`load_corpus` in an empty folder, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")

    def call(*paths, **options) -> Corpus:
        return load_corpus(paths, **options)

    return call


def write(name: str, content: str | bytes) -> str:
    data = content if isinstance(content, bytes) else content.encode()
    Path(name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return name


def write_lines(name: str, lines: list[str]) -> str:
    return write(name, "".join(f"{line}\n" for line in lines))


def rows(corpus: Corpus) -> list[tuple[str, ...]]:
    return [tuple(row.values()) for row in corpus.dataset]


class TestAlignedFiles:
    @pytest.mark.parametrize("names", [("a.de", "a.en"), ("a.de.gz", "a.en.gz"), ("a.de.gz", "a.en")])
    def test_line_i_belongs_to_line_i(self, load, names):
        corpus = load(write_lines(names[0], SOURCES), write_lines(names[1], TARGETS))
        assert rows(corpus) == PAIRS
        assert corpus.dataset.column_names == ["source", "target"]
        assert len(corpus) == corpus.facts.num_rows == 3

    def test_the_last_line_may_lack_its_line_end(self, load):
        assert rows(load(write("a.de", "eins\nzwei"), write("a.en", "one\ntwo\n"))) == [
            ("eins", "one"),
            ("zwei", "two"),
        ]

    def test_only_newline_ends_a_line(self, load):
        lines = ["a\u2028b", "c\x0bd", "e\x0cf", "g\rh", "i\x85j", "k\x1cl", "m\u2029n", "\tt ab\t"]
        assert rows(load(write_lines("a", lines), write_lines("b", lines))) == [(line, line) for line in lines]

    @settings(max_examples=50, deadline=None)
    @given(
        st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\0"), max_size=20), max_size=8)
    )
    @example(["\ufeff", "a\r\r", "", "b"])
    def test_any_text_comes_back_unchanged(self, tmp_path_factory, lines):
        """Each line is preceded by its number: so no line is blank and a lost line end would shift the numbers."""
        folder = tmp_path_factory.mktemp("text")
        wanted = [f"{number}{line}".rstrip("\r") for number, line in enumerate(["", *lines])]
        (folder / "a").write_bytes("".join(f"{line}\n" for line in wanted).encode())
        with patch.object(datasets.config, "HF_DATASETS_CACHE", folder):
            corpus = load_corpus(folder / "a", task="continuation")
        assert corpus.dataset["text"][:] == wanted

    def test_crlf_and_byte_order_mark_belong_to_the_file(self, load, caplog):
        with caplog.at_level(logging.INFO, "seqloom"):
            corpus = load(write("a.de", "\ufeffeins\r\nzwei\n\ufeffdrei\r\n"), write("a.en", "one\ntwo\nthree"))
        assert corpus.dataset["source"][:] == ["eins", "zwei", "\ufeffdrei"]
        source, target = corpus.facts.files
        assert (source.has_byte_order_mark, source.num_crlf_lines, source.num_lines) == (True, 2, 3)
        assert (target.has_byte_order_mark, target.num_crlf_lines, target.num_lines) == (False, 0, 3)
        assert "a.de: removed the byte order mark at its start." in caplog.messages
        assert "a.de: 2 lines end in CR LF; removed the CR." in caplog.messages

    def test_gzip_with_several_members(self, load):
        Path("a.gz").write_bytes(gzip.compress(b"eins\nzw") + gzip.compress(b"ei\n"))
        assert load("a.gz", task="continuation").dataset["text"][:] == ["eins", "zwei"]

    def test_lines_of_a_megabyte(self, load):
        long = "天气" * 500_000
        corpus = load(write_lines("a.gz", ["kurz", long, "kurz"]), write_lines("b", ["short", "long", "short"]))
        assert corpus.dataset[1] == {"source": long, "target": "long"}

    def test_long_lines_are_written_in_several_batches(self, load, monkeypatch):
        monkeypatch.setattr("seqloom.training.reading.corpus.WRITE_CHARACTERS", 10)
        lines = [f"Satz Nummer {number}" for number in range(20)]
        assert load(write_lines("a", lines), task="continuation").dataset["text"][:] == lines

    def test_columns_are_ignored_with_a_warning(self, load, caplog):
        load(write_lines("a", SOURCES), write_lines("b", TARGETS), columns=["de", "en"])
        load("a", task="continuation", columns=["de"])
        assert caplog.messages == [
            "`columns` is ignored: a and b are plain text without columns.",
            "`columns` is ignored: a is plain text without columns.",
        ]

    def test_one_file_on_both_sides_is_remarked(self, load, caplog):
        write_lines("a", SOURCES)
        load("a", "a")
        assert caplog.messages == ["a is both source and target: each target is its source."]


class TestFormats:
    @pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz"])
    @pytest.mark.parametrize("header", ["", "source\ttarget\n"])
    def test_tsv_with_and_without_header(self, load, name, header):
        assert rows(load(write(name, header + "".join(f"{s}\t{t}\n" for s, t in PAIRS)))) == PAIRS

    def test_tsv_with_more_columns(self, load):
        write("a.tsv", "eins\tone\tA\nzwei\ttwo\tB\n")
        assert rows(load("a.tsv")) == [("eins", "one"), ("zwei", "two")]
        assert rows(load("a.tsv", columns=["3", "1"])) == [("A", "eins"), ("B", "zwei")]
        assert rows(load("a.tsv", columns=["2"], task="continuation")) == [("one",), ("two",)]

    def test_tsv_columns_by_name(self, load):
        write("a.tsv", "id\ten\tde\n1\tone\teins\n")
        assert rows(load("a.tsv", columns=["de", "en"])) == [("eins", "one")]

    def test_quotes_in_tsv_are_characters(self, load):
        assert rows(load(write("a.tsv", '"eins\tone"\n"zwei\ttwo\n'))) == [('"eins', 'one"'), ('"zwei', "two")]

    @pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.ndjson"])
    def test_jsonl(self, load, name):
        lines = [json.dumps({"id": 1, "target": target, "source": source}) for source, target in PAIRS]
        assert rows(load(write_lines(name, lines))) == PAIRS

    def test_jsonl_nested(self, load):
        write_lines("a.jsonl", [json.dumps({"translation": {"de": s, "en": t}, "a.b": s}) for s, t in PAIRS])
        assert rows(load("a.jsonl", columns=["translation.de", "translation.en"])) == PAIRS
        assert rows(load("a.jsonl", columns=["a.b"], task="continuation")) == [(source,) for source in SOURCES]

    @pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
    def test_csv_with_line_breaks_commas_and_quotes(self, load, name):
        write(name, 'source,target\n"eins\nzwei","one\ntwo"\n"a, b","say ""c"""\n\nplain,text\n')
        assert rows(load(name)) == [("eins\nzwei", "one\ntwo"), ("a, b", 'say "c"'), ("plain", "text")]

    def test_csv_with_crlf_and_a_field_of_a_megabyte(self, load):
        write("a.csv", f"source,target\r\n{'x' * 1_000_000},y\r\n")
        assert rows(load("a.csv")) == [("x" * 1_000_000, "y")]

    def test_csv_without_header(self, load):
        assert rows(load(write("a.csv", "one,eins\n"), columns=["2", "1"])) == [("eins", "one")]

    def test_parquet(self, load):
        table = pa.table(
            {
                "source": pa.array(SOURCES).dictionary_encode(),
                "target": pa.array(TARGETS, pa.large_string()),
                "translation": [{"de": source, "en": target} for source, target in PAIRS],
            }
        )
        pyarrow.parquet.write_table(table, "a.parquet")
        assert rows(load("a.parquet")) == PAIRS
        assert rows(load("a.parquet", columns=["translation.de", "translation.en"])) == PAIRS
        assert load("a.parquet").facts.files[0].num_lines is None

    def test_nulls_in_parquet_are_blank(self, load):
        pyarrow.parquet.write_table(pa.table({"source": ["a", None, "c"], "target": ["x", "y", "z"]}), "a.parquet")
        corpus = load("a.parquet")
        assert rows(corpus) == [("a", "x"), ("c", "z")]
        assert corpus.facts.num_dropped == {"source blank": 1}

    @pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.zh", "a"])
    def test_plain_text_for_continuation(self, load, name):
        corpus = load(write_lines(name, ["a\tb", "今天的天气很好"]), task="continuation")
        assert rows(corpus) == [("a\tb",), ("今天的天气很好",)]
        assert corpus.dataset.column_names == ["text"]

    @pytest.mark.parametrize("name", ["a.tsv", "a.jsonl", "a.csv", "a.parquet"])
    def test_every_format_for_continuation(self, load, name):
        content = {"a.tsv": "text\tid\neins\t1\n", "a.jsonl": '{"text": "eins"}\n', "a.csv": "id,text\n1,eins\n"}
        if name in content:
            write(name, content[name])
        else:
            pyarrow.parquet.write_table(pa.table({"text": ["eins"]}), name)
        assert rows(load(name, task="continuation")) == [("eins",)]


class TestBlankRows:
    def test_are_dropped_as_wholes_and_counted(self, load, caplog):
        blanks = ["", " ", "\t", "\xa0", "\u3000", "\u200b", "\ufeff", "\x00", "\u2028"]
        source = ["first", *blanks, "x", "both", "last"]
        target = ["eins", *("y" for _ in blanks), "\u200b", "zwei", "drei"]
        corpus = load(write_lines("a", [*source, ""]), write_lines("b", [*target, " "]))
        assert rows(corpus) == [("first", "eins"), ("both", "zwei"), ("last", "drei")]
        assert corpus.facts.num_dropped == {"source blank": 9, "target blank": 1, "source and target blank": 1}
        assert corpus.facts.num_rows_read == 14
        assert caplog.messages == [
            "a + b: dropped 11 of 14 rows (9 source blank, 1 target blank, 1 source and target blank)."
        ]

    def test_blank_is_what_nobody_can_see(self):
        everything = (chr(code) for code in range(0x11_0000) if not 0xD800 <= code < 0xE000)
        assert [hex(ord(c)) for c in everything if c.isspace() and not text_file.is_blank(c)] == []
        assert not any(map(text_file.is_blank, "a今.\u0301\U0001f600\ue000"))

    @pytest.mark.parametrize("content", ["eins\tone\n\nzwei\ttwo\n \t\n", "eins\tone\nzwei\ttwo\n\n"])
    def test_blank_lines_in_tsv_are_no_rows(self, load, content):
        assert rows(load(write("a.tsv", content))) == [("eins", "one"), ("zwei", "two")]

    def test_a_test_split_needs_every_target(self, load):
        write("a.tsv", "eins\tone\nzwei\t\n\ndrei\t \n")
        assert rows(load("a.tsv", split="valid")) == [("eins", "one")]
        message = (
            r"a\.tsv: 2 of 4 lines must not be blank\. line 2: target blank; line 4: target blank\. The test split"
        )
        with pytest.raises(CorpusError, match=message):
            load("a.tsv", split="test")


class TestDataSets:
    @pytest.fixture
    def saved(self) -> datasets.DatasetDict:
        split = datasets.Dataset.from_dict({"source": SOURCES, "target": TARGETS, "id": [1, 2, 3]})
        nested = datasets.Dataset.from_dict({"translation": [{"de": s, "en": t} for s, t in PAIRS]})
        return datasets.DatasetDict({"train": split, "validation": split.select([2]), "nested": nested})

    @pytest.fixture
    def hub(self, saved, monkeypatch) -> list[tuple]:
        """A Hub with one data set in it; gives the calls it got."""
        calls: list[tuple] = []

        def load_dataset_builder(*args):
            calls.append(args)
            if args[0] != "owner/name":
                raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{args[0]}' doesn't exist on the Hub.\nMore.")
            return SimpleNamespace(
                info=datasets.DatasetInfo(builder_name="parquet"),
                config=SimpleNamespace(data_files=None),
                base_path=None,
                download_and_prepare=lambda num_proc: None,
                as_dataset=lambda: saved,
            )

        monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
        return calls

    def test_from_the_hub(self, load, hub):
        assert rows(load("owner/name")) == PAIRS
        assert rows(load("owner/name:de-en", split="valid")) == PAIRS[2:]
        assert hub == [("owner/name", None), ("owner/name", "de-en")]

    def test_nested_columns(self, load, hub):
        assert rows(load("owner/name", split="nested", columns=["translation.de", "translation.en"])) == PAIRS

    def test_facts_of_a_data_set(self, load, hub):
        facts = load("owner/name").facts
        assert (facts.name, facts.files, facts.num_rows) == ("owner/name", (), 3)

    def test_a_missing_split_is_named(self, load, hub):
        with pytest.raises(CorpusError, match="owner/name has no split 'test'; it has: train, validation, nested"):
            load("owner/name", split="test")

    def test_missing_and_wrong_columns_are_named(self, load, hub):
        with pytest.raises(
            CorpusError, match=r"no column 'tgt'; it has: 'source', 'target', 'id'\. Did you mean 'target'"
        ):
            load("owner/name", columns=["source", "tgt"])
        with pytest.raises(CorpusError, match="owner/name column 'id' holds int64, not text"):
            load("owner/name", columns=["source", "id"])

    def test_unknown_names(self, load, hub):
        with pytest.raises(
            CorpusError,
            match=r"owner/nam is no file here, and as a Hub data set it cannot be loaded: Dataset 'owner/nam'",
        ):
            load("owner/nam")

    def test_offline(self, load, monkeypatch):
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        with pytest.raises(CorpusError, match=r"nobody/nothing is no file here.*Check the spelling and the connection"):
            load("nobody/nothing")

    def test_from_a_saved_folder(self, load, saved):
        saved.save_to_disk("all")
        saved["train"].save_to_disk("one")
        assert rows(load("all")) == rows(load("one")) == PAIRS

    def test_from_a_folder_of_files(self, load, monkeypatch, tmp_path):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
        Path("folder").mkdir()
        write_lines("folder/train.jsonl", [json.dumps({"source": s, "target": t}) for s, t in PAIRS])
        assert rows(load("folder")) == PAIRS

    def test_a_folder_without_data(self, load):
        Path("empty").mkdir()
        with pytest.raises(
            CorpusError, match=r"The folder empty cannot be loaded as a data set: .*Give the files in it"
        ):
            load("empty")


class TestOneMeaning:
    """What a file of text says does not depend on the door through which it comes."""

    HARD = (
        ("null", "one"),
        ("two", "NA"),
        ("nan", "None"),
        ("007", "1e5"),
        ("1.50", "True"),
        ("2026-11-22", "0123"),
        ("N/A", "#N/A"),
        ('"open', 'she said "yes'),
        ("last", "nine"),
    )

    def content(self, kind: str) -> str:
        header = "source\ttarget\n" if kind == "tsv" else "source,target\n"
        if kind == "jsonl":
            return "".join(json.dumps({"source": source, "target": target}) + "\n" for source, target in self.HARD)
        if kind == "tsv":
            return header + "".join(f"{source}\t{target}\n" for source, target in self.HARD)
        quoted = [[text.replace('"', '""') for text in pair] for pair in self.HARD]
        return header + "".join(f'"{source}","{target}"\n' for source, target in quoted)

    @pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl"])
    @pytest.mark.parametrize("suffix", ["", ".gz"])
    def test_by_name_and_in_a_folder(self, load, kind, suffix):
        Path("one").mkdir()
        Path("two").mkdir()
        write(f"file.{kind}{suffix}", self.content(kind))
        for name in (f"one/data.{kind}{suffix}", f"two/train.{kind}{suffix}", f"two/validation.{kind}{suffix}"):
            write(name, self.content(kind))
        write("two/README.md", "# Data")
        doors = [
            load(f"file.{kind}{suffix}"),
            load("one"),
            load("two"),
            load("two", split="valid"),
        ]
        assert [rows(corpus) for corpus in doors] == [list(self.HARD)] * 4
        assert len({corpus.facts.fingerprint for corpus in doors}) == 1
        assert (doors[2].facts.name, doors[2].facts.files[0].num_lines) == ("two", doors[0].facts.files[0].num_lines)

    @pytest.mark.parametrize(
        "path", ["{home}/*.tsv", "../../home/*.tsv", "a/../../../home/notes.tsv", "zip://*.tsv::{home}/notes.zip"]
    )
    def test_a_card_names_no_file_elsewhere(self, load, path):
        home = Path("../home").resolve()
        home.mkdir()
        write("../home/notes.tsv", self.content("tsv"))
        with zipfile.ZipFile(home / "notes.zip", "w") as archive:
            archive.write(home / "notes.tsv", "notes.tsv")
        Path("folder/a").mkdir(parents=True)
        write("folder/mine.tsv", self.content("tsv"))
        card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {}\n---\n"
        write("folder/README.md", card.format(json.dumps(path.format(home=home))))
        with pytest.raises(
            CorpusError, match=r"folder names .*notes.* as its text, which lies elsewhere; give that file"
        ):
            load("folder")
        write("folder/README.md", card.format("mine.tsv"))
        assert rows(load("folder")) == list(self.HARD)

    def test_several_files_of_a_split(self, load):
        Path("folder/train").mkdir(parents=True)
        for part in ("a", "b"):
            write(f"folder/train/{part}.tsv", self.content("tsv"))
        corpus = load("folder")
        assert rows(corpus) == [*self.HARD, *self.HARD]
        assert [Path(facts.path).name for facts in corpus.facts.files] == ["a.tsv", "b.tsv"]

    def test_lines_of_text(self, load):
        Path("folder").mkdir()
        write("folder/train.txt", "null\n\u2028x\ty\r\n")
        assert rows(load("folder", task="continuation")) == [("null",), ("\u2028x\ty",)]

    def test_what_our_readers_refuse_is_refused(self, load):
        Path("folder").mkdir()
        write("folder/train.json", '[{"source": "a", "target": "b"}]')
        with pytest.raises(CorpusError, match=r"folder/train\.json: 1 of 1 .* make lines of it: jq -c"):
            load("folder")

    def test_from_the_hub_and_again_without_it(self, tmp_path):
        """In processes of their own, for the libraries read the Hub's address when they are imported."""
        code = (
            "from seqloom.training.reading.corpus import load_corpus\n"
            "corpus = load_corpus('alice/dates')\n"
            "print([corpus.facts.name, corpus.facts.fingerprint, [tuple(row.values()) for row in corpus.dataset]])"
        )

        def load(**variables: str) -> list:
            settings = {"HF_HOME": str(tmp_path), "HF_DATASETS_OFFLINE": "0", **hub.environment(), **variables}
            command = [sys.executable, "-c", code]
            found = subprocess.run(command, capture_output=True, text=True, env=os.environ | settings)
            assert found.returncode == 0, found.stderr
            return ast.literal_eval(found.stdout)

        with LoopbackHub() as hub:
            files = {"train.tsv": self.content("tsv").encode(), "README.md": b"# Data\n"}
            hub.repositories["alice/dates"] = Repository(private=False, commits=[files], type="dataset")
            online = load()
            num_requests = len(hub.requests)
            assert load(HF_HUB_OFFLINE="1") == online
            assert len(hub.requests) == num_requests
        assert online[0] == "alice/dates"
        assert online[2] == list(self.HARD)


class TestCache:
    def test_is_memory_mapped(self, load):
        dataset = load(write_lines("a", SOURCES), write_lines("b", TARGETS)).dataset
        assert [Path(file["filename"]).name for file in dataset.cache_files] == ["rows.arrow"]

    def test_a_second_run_parses_nothing(self, load, monkeypatch):
        first = load(write_lines("a", SOURCES), write("b", "\ufeffone\r\n\nthree\n"))
        monkeypatch.setattr(text_file.TextFile, "__iter__", lambda self: pytest.fail("parsed again"))
        second = load("a", "b")
        assert rows(second) == rows(first)
        assert second.facts == first.facts
        assert second.dataset._fingerprint == first.dataset._fingerprint == first.facts.fingerprint

    def test_a_changed_file_is_noticed_even_with_the_old_times(self, load):
        times = os.stat(write_lines("a", SOURCES))
        before = load("a", task="continuation")
        os.utime(write_lines("a", ["Guten Abend", *SOURCES[1:]]), (times.st_atime, times.st_mtime))
        after = load("a", task="continuation")
        assert rows(before)[0] == ("Guten Tag",)
        assert rows(after)[0] == ("Guten Abend",)
        assert before.facts.fingerprint != after.facts.fingerprint

    def test_two_names_of_one_content_share_an_entry(self, load, tmp_path):
        first = load(write_lines("a", SOURCES), task="continuation")
        second = load(write_lines("b", SOURCES), task="continuation")
        assert second.facts.fingerprint == first.facts.fingerprint
        assert second.facts.files[0].path == second.facts.name == "b"
        assert len(list((tmp_path / "seqloom").iterdir())) == 1

    def test_other_options_are_another_entry(self, load):
        write("a.tsv", "eins\tone\n")
        fingerprints = {
            load("a.tsv", **options).facts.fingerprint for options in ({}, {"columns": ["2", "1"]}, {"split": "test"})
        }
        assert len(fingerprints) == 3

    def test_a_failed_reading_leaves_nothing(self, load, tmp_path):
        with pytest.raises(CorpusError):
            load(write("a.tsv", "eins\tone\nzwei\n"))
        assert list((tmp_path / "seqloom").iterdir()) == []

    def test_two_processes_may_build_at_once(self, load, monkeypatch):
        """The slower of two finds the finished folder of the faster, and uses it."""
        plain = readers.read_text

        def overtaken(file):
            yield from plain(file)
            monkeypatch.setattr(readers, "read_text", plain)
            load("a", task="continuation")

        monkeypatch.setattr(readers, "read_text", overtaken)
        assert rows(load(write_lines("a", SOURCES), task="continuation")) == [(source,) for source in SOURCES]

    def test_the_default_place_is_beside_the_caches_of_datasets(self, load, monkeypatch, tmp_path):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
        load_corpus(write_lines("a", SOURCES), task="continuation")
        assert [path.name for path in (tmp_path / "hf").iterdir()] == ["seqloom"]


class TestArguments:
    def test_facts_for_the_report(self, load):
        facts = load(write_lines("a", SOURCES), write_lines("b", TARGETS)).facts
        assert isinstance(facts, CorpusFacts)
        assert (facts.name, facts.task, facts.split, facts.columns) == ("a + b", "pairs", "train", ("source", "target"))
        assert facts.files[0].num_bytes == os.path.getsize("a")
        assert len(facts.files[0].sha256) == 64

    def test_a_single_path_needs_no_list(self, load, tmp_path):
        write_lines("a.tsv", ["eins\tone"])
        assert len(load_corpus("a.tsv")) == len(load_corpus(Path("a.tsv"))) == 1

    @pytest.mark.parametrize("paths", [(), ("a", "b", "c"), ("",)])
    def test_one_or_two_names(self, load, paths):
        with pytest.raises(CorpusError, match=f"{len(paths)} names are given for a corpus"):
            load(*paths)

    def test_as_many_columns_as_the_task_reads(self, load):
        with pytest.raises(
            CorpusError, match=r"columns=\['de'\] does not fit task 'pairs', which reads 2: source, target"
        ):
            load("a.tsv", columns=["de"])
        with pytest.raises(CorpusError, match="columns='de' does not fit"):
            load("a.tsv", columns="de", task="continuation")

    def test_numbers_may_be_given_as_numbers(self, load):
        assert rows(load(write("a.tsv", "eins\tone\n"), columns=[2, 1])) == [("one", "eins")]

    def test_two_files_are_pairs(self, load):
        with pytest.raises(CorpusError, match=r"Two files \(a, b\) are the source and target of pairs"):
            load("a", "b", task="continuation")

    def test_two_files_are_plain_text(self, load):
        write_lines("a", SOURCES)
        write_lines("b.jsonl", TARGETS)
        with pytest.raises(CorpusError, match=r"b\.jsonl is JSONL by its name, but two file names mean plain text"):
            load("a", "b.jsonl")

    def test_one_text_file_is_no_pair(self, load):
        write_lines("test.de", SOURCES)
        write_lines("test.en", TARGETS)
        with pytest.raises(
            CorpusError,
            match=r"test\.de is plain text .* the test split needs a source and a target.*beside it lies test\.en",
        ):
            load("test.de", split="test")


class TestForeignLineEnds:
    """A file whose lines end otherwise is no example, and the command that the error names makes lines of it."""

    @pytest.mark.parametrize("end", ["\r", "\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1e"])
    @pytest.mark.parametrize("packed", [False, True])
    def test_the_remedy_works(self, load, end, packed):
        name = "it's.tsv.gz" if packed else "it's.tsv"
        text = end.join(f"{number}\t{number * number}" for number in range(1, 101)) + "\n"
        Path(name).write_bytes(gzip.compress(text.encode()) if packed else text.encode())
        with pytest.raises(CorpusError, match=r"has 1 lines that end in \\n and 99 that end in ") as caught:
            load(name)
        command = str(caught.value).partition(" Convert it: ")[2]
        subprocess.run(["bash", "-c", command], check=True, capture_output=True)
        Path("it's.tsv.lf").rename("good.tsv")
        assert len(load("good.tsv")) == 100

    def test_a_few_of_them_are_characters(self, load):
        write_lines("a.tsv", ["eins\ro\tone", "zwei\u2028\ttwo", "drei\x0c\tthree"])
        assert rows(load("a.tsv"))[0] == ("eins\ro", "one")


class TestWhere:
    """Rows are selected by what further columns hold; a condition that no row meets is said aloud."""

    RECORDS = (
        ("eins", "one", "de", "a"),
        ("een", "one", "nl", "a"),
        ("zwei", "two", "de", "b"),
        ("uno", "one", "it", "a"),
    )

    @pytest.fixture
    def file(self, load, request) -> str:
        names = ("source", "target", "lang", "origin")
        table = pa.table({name: list(column) for name, column in zip(names, zip(*self.RECORDS))})
        kind = request.param
        if kind == "parquet":
            pa.parquet.write_table(table, "a.parquet")
        elif kind == "folder":
            datasets.Dataset(table).save_to_disk("a.folder")
        elif kind == "jsonl":
            write_lines("a.jsonl", [json.dumps(record) for record in table.to_pylist()])
        else:
            separator = {"tsv": "\t", "csv": ","}[kind]
            write_lines(f"a.{kind}", [separator.join(record) for record in (names, *self.RECORDS)])
        return f"a.{kind}"

    @pytest.mark.parametrize("file", ["tsv", "csv", "jsonl", "parquet", "folder"], indirect=True)
    def test_selects_in_every_format(self, load, file):
        assert rows(load(file)) == [record[:2] for record in self.RECORDS]
        corpus = load(file, where={"lang": ["nl", "de"], "origin": ["a"]})
        assert rows(corpus) == [("eins", "one"), ("een", "one")]
        assert corpus.dataset.column_names == ["source", "target"]
        assert corpus.facts.num_unselected == 2
        assert corpus.facts.num_rows_read == 4
        assert corpus.facts.num_selected == {"lang=de": 1, "lang=nl": 1, "origin=a": 2}
        assert corpus.facts.num_dropped == {}

    @pytest.mark.parametrize("file", ["jsonl"], indirect=True)
    def test_the_column_may_be_one_that_is_read(self, load, file):
        assert rows(load(file, where={"target": ["two"]})) == [("zwei", "two")]

    @pytest.mark.parametrize("file", ["jsonl"], indirect=True)
    def test_each_selection_is_cached_apart(self, load, file):
        assert [len(load(file, where=where)) for where in ({"lang": ["de"]}, {"lang": ["nl"]}, None)] == [2, 1, 4]
        assert load(file, where={"lang": ["nl", "de"]}).facts.fingerprint == (
            load(file, where={"lang": ["de", "nl"]}).facts.fingerprint
        )

    @pytest.mark.parametrize("file", ["jsonl"], indirect=True)
    def test_a_value_that_never_occurs_is_named(self, load, file, caplog):
        load(file, where={"lang": ["de", "nI"]})
        assert "a.jsonl: no rows have lang=nI." in caplog.text

    @pytest.mark.parametrize("file", ["jsonl"], indirect=True)
    def test_selecting_nothing_is_an_error(self, load, file):
        with pytest.raises(CorpusError, match=r"a.jsonl holds 4 rows, and none of use with lang=xx; .* `where`"):
            load(file, where={"lang": ["xx"]})

    @pytest.mark.parametrize("file", ["jsonl"], indirect=True)
    def test_a_column_that_is_not_there_is_an_error(self, load, file):
        with pytest.raises(CorpusError, match="has no column 'language'"):
            load(file, where={"language": ["de"]})

    def test_plain_text_has_nothing_to_select_by(self, load):
        aligned = write_lines("a.de", SOURCES), write_lines("a.en", TARGETS)
        with pytest.raises(CorpusError, match=r"a.de and a.en are plain text .* by lang. Leave `where`"):
            load(*aligned, where={"lang": ["de"]})
        with pytest.raises(CorpusError, match=r"a.de is plain text"):
            load("a.de", task="continuation", where={"lang": ["de"]})


class TestMissingFiles:
    def test_a_close_neighbour_is_named(self, load):
        write_lines("train.en", TARGETS)
        with pytest.raises(CorpusError, match=r"^trian\.en does not exist\. Did you mean 'train\.en'\?$"):
            load("train.en", "trian.en")

    def test_the_folder_may_be_missing(self, load):
        with pytest.raises(CorpusError, match=r"nowhere/a\.tsv does not exist, nor does the folder nowhere\. Check"):
            load("nowhere/a.tsv")

    @pytest.mark.parametrize("name", ["train.tsv", "train.de", "./train", "folder/train", "a/b/c", "train.gz"])
    def test_what_looks_like_a_file_is_never_asked_from_the_hub(self, load, name, monkeypatch):
        Path("folder").mkdir()
        monkeypatch.setattr(sources, "_find_builder", lambda *_: pytest.fail("asked the Hub"))
        with pytest.raises(CorpusError, match="does not exist"):
            load(name)

    def test_a_pipe_is_refused_without_reading(self, load):
        os.mkfifo("pipe.tsv")
        with pytest.raises(CorpusError, match=r"pipe\.tsv is no regular file; a corpus is read more than once"):
            load("pipe.tsv")

    def test_a_folder_is_no_side_of_pairs(self, load):
        Path("folder").mkdir()
        with pytest.raises(CorpusError, match="folder is no regular file"):
            load("folder", write_lines("b", TARGETS))

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_file_may_be_forbidden(self, load):
        os.chmod(write_lines("a.tsv", ["eins\tone"]), 0)
        with pytest.raises(CorpusError, match=r"a\.tsv cannot be read: Permission denied"):
            load("a.tsv")


def test_a_long_reading_says_in_a_log_how_far_it_is(tmp_path, monkeypatch, capsys):
    """Plain lines, and no bar that draws over itself."""
    monkeypatch.setattr("seqloom.hub.progress_bar.SECONDS", 0)
    path = tmp_path / "a.tsv"
    path.write_text("".join(f"{number}\t{number}\n" for number in range(50_000)))
    assert sum(1 for _ in text_file.TextFile(str(path))) == 50_000
    lines = capsys.readouterr().err.splitlines()
    form = re.compile(r"(Fingerprint of|Reading) a\.tsv: \S+ of 578k bytes, \S+ bytes/s, \S+ to go")
    assert lines
    assert all(map(form.fullmatch, lines)), lines
