"""A corpus is named by its path, and behind it how often it is learned and which tag it has."""

import pytest

from seqloom.configuration.data_names import DataName, DataNameError, can_follow, data_name, is_aligned
from seqloom.configuration.recipe import RecipeError
from seqloom.configuration.recipe_layers import resolve_recipe


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("a.tsv", DataName("a.tsv")),
        ("a.tsv:2", DataName("a.tsv", "2")),
        ("a.tsv.gz:0.5", DataName("a.tsv.gz", "0.5")),
        ("a.tsv:1,tag=<bt>", DataName("a.tsv", "1", "<bt>")),
        ("a.tsv:tag=bt", DataName("a.tsv", None, "<bt>")),
        ("a:b.tsv:tag=<language=de>", DataName("a:b.tsv", None, "<language=de>")),
        ("owner/name:de-en", DataName("owner/name:de-en")),
        ("owner/name:17", DataName("owner/name:17")),
        ("owner/name:17:2", DataName("owner/name:17", "2")),
        ("owner/name:tag=bt", DataName("owner/name", None, "<bt>")),
    ],
)
def test_a_name_is_taken_apart(name, meant):
    assert data_name(name) == meant


def test_a_file_of_that_name_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.tsv:2").write_text("x\ty\n")
    assert data_name("a.tsv:2") == DataName("a.tsv:2")
    (tmp_path / "a.tsv").write_text("x\ty\n")
    with pytest.raises(DataNameError, match=r"e\.g\. a\.tsv:2, a\.tsv:tag=bt or a\.tsv:0\.5,tag=bt; 'two' is neither"):
        data_name("a.tsv:two")
    for options in ("tag=bt,2", "2,tag=bt,tag=news", "tag="):
        with pytest.raises(DataNameError, match=f"'{options}' is neither"):
            data_name(f"a.tsv:{options}")


def test_two_text_files_stay_a_pair_and_files_with_columns_follow_each_other():
    assert is_aligned(["x.de", "x.en"])
    assert not can_follow(["x.de", "x.en"])
    for names in (["a.tsv:2", "b.tsv"], ["a.tsv", "b.jsonl:tag=bt"], ["news.txt:2", "wiki.txt:1"]):
        assert can_follow(names)
        assert not is_aligned(names)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"train": ["a.tsv:0"]}, r"train=a\.tsv:0: an epoch cannot hold examples 0 times; use a number above 0"),
        ({"train": ["a.tsv:tag=</s>"]}, r"train=a\.tsv:tag=</s>: tag=</s> cannot stand in front of sources"),
        ({"train": ["a.tsv:tag=a<b"]}, "tag=a<b cannot stand in front of sources"),
        ({"train": ["a.tsv"], "tags": ["pos", "pos"]}, "tags=pos pos: pos is named twice; leave it out"),
        ({"train": ["a.tsv"], "tags": ["target"]}, "target is learned from, or learned, itself; leave it out of tags"),
        ({"train": ["a.tsv"], "columns": ["de", "en"], "tags": ["de"]}, "tags=de: de is learned from"),
        ({"train": ["a.tsv"], "valid": ["v.tsv:2"]}, r"valid=v\.tsv:2: how often .* leave the 2 out"),
        ({"train": ["x.de:2", "x.en"]}, r"x\.de:2 has a weight or a tag, and two text files .* paste SOURCE TARGET"),
        ({"train": ["x.de", "x.en"], "tags": ["language"]}, "have no columns to make tags of; leave tags out"),
    ],
)
def test_what_cannot_be_is_refused(keys, said):
    with pytest.raises(RecipeError, match=said):
        resolve_recipe(None, keys)
