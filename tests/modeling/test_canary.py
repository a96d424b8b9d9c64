"""The canary: what the file holds, when it sings and what that costs, and which bent libraries it notices.

A library is bent here by patching what of it a model calls, and is unknown because the folder's file names no library.
"""

import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer, GenerationMixin, pipeline

import seqloom
from seqloom.modeling import canary, modeling_seqloom
from seqloom.modeling.canary import (
    CANARY_NAME,
    SWITCH,
    CanaryError,
    check_once,
    read_canary,
    sing_here,
    write_canary,
    write_whole,
)
from seqloom.modeling.library import REMEDY, describe_running, describe_tested, running_library
from tests.bent import forget_padding, mix_up_beams
from tests.toy import edit

IDS = torch.tensor([[5, 6, 7, 2]])
Writer = seqloom.SeqloomForConditionalGeneration


@pytest.fixture(scope="module")
def saved(taught_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("canary") / "model"
    taught_model().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """Return a folder whose canary names no library."""
    copy = Path(shutil.copytree(saved, tmp_path / "model"))
    edit(copy / CANARY_NAME, tested=[])
    return copy


def load(folder: Path, **options: Any) -> Any:
    return Writer.from_pretrained(folder, **options).eval()


def write(model: Any) -> list[int]:
    return model.generate(IDS, max_new_tokens=4)[0].tolist()


def refusal(model: Any) -> str:
    with pytest.raises(CanaryError) as error:
        write(model)
    return str(error.value)


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count the passes of the whole network in a block."""
    passes = [0]
    forward = Writer.forward

    def count(self: Any, *args: Any, **kwargs: Any) -> Any:
        passes[0] += 1
        return forward(self, *args, **kwargs)

    count.known = forward.known  # type: ignore[attr-defined]
    count.__signature__ = forward.__signature__  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(Writer, "forward", count)
        yield passes


# The file -------------------------------------------------------------------------------------------------------------


def test_the_file_holds_what_forced_passes_say(saved: Path, taught_model: Callable[..., Any]) -> None:
    made, model = read_canary(saved / CANARY_NAME), taught_model()
    assert (made.tested, made.precision, made.not_checked) == ([running_library()], "float32", None)
    assert (saved / CANARY_NAME).stat().st_size < 2000
    assert len(made.rows) == 3
    for row in made.rows:
        read = torch.tensor([[1, *row.written[:-1]]])
        with torch.no_grad():
            logits = model(torch.tensor([row.source]), decoder_input_ids=read).logits[0]
        assert row.written == logits.argmax(-1).tolist()
        assert row.words == logits.topk(4).indices.tolist()
        torch.testing.assert_close(torch.tensor(row.logits), logits.topk(4).values, atol=1e-4, rtol=0)
    assert len({tuple(row.written) for row in made.rows}) == 3


def test_the_best_beam_is_the_librarys(saved: Path) -> None:
    model = load(saved)
    for row in read_canary(saved / CANARY_NAME).rows:
        options = {"num_beams": 3, "length_penalty": 0.0, "max_new_tokens": 6}
        output = model.generate(torch.tensor([row.source]), **options, return_dict_in_generate=True, output_scores=True)
        assert output.sequences_scores.item() == pytest.approx(row.beam_score, abs=1e-3)


def test_sources_that_the_trainer_gives_are_sung(taught_model: Callable[..., Any], tmp_path: Path) -> None:
    model = taught_model()
    model.canary_sources = [[5, 6, 2], [7, 8, 9, 10, 2]]
    model.save_pretrained(tmp_path)
    assert [row.source for row in read_canary(tmp_path / CANARY_NAME).rows] == model.canary_sources


def test_saved_again_the_sources_stay_and_the_answers_are_the_new_weights(saved: Path, tmp_path: Path) -> None:
    model = load(saved)
    with torch.no_grad():
        model.lm_head.weight.neg_()
    model.save_pretrained(tmp_path)
    before, after = read_canary(saved / CANARY_NAME), read_canary(tmp_path / CANARY_NAME)
    assert [row.source for row in after.rows] == [row.source for row in before.rows]
    assert [row.written for row in after.rows] != [row.written for row in before.rows]
    edit(tmp_path / CANARY_NAME, tested=[])
    write(load(tmp_path))


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("SeqloomModel", {}, "saved without an LM head, and so without words"),
        ("SeqloomForConditionalGeneration", {"foreign": True}, "saved from a state_dict of its own, as sharded "),
        ("SeqloomForConditionalGeneration", {"meta": True}, "saved while the weights were sharded or not loaded"),
    ],
)
def test_what_cannot_sing_says_why(
    kind: str, options: dict[str, bool], reason: str, tiny_model: Callable[..., Any], tmp_path: Path
) -> None:
    model = tiny_model(kind)
    if options.get("foreign"):
        state = {name: weight.clone() for name, weight in model.state_dict().items()}
        model.save_pretrained(tmp_path, state_dict=state)
    else:
        write_canary(model.to("meta") if options.get("meta") else model, tmp_path)
    made = read_canary(tmp_path / CANARY_NAME)
    assert (made.rows, made.tested) == ([], [])
    assert str(made.not_checked).startswith(reason)


@pytest.mark.parametrize("content", ["{", "[]", '{"rows": 3}', '{"rows": [{"sauce": []}], "tested": []}', "{}"])
def test_a_damaged_file_is_named_with_the_remedy(folder: Path, content: str) -> None:
    (folder / CANARY_NAME).write_text(content)
    with pytest.raises(ValueError, match=r"\.json is no canary \(.*get the file again, or delete it: the folder works"):
        load(folder)


def test_a_file_that_would_cost_without_end_is_refused(folder: Path) -> None:
    row = json.loads((folder / CANARY_NAME).read_text())["rows"][0]
    edit(folder / CANARY_NAME, rows=[row] * 9)
    with pytest.raises(ValueError, match="more than 8 rows, or more than 64 tokens in one"):
        load(folder)
    edit(folder / CANARY_NAME, rows=[row | {"source": [5] * 65}])
    with pytest.raises(ValueError, match="more than 8 rows, or more than 64 tokens in one"):
        load(folder)


# When it sings --------------------------------------------------------------------------------------------------------


def test_under_a_library_that_the_file_names_it_costs_no_pass(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(saved)
    with counting(monkeypatch) as first:
        written = write(model)
    with counting(monkeypatch) as second:
        assert write(model) == written
    assert first == second
    assert 0 < first[0] <= 4


def test_under_another_it_sings_once_and_changes_no_answer(
    saved: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(folder).train()
    with counting(monkeypatch) as first:
        written = write(model)
    with counting(monkeypatch) as second:
        write(model)
    assert first[0] > second[0] <= 4
    assert model.training
    assert written == write(load(saved))


def test_every_door_is_behind_it(folder: Path, char_tokenizer: Callable[..., Any], monkeypatch: Any) -> None:
    char_tokenizer("abcdefghijklmnopqrstABCDEFGHIJKLMNOP").save_pretrained(folder)
    heard: list[str] = []
    monkeypatch.setattr(canary, "check", lambda model: heard.append(type(model).__name__))
    for task in ("text-generation", "text2text-generation", "translation", "summarization"):
        pipeline(task, model=str(folder))("abc", max_new_tokens=2)
    model = load(folder)
    pipeline("text-generation", model=model, tokenizer=AutoTokenizer.from_pretrained(folder))("abc", max_new_tokens=2)
    assert heard == ["SeqloomForCausalLM", *[Writer.__name__] * 3, "SeqloomForCausalLM"]


def test_switched_off_it_warns(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(SWITCH, "off")
    monkeypatch.setattr(canary, "check", pytest.fail)
    write(load(folder))
    assert caplog.messages.count(f"SEQLOOM_CANARY=off: answers are not checked under {describe_running()}.") == 1


def test_a_folder_without_a_canary_is_checked_where_the_code_was_not_tested(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / CANARY_NAME).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(canary, "is_tested", lambda: True)
        patch.setattr(canary, "check", pytest.fail)
        write(load(folder))
    monkeypatch.setattr(canary, "is_tested", lambda: False)
    write(load(folder))
    lose_cache(monkeypatch)
    assert f"Tested was {describe_tested()}. To go on" in refusal(load(folder))


@pytest.mark.parametrize("change", ["trained", "resized", "bfloat16", "quantised", "float64"])
def test_a_model_that_is_no_longer_the_folders_is_compared_with_itself(
    folder: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed() -> Any:
        model = load(folder, dtype={"bfloat16": torch.bfloat16, "float64": torch.float64}.get(change, torch.float32))
        if change == "trained":
            with torch.no_grad():
                for weight in model.parameters():
                    weight.mul_(0.9)
        if change == "resized":
            model.resize_token_embeddings(44)
        if change == "quantised":
            model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
        return model

    write(changed())
    lose_cache(monkeypatch)
    assert "greedy search writes" in refusal(changed())


def test_a_configuration_that_the_caller_changed_is_no_fault_of_the_library(folder: Path) -> None:
    """As one that stretches rotary positions for longer texts."""
    assert len(write(load(folder, scale_embedding=False))) > 1
    assert len(write(load(folder, config=seqloom.SeqloomConfig.from_pretrained(folder, scale_embedding=False)))) > 1


def test_a_library_that_nobody_tested_is_named_only_if_generate_is_right(
    taught_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fine-tune that never generates must not vouch for the library under it."""
    monkeypatch.setattr(canary, "is_tested", lambda: False)
    taught_model().save_pretrained(tmp_path / "right")
    assert read_canary(tmp_path / "right" / CANARY_NAME).tested == [running_library()]
    lose_cache(monkeypatch)
    taught_model().save_pretrained(tmp_path / "wrong")
    made = read_canary(tmp_path / "wrong" / CANARY_NAME)
    assert (made.tested, len(made.rows)) == ([], 3)
    refusal(load(tmp_path / "wrong"))


# Bent libraries -------------------------------------------------------------------------------------------------------


def lose_cache(patch: pytest.MonkeyPatch) -> None:
    """What 5.24 did to older folders."""
    prepare = Writer.prepare_inputs_for_generation

    def forget(self: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = prepare(self, *args, **kwargs)
        return {name: value for name, value in inputs.items() if name not in ("cache", "past_key_values")}

    patch.setattr(Writer, "prepare_inputs_for_generation", forget)


def see_the_future(patch: pytest.MonkeyPatch) -> None:
    def all_seen(config: Any, embeddings: torch.Tensor, *_: Any) -> torch.Tensor | None:
        batch, length, _ = embeddings.shape
        return torch.ones(batch, 1, length, length, dtype=torch.bool) if length > 1 else None

    patch.setattr(modeling_seqloom, "create_causal_mask", all_seen)


def take_the_worst_beam(patch: pytest.MonkeyPatch) -> None:
    generate = GenerationMixin.generate

    def worst(self: Any, inputs: Any, settings: Any, **kwargs: Any) -> Any:
        if settings is None or settings.num_beams == 1:
            return generate(self, inputs, settings, **kwargs)
        settings.num_return_sequences = settings.num_beams
        output = generate(self, inputs, settings, **kwargs)
        output.sequences = output.sequences[settings.num_beams - 1 :: settings.num_beams]
        output.sequences_scores = output.sequences_scores[settings.num_beams - 1 :: settings.num_beams]
        return output

    patch.setattr(GenerationMixin, "generate", worst)


def stop_early(patch: pytest.MonkeyPatch) -> None:
    generate = GenerationMixin.generate

    def shorter(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = generate(self, *args, **kwargs)
        if not isinstance(output, torch.Tensor):
            output.sequences = output.sequences[:, :3]
        return output

    patch.setattr(GenerationMixin, "generate", shorter)


def scale_otherwise(patch: pytest.MonkeyPatch) -> None:
    sdpa = modeling_seqloom.ALL_ATTENTION_FUNCTIONS["sdpa"]

    def sharper(*args: Any, **kwargs: Any) -> Any:
        return sdpa(*args, **{**kwargs, "scaling": (kwargs.get("scaling") or 0.5) * math.sqrt(2)})

    patch.setitem(modeling_seqloom.ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", sharper)


def count_from_one_too_many(patch: pytest.MonkeyPatch) -> None:
    generate = GenerationMixin.generate

    def off(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = generate(self, *args, **kwargs)
        if not isinstance(output, torch.Tensor) and getattr(output, "sequences_scores", None) is not None:
            output.sequences_scores = output.sequences_scores / output.sequences.shape[1]
        return output

    patch.setattr(GenerationMixin, "generate", off)


BENT = {
    lose_cache: "greedy search writes ",
    forget_padding: "a forced pass over a padded batch gives token ",
    see_the_future: "a forced pass over a padded batch gives token ",
    mix_up_beams: "beam search says ",
    take_the_worst_beam: "beam search writes ",
    stop_early: "it stops after 2 tokens without an end of sequence",
    scale_otherwise: "a forced pass over a padded batch gives token ",
    count_from_one_too_many: "beam search says ",
}


@pytest.mark.parametrize("bend", BENT, ids=lambda bend: bend.__name__)
def test_a_bent_library_is_refused(folder: Path, bend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bend(monkeypatch)
    assert BENT[bend] in refusal(load(folder))


@pytest.mark.parametrize("bend", [bend for bend in BENT if bend is not scale_otherwise], ids=lambda bend: bend.__name__)
def test_most_are_refused_without_a_file(folder: Path, bend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong in every pass alike is noticed by the file alone."""
    (folder / CANARY_NAME).unlink()
    monkeypatch.setattr(canary, "is_tested", lambda: False)
    bend(monkeypatch)
    refusal(load(folder))


def test_the_error_says_all_that_one_needs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(folder / CANARY_NAME, tested=[{"transformers": "5.20.0", "digest": "0", "torch": "2.9.0"}])
    stop_early(monkeypatch)
    head, what = refusal(load(folder)).split(" What differs: ")
    assert head == (
        f"This model does not answer rightly under {describe_running()}, so it does not answer at all. Tested was "
        f"transformers 5.20.0 with torch 2.9.0. To go on, {REMEDY} SEQLOOM_CANARY=off in the environment lets it "
        f"answer unchecked."
    )
    assert what.startswith("greedy search writes [")


def test_what_crashes_in_the_library_is_refused_with_its_words(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any, **__: Any) -> None:
        raise AttributeError("no attribute 'cache'")

    monkeypatch.setattr(GenerationMixin, "generate", crash)
    assert refusal(load(folder)).endswith("It failed with AttributeError: no attribute 'cache'")


def test_sharded_weights_are_not_checked_and_it_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(canary, "why_it_cannot_sing", lambda model, foreign_weights: "sharded")
    with caplog.at_level(logging.WARNING):
        check_once(load(folder))
    assert f"These weights are sharded, so answers are not checked under {describe_running()}." in caplog.messages


def test_forced_passes_leave_the_model_as_it_was(taught_model: Callable[..., Any]) -> None:
    model = taught_model().train()
    settings = model.generation_config
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    canary.find_faults(model, sing_here(model))
    assert model.training
    assert model.generation_config is settings
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("refused", ["write_bytes", "replace"])
def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path if refused == "write_bytes" else canary.os, refused, full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_whole(tmp_path / "scores.json", "{}")
    assert caught.value.filename == str(tmp_path / "scores.json")
    assert not list(tmp_path.iterdir())
