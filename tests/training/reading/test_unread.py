"""A column that nobody reads and that decides is named, with flags that read it; other columns are not."""

import itertools
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.training.checking.check import check_corpora
from seqloom.training.checking.glance import glance
from seqloom.training.preparation import read_corpus
from seqloom.training.reading.unread import find_unread
from seqloom_cli.verbs import main

LEMMAS = [f"{a}{b}{c}" for a in "ptkmns" for b in "aeiou" for c in "rl"]
FORMS = {"N;PL": "ler", "N;ACC": "i", "V;PST;3;SG": "do"}
ROWS = [(lemma, lemma + ending, features) for lemma in LEMMAS for features, ending in FORMS.items()]


def rows_of(*columns):
    return "".join("\t".join(row) + "\n" for row in columns)


@pytest.fixture
def inflected(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.tsv").write_text(rows_of(*ROWS))
    (tmp_path / "named.tsv").write_text(rows_of(("source", "target", "features"), *ROWS))
    (tmp_path / "named.csv").write_text(rows_of(("source", "target", "features"), *ROWS).replace("\t", ","))
    records = [
        {"id": i, "source": lemma, "target": form, "morph": {"features": features, "weights": [1, 2]}}
        for i, (lemma, form, features) in enumerate(ROWS)
    ]
    (tmp_path / "named.jsonl").write_text("\n".join(map(json.dumps, records)))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "named.parquet")
    (tmp_path / "valid.tsv").write_text(rows_of(*[(lemma, lemma + "erl", "N;PL") for lemma in LEMMAS[:9]]))
    return tmp_path


@pytest.mark.parametrize(
    ("file", "name", "flags"),
    [
        ("plain.tsv", "3", ["--columns", "1", "2", "--tags", "3"]),
        ("named.tsv", "features", ["--tags", "features"]),
        ("named.csv", "features", ["--tags", "features"]),
        ("named.jsonl", "morph.features", ["--tags", "morph.features"]),
        ("named.parquet", "morph.features", ["--tags", "morph.features"]),
    ],
)
def test_the_column_and_the_flags_that_read_it(inflected, file, name, flags, capsys):
    found = find_unread(resolve_recipe(None, {"train": [file]}))
    assert (found.name, found.num_rows, found.num_rivals) == (name, len(ROWS), len(ROWS))
    assert set(found.values) == set(FORMS)
    assert f"{' '.join(flags)} puts its value in front of each source" in str(found)
    assert main(["check", file]) == 1
    assert "unread-column" in capsys.readouterr().out
    assert main(["check", file, *flags]) == 0, "the remedy works"


FEATURES = [";".join(("V", *rest)) for rest in itertools.product(("PRS", "PST"), "123", ("SG", "PL"), ("IND", "SBJV"))]


@pytest.mark.parametrize(
    ("order", "flags", "said"),
    [
        (
            (0, 1, 2),
            ["--columns", "1", "2", "--tags", "3"],
            "column 3 of table.tsv ('V;PRS;1;SG;IND', 'V;PRS;1;SG;SBJV'",
        ),
        ((0, 2, 1), ["--columns", "1", "3", "--tags", "2"], "column 2, which is read as the target, holds features"),
    ],
)
def test_features_are_known_by_themselves_in_either_order(inflected, order, flags, said, capsys):
    """Many bundles of few features, and no lemma twice; or, as in 2022 and 2023, in front of the form."""
    rows = [(f"lemma{i}", f"form{i}", FEATURES[i % len(FEATURES)]) for i in range(len(FEATURES) * 5)]
    (inflected / "table.tsv").write_text(rows_of(*[[row[place] for place in order] for row in rows]))
    found = str(find_unread(resolve_recipe(None, {"train": ["table.tsv"]})))
    assert said in found
    assert f"{' '.join(flags)} puts" in found
    assert main(["check", "table.tsv"]) == 1
    assert main(["check", "table.tsv", *flags]) == 0, "the remedy works"


def test_features_that_are_to_be_learned_mislead_nobody(inflected):
    rows = [(f"word{i}", FEATURES[i % len(FEATURES)], "ab"[i % 2]) for i in range(len(FEATURES) * 5)]
    (inflected / "tags.tsv").write_text("source\ttarget\tsplit\n" + rows_of(*rows))
    for keys in ({}, {"where": ["split=a"]}):
        found = find_unread(resolve_recipe(None, {"train": ["tags.tsv"], **keys}))
        assert found is None or not found.num_misled


def test_columns_of_a_tsv_that_nobody_reads_are_named(inflected):
    rows = [(f"word{i}", f"drow{i}", f"to go; to walk {i}", str(i)) for i in range(50)]
    (inflected / "wide.tsv").write_text(rows_of(*rows))
    found = find_unread(resolve_recipe(None, {"train": ["wide.tsv"]}))
    assert str(found) == (
        "columns 3, 4 of wide.tsv; the source is column 1, the target column 2, and --columns names others"
    )
    assert main(["check", "wide.tsv"]) == 0


def test_columns_that_decide_nothing_are_left_alone(inflected):
    """A number for each row, one value everywhere, few sources with two targets, and what is read already."""
    numbered = [(lemma, lemma + str(i % 2), str(i), "x") for i, lemma in enumerate(LEMMAS * 2 + ["one"])]
    (inflected / "numbered.tsv").write_text(rows_of(*numbered))
    few = [(lemma, lemma[::-1], "ab"[i % 2]) for i, lemma in enumerate(LEMMAS)] + [(LEMMAS[0], "two", "b")]
    (inflected / "few.tsv").write_text(rows_of(*few))
    for keys in (
        {"train": ["numbered.tsv"]},
        {"train": ["few.tsv"]},
        {"train": ["plain.tsv"], "columns": ["1", "2"], "tags": ["3"]},
        {"train": ["named.tsv"], "where": ["features=N;PL"]},
        {"train": ["missing.tsv"]},
    ):
        found = find_unread(resolve_recipe(None, keys))
        assert found is None or not found.num_misled, keys


def test_a_source_behind_another_tag_is_no_leak_and_no_duplicate(inflected):
    """Form and lemma alike in two cases are two rows; the same lemma with the same features is a leak."""
    twice = [*ROWS, *[(lemma, lemma + "i", "N;GEN") for lemma in LEMMAS]]
    (inflected / "train.tsv").write_text(rows_of(*twice))
    (inflected / "new.tsv").write_text(rows_of(*[(lemma, lemma + "lo", "N;LOC") for lemma in LEMMAS[:9]]))
    keys = {"train": ["train.tsv"], "columns": ["1", "2"], "tags": ["3"]}
    for valid, rules in (("new.tsv", set()), ("valid.tsv", {"leak-source"})):
        recipe = resolve_recipe(None, {**keys, "valid": [valid], "clean": "strict"})
        assert {found.rule for found in check_corpora(recipe).findings} == rules
        _, facts = read_corpus(recipe)
        assert facts["train"]["num_rows"] == len(twice) - 9 * len(rules), "clean leaves out the leaks alone"
        recipe = resolve_recipe(None, {**keys, "valid": [valid]})
        assert {found.rule for found in glance(read_corpus(recipe)[0]).findings} == rules
