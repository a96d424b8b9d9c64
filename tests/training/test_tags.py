"""Tags in front of sources: made of names and columns, one token each, and known to whoever reads for the folder."""

import json

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoTokenizer

from seqloom.configuration.recipe import RecipeError
from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.hub.decoding.rows import Layout, RowError
from seqloom.hub.generate import Job, Search, generate_file
from seqloom.hub.serving.chat_request import RequestError, tagged
from seqloom.hub.tags import Tags, tag_of
from seqloom.training.preparation import read_corpus, tags_of, with_tags
from seqloom.training.quality.bpe_dropout import PieceDropout
from seqloom.training.reading.corpus import CorpusError
from seqloom.training.scoring.evaluation_text import ReadingOptions, read_evaluation_text
from seqloom.training.tokenizer import SeqloomTokenizers, train_tokenizer
from seqloom.training.train import train
from tests.toy import SMALL_RUN

TAGS = Tags(("language", "pos"), ("<language=fin>", "<language=hun>", "<pos=N>", "<pos=V_x>"))
RUN = {**SMALL_RUN, "encoder_layers": 1, "decoder_layers": 1, "tokens_per_update": 400, "valid": ["none"]}


@pytest.fixture
def words(tmp_path):
    """Two files with columns, one of which says what each word is."""
    rows = ["language\tsource\ttarget\tpos"]
    rows += [f"{'hun' if i % 2 else 'fin'}\tab{i}\t{i}ba\t{('N', 'V x', '')[i % 3]}" for i in range(60)]
    (tmp_path / "kinds.tsv").write_text("\n".join(rows) + "\n")
    (tmp_path / "plain.tsv").write_text("".join(f"cd{i}\t{i}dc\n" for i in range(40)))
    return tmp_path


def read(words, *names, **keys):
    recipe = resolve_recipe(None, {**RUN, "train": [str(words / name) for name in names], **keys})
    return read_corpus(recipe)[0]["train"]


def test_columns_become_tokens_in_front_of_the_source(words):
    pairs = read(words, "kinds.tsv", tags=["language", "pos"])
    assert tags_of(pairs) == ["<language=fin>", "<language=hun>", "<pos=N>", "<pos=V_x>"]
    assert pairs["source"][:2] == ["ab0", "ab1"], "the vocabulary is learned without them"
    assert with_tags(pairs)["source"][:3] == [
        "<language=fin><pos=N>ab0",
        "<language=hun><pos=V_x>ab1",
        "<language=fin>ab2",
    ]


def test_a_column_whose_name_makes_no_token_is_refused():
    with pytest.raises(RecipeError, match=r"'part of speech' makes no token, .* such as part_of_speech"):
        resolve_recipe(None, {"train": ["a.tsv"], "tags": ["part of speech"]})


def test_bpe_dropout_knows_tags_as_they_are():
    words = ["alma korte"] * 20
    tokenizers = train_tokenizer(
        words, words, kind="bpe", vocab_size=290, min_frequency=1, normalization="nfd", show_progress=False
    )
    tokenizers.add_tags(["<l=français>"], ["l"])
    text = "<l=français>alma"
    assert PieceDropout(tokenizers.source, 0.0).encode(text) == tokenizers.source(text).input_ids
    (number,) = tokenizers.source.convert_tokens_to_ids(["<l=français>"])
    assert PieceDropout(tokenizers.source, 0.9).encode(text)[0] == number


def test_names_give_weights_and_tags(words):
    pairs = read(words, "plain.tsv:0.5,tag=bt", "plain.tsv:2")
    assert pairs["weight"][:] == ["0.5"] * 40 + ["2"] * 40
    assert with_tags(pairs)["source"][39:41] == ["<bt>cd39", "cd0"]
    assert "weight" not in read(words, "plain.tsv", "plain.tsv").column_names


def test_a_document_keeps_its_tag_in_front_of_the_prompt(words):
    (words / "a.txt").write_text("one two three four\n" * 3)
    pairs = with_tags(read(words, "a.txt:2,tag=news", "a.txt:1", task="continuation"))
    for source, target, weight in zip(pairs["source"], pairs["target"], pairs["weight"], strict=True):
        assert (source + target).removeprefix("<news>") == "one two three four"
        assert source.startswith("<news>") == (weight == "2")


def test_columns_of_many_values_make_no_tags(words):
    (words / "ids.tsv").write_text("id\tsource\ttarget\n" + "".join(f"{i}\ta\tb\n" for i in range(1001)))
    with pytest.raises(RecipeError, match=r"1,001 different tags, .* at most 1,000"):
        tags_of(read(words, "ids.tsv", tags=["id"]))


@pytest.mark.parametrize(("kind", "joint"), [("bpe", True), ("char", False), ("word", True), ("unigram", False)])
def test_a_tag_is_one_token_with_or_without_a_blank_behind_it(tmp_path, kind, joint):
    text = ["the cat sat", "a cat"] * 20
    tokenizers = train_tokenizer(text, text, kind=kind, vocab_size=290, joint=joint, show_progress=False)
    plain = tokenizers.vocab_size
    tokenizers.add_tags(["<bt>", "<language=hun>"], ["language"])
    tokenizers.save(tmp_path)
    loaded = SeqloomTokenizers.load(tmp_path)
    assert loaded.vocab_size == plain + 2
    assert loaded.tags == ["<bt>", "<language=hun>"]
    assert Tags.of(tmp_path) == Tags(("language",), ("<bt>", "<language=hun>"))
    cat = loaded.source("the cat").input_ids
    for spelled in ("<bt>the cat", "<bt> the cat"):
        assert loaded.source(spelled).input_ids == [plain, *cat]
    assert loaded.source("</s>the").input_ids.count(2) == 1, "text is text"
    assert loaded.target.decode([plain + 1, *loaded.target("a cat").input_ids], skip_special_tokens=True).endswith(
        "cat"
    )


def test_bpe_dropout_leaves_tags_whole():
    text = ["the cat sat", "a cat"] * 20
    tokenizers = train_tokenizer(text, text, kind="bpe", vocab_size=290, show_progress=False)
    tokenizers.add_tags(["<bt>", "<hun>"])
    for dropout in (0.0, 0.9):
        ids = PieceDropout(tokenizers.source, dropout).encode("<bt><hun> the cat", 1)
        assert ids[:2] == tokenizers.source.convert_tokens_to_ids(["<bt>", "<hun>"])
        assert tokenizers.source.decode(ids[2:], skip_special_tokens=True) == "the cat"
    assert PieceDropout(tokenizers.source, 0.0).encode("<bt><hun> the cat") == (
        tokenizers.source("<bt><hun> the cat").input_ids
    )


def test_lines_of_input_get_what_their_columns_say():
    header, is_header = Layout("in", "tsv", tags=TAGS).with_first_line("word\tlanguage\tpos")
    assert is_header
    assert header.parse("alma\thun\tN", 2).source == "<language=hun><pos=N>alma"
    assert header.parse("<language=fin>alma\thun\tN", 3).source == "<language=fin>alma"
    objects = Layout("in", "jsonl", tags=TAGS)
    assert objects.parse('{"source": "alma", "language": "hun", "pos": null}', 1).source == "<language=hun>alma"
    assert Layout("in", "text", tags=TAGS).parse("alma", 1).source == "alma"
    with pytest.raises(RowError, match=r"line 2: language=hum is no value .* did you mean hun"):
        header.parse("alma\thum\tN", 2)
    with pytest.raises(RowError, match=r"has no 'pos'; .* begin sources with such tags, e\.g\. <language=fin>"):
        objects.parse('{"source": "alma", "language": "hun"}', 1)


def test_a_request_says_it_in_its_metadata():
    assert tagged("alma", {"metadata": {"language": "hun", "team": "x"}}, TAGS) == "<language=hun>alma"
    assert tagged("alma", {"metadata": {"team": "x"}}, TAGS) == tagged("alma", {}, TAGS) == "alma"
    with pytest.raises(RequestError, match="metadata: language=hu is no value"):
        tagged("alma", {"metadata": {"language": "hu"}}, TAGS)


def test_a_value_becomes_a_token_of_each_feature():
    assert tag_of("pos", " V x") == "<pos=V_x>"
    assert tag_of("pos", " V ; <x>\ty ;") == "<pos=V><pos=_x_y>"
    assert tag_of("pos", "  ") == tag_of("pos", None) == ""


def test_a_test_set_gets_its_tags_and_is_grouped_by_them(words):
    options = ReadingOptions(tags=TAGS)
    text = read_evaluation_text([str(words / "kinds.tsv")], options)
    assert text.sources[1] == "<language=hun><pos=V_x>ab1"
    assert text.columns["language"][:3] == ["fin", "hun", "fin"]
    several = [str(words / "plain.tsv:tag=bt"), str(words / "plain.tsv")]
    assert read_evaluation_text(several, ReadingOptions(tags=Tags((), ("<bt>",)))).sources[39:41] == ["<bt>cd39", "cd0"]
    with pytest.raises(CorpusError, match=r"plain\.tsv:tag=bt: no training source had the tag <bt>; they had none"):
        read_evaluation_text(several, ReadingOptions())
    with pytest.raises(CorpusError, match="language=hun is no value that the training text had"):
        read_evaluation_text([str(words / "kinds.tsv")], ReadingOptions(tags=Tags(("language",), ("<language=fin>",))))


def test_a_run_with_tags_and_weights_leaves_a_folder_that_knows_them(words, capsys):
    files = [str(words / "kinds.tsv:0.5"), str(words / "more.tsv:2,tag=bt")]
    (words / "more.tsv").write_text((words / "kinds.tsv").read_text())
    keys = {**RUN, "train": files, "tags": ["language"], "output": str(words / "run"), "max_steps": 2}
    train(resolve_recipe(None, keys))
    assert (
        "tags      3 in front of sources, each a token: <bt> <language=fin> <language=hun>" in capsys.readouterr().out
    )
    tokens = AutoTokenizer.from_pretrained(words / "run").tokenize("<bt><language=hun>ab")
    assert tokens == ["<bt>", "<language=hun>", "a", "b"]
    generate_file(Job(str(words / "run"), str(words / "kinds.tsv"), str(words / "out.tsv"), Search(max_new_tokens=2)))
    assert (words / "out.tsv").read_text().startswith("language\tsource\ttarget\tpos\toutput\n")
    data = json.loads((words / "run" / "run" / "data.json").read_text())
    assert [file["path"] for file in data["train"]["files"]] == [str(words / "kinds.tsv"), str(words / "more.tsv")]


def test_scored_files_have_no_tags_but_those_of_the_training_text(words, capsys):
    files = {"train": [str(words / "kinds.tsv")], "tags": ["language"], "output": str(words / "run")}
    recipe = resolve_recipe(None, {**RUN, **files, "valid": [str(words / "kinds.tsv:tag=new")]})
    with pytest.raises(RecipeError, match=r"valid: its sources have the tag <new>, .* <language=fin> <language=hun>;"):
        train(recipe, dry_run=True)
    train(resolve_recipe(None, {**RUN, **files, "valid": [str(words / "kinds.tsv")]}), dry_run=True)


def test_a_child_has_the_tag_columns_of_its_own_training_text(words):
    keys = {**RUN, "train": [str(words / "kinds.tsv")], "max_steps": 1}
    train(resolve_recipe(None, {**keys, "tags": ["language"], "output": str(words / "old")}))
    plain = {"init_from": str(words / "old"), "output": str(words / "new")}
    train(resolve_recipe(None, {**keys, **plain}))
    assert Tags.of(words / "new") == Tags((), ("<language=fin>", "<language=hun>")), "entries stay, columns do not"
    train(resolve_recipe(None, {**keys, **plain, "output": str(words / "pos"), "tags": ["pos"]}))
    assert Tags.of(words / "pos").columns == ("pos",)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_run_with_weights_goes_on_to_the_weights_of_one_that_was_left_alone(words, dropout):
    def run(output, max_steps):
        files = [str(words / "kinds.tsv:1.5"), str(words / "kinds.tsv:0.3,tag=bt")]
        keys = {"tokenizer": "bpe", "bpe_dropout": dropout, "dropout": 0.1, "save_steps": 3, "max_steps": max_steps}
        train(resolve_recipe(None, {**RUN, **keys, "train": files, "output": str(words / output)}))
        return load_file(words / output / "model.safetensors")

    whole = run("whole", 9)
    run("parts", 3)
    parts = run("parts", 9)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_pairs_without_tags_stay_as_they_are():
    pairs = Dataset.from_dict({"source": ["a"], "target": ["b"]})
    assert with_tags(pairs) is pairs
    assert tags_of(pairs) == []
