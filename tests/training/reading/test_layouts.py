"""Files as people have them: headers of their own, dictionaries, text with tabs, several corpora."""

import io
import json
import re
import shlex

import pytest

from seqloom.configuration.recipe import RecipeError
from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.training.reading import asking
from seqloom.training.reading.corpus import CorpusError, load_corpus
from seqloom.training.reading.readers import UnclearColumnsError, looks_like_header


def pairs_in(*paths, **options):
    """Return the pairs of a corpus."""
    dataset = load_corpus([str(path) for path in paths], **options).dataset
    return list(zip(dataset["source"], dataset["target"]))


def advised(message):
    """Return the columns that each `--columns` of a message names."""
    return [shlex.split(flag) for flag in re.findall(r"--columns (.+?)(?:[;.]|$)", message)]


class TestHeaders:
    """A first line that names columns never becomes an example."""

    @pytest.mark.parametrize(
        ("header", "names"),
        [
            ("src\ttgt", ["src", "tgt"]),
            ("English\tGerman", ["English", "German"]),
            ("de\ten", ["de", "en"]),
            ("word\tarpabet", ["word", "arpabet"]),
            ("English sentence\tfoo\tbar", None),
            ("source_text\ttarget_text", ["source_text", "target_text"]),
        ],
    )
    def test_it_is_asked_about_and_both_answers_work(self, tmp_path, header, names):
        file = tmp_path / "a.tsv"
        file.write_text(
            f"{header}\n" + "\t".join(["eins", "one", "x"][: header.count("\t") + 1]) + "\n", encoding="utf-8"
        )
        if names is None:
            assert len(pairs_in(file)) == 2
            return
        with pytest.raises(UnclearColumnsError, match="looks like names of columns") as refused:
            pairs_in(file)
        as_header, as_example = advised(str(refused.value))
        assert as_header == names
        assert pairs_in(file, columns=as_header) == [("eins", "one")]
        assert pairs_in(file, columns=as_example) == [tuple(header.split("\t")), ("eins", "one")]

    @pytest.mark.parametrize(
        "first", [["aa", "ɑ ɑ"], ["Go.", "Geh."], ["FUMBLED", "F AH M"], ["no", "nein"], ["Question?", "Frage?"]]
    )
    def test_a_pair_is_none(self, first):
        assert not looks_like_header(first)


class TestPlainText:
    """Text with tabs, as ManyThings gives it out."""

    LINES = "Go.\tGeh.\tCC-BY 2.0 (France) Attribution: tatoeba.org #1\nHi.\tHallo!\tCC-BY 2.0 (France)\n"

    def test_the_flag_of_the_message_reads_it(self, tmp_path):
        file = tmp_path / "deu.txt"
        file.write_text(self.LINES, encoding="utf-8")
        with pytest.raises(UnclearColumnsError, match="3 fields with tabs between them") as refused:
            pairs_in(file)
        assert pairs_in(file, columns=advised(str(refused.value))[0]) == [("Go.", "Geh."), ("Hi.", "Hallo!")]
        assert pairs_in(file, columns=["2", "1"])[0] == ("Geh.", "Go.")

    @pytest.mark.parametrize(("answer", "columns"), [("y", ["1", "2"]), ("Yes", ["1", "2"]), ("n", None), ("", None)])
    def test_at_a_terminal_it_asks(self, tmp_path, monkeypatch, capsys, answer, columns):
        (tmp_path / "deu.txt").write_text(self.LINES, encoding="utf-8")
        recipe = resolve_recipe(None, {"train": [str(tmp_path / "deu.txt")]})
        for name in ("stdin", "stderr"):
            stream = io.StringIO()
            stream.isatty = lambda: True
            monkeypatch.setattr(f"sys.{name}", stream)
        monkeypatch.setattr(asking, "ask", lambda _: answer)
        settled = asking.settle_columns(recipe)
        assert settled.columns == columns
        assert columns is None or "columns" in settled.named

    def test_several_processes_ask_nothing(self, tmp_path, monkeypatch):
        (tmp_path / "deu.txt").write_text(self.LINES, encoding="utf-8")
        recipe = resolve_recipe(None, {"train": [str(tmp_path / "deu.txt")]})
        monkeypatch.setenv("WORLD_SIZE", "2")
        for name in ("stdin", "stderr"):
            stream = io.StringIO()
            stream.isatty = lambda: True
            monkeypatch.setattr(f"sys.{name}", stream)
        monkeypatch.setattr(asking, "ask", pytest.fail)
        assert asking.settle_columns(recipe) is recipe

    def test_nowhere_else(self, tmp_path):
        recipe = resolve_recipe(None, {"train": [str(tmp_path / "missing.txt")]})
        assert asking.settle_columns(recipe) is recipe


class TestLexicons:
    """CMUdict's files, by their own names."""

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("cmudict-0.7b", ";;; a comment\nHELLO  HH AH0 L OW1\nHELLO(1)  HH EH0 L OW1\n"),
            ("cmudict.dict", "HELLO HH AH0 L OW1\nHELLO(2) HH EH0 L OW1 # foreign\n\n"),
            ("mine.dict", "HELLO\tHH AH0 L OW1\nHELLO\tHH EH0 L OW1\n"),
        ],
    )
    def test_word_and_phones(self, tmp_path, name, text):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert pairs_in(tmp_path / name) == [("HELLO", "HH AH0 L OW1"), ("HELLO", "HH EH0 L OW1")]

    def test_a_word_without_phones_is_named(self, tmp_path):
        (tmp_path / "a.dict").write_text("A AH0\nB\n", encoding="utf-8")
        with pytest.raises(CorpusError, match="line 2: 'B' has no pronunciation"):
            pairs_in(tmp_path / "a.dict")


class TestSeveral:
    """Files with columns are read one after the other."""

    @pytest.fixture
    def files(self, tmp_path):
        (tmp_path / "a.tsv").write_text("eins\tone\nzwei\ttwo\n", encoding="utf-8")
        (tmp_path / "b.tsv").write_text("source\ttarget\ndrei\tthree\n", encoding="utf-8")
        (tmp_path / "c.jsonl").write_text(json.dumps({"source": "vier", "target": "four"}), encoding="utf-8")
        (tmp_path / "d.txt").write_text("fünf\n", encoding="utf-8")
        return {file.stem: str(file) for file in tmp_path.iterdir()}

    def test_all_rows_in_order(self, files):
        recipe = resolve_recipe(None, {"train": [files["a"], files["b"], files["c"]]})
        corpus = load_corpus(recipe.train)
        assert corpus.dataset["source"][:] == ["eins", "zwei", "drei", "vier"]
        assert [file.path for file in corpus.facts.files] == recipe.train
        assert pairs_in(files["a"], files["c"]) != pairs_in(files["c"], files["a"])
        assert load_corpus(recipe.train[::-1]).facts.fingerprint != corpus.facts.fingerprint

    def test_text_among_them_is_refused(self, files):
        with pytest.raises(RecipeError, match="one after the other"):
            resolve_recipe(None, {"train": [files["a"], files["b"], files["d"]]})
        with pytest.raises(CorpusError, match="3 names are given for a corpus"):
            load_corpus([files["a"], files["b"], files["d"]])

    def test_columns_are_those_of_all(self, files):
        recipe = resolve_recipe(None, {"train": [files["b"], files["c"]], "columns": ["target", "source"]})
        assert pairs_in(*recipe.train, columns=recipe.columns)[0] == ("three", "drei")


def test_nested_keys_as_the_message_names_them(tmp_path):
    (tmp_path / "n.jsonl").write_text(json.dumps({"translation": {"de": "eins", "en": "one"}}), encoding="utf-8")
    with pytest.raises(CorpusError, match=r"translation\.de") as refused:
        pairs_in(tmp_path / "n.jsonl")
    columns = shlex.split(re.search(r"--columns (.+)\.$", str(refused.value))[1])
    assert pairs_in(tmp_path / "n.jsonl", columns=columns) == [("eins", "one")]
