"""The rules of `seqloom check`: each finds what it names, alone, and clean text is left in peace."""

import gzip
import json
import random
import unicodedata
from itertools import pairwise

import numpy as np
import pytest

from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.training.checking import check, check_report
from seqloom.training.checking.check import check_corpora, sample_evenly
from seqloom.training.checking.cleaning import clean_corpus
from seqloom.training.checking.column_facts import ColumnFacts
from seqloom.training.checking.fault_rules import MARKUP, RULES, Harm, find_faults
from seqloom.training.checking.glance import glance
from seqloom.training.checking.row_store import Stores, records_of
from seqloom.training.checking.shifted_lines import find_shifts
from seqloom.training.checking.text_batch import Batch
from seqloom.training.reading.corpus import CorpusError, load_corpus
from seqloom_cli.verbs import main

NOUNS = "hund katze haus baum schiff himmel wasser strasse fenster garten bruder schwester".split()
THINGS = "dog cat house tree ship sky water street window garden brother sister".split()
VERBS, DOES = "sieht sucht findet kauft malt".split(), "sees seeks finds buys paints".split()


def pairs(num, seed=3):
    """Return pairs of two made-up languages that go together in length, end and numbers."""
    rng, rows = random.Random(seed), []
    for number in range(num):
        size, mark = rng.randint(1, 5), rng.choice(".?!")
        words = [(rng.randrange(12), rng.randrange(5)) for _ in range(size)]
        source = " und ".join(f"der {NOUNS[n]} {VERBS[v]} {NOUNS[-n]}" for n, v in words)
        target = " and ".join(f"the {THINGS[n]} {DOES[v]} {THINGS[-n]}" for n, v in words)
        rows.append((f"{source} {number}{mark}", f"{target} {number}{mark}"))
    return rows


def write(folder, name, rows):
    """Write line-aligned files; returns their names."""
    files = [folder / f"{name}.{side}" for side in ("xx", "yy")]
    for file, side in zip(files, zip(*rows)):
        file.write_bytes("".join(f"{text}\n" for text in side).encode("utf-8"))
    return [str(file) for file in files]


def found_in(**recipe):
    """Return (rule, split) -> finding."""
    return {(found.rule, found.split): found for found in check_corpora(resolve_recipe(None, recipe)).findings}


ROW_FAULTS = {
    "copy": lambda a, b: (a, a.upper()),
    "swapped": lambda a, b: (b, a),
    "language": lambda a, b: (a, a.replace("der", "die") + " sucht himmel und wasser"),
    "script": lambda a, b: (a, "кошка ищет собаку и дом"),
    "garbled": lambda a, b: ("Der BÃ¤r schlÃ¤ft " + a, b),
    "special-token": lambda a, b: (a, f"{b} </s>"),
    "ratio": lambda a, b: (a, " ".join([b] * 9)),
    "markup": lambda a, b: (f"<p>{a}</p>", b),
    "separator": lambda a, b: (a.replace(" ", "\u2028", 1), b),
    "lone-quote": lambda a, b: ('"' + a, b),
    "control": lambda a, b: (a, f"\x1b[31m{b}"),
    "invisible": lambda a, b: (a.replace(" ", "\u200b ", 1), b),
    "space": lambda a, b: (a, b.replace(" ", "\u00a0", 1)),
    "blank": lambda a, b: (a, "\u3000 "),
    "repetition": lambda a, b: (a + " so so so so so so so", b + " so so so so so so so"),
    "length": lambda a, b: (a * 400, b * 400),
}


@pytest.fixture(scope="module")
def clean():
    """Return clean pairs."""
    return pairs(1500)


class TestRows:
    """Faults of single rows."""

    def test_clean_rows_have_none(self, clean, tmp_path):
        assert found_in(train=write(tmp_path, "train", clean)) == {}

    @pytest.mark.parametrize("rule", ROW_FAULTS)
    def test_each_rule_names_its_rows_alone(self, clean, rule):
        rows = list(clean)
        places = [5, 400, 1499]
        for place in places:
            rows[place] = ROW_FAULTS[rule](*rows[place])
        batch = Batch.of(list(enumerate(rows, 1)))
        found = find_faults(batch, ColumnFacts.of(batch))
        assert np.flatnonzero(found[rule]).tolist() == places
        extra = {"length": {"repetition"}, "ratio": {"length"}, "script": {"ratio"}}.get(rule, set())
        assert set(found) - {rule} <= extra

    def test_every_rule_for_rows_has_a_test(self):
        elsewhere = {"blank-test", "unknown-character"}
        assert {rule.name for rule in RULES.values() if rule.find} == set(ROW_FAULTS) | elsewhere

    @pytest.mark.parametrize(
        "text",
        [
            "Er sagte „Spaß“ und ging.",
            "père, mère, Noël à l’été",
            "a < b und c > d, 5 % sind (x)",
            "می‌خواهم कर्म्‍य 👨‍👩‍👧",
            "ขอบคุณมากครับ",
            "AT&T & Co; R&B",
            "Er las „MENÜ“, «LIBERTÉ», “PERÚ”, PERÚ… und CAFÉ™.",
            "il but un “café”… «À…»",
            "“AMANHÔ",
        ],
    )
    def test_what_people_write_is_no_fault(self, text):
        batch = Batch.of([(1, (text,)), (2, (text,))])
        assert find_faults(batch, ColumnFacts.of(batch)) == {}

    @pytest.mark.parametrize(
        "text", ["für", "25 °C", "mot »", "«Größe»", "ПРИВЕТ", "η Ελλάδα", "naïve café", "łódź", "中文"]
    )
    def test_utf8_read_as_another_encoding_is_one(self, text):
        garbled = bytes(text, "utf-8").decode("cp1252", "replace").replace("\ufffd", "\x81")
        batch = Batch.of([(1, (garbled,)), (2, (text,))])
        assert find_faults(batch, ColumnFacts.of(batch))["garbled"].tolist() == [True, False]

    def test_phones_with_the_letters_of_the_word_are_no_copy(self):
        batch = Batch.of([(1, ("ablatif", "a b l a t i f")), (2, ("Layla", "Layla"))])
        assert find_faults(batch, ColumnFacts())["copy"].tolist() == [False, True]

    def test_hashes_tell_rows_apart_and_near_ones_not(self):
        (side,) = Batch.of(
            [(1, ("Ab c!",)), (2, ("a bc",)), (3, ("cab",)), (4, ("?!",)), (5, ("!?",)), (6, ("Ab c!",))]
        ).sides
        assert len(set(side.exact.tolist())) == 5
        assert side.near[0] == side.near[1] != side.near[2]
        assert side.near[3] != side.near[4]

    def test_folded_characters_are_lower_letters_and_digits(self):
        (side,) = Batch.of([(1, ("Äß9 -٣漢",))]).sides
        kept = [chr(code) for code in side.folded if code]
        assert kept == ["ä", "ß", "9", "٣", "漢"]
        assert all(unicodedata.category(character)[0] in "LN" for character in kept)


class TestAllRows:
    """What only all rows together show."""

    def test_duplicates_and_near_ones(self, clean, tmp_path):
        rows = [*clean[:300], clean[7], (clean[9][0].upper(), clean[9][1].rstrip(".?!")), clean[7]]
        found = found_in(train=write(tmp_path, "train", rows))
        assert list(found["duplicate", "train"].lines) == [301, 303]
        assert list(found["near-duplicate", "train"].lines) == [302]
        assert found["duplicate", "train"].examples[0].line == 301

    def test_leaks_on_either_side_count_once(self, clean, tmp_path):
        train, valid = clean[:1000], clean[1000:1200]
        valid = [*valid, train[3], (train[4][0], "something else 1."), ("etwas anderes 2.", train[5][1])]
        found = found_in(train=write(tmp_path, "train", train), valid=write(tmp_path, "valid", valid))
        assert list(found["leak", "valid"].lines) == [201]
        assert list(found["leak", "valid"].train_lines) == [4]
        assert list(found["leak-source", "valid"].lines) == [202]
        assert list(found["leak-target", "valid"].lines) == [203]
        assert list(found["leak-source", "valid"].train_lines) == [5]
        assert list(found["leak-target", "valid"].train_lines) == [6]

    def test_what_is_blank_leaks_nowhere(self, clean, tmp_path):
        train, valid = list(clean[:1000]), list(clean[1000:1200])
        for place in range(0, 200, 2):
            train[place] = (train[place][0], "")
            valid[place] = (valid[place][0], "")
        found = found_in(train=write(tmp_path, "train", train), valid=write(tmp_path, "valid", valid))
        assert not [rule for rule, _ in found if rule.startswith("leak")]

    @pytest.mark.parametrize(("at", "side"), [(260, 1), (700, 0), (30, 1)])
    def test_shifted_lines_begin_where_one_is_missing(self, clean, at, side):
        columns = [list(column) for column in zip(*clean)]
        del columns[side][at]
        columns[side].append("x")
        (shift,) = self.shifts_of(list(zip(*columns)))
        assert abs(shift.first - at) <= 3
        assert (shift.end, shift.offset) == (1500, -1 if side else 1)

    @pytest.mark.parametrize(("num_rows", "at", "seed"), [(515, 100, 0), (515, 400, 4), (2000, 900, 2)])
    def test_a_short_shift_is_found_among_rows_of_one_template(self, num_rows, at, seed):
        rng = random.Random(seed)
        rows = []
        for _ in range(num_rows):
            words = [rng.randrange(12) for _ in range(rng.randint(2, 8))]
            rows.append((" ".join(NOUNS[n] for n in words), " ".join(THINGS[n] for n in words)))
        assert self.shifts_of(rows) == []
        targets = [target for _, target in rows]
        targets.insert(at + 50, targets.pop(at))
        (shift,) = self.shifts_of([(source, target) for (source, _), target in zip(rows, targets)])
        assert abs(shift.first - at) <= 5
        assert abs(shift.end - at - 50) <= 5
        assert shift.offset == -1

    @pytest.mark.parametrize("num_rows", [100, 515, 2000])
    def test_sides_that_are_not_alike_in_length_are_not_shifted(self, clean, num_rows):
        rng = random.Random(num_rows)
        sources = [source.rstrip("0123456789.?! ") for source, _ in clean * 2][:num_rows]
        assert self.shifts_of([(source, rng.choice(("yes", "no", "maybe"))) for source in sources]) == []
        assert self.shifts_of(list(zip(sources, rng.sample(sources, num_rows)))) == []
        ordered = sorted(sources, key=len)
        assert self.shifts_of([(source, source[::-1]) for source in ordered]) == []

    def shifts_of(self, rows):
        with Stores() as stores:
            store = stores.open("train")
            store.append(records_of(Batch.of(list(enumerate(rows, 1)))))
            return find_shifts(store)

    def test_unknown_characters_are_those_of_the_same_side(self, clean, tmp_path):
        valid = [clean[1400], ("der hund ñ 7.", "the dog 7."), ("der hund 8.", "ß the dog 8.")]
        train = [*clean[:1000], ("straße 5.", "ñandu 5.")]
        found = found_in(train=write(tmp_path, "train", train), valid=write(tmp_path, "valid", valid))
        assert list(found["unknown-character", "valid"].lines) == [2, 3]

    def test_the_same_in_several_processes_and_batches(self, clean, tmp_path, monkeypatch):
        rows = [ROW_FAULTS["swapped"](*row) if place % 50 == 0 else row for place, row in enumerate(clean)]
        recipe = resolve_recipe(None, {"train": write(tmp_path, "train", [*rows, rows[3]])})
        alone = check_corpora(recipe, num_proc=1).to_json()
        monkeypatch.setattr(check, "BATCH_ROWS", 200)
        assert check_corpora(recipe, num_proc=2).to_json() == alone

    def test_a_sample_comes_from_all_over(self):
        sample = sample_evenly(((number, ("x",)) for number in range(1000)), most=100)
        numbers = [number for number, _ in sample]
        assert 50 <= len(numbers) <= 101
        assert len({b - a for a, b in pairwise(numbers)}) == 1
        assert numbers[-1] > 950


class TestRefused:
    """What training refuses is said in one go, with every line."""

    def test_both_files_and_every_line(self, clean, tmp_path):
        source, target = write(tmp_path, "train", clean[:1200])
        lines = [text.encode() for text, _ in clean[:1200]]
        for place in range(1200):
            lines[place] = b"\xff" + lines[place]
        (tmp_path / "train.xx").write_bytes(b"\n".join(lines) + b"\n")
        (tmp_path / "train.yy").write_bytes((tmp_path / "train.yy").read_bytes() + b"more\nb\xe4d\n")
        found = check_corpora(resolve_recipe(None, {"train": [source, target]})).findings
        assert [(each.rule, each.count) for each in found] == [("encoding", 1200), ("encoding", 1), ("line-counts", 1)]
        assert list(found[1].lines) == [1202]
        assert "1,200 lines" in found[2].message
        assert "1,202" in found[2].message

    def test_a_truncated_file_and_what_the_other_has(self, clean, tmp_path):
        _, target = write(tmp_path, "train", clean)
        whole = gzip.compress((tmp_path / "train.xx").read_bytes())
        (tmp_path / "cut.xx.gz").write_bytes(whole[: len(whole) // 2])
        (tmp_path / "train.yy").write_bytes((tmp_path / "train.yy").read_bytes().replace(b"the", b"\xff", 1))
        found = found_in(train=[str(tmp_path / "cut.xx.gz"), target])
        assert {rule for rule, _ in found} >= {"unreadable", "encoding"}
        assert "truncated" in found["unreadable", "train"].message

    def test_records_and_blank_test_targets(self, clean, tmp_path):
        lines = [f"{a}\t{b}" for a, b in clean[:50]]
        lines[7], lines[20] = "one field", "a\tb\tc"
        (tmp_path / "train.tsv").write_text("\n".join(lines), encoding="utf-8")
        (tmp_path / "test.tsv").write_text("x 1.\ty 1.\nx 2.\t \n", encoding="utf-8")
        found = found_in(train=[str(tmp_path / "train.tsv")], test=[str(tmp_path / "test.tsv")])
        assert list(found["record", "train"].lines) == [8, 21]
        assert list(found["blank-test", "test"].lines) == [2]

    def test_an_empty_split_and_one_that_is_held_out(self, clean, tmp_path):
        train, empty = write(tmp_path, "train", clean[:200]), tmp_path / "empty.tsv"
        empty.touch()
        assert set(found_in(train=train, valid=[str(empty)])) == {("no-rows", "valid")}
        assert found_in(train=train, valid=["50"], test=["0.1"]) == {}

    def test_nothing_is_reported_where_training_reads(self, tmp_path):
        (tmp_path / "a.tsv").write_bytes(b"a\tb\n\xff\tb\n")
        found_in(train=[str(tmp_path / "a.tsv")])
        with pytest.raises(CorpusError, match="cannot be read as UTF-8"):
            load_corpus(str(tmp_path / "a.tsv"))


class TestCommand:
    """`seqloom check` as a user runs it."""

    def test_exit_codes_and_the_three_forms(self, clean, tmp_path, capsys):
        rows = [ROW_FAULTS["swapped"](*row) if place % 50 == 0 else row for place, row in enumerate(clean)]
        rows[1] = (rows[1][0] + "<b>\x1b[31m</b>", rows[1][1])
        files = write(tmp_path, "train", rows)
        page, record = tmp_path / "page.html", tmp_path / "report.json"
        assert main(["check", *files, "--html", str(page), "--json", str(record)]) == 1
        shown = capsys.readouterr().out
        assert "HARMFUL   swapped, train: 30 of 1,500 (2.00%)" in shown
        assert "\x1b" not in shown
        report = json.loads(record.read_text(encoding="utf-8"))
        (swapped,) = [found for found in report["findings"] if found["rule"] == "swapped"]
        assert swapped["lines"] == list(range(1, 1501, 50))
        html = page.read_text(encoding="utf-8")
        assert "<b>\x1b" not in html
        assert "&lt;b&gt;\\x1b" in html
        assert "<script" not in html
        assert main(["check", "--train", *files, "--fail_on", "refused"]) == 0
        assert main(["check", *files, "--fail_on", "never", "--json", "-"]) == 0
        shown = capsys.readouterr().out
        assert json.loads(shown[shown.index("{\n") :])["findings"] == report["findings"]

    def test_without_a_text_it_says_what_to_give(self, capsys, tmp_path):
        assert main(["check"]) == 2
        assert "check needs a text" in capsys.readouterr().err
        assert main(["check", "a", "b", "--train", "c", "d"]) == 2
        assert "a b and --train c d are two texts; name one" in capsys.readouterr().err
        assert main(["check", "a", "b", "--html", str(tmp_path / "no" / "page.html")]) == 2
        assert "no does not exist; create it" in capsys.readouterr().err

    def test_few_are_doubtful_and_most_are_the_task(self):
        def found(count):
            return check_report.Finding("swapped", "train", count, num_rows=100_000)

        assert [found(n).harm for n in (50, 5_000, 40_000)] == [Harm.doubtful, Harm.harmful, Harm.note]


class TestCleaning:
    """`clean` leaves out whole rows, counts each once, and knows its cache."""

    @pytest.fixture
    def corpora(self, clean, tmp_path):
        train = list(clean[:1000])
        train[10:20] = [ROW_FAULTS["copy"](*row) for row in train[10:20]]
        train[30] = ROW_FAULTS["markup"](*train[30])
        train += [train[0], clean[1200]]
        splits = {"train": train, "valid": clean[1200:1300]}
        return {split: load_corpus(write(tmp_path, split, rows)) for split, rows in splits.items()}

    def test_what_each_value_leaves_out(self, corpora):
        sizes = {}
        for level in ("none", "default", "strict"):
            cleaned = clean_corpus(corpora, level)
            sizes[level] = len(cleaned), cleaned.facts.num_rows
            assert cleaned.facts.num_rows_read == 1002
        assert sizes == {"none": (1002, 1002), "default": (990, 990), "strict": (989, 989)}
        assert cleaned.facts.num_dropped == {
            "clean: leak": 1, "clean: copy": 10, "clean: markup": 1, "clean: duplicate": 1,
        }  # fmt: skip
        kept = set(zip(cleaned.dataset["source"], cleaned.dataset["target"]))
        assert kept < set(zip(corpora["train"].dataset["source"], corpora["train"].dataset["target"]))

    def test_values_are_different_data_and_are_found_again(self, corpora, monkeypatch):
        prints = {level: clean_corpus(corpora, level).facts.fingerprint for level in ("none", "default", "strict")}
        assert len(set(prints.values())) == 3
        monkeypatch.setattr("seqloom.training.checking.cleaning._find", None)  # nothing is looked for again
        assert clean_corpus(corpora, "default").facts.fingerprint == prints["default"]

    def test_another_test_text_is_no_other_training_text_unless_other_rows_leak(self, corpora, clean, tmp_path):
        tests = {name: clean[begin : begin + 50] for name, begin in (("one", 1300), ("two", 1400), ("leaking", 500))}
        prints = [
            clean_corpus({**corpora, "test": load_corpus(write(tmp_path, name, rows))}, "default").facts.fingerprint
            for name, rows in tests.items()
        ]
        assert prints[0] == prints[1] != prints[2]

    def test_a_source_of_the_judges_goes_with_every_target(self, clean, tmp_path):
        (source, target), rest = clean[0], clean[1:400]
        corpora = {
            "train": load_corpus(write(tmp_path, "train", [(source, target), (source, f"{target} 2"), *rest])),
            "valid": load_corpus(write(tmp_path, "valid", [(source, target), *clean[500:520]])),
        }
        assert len(clean_corpus(corpora, "default")) == 400
        assert len(clean_corpus(corpora, "strict")) == 399

    def test_nothing_left_is_an_error_that_counts(self, tmp_path):
        corpora = {
            "train": load_corpus(write(tmp_path, "train", [("a b", "c d")])),
        }
        corpora["valid"] = corpora["train"]
        with pytest.raises(CorpusError, match=r"clean=default leaves nothing \(1 leak\)"):
            clean_corpus(corpora, "default")


def test_a_glance_sees_leaks_of_the_whole_text_and_faults_of_some(clean, tmp_path):
    rows = [ROW_FAULTS["swapped"](*row) if place % 20 == 0 else row for place, row in enumerate(clean)]
    files = {"train": write(tmp_path, "train", rows), "validation": write(tmp_path, "valid", [rows[7], *clean[2:3]])}
    corpus = {split: load_corpus(names).dataset for split, names in files.items()}
    found = {(each.rule, each.split): each for each in glance(corpus).findings}
    swapped, num_seen = found["swapped", "train"], len(clean)
    assert (swapped.count, swapped.num_rows) == (75, num_seen)
    assert swapped.harm == Harm.harmful
    assert swapped.amount.startswith(f"75 of {num_seen:,}")
    assert list(found["leak-source", "validation"].lines) == [1, 2]


def test_markup_is_looked_for_once_in_each_place():
    """With an end looked for from each beginning it took hours."""
    assert MARKUP.search("[b=" * 1_000_000) is None
    assert MARKUP.search("[url=https:]x[/url]")
