"""A training that begins with another's weights: what it takes over, refuses, keeps of it, and how it goes on."""

import json
import re
import shlex
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from seqloom.configuration.recipe import RecipeError
from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.hub.model_card import weights_sha256
from seqloom.training.parent import read_parent, shared_pieces
from seqloom.training.train import train
from seqloom_cli.verbs import main
from tests.toy import SMALL_RUN, write_reversals

RUN = {
    **SMALL_RUN,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "tokens_per_update": 700,
    "dropout": 0.1,
    "valid": ["none"],
}
PARENT = {**RUN, "learning_rate": 2e-3, "max_steps": 6, "save_steps": 6}
CHILD = {"tokens_per_update": 700, "valid": ["none"], "disable_tqdm": True, "save_steps": 3, "num_sample_outputs": 0}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a finished parent, its text, and a text with other letters."""
    folder = tmp_path_factory.mktemp("parent")
    files = write_reversals(folder, train=160)
    for side in ("src", "tgt"):
        text = (folder / f"train.{side}").read_text()
        (folder / f"other.{side}").write_text(text.translate(str.maketrans("de", "xy")))
    train(resolve_recipe(None, {**PARENT, "train": files["train"], "output": str(folder / "old")}))
    return folder


@pytest.fixture
def old(home, tmp_path):
    """The parent, to be damaged."""
    shutil.copytree(home / "old", tmp_path / "old")
    return tmp_path / "old"


def child(home, tmp_path, old=None, *, text="train", **keys):
    files = [str(home / f"{text}.{side}") for side in ("src", "tgt")]
    start = {"init_from": str(old or home / "old"), "output": str(tmp_path / "new"), "max_steps": 6}
    return resolve_recipe(None, {**CHILD, "train": files, **start, **keys})


def weights(folder):
    return load_file(folder / "model.safetensors")


def record(tmp_path):
    return json.loads((tmp_path / "new" / "run" / "parent.json").read_text())


def test_a_fine_tuned_model_begins_with_shape_vocabulary_and_weights_of_its_parent(home, tmp_path, capsys):
    train(child(home, tmp_path, max_steps=1, learning_rate=0))
    before, after = weights(home / "old"), weights(tmp_path / "new")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (tmp_path / "new" / "tokenizer.json").read_bytes() == (home / "old" / "tokenizer.json").read_bytes()
    recipe = resolve_recipe(tmp_path / "new" / "run" / "recipe.yaml")
    assert (recipe.tokenizer, recipe.model["d_model"], recipe.model["encoder_layers"]) == ("char", 16, 1)
    printed = capsys.readouterr().out
    digest = weights_sha256(home / "old")
    assert f"parent    {home / 'old'} (weights {digest[:12]}), its vocabulary" in printed
    assert "weights   all 265 embeddings are the parent's" in printed
    assert record(tmp_path)["sha256"]["model.safetensors"] == digest
    card = (tmp_path / "new" / "README.md").read_text()
    assert f"trained from the weights of `old` (SHA-256 `{digest}`) with Seqloom" in card
    assert "random weights" not in card


def test_the_learning_rate_is_a_share_of_the_parents_and_the_plan_says_so(home, tmp_path, capsys):
    train(child(home, tmp_path), dry_run=True)
    assert "learning rate 0.0004, 0.2 of the parent's" in capsys.readouterr().out
    train(child(home, tmp_path, learning_rate=0.5), dry_run=True)
    printed = capsys.readouterr().out
    assert "of the parent's" not in printed


def test_a_child_keeps_the_embeddings_of_pieces_that_both_have(home, tmp_path, capsys):
    train(child(home, tmp_path, text="other", init_vocabulary="new", max_steps=1, learning_rate=0))
    ids = {name: AutoTokenizer.from_pretrained(folder).get_vocab() for name, folder in folders(home, tmp_path)}
    table = {name: weights(folder)["model.encoder.embed_tokens.weight"] for name, folder in folders(home, tmp_path)}
    assert set("xy") & ids["old"].keys() == set()
    for piece in ("a", "b", "c", "</s>", "<0x41>"):
        assert torch.equal(table["new"][ids["new"][piece]], table["old"][ids["old"][piece]]), piece
    for piece in "xy":
        assert not (table["new"][ids["new"][piece]] == table["old"]).all(dim=1).any(), "a new one is nobody's"
    assert "weights   263 pieces keep the parent's embeddings, 2 begin as in a new model" in capsys.readouterr().out
    assert "263 of whose pieces began with that model's embeddings" in (tmp_path / "new" / "README.md").read_text()


def folders(home, tmp_path):
    return {"old": home / "old", "new": tmp_path / "new"}.items()


def test_a_piece_is_the_same_in_a_joint_vocabulary_and_in_that_of_a_side():
    joint = {"</s>": 0, "a": 1, "b": 2}
    sides = {"</s>": 0, "a": 1, "<target>a": 2, "<target>z": 3}
    assert shared_pieces(joint, sides) == [(0, 0), (1, 1), (1, 2)]
    assert shared_pieces(sides, {"</s>": 0, "z": 1, "a": 2}) == [(0, 0), (3, 1), (1, 2)]


@pytest.mark.parametrize(
    ("keys", "said", "remedy"),
    [
        ({"d_model": 32}, r"d_model=32 does not fit the weights of init_from=\S+old, which have d_model=16", "d_model"),
        ({"norm_position": "post"}, "norm_position=post does not fit .*norm_position=pre", "norm_position"),
        ({"preset": "tiny"}, "preset=tiny has d_model=128, which does not fit .*d_model=16", "preset"),
        ({"tokenizer": "bpe"}, "tokenizer=bpe is not the vocabulary of .* which has tokenizer=char", "tokenizer"),
        ({"min_frequency": 3}, "min_frequency=3 says how a vocabulary is learned, and .* has one", "min_frequency"),
        ({"vocab_size": 261}, "vocab_size=261 is not the vocabulary of .*vocab_size=265", "vocab_size"),
    ],
)
def test_what_is_named_and_does_not_fit_is_refused_and_the_remedy_works(home, tmp_path, keys, said, remedy):
    with pytest.raises(RecipeError, match=said) as refusal:
        train(child(home, tmp_path, **keys), dry_run=True)
    assert f"leave {remedy} out" in str(refusal.value)
    assert not (tmp_path / "new").exists()
    if "init_vocabulary new" in str(refusal.value):
        train(child(home, tmp_path, **keys, init_vocabulary="new"), dry_run=True)


def test_what_does_not_touch_the_weights_may_be_named(home, tmp_path):
    train(child(home, tmp_path, dropout=0.3, d_model=16, tokenizer="char"), dry_run=True)
    train(child(home, tmp_path, source_tokenizer="char", target_tokenizer="char"), dry_run=True)


def test_a_folder_that_is_none_or_not_whole_is_refused(home, tmp_path, old):
    with pytest.raises(RecipeError, match="is no folder; name the --output of a finished run"):
        train(child(home, tmp_path, tmp_path / "nowhere"))
    with pytest.raises(RecipeError, match="is, or lies in, the folder to be written; name another --output"):
        child(home, tmp_path, output=str(home / "old"))
    tensors = weights(old)
    others = {**tensors, "model.encoder.layers.0.fc1.bias": tensors["model.encoder.layers.0.fc1.bias"] + 1}
    save_file(others, old / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RecipeError, match=r"is not as its run left it: model\.safetensors is damaged"):
        train(child(home, tmp_path, old))
    shutil.rmtree(old / "run")
    del tensors["model.encoder.layers.0.fc1.bias"]
    save_file(tensors, old / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.encoder\.layers\.0\.fc1\.bias"):
        train(child(home, tmp_path, old))
    config = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps({**config, "model_type": "marian"}))
    with pytest.raises(RecipeError, match="holds a model of type 'marian'"):
        train(child(home, tmp_path, old))
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_is_a_parent_too(home, tmp_path):
    parent = read_parent(str(home / "old" / "checkpoint-6"))
    assert parent.learning_rate == PARENT["learning_rate"]
    train(child(home, tmp_path, home / "old" / "checkpoint-6"), dry_run=True)


@pytest.mark.slow
def test_a_run_that_goes_on_does_not_need_its_parent_again(home, tmp_path, old, caplog):
    keys = {"lr_scheduler_type": "constant", "warmup_steps": 0}  # as long a run or shorter
    train(child(home, tmp_path, output=str(tmp_path / "whole"), **keys))
    train(child(home, tmp_path, max_steps=3, **keys))
    shutil.move(home / "old", home / "away")
    try:
        train(child(home, tmp_path, **keys))
    finally:
        shutil.move(home / "away", home / "old")
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "new")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.slow
def test_a_parent_that_has_changed_is_told(home, tmp_path, old, caplog):
    train(child(home, tmp_path, old, max_steps=3))
    tensors = weights(old)
    others = {name: tensor * 2 for name, tensor in tensors.items()}
    save_file(others, old / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"holds a finished run of 3 updates, and init_from=\S+ holds other weights"):
        train(child(home, tmp_path, old, max_steps=3))
    (tmp_path / "new" / "run" / "results.json").unlink()
    train(child(home, tmp_path, old, max_steps=3))
    assert "holds other weights now than when the run in" in caplog.text


@pytest.mark.slow
def test_a_finished_child_knows_its_command_and_the_way_out_of_a_refusal_works(home, tmp_path, capsys):
    words = ["train", *flags(child_flags(home, tmp_path))]
    assert main(words) == 0
    capsys.readouterr()
    assert main(words) == 0
    assert "nothing to do" in capsys.readouterr().out
    other = {"train": " ".join(str(home / f"other.{side}") for side in ("src", "tgt"))}
    assert main(["train", *flags({**child_flags(home, tmp_path), **other})]) != 0
    said = capsys.readouterr().err
    way = re.search(r"(--init_from \S+) and another --output", said)
    assert way, said
    advised = {**child_flags(home, tmp_path), **other, "output": str(tmp_path / "third")}
    del advised["init_from"]
    assert main(["train", *flags(advised), *shlex.split(way[1])]) == 0
    assert json.loads((tmp_path / "third" / "run" / "parent.json").read_text())["folder"] == str(tmp_path / "new")


def child_flags(home, tmp_path):
    recipe = {**CHILD, "init_from": str(home / "old"), "output": str(tmp_path / "new"), "max_steps": 2}
    return {**recipe, "train": " ".join(str(home / f"train.{side}") for side in ("src", "tgt")), "valid": "none"}


def flags(keys):
    return shlex.split(
        " ".join(f"--{key} {str(value).lower() if value is True else value}" for key, value in keys.items())
    )


def test_a_new_vocabulary_needs_a_parent():
    with pytest.raises(RecipeError, match="init_vocabulary=new needs init_from"):
        resolve_recipe(None, {"init_vocabulary": "new"})
