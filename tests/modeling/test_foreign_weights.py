"""Nothing is filled at random: weights that are missing, of another shape or unknown are named and refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, pipeline

from seqloom.modeling.library import WeightsError
from seqloom.modeling.modeling_seqloom import SeqloomForConditionalGeneration, SeqloomModel, SeqloomPreTrainedModel

LOST = "decoder.layers.1.fc1.weight"


@pytest.fixture
def folder(tiny_model: Callable[..., Any], tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(folder: Path, damage: str) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    if damage == "missing":
        del weights[f"model.{LOST}"]
    elif damage == "shape":
        weights[f"model.{LOST}"] = weights[f"model.{LOST}"][:-1].clone()
    else:
        weights["model.decoder.layers.7.fc1.weight"] = torch.ones(2, 2)
    save_file(weights, path, {"format": "pt"})


SENTENCES = {
    "missing": rf"1 missing: (model\.)?{LOST}\. Copy or train the folder again",
    "shape": rf"1 of another shape than config.json says: (model\.)?{LOST} \[31, 16\] for \[32, 16\]",
    "unknown": "1 unknown to this network: model.decoder.layers.7.fc1.weight",
}


@pytest.mark.parametrize("damage", SENTENCES)
@pytest.mark.parametrize(
    "door",
    [
        AutoModel.from_pretrained,
        AutoModelForCausalLM.from_pretrained,
        AutoModelForSeq2SeqLM.from_pretrained,
        lambda folder: pipeline("text-generation", model=str(folder)),
        lambda folder: pipeline("translation", model=str(folder)),
    ],
)
def test_every_door_refuses_other_weights(folder: Path, door: Any, damage: str) -> None:
    change(folder, damage)
    with pytest.raises(ValueError, match=SENTENCES[damage]):  # pipelines put it into one of their own
        door(folder)


@pytest.mark.parametrize("damage", SENTENCES)
def test_the_remedy_works(folder: Path, damage: str) -> None:
    change(folder, damage)
    model, info = AutoModelForSeq2SeqLM.from_pretrained(folder, ignore_mismatched_sizes=True, output_loading_info=True)
    assert any(info[kind] for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"))
    model.save_pretrained(folder)
    AutoModelForSeq2SeqLM.from_pretrained(folder)


def test_another_network_in_the_call_is_refused_unless_it_is_meant(folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"\d+ unknown to this network: model.encoder.layers.1.fc1.bias"):
        AutoModelForSeq2SeqLM.from_pretrained(folder, encoder_layers=1)
    smaller = AutoModelForSeq2SeqLM.from_pretrained(folder, encoder_layers=1, ignore_mismatched_sizes=True)
    assert len(smaller.model.encoder.layers) == 1


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_saved_can_be_loaded_by_the_others(tiny_model: Callable[..., Any], tmp_path: Path, tied: bool) -> None:
    whole = tiny_model(tie_word_embeddings=tied)
    whole.save_pretrained(tmp_path / "whole")
    base = SeqloomModel.from_pretrained(tmp_path / "whole")
    assert torch.equal(base.encoder.layers[0].fc1.weight, whole.model.encoder.layers[0].fc1.weight)
    base.save_pretrained(tmp_path / "base")
    if tied:
        SeqloomForConditionalGeneration.from_pretrained(tmp_path / "base")
    else:
        with pytest.raises(WeightsError, match=r"1 missing: lm_head.weight"):
            SeqloomForConditionalGeneration.from_pretrained(tmp_path / "base")
        SeqloomForConditionalGeneration.from_pretrained(tmp_path / "base", ignore_mismatched_sizes=True)


class Tagger(SeqloomPreTrainedModel):
    """A class that somebody derived: our network under a head of their own."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = SeqloomModel(config)
        self.tags = nn.Linear(config.d_model, 3)
        self.post_init()


def test_a_head_of_ones_own_is_new_and_comes_back(folder: Path, tmp_path: Path) -> None:
    tagger = Tagger.from_pretrained(folder, ignore_mismatched_sizes=False)
    assert tagger.tags.weight.isfinite().all()
    tagger.save_pretrained(tmp_path / "tagger")
    again = Tagger.from_pretrained(tmp_path / "tagger")
    assert torch.equal(again.tags.weight, tagger.tags.weight)
    assert json.loads((tmp_path / "tagger" / "config.json").read_text())["architectures"] == ["Tagger"]
    SeqloomModel.from_pretrained(tmp_path / "tagger")


def test_resized_sharded_and_narrow_weights_are_ones_own(tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    model = tiny_model()
    model.resize_token_embeddings(48)
    model.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert again.lm_head.weight.shape == (48, 16)
    next(iter(sorted(tmp_path.glob("*.safetensors")))).unlink()
    with pytest.raises((OSError, WeightsError)):
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
