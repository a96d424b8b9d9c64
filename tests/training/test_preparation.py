"""What the training text decides before it is cut into tokens."""

import random

import pytest
from datasets import Dataset

from seqloom.configuration.recipe_layers import fit_recipe, resolve_recipe
from seqloom.training.fault_tolerance.run_folder import RunFolder
from seqloom.training.preparation import choose_for, encode, read_or_train_tokenizers
from seqloom.training.tokenizer import train_tokenizer

HAN = [chr(0x4E00 + row) for row in range(3800)]


def spaced(rng: random.Random) -> tuple[str, str]:
    return " ".join(rng.choices(HAN, k=7)), " ".join(rng.choices(HAN, k=7))


def both_ways(rng: random.Random) -> tuple[str, str]:
    pair = "".join(rng.choices(HAN, k=14)), "so it was said to be on a day of old"
    return pair if rng.random() < 0.5 else pair[::-1]


@pytest.mark.parametrize("make", [spaced, both_ways])
def test_a_vocabulary_that_nobody_named_holds_all_characters_and_as_many_pieces(make, tmp_path):
    rng = random.Random(1)
    sources, targets = zip(*[make(rng) for _ in range(1200)], strict=True)
    pairs, folder = Dataset.from_dict({"source": sources, "target": targets}), RunFolder(tmp_path)
    recipe = resolve_recipe(None, {"train": ["a", "b"], "output": str(tmp_path)})
    choice = choose_for(recipe, pairs, folder)
    assert choice.tokenizers == ("bpe", "bpe")
    characters = len(set("".join(sources + targets)))
    assert characters + 2000 < choice.settings["vocab_size"] <= characters + 260 + 2000 + 100
    fitted = fit_recipe(recipe, choice)
    folder.open(fitted)
    tokenizers = read_or_train_tokenizers(fitted, pairs, folder)
    assert characters < tokenizers.vocab_size <= choice.settings["vocab_size"]


@pytest.mark.parametrize(
    "target",
    ["\u09b8\u09ae\u09df", "\u0634\u0651\u064e", "\u05e9\u05bc\u05c1\u05b8", "Vie\u0323\u0302t", "plain"],
    ids=["Bengali YYA", "shadda in front of a vowel", "niqqud as typed", "Vietnamese in NFD", "ASCII"],
)
def test_targets_are_what_a_perfect_model_writes(target):
    pairs = Dataset.from_dict({"source": ["a", "b"], "target": [target, "other"]})
    tokenizers = train_tokenizer(pairs["source"], pairs["target"], kind="char", vocab_size=400, show_progress=False)
    encoded = encode(pairs, tokenizers, "test")
    written = tokenizers.target.batch_decode(encoded["labels"][:], skip_special_tokens=True)
    assert encoded["target"][:] == written
    assert encoded.features["target"] == pairs.features["target"]
