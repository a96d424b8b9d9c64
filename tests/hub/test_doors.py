"""`seqloom verify --run`: every door of a good folder is ok, and one that answers wrongly is named with its answer."""

import shutil
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import GenerationMixin

import seqloom
from seqloom.hub import doors
from seqloom.hub.doors import Door, describe_doors, note_library, try_doors
from seqloom.hub.pipeline_seqloom import TranslationPipeline
from seqloom.hub.serving import serve
from seqloom.hub.verify import FolderError
from seqloom.modeling.canary import CANARY_NAME, read_canary
from seqloom.modeling.library import REMEDY, describe_running, running_library
from seqloom.training.tokenizer import CHAT_TEMPLATE
from seqloom_cli import verbs
from tests.toy import edit

CHARACTERS = "abcdefghijklmnopqrstABCDEFGHIJKLMNOP"
NAMES = [
    "canary",
    "tokenizer",
    "seq2seq",
    "AutoModel",
    "causal LM",
    "text-generation",
    "text-generation",
    "text2text-generation",
    "summarization",
    "translation",
    "server",
]


@pytest.fixture(scope="module")
def saved(
    tmp_path_factory: pytest.TempPathFactory, taught_model: Callable[..., Any], char_tokenizer: Callable[..., Any]
) -> Path:
    folder = tmp_path_factory.mktemp("doors") / "dates"
    model, tokenizer = taught_model(), char_tokenizer(CHARACTERS)
    model.generation_config.update(max_new_tokens=9, num_beams=2, do_sample=False)
    model.save_pretrained(folder)
    tokenizer.chat_template, tokenizer.split_special_tokens = CHAT_TEMPLATE, True
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "dates"))


@pytest.fixture(scope="module")
def table(saved: Path) -> list[Door]:
    return list(try_doors(saved))


def forget_libraries(folder: Path) -> None:
    """Let the canary name none, as if a newer library had come."""
    edit(folder / CANARY_NAME, tested=[])


def measure(folder: Path) -> doors.Measure:
    return doors.take_measure(str(folder))


# A good folder --------------------------------------------------------------------------------------------------------


def test_every_door_is_asked_and_right(table: list[Door]) -> None:
    assert [door.name for door in table] == NAMES
    assert {door.verdict for door in table} == {"ok"}, [str(door) for door in table]
    assert str(Door("seq2seq", "3 sources", "ok", "", 0.25)) == "ok        seq2seq                 0.2 s  3 sources"


def test_what_is_asked_makes_the_model_speak(saved: Path) -> None:
    asked = measure(saved)
    assert len({tuple(answer) for answer in asked.answers}) == len(asked.texts) == 3
    assert len({len(source) for source in asked.sources}) == 3


def test_a_folder_of_few_bits_is_measured_in_32(
    tmp_path: Path, taught_model: Callable[..., Any], char_tokenizer: Callable[..., Any]
) -> None:
    taught_model().to(torch.bfloat16).save_pretrained(tmp_path)
    char_tokenizer(CHARACTERS).save_pretrained(tmp_path)
    table = {f"{door.name}, {door.asked}": door for door in try_doors(tmp_path)}
    chat = table.pop("text-generation, a chat message")
    assert str(chat) == f"not run   text-generation       {'':7}  a chat message: the tokenizer has no chat template"
    assert {door.verdict for door in table.values()} == {"ok"}, [str(door) for door in table.values()]


def test_without_a_tokenizer_the_doors_that_take_ids_are_opened(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    verdicts = [(door.name, door.verdict, door.reason) for door in try_doors(folder)]
    for name, verdict, reason in verdicts:
        takes_ids = name in ("canary", "seq2seq", "AutoModel", "causal LM")
        assert (verdict, reason) == (("ok", "") if takes_ids else ("not run", "there is no tokenizer.json")), name


def test_without_the_extra_the_server_is_not_run(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "NEEDED", ("no_such_package",))
    (*_, (name, asked, ask)) = doors._doors(measure(saved))
    door = doors._try(name, asked, lambda: ask(measure(saved)))
    assert (door.name, door.verdict) == ("server", "not run")
    assert door.reason == 'seqloom serve needs no_such_package; pip install "seqloom[serving]" brings it all.'


# Doors that are wrong -------------------------------------------------------------------------------------------------


@contextmanager
def wrong_weights(monkeypatch: pytest.MonkeyPatch, cls: type) -> Iterator[None]:
    """Let a class come with other weights than the folder's."""
    load = cls.from_pretrained.__func__  # type: ignore[attr-defined]

    def bend(kind: type, *args: Any, **kwargs: Any) -> Any:
        model = load(kind, *args, **kwargs)
        if kind is cls:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.copy_(-parameter)
        return model

    with monkeypatch.context() as patch:
        patch.setattr(cls, "from_pretrained", classmethod(bend))
        yield


def test_a_base_model_with_other_weights(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measure(saved)
    with wrong_weights(monkeypatch, seqloom.SeqloomModel):
        assert "its hidden states give logits that differ by " in str(doors.ask_base_model(asked))


def test_a_causal_lm_with_other_weights(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measure(saved)
    with wrong_weights(monkeypatch, seqloom.SeqloomForCausalLM):
        assert "and alone the seq2seq door [" in str(doors.ask_causal_lm(asked))
        text = doors.ask_pipeline(asked, task="text-generation")
        assert f"to {asked.texts[0]!r}, and the seq2seq door {asked.decode(asked.answers[0])!r}" in str(text)
        assert "and the seq2seq door " in str(doors.ask_chat(asked))


def test_a_pipeline_that_is_wrong_in_a_batch_alone(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measure(saved)
    forward = TranslationPipeline._forward

    def forgetful(self: Any, inputs: dict[str, Any], **options: Any) -> Any:
        return forward(self, {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}, **options)

    monkeypatch.setattr(TranslationPipeline, "_forward", forgetful)
    text = str(doors.ask_pipeline(asked, task="translation"))
    assert " in a batch, and the seq2seq door " in text
    assert doors.ask_pipeline(asked, task="summarization") is None


def test_a_server_that_answers_something_else(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measure(saved)
    answer = doors._post

    def reversed_(*args: Any) -> dict[str, Any]:
        said = answer(*args)
        said["message"]["content"] = said["message"]["content"][::-1] + "!"
        return said

    monkeypatch.setattr(doors, "_post", reversed_)
    assert "and the seq2seq door " in str(doors.ask_server(asked))


def test_a_generate_that_loses_its_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What transformers 5.24 did to older folders: every step decodes with an empty cache."""
    prepare = seqloom.SeqloomForConditionalGeneration.prepare_inputs_for_generation

    def forget(self: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = prepare(self, *args, **kwargs)
        return {name: value for name, value in inputs.items() if name not in ("cache", "past_key_values")}

    monkeypatch.setattr(seqloom.SeqloomForConditionalGeneration, "prepare_inputs_for_generation", forget)
    table = {door.name: door for door in try_doors(folder)}
    assert "greedy search writes" in table["canary"].reason
    assert "greedy search writes" in table["seq2seq"].reason
    assert table["tokenizer"].verdict == "ok"


def test_a_tokenizer_that_reads_its_file_otherwise(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measure(saved)
    alone = Tokenizer.from_file(str(saved / "tokenizer.json"))
    other = types.SimpleNamespace(encode=lambda text: alone.encode(text, add_special_tokens=False))
    monkeypatch.setattr(doors, "Tokenizer", types.SimpleNamespace(from_file=lambda path: other))
    text = asked.texts[0]
    with_end, without = alone.encode(text).ids, alone.encode(text).ids[:-1]
    assert doors.ask_tokenizer(asked) == f"{text!r} became {with_end}, and {without} by tokenizer.json alone"


def test_a_tokenizer_whose_text_is_not_what_it_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measure(saved)
    monkeypatch.setattr(doors.Measure, "decode", lambda self, ids: "ab")
    assert "went back to text, and became [4, 5, 2]" in str(doors.ask_tokenizer(asked))


def test_a_door_that_raises_has_failed_and_the_next_is_tried(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no\nheads")

    monkeypatch.setattr(doors, "pipeline", fail)
    table = list(try_doors(saved))
    assert [door.name for door in table] == NAMES
    assert {door.reason for door in table if door.verdict == "FAILED"} == {"RuntimeError: no heads"}
    assert {door.name for door in table if door.is_wrong} == {
        "text-generation",
        "text2text-generation",
        "summarization",
        "translation",
    }


def test_without_the_seq2seq_door_there_is_no_measure(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name, tensor = weights.popitem()
    save_file({**weights, f"{name}_of_another": tensor}, folder / "model.safetensors", metadata={"format": "pt"})
    canary, last = try_doors(folder)
    assert (canary.verdict, last.name, last.verdict) == ("FAILED", "seq2seq", "FAILED")


def test_a_dangerous_folder_is_not_opened(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(FolderError, match="a pickle"):
        next(try_doors(folder))


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def canned(monkeypatch: pytest.MonkeyPatch) -> list[Door]:
    """Return the doors that the command will meet."""
    table = [Door("canary", "all", "ok", "", 0.1), Door("server", "a message", "not run", "not installed")]
    monkeypatch.setattr(doors, "try_doors", lambda folder: iter(table))
    return table


def test_all_right_is_noted_in_the_canary(folder: Path, canned: list[Door], capsys: pytest.CaptureFixture[str]) -> None:
    forget_libraries(folder)
    assert verbs.main(["verify", str(folder), "--run"]) == 0
    *_, head, canary, server, verdict, note = capsys.readouterr().out.splitlines()
    assert head == "The doors, opened with the installed classes; the folder's own code is not run:"
    assert (canary, server) == tuple(map(str, canned))
    assert verdict == f"{folder}: every door that was opened answers rightly under {describe_running()}."
    assert note == f"{CANARY_NAME} names this library now, so readers who have it check nothing."
    assert read_canary(folder / CANARY_NAME).tested == [running_library()]
    assert note_library(folder) == f"{CANARY_NAME} is as it was."


def test_a_wrong_door_is_no_success_and_nothing_is_noted(
    folder: Path, canned: list[Door], capsys: pytest.CaptureFixture[str]
) -> None:
    forget_libraries(folder)
    canned.append(Door("translation", "all", "FAILED", "it answers nonsense"))
    assert verbs.main(["verify", str(folder), "--run"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"{folder}: 1 door does not answer rightly under {describe_running()}: translation. {REMEDY}"
    assert read_canary(folder / CANARY_NAME).tested == []
    canned.append(Door("server", "all", "FAILED", "neither does it"))
    assert describe_doors(folder, canned).startswith(f"{folder}: 2 doors do not answer rightly under ")


def test_right_answers_do_not_make_changed_code_right(folder: Path, canned: list[Door]) -> None:
    (folder / "helper.py").write_text("")
    assert verbs.main(["verify", str(folder), "--run"]) == 1


def test_doors_are_not_opened_unasked(folder: Path, canned: list[Door], capsys: pytest.CaptureFixture[str]) -> None:
    assert verbs.main(["verify", str(folder)]) == 0
    assert "The doors" not in capsys.readouterr().out


def test_what_cannot_be_noted_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_libraries(folder)

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(doors.canary, "save_canary", refuse)
        assert note_library(folder) == (
            f"{CANARY_NAME} could not be written (Permission denied), so readers go on checking."
        )
    (folder / "checkpoint_manifest.json").write_text("{}")
    assert note_library(folder) == f"{CANARY_NAME} is as it was: a running checkpoint is sealed."
    assert read_canary(folder / CANARY_NAME).tested == []
    (folder / CANARY_NAME).unlink()
    assert note_library(folder) == f"It has no canary; seqloom upgrade {folder} gives it one."
    assert not (folder / CANARY_NAME).exists()


def test_generate_is_not_what_the_measure_of_greedy_search_uses(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generate that repeats one token is caught, because forced passes do not know it."""
    asked = measure(saved)
    write = GenerationMixin.generate

    def stutter(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = write(self, *args, **kwargs)
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        sequences[:, 1:] = sequences[:, 1:2]
        return output

    monkeypatch.setattr(GenerationMixin, "generate", stutter)
    assert "greedy search writes" in str(doors.ask_seq2seq(asked))
