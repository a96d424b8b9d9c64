"""Broken data, one class of defect after the other: it loads correctly aligned, or a readable error comes at once.

The small files are made here. The last class reads the real ones, from the folder `messy` in SEQLOOM_DATA.
"""

import gzip
import json
import os
import random
import re
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.training.checking.check import check_corpora
from seqloom.training.checking.check_report import Finding
from seqloom.training.reading import text_file
from seqloom.training.reading.corpus import CorpusError, load_corpus
from seqloom.training.reading.text_file import TextFile
from seqloom.training.reading.unread import find_unread

GERMAN = "Die Glocken läuten über dem schönen Tal."
CHINESE = "今天的天气很好，我们去公园散步。"


@pytest.fixture
def load(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    return lambda *paths, **options: load_corpus(paths, **options)


@pytest.fixture
def refused(load):
    """Load text that must be refused; returns the message."""

    def call(*files: tuple[str, bytes], **options) -> str:
        for name, content in files:
            Path(name).write_bytes(content)
        with pytest.raises(CorpusError) as caught:
            load(*(name for name, _ in files), **{"task": "continuation" if len(files) == 1 else "pairs", **options})
        return str(caught.value)

    return call


def checked(*files: str) -> dict[str, Finding]:
    """Return rule -> the first finding of `seqloom check`."""
    findings = check_corpora(resolve_recipe(None, {"train": list(files)})).findings
    return {found.rule: found for found in reversed(findings)}


class TestLineCounts:
    def test_both_counts_and_where_to_look_for_the_missing_line(self, refused):
        rows = [(f"{'x' * (n * 7 % 75)} {n}", f"{'y' * (n * 7 % 75)} {n}") for n in range(2000)]
        files = [("my train.de", 0), ("train.en", 1)]
        kept = {"my train.de": rows, "train.en": rows[:811] + rows[812:]}
        message = refused(*((name, "".join(f"{row[side]}\n" for row in kept[name]).encode()) for name, side in files))
        assert message == (
            "my train.de has 2,000 lines and train.en 1,999; they must be line-aligned. "
            "`seqloom check 'my train.de' train.en` looks for the line where one is missing."
        )
        found = checked(*kept)
        assert found["line-counts"].message == message.partition(" `")[0]  # the command does not name itself
        assert abs(found["shifted"].lines[0] - 812) <= 3

    def test_blank_lines_at_the_end_of_one_side(self, refused):
        message = refused(("a", b"eins\nzwei\n"), ("b", b"one\ntwo\n\n \n"))
        assert message.endswith("must be line-aligned. The lines of b from 3 on are blank: remove them.")

    def test_one_side_is_empty(self, refused):
        assert refused(("a", b"eins\n"), ("b", b"")).startswith("a has 1 lines and b 0; they must be line-aligned.")


class TestEncodings:
    def test_bad_lines_in_a_good_file(self, refused):
        lines = [GERMAN.encode()] * 200
        for number in (7, 96, 114, 115, 116, 190):
            lines[number] = b"\xff"
        message = refused(("a.de", b"\n".join(lines)), ("a.en", b"x\n" * 200))
        assert message == (
            "a.de: 6 of 200 lines cannot be read as UTF-8. line 8: byte 0xFF at position 1; line 97: byte 0xFF at "
            "position 1; line 115: byte 0xFF at position 1; line 116: byte 0xFF at position 1; line 117: byte 0xFF at "
            "position 1; and 1 more. Text must be UTF-8; the rest of the file is. Repair these lines, or remove "
            "them on both sides."
        )

    @pytest.mark.parametrize(
        ("encoding", "text", "named"), [("gb18030", CHINESE, "GB18030"), ("cp1252", GERMAN, "WINDOWS-1252")]
    )
    def test_another_encoding_is_guessed(self, refused, encoding, text, named):
        message = refused(("a.txt", f"{text}\n".encode(encoding) * 50))
        assert message.startswith("a.txt: 50 of 50 lines cannot be read as UTF-8. line 1: byte 0x")
        assert message.endswith(
            f"Text must be UTF-8; this looks like {named}. Convert it: iconv -f {named} -t UTF-8 a.txt > a.utf8.txt"
        )

    def test_the_remedy_quotes_names(self, refused):
        message = refused(("my text.txt", f"{CHINESE}\n".encode("gb18030") * 50))
        assert message.endswith("iconv -f GB18030 -t UTF-8 'my text.txt' > 'my text.utf8.txt'")

    def test_the_remedy_for_a_gzip_file_unpacks_it(self, refused):
        message = refused(("a.zh.gz", gzip.compress(CHINESE.encode("gb18030"))))
        assert message.endswith("gunzip -c a.zh.gz | iconv -f GB18030 -t UTF-8 | gzip > a.utf8.zh.gz")

    @pytest.mark.parametrize(("codec", "named"), [("utf-16", "UTF-16"), ("utf-32", "UTF-32")])
    def test_a_byte_order_mark_of_another_encoding(self, refused, codec, named):
        assert refused(("a.txt", f"{CHINESE}\n".encode(codec))) == (
            f"a.txt is {named} (byte order mark), not UTF-8. Convert it: iconv -f {named} -t UTF-8 a.txt > a.utf8.txt"
        )

    @pytest.mark.parametrize("codec", ["UTF-16LE", "UTF-16BE"])
    def test_utf16_without_mark_is_not_taken_for_text_full_of_nul(self, refused, codec):
        message = refused(("a.txt", b"".join("plain English\n".encode(codec) for _ in range(9))))
        assert message.startswith("a.txt is not text: 126 of its first 252 bytes are NUL.")
        assert f"iconv -f {codec} -t UTF-8" in message

    def test_a_file_that_is_wrong_as_a_whole_is_not_read_to_its_end(self, refused):
        message = refused(("a.txt", b"\xff\n" * 5000))
        assert message.startswith("a.txt: 1,000 of the first 1,000 lines cannot be read as UTF-8.")

    @pytest.mark.parametrize(
        ("content", "kind"),
        [
            (gzip.compress(b"x", mtime=0), "gzip"),
            (b"PK\x03\x04...", "zip"),
            (b"PAR1\x15\x04", "Parquet"),
            (b"%PDF-1.7", "PDF"),
        ],
    )
    def test_other_formats_under_a_text_name(self, refused, content, kind):
        assert refused(("a.txt", content)).startswith(f"a.txt is a {kind} file, not text: ")

    def test_undecodable_bytes_inside_csv(self, refused):
        message = refused(("a.csv", b'text\n"open \xff\n'))
        assert message.startswith("a.csv: 1 of 2 lines cannot be read as UTF-8. line 2: byte 0xFF at position 7.")


class TestGzip:
    def test_truncated(self, refused):
        content = gzip.compress("".join(f"{n} {GERMAN}\n" for n in range(500)).encode())
        assert refused(("a.txt.gz", content[:-200])) == (
            "a.txt.gz is a truncated gzip file: its compressed data stop before their end. "
            "Copy or download it again (gunzip -t a.txt.gz tells when it is whole)."
        )

    def test_only_the_name_is_gzip(self, refused):
        assert refused(("a.txt.gz", b"Es regnet.\n")) == (
            "a.txt.gz is not gzip, though its name ends in .gz (it starts with b'Es'). "
            "Rename it to a.txt, or compress it with gzip."
        )

    def test_damaged(self, refused):
        content = bytearray(gzip.compress(random.Random(0).randbytes(500).hex().encode()))
        content[200] ^= 0xFF
        assert refused(("a.txt.gz", bytes(content))).startswith("a.txt.gz is a damaged gzip file: ")

    def test_garbage_after_the_end(self, refused):
        assert refused(("a.txt.gz", gzip.compress(b"eins\n") + b"garbage")).startswith(
            "a.txt.gz is a damaged gzip file"
        )


class TestEmpty:
    @pytest.mark.parametrize("name", ["a.txt", "a.tsv", "a.jsonl", "a.csv", "a.txt.gz"])
    def test_nothing(self, refused, name):
        content = gzip.compress(b"") if name.endswith(".gz") else b""
        assert refused((name, content)) == (
            f"{name} holds nothing; a corpus needs at least one row with text. Check that it is the right file."
        )

    def test_no_bytes_under_a_gzip_name(self, refused):
        assert refused(("a.txt.gz", b"")).startswith("a.txt.gz holds nothing;")

    def test_only_a_header(self, refused):
        message = refused(("a.tsv", b"source\ttarget\n"), task="pairs")
        assert message.startswith("a.tsv holds nothing; a corpus needs at least one row with source and target.")

    def test_only_newlines(self, refused):
        assert refused(("a.txt", b"\n" * 50)).startswith("a.txt holds only blank rows (50 text blank);")

    def test_one_line_without_newline_is_a_corpus(self, load):
        Path("a.txt").write_bytes(b"Nur eine Zeile")
        assert load("a.txt", task="continuation").dataset["text"][:] == ["Nur eine Zeile"]

    def test_a_line_too_long_to_be_one(self, refused, monkeypatch):
        monkeypatch.setattr(text_file, "MAX_LINE_BYTES", 1 << 20)
        message = refused(("a.txt", b"x\n" + b"y" * (1 << 20) + b"yz\n"))
        assert message.startswith("a.txt line 2 is longer than 1 MiB; a line (up to \\n) is one example.")
        assert "Break the text into lines" in message


class TestTsv:
    def test_wrong_numbers_of_fields(self, refused):
        content = "a\tb\nc\n\nd\te\tf\n# comment\n\tg\nh\t\n"
        message = refused(("a.tsv", content.encode()), task="pairs")
        assert message == (
            "a.tsv: 3 of 7 lines cannot be used. line 2: 1 field instead of 2; line 4: 3 fields instead of 2; line 5: "
            "1 field instead of 2. Every line needs as many as the first: repair or remove these lines."
        )

    def test_another_separator(self, refused):
        message = refused(("a.tsv", b"eins,one\n"), task="pairs")
        assert message == (
            "a.tsv line 1 has 1 field: 'eins,one'. Wanted: 1 and 2, counted from 1. "
            "Separate the fields by tabs (.tsv) or commas (.csv), or name other columns."
        )

    def test_an_unknown_header_is_not_taken_for_a_pair(self, refused):
        message = refused(("a.tsv", b"id\tsource\ttarget\tlabel\n"), task="pairs", columns=["source", "tagret"])
        assert "; its first line holds: " in message
        assert message.endswith("Name yours with `columns`, or number them if that is no header: ['1', '2'].")

    def test_did_you_mean(self, refused):
        message = refused(("a.tsv", b"id\tsource\ttarget\n"), task="pairs", columns=["source", "tagret"])
        assert message.startswith(
            "a.tsv has no column 'tagret'; its first line holds: 'id', 'source', 'target'. Did you mean 'target'?"
        )

    def test_position_beyond_the_fields(self, refused):
        message = refused(("a.tsv", b"eins\tone\n"), task="pairs", columns=["1", "3"])
        assert message.startswith("a.tsv line 1 has 2 fields: 'eins | one'. Wanted: 1 and 3, counted from 1.")

    def test_several_fields_without_header_are_no_text(self, refused):
        assert refused(("a.tsv", b"eins\tone\n")) == (
            "a.tsv has 2 fields per line and no header, but one text per line is wanted. "
            "Choose the field by its number, e.g. columns: ['1']."
        )


class TestJsonl:
    @pytest.mark.parametrize(
        ("line", "finding"),
        [
            ('{"source": "a", "target": "b', "not JSON (Unterminated string starting at"),
            ('{"source": "a", "target": "b"},', "not JSON (Extra data"),
            ('{"source": "a"}', "no 'target' (it has: source)"),
            ("{}", "no 'source' (it has: nothing)"),
            ('{"source": 12, "target": "b"}', "'source' is 12, not text"),
            ('{"source": NaN, "target": "b"}', "'source' is NaN, not text"),
            ('{"source": {"de": "a"}, "target": "b"}', """'source' is {"de": "a"}, not text"""),
            ('{"source": "a", "source": "c", "target": "b"}', "names 'source' twice"),
            (json.dumps({str(n): n for n in range(300_000)})[:-1] + ', "x": 1, "x": 2}', "names 'x' twice"),
            ("[1, 2]", "not an object but '[1, 2]'"),
            ('"just a string"', """not an object but '"just a string"'"""),
            ('{"source": "\\ud800", "target": "b"}', "'source' holds half a surrogate pair, \\ud800"),
            ("[" * 100_000, "not JSON ("),
            ("1" * 5000, "not JSON (Exceeds the limit"),
        ],
    )
    def test_unusable_records(self, refused, line, finding):
        good = '{"source": "a", "target": "b"}'
        message = refused(("a.jsonl", f"{good}\n{line}\n{good}\n".encode()), task="pairs")
        assert message.startswith(f"a.jsonl: 1 of 3 lines cannot be used. line 2: {finding}")
        assert message.endswith(
            "Every line must be one JSON object with text in its columns: repair or remove these lines."
        )

    def test_null_and_blank_lines_are_blank_rows(self, load):
        Path("a.jsonl").write_text('{"source": "a", "target": "b"}\n\n{"source": null, "target": "b"}\n')
        assert load("a.jsonl").facts.num_dropped == {"source and target blank": 1, "source blank": 1}

    def test_missing_columns(self, refused):
        record = {"src": "a", "translation": {"de": "a", "en": "b"}}
        message = refused(("a.jsonl", json.dumps(record).encode()), columns=["translation.fr"])
        assert message == (
            "a.jsonl has no column 'translation.fr'; it has: 'src', 'translation.de', 'translation.en'. "
            "Did you mean 'translation.en'? Name yours with `columns`."
        )

    @pytest.mark.parametrize("content", ['[{"text": "a"}]\n', '[\n {"text": "a"}\n]\n'])
    def test_a_json_array_gets_its_remedy(self, refused, content):
        assert refused(("a.json", content.encode())).endswith(
            "If the file is one JSON array, make lines of it: jq -c '.[]'"
        )


class TestCsvAndParquet:
    def test_a_quote_that_is_never_closed(self, refused):
        content = 'source,target\n"eins\nzwei","one\ntwo"\na,b\n"offen,unclosed\nc,d\n'
        message = refused(("a.csv", content.encode()), task="pairs")
        assert message.startswith("a.csv line 6: no CSV record can be read from here (unexpected end of data).")
        assert message.endswith("look for one that is never closed.")

    def test_a_quote_inside_a_field(self, refused):
        message = refused(("a.csv", b'source,target\n"a"b,c\n'), task="pairs")
        assert message.startswith("a.csv line 2: no CSV record can be read from here (',' expected after '\"').")

    def test_another_separator(self, refused):
        message = refused(("a.csv", b"source;target\na;b\n"), task="pairs")
        assert "Is another separator in use? .csv means commas and .tsv tabs." in message

    def test_wrong_numbers_of_fields(self, refused):
        message = refused(("a.csv", b"source,target\na,b\nc\nd,e,f\n"), task="pairs")
        assert message.startswith("a.csv: 2 of 4 lines cannot be used. line 3: 1 field instead of 2; line 4: 3 fields")

    def test_what_is_not_parquet(self, refused):
        message = refused(("a.parquet", b"eins\tone\n"), task="pairs")
        assert message.startswith("a.parquet cannot be read as Parquet: ")
        assert message.endswith("Copy it again, or name the file after its format.")

    def test_gzipped_parquet(self, refused):
        assert refused(("a.parquet.gz", gzip.compress(b"PAR1"))).endswith("Unpack it: gunzip a.parquet.gz")


MESSY = Path(os.environ.get("SEQLOOM_DATA", "")) / "messy"


@pytest.mark.skipif(
    not (MESSY / "manifest.json").exists(), reason="SEQLOOM_DATA names no folder with messy/manifest.json"
)
class TestRealFiles:
    """The expectations come from the manifest, so that another set of the same kinds can be put in its place."""

    @pytest.fixture(scope="class")
    def manifest(self) -> dict:
        return json.loads((MESSY / "manifest.json").read_text())

    @pytest.fixture
    def load(self, tmp_path, monkeypatch):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
        return lambda *names, **options: load_corpus([MESSY / name for name in names], **options)

    @staticmethod
    def lines(name: str) -> list[str]:
        content = (MESSY / name).read_bytes()
        return (gzip.decompress(content) if name.endswith(".gz") else content).decode().removesuffix("\n").split("\n")

    @pytest.mark.parametrize(
        "names",
        [
            *(
                (f"{name}.de", f"{name}.en")
                for name in ("line_separators", "special_tokens", "noisy", "leak.train", "leak.valid")
            ),
            ("long_lines.de.gz", "long_lines.en"),
            ("real_crawl_noise.lzh.gz", "real_crawl_noise.zh.gz"),
        ],
        ids=lambda names: names[0],
    )
    def test_aligned(self, load, names):
        corpus = load(*names)
        assert corpus.facts.num_dropped == {}
        for column, name in zip(corpus.dataset.column_names, names):
            assert corpus.dataset[column][:] == self.lines(name)

    @pytest.mark.parametrize(
        "name",
        [
            "unicode_zoo.txt",
            "one_line_no_newline.txt",
            "two_members.txt.gz",
            "noisy.labels",
            "real_crawl_noise.labels.gz",
        ],
    )
    def test_text(self, load, name):
        assert load(name, task="continuation").dataset["text"][:] == self.lines(name)

    def test_blank_lines_are_dropped_on_both_sides(self, load, manifest):
        source, target = (set(manifest[f"empty_lines.{side}"]["blank_0based"]) for side in ("de", "en"))
        corpus = load("empty_lines.de", "empty_lines.en")
        assert corpus.facts.num_dropped == {
            "source blank": len(source - target),
            "target blank": len(target - source),
            "source and target blank": len(source & target),
        }
        kept = [n for n in range(manifest["empty_lines.de"]["newlines"]) if n not in source | target]
        for column, name in zip(("source", "target"), ("empty_lines.de", "empty_lines.en")):
            lines = self.lines(name)
            assert corpus.dataset[column][:] == [lines[n] for n in kept]

    def test_byte_order_mark_and_crlf(self, load, manifest):
        corpus = load("utf8_bom_crlf.txt", task="continuation")
        assert len(corpus) == manifest["utf8_bom_crlf.txt"]["logical_lines"]
        assert not any("\r" in text or "\ufeff" in text for text in corpus.dataset["text"])

    def test_misaligned(self, load, manifest):
        with pytest.raises(CorpusError, match=r"misaligned\.de has [\d,]+ lines and \S*misaligned\.en [\d,]+;"):
            load("misaligned.de", "misaligned.en")
        found = checked(*(str(MESSY / name) for name in ("misaligned.de", "misaligned.en")))["shifted"].lines[0]
        assert abs(found - 1 - manifest["misaligned.en"]["missing_0based"][0]) <= 10

    def test_undecodable_lines_are_counted_and_the_first_is_named(self, load, manifest):
        bad = manifest["bad_utf8.de"]["bad_0based"]
        message = rf"bad_utf8\.de: {len(bad):,} of 2,000 lines cannot be read as UTF-8\. line {bad[0] + 1:,}: byte 0x"
        with pytest.raises(CorpusError, match=message):
            load("bad_utf8.de", "bad_utf8.en")

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("zh_gb18030.txt", {}, "this looks like GB18030. Convert it: iconv -f GB18030"),
            ("zh_utf16le_bom.txt", {}, "is UTF-16 (byte order mark), not UTF-8. Convert it: iconv -f UTF-16"),
            ("empty.txt", {}, "holds nothing"),
            ("only_newlines.txt", {}, "holds only blank rows (50 text blank)"),
            ("truncated.txt.gz", {}, "is a truncated gzip file"),
            ("not_really.txt.gz", {}, "is not gzip, though its name ends in .gz"),
            ("bad_columns.tsv", {"task": "pairs"}, "lines cannot be used. line "),
            ("bad_records.jsonl", {"task": "pairs"}, "has no column 'source' or 'target'; it has: 'src', 'tgt'."),
            ("bad_records.jsonl", {"task": "pairs", "columns": ["src", "tgt"]}, "lines cannot be used. line "),
            (
                "quoted_newlines.csv",
                {"task": "pairs"},
                "has no column 'source' or 'target'; its first line holds: 'src'",
            ),
            ("quoted_newlines.csv", {"task": "pairs", "columns": ["src", "tgt"]}, ": no CSV record can be read"),
        ],
        ids=lambda value: value if isinstance(value, str) and "." in value else "",
    )
    def test_refused(self, load, name, options, message):
        with pytest.raises(CorpusError, match=re.escape(message)):
            load(name, **{"task": "continuation", **options})

    def test_every_file_loads_or_is_refused_in_words(self, load):
        """Whatever lies in the folder, in either task: no other exception gets out."""
        for path in sorted(MESSY.iterdir()):
            for options in ({"task": "continuation"}, {}, {"columns": ["src", "tgt"]}, {"columns": ["1", "2"]}):
                outcome = self.attempt(load, path.name, **options)
                assert outcome.startswith(("loaded", str(path)))

    @staticmethod
    def attempt(load, *names: str, **options) -> str:
        try:
            return f"loaded {len(load(*names, **options)):,} rows"
        except CorpusError as error:
            return str(error)


class TestNames:
    """Of columns."""

    def test_two_of_one_name_are_refused_where_they_are_read(self, refused, load):
        assert refused(("a.tsv", b"source\ttarget\tsource\na\tb\tc\n"), task="pairs") == (
            "a.tsv has 2 columns called source; give each a name of its own."
        )
        table = pa.table([["a"], ["b"], ["c"], ["d"]], names=["source", "target", "note", "note"])
        pq.write_table(table, "b.parquet")
        assert len(load("b.parquet").dataset) == 1
        assert find_unread(resolve_recipe(None, {"train": ["b.parquet"]})) is None
        pq.write_table(table.rename_columns(["source", "target", "source", "note"]), "c.parquet")
        with pytest.raises(CorpusError, match=r"c\.parquet has 2 columns called source"):
            load("c.parquet")

    def test_blanks_around_them_and_a_byte_order_mark_are_not_theirs(self, load):
        Path("a.tsv").write_bytes("\ufeffgerman \tenglish\neins\tone\n".encode())
        corpus = load("a.tsv", columns=["german", "english"])
        assert corpus.dataset["source"][:] == ["eins"]
        assert TextFile("a.tsv").first_line() == "german \tenglish"

    def test_json_and_csv_may_hold_line_ends_of_others(self, load):
        Path("a.jsonl").write_text('{"source": "a\u2028b\u2028c", "target": "x"}\n', encoding="utf-8")
        assert load("a.jsonl").dataset["source"][:] == ["a\u2028b\u2028c"]
        Path("b.jsonl").write_bytes(b'{"source": "a", "target": "x"}\r' * 9 + b"\n")
        with pytest.raises(CorpusError, match=r"has 1 lines that end in \\n and 8 that end in"):
            load("b.jsonl")
