"""The end of a run: a model that is whole, or brought back, or missed aloud; and a stop that a script can see."""

import json
import os
import shutil
import signal
from types import SimpleNamespace

import pytest
from datasets import Dataset, DatasetDict
from transformers import TrainerCallback

from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.training.finish import _score
from seqloom.training.metrics import METRICS
from seqloom.training.train import main, train
from seqloom_cli.command import StoppedError
from tests.toy import SMALL_RUN, write_reversals

KEYS = {
    **SMALL_RUN,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "max_steps": 4,
    "save_steps": 2,
    "logging_steps": 3,
    "max_new_tokens": 4,
    "num_beams": 1,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_reversals(tmp_path_factory.mktemp("corpus"), train=60, valid=4)


WEIGHTS = {"last": {}, "mean": {"average_checkpoints": 2}, "moving average": {"ema_decay": 0.9}}


@pytest.fixture(scope="module", params=WEIGHTS)
def finished(request, files, tmp_path_factory):
    """A finished run, and the keys it was started with."""
    keys = {**KEYS, **files, **WEIGHTS[request.param]}
    output = tmp_path_factory.mktemp("finished") / "run"
    train(resolve_recipe(None, {**keys, "output": str(output)}))
    return output, keys


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_damaged_model_is_brought_back_with_all_that_was_edited(finished, tmp_path, capsys):
    output, keys = finished
    run = tmp_path / "run"
    shutil.copytree(output, run)
    recipe = resolve_recipe(None, {**keys, "output": str(run)})
    before = contents(run)
    (run / "README.md").write_text("# Mine")
    generation = {**json.loads((run / "generation_config.json").read_text()), "num_beams": 7}
    (run / "generation_config.json").write_text(json.dumps(generation))
    train(recipe)
    assert "nothing to do" in capsys.readouterr().out
    (run / "model.safetensors").write_bytes(before["model.safetensors"][:-8])
    (run / "tokenizer.json").unlink()
    train(recipe)
    printed = capsys.readouterr().out
    assert "model.safetensors has" in printed
    assert "tokenizer.json is missing; it is brought back from the last checkpoint" in printed
    assert "stays as it was edited, and not as the run decodes: num_beams=7, scored with 1\n" in printed
    after = contents(run)
    assert (after.pop("README.md"), before.pop("README.md"))[0] == b"# Mine"
    assert json.loads(after.pop("generation_config.json"))["num_beams"] == 7
    before.pop("generation_config.json")
    vocabularies = [json.loads(each.pop("tokenizer.json"))["model"] for each in (before, after)]  # padding is a setting
    assert vocabularies[0] == vocabularies[1]
    assert after == before
    train(recipe)
    assert "nothing to do" in capsys.readouterr().out


def test_a_lost_model_without_a_checkpoint_is_told_and_the_remedy_works(files, tmp_path, capsys):
    run = tmp_path / "run"
    command = [text for key, value in {**KEYS, "output": run}.items() for text in (f"--{key}", str(value))]
    command += ["--train", *files["train"]]
    assert main(command) == 0
    for checkpoint in run.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    assert main(command) == 0
    (run / "model.safetensors").rename(tmp_path / "away")
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "holds a finished run, but model.safetensors is missing; and there is no whole checkpoint" in error
    (tmp_path / "away").rename(run / "model.safetensors")
    assert main(command) == 0
    (run / "model.safetensors").unlink()
    assert main([*command, "--resume", "never", "--overwrite", "true"]) == 0
    assert (run / "model.safetensors").is_file()


def test_the_corrected_command_works_in_the_same_folder(files, tmp_path, capsys):
    run = tmp_path / "deep" / "run"
    command = [text for key, value in {**KEYS, "output": run}.items() for text in (f"--{key}", str(value))]
    command += ["--train", *files["train"]]
    for key, value in (("--vocab_size", "200"), ("--max_source_length", "1"), ("--tokens_per_update", "3")):
        assert main([*command, key, value]) == 1, key
        assert not run.parent.exists(), f"{key} {value} leaves nothing behind"
    assert main(command) == 0, capsys.readouterr().err


class Signal(TrainerCallback):
    """Asks for a stop at the end of an update."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize("is_launched", [False, True])
def test_a_stopped_run_leaves_a_note_until_it_goes_on_and_loses_no_loss(files, tmp_path, monkeypatch, is_launched):
    recipe = resolve_recipe(None, {**KEYS, **files, "output": str(tmp_path / "run")})
    whole = train(resolve_recipe(None, {**KEYS, **files, "output": str(tmp_path / "whole")}))
    note = tmp_path / "run" / "run" / "stopped.json"
    with monkeypatch.context() as patch:
        if is_launched:
            patch.setenv("TORCHELASTIC_RUN_ID", "none")
        build = patch.setattr
        from seqloom.training import train as module

        built = module.build_trainer

        def build_with_signal(*args):
            trainer = built(*args)
            trainer.callback_handler.callbacks.insert(0, Signal())
            return trainer

        build(module, "build_trainer", build_with_signal)
        with pytest.raises(StoppedError, match=r"Stopped by SIGTERM after update 3 of 4") as stop:
            train(recipe)
    assert json.loads(note.read_text())["stopped"].startswith("Stopped by SIGTERM after update 3 of 4")
    assert (f"The launcher ends with 1; {note} tells a script" in str(stop.value)) == is_launched
    results = train(recipe)
    assert not note.exists()
    assert results["train_loss"] == whole["train_loss"]
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()


def test_what_was_not_learned_is_scored_as_the_whole_set_is():
    """With one tokeniser, which the signature names beside its split: the rest alone might be of another script."""
    learned, unseen = ["ein Hund läuft dort mit zwei Katzen"] * 9, ["今天天气很好我们去公园", "他说很好"]
    targets = [*learned, *unseen]
    outputs = [*learned, "今天天气很好我们去学校", unseen[1]]
    columns = {"source": [f"s{n}" for n in range(len(targets))], "target": targets}
    data = DatasetDict({"train": Dataset.from_dict({"source": columns["source"][:9]})})
    data["validation"] = Dataset.from_dict(columns)
    trainer = SimpleNamespace(
        evaluate=lambda *_, **__: {},
        signatures={"bleu_signature": "tok:13a"},
        doubt=None,
        outputs=outputs,
        evaluation=SimpleNamespace(metrics=["bleu"]),
        is_world_process_zero=lambda: False,
    )
    results = {}
    _score(trainer, data, None, "validation", results)
    whole = METRICS["bleu"](outputs, targets)
    expected = whole.score(whole.values[9:].sum(axis=0))
    assert expected != METRICS["bleu"](outputs[9:], unseen).value
    assert results["validation_unseen_bleu"] == expected
    assert results["validation_bleu_signature"] == "tok:13a"
