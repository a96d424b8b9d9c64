"""A run deletes, renames and replaces only what Seqloom wrote; what else is in the way is named and not touched."""

import json
from fnmatch import fnmatch
from pathlib import Path

import pytest

from seqloom.configuration.recipe import RecipeError
from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.training.fault_tolerance.ownership import FOLDERS, RECORDS, forget_records, names_of_ours, refuse_foreign
from seqloom.training.fault_tolerance.run_folder import RunFolder
from seqloom.training.train import train
from tests.tiny_trainer import tiny_trainer
from tests.toy import write_reversals

FOREIGN = (
    *("run/notes.txt", "run/recipe.yaml", "_saving/a", "_broken-checkpoint-5/a", "checkpoint-500/trainer_state.json"),
    *("checkpoint-500/model.safetensors", "checkpoint-7", "config.json", "generation_config.json", "README.md"),
    *("model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "target/corpus.txt", "run"),
    *("seqloom_manifest.json", "seqloom_canary.json", "modeling_seqloom.py", "training_args.bin", "_saving/run/mine"),
)


def files_of(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, and what it holds."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("keys", [{}, {"resume": "never"}, {"resume": "never", "overwrite": True}])
def test_what_stands_in_the_way_is_named_and_not_touched(tmp_path, name, keys):
    for path in (tmp_path / name, tmp_path / "train.py", tmp_path / "data" / "train.de"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("theirs")
    before = files_of(tmp_path)
    with pytest.raises(
        RecipeError, match=r"is in the way, .* Nothing was touched\. Move it away, or take another"
    ) as caught:
        train(resolve_recipe(None, {"output": str(tmp_path), **keys}))
    assert f"{tmp_path / Path(name).parts[0]} is in the way" in str(caught.value)
    assert files_of(tmp_path) == before


def test_the_remedy_works_and_other_files_may_lie_there(tmp_path):
    for name in ("train.de", "train.py", "checkpoints.txt", "running.log", "runs/events"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("theirs")
    (tmp_path / "config.json").write_text("theirs")
    with pytest.raises(RecipeError, match=r"config\.json is in the way"):
        refuse_foreign(tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "my_config.json")
    refuse_foreign(tmp_path)


def test_in_a_folder_of_ours_a_foreign_checkpoint_is_named_and_kept(tmp_path):
    folder = RunFolder(tmp_path)
    folder.open(resolve_recipe(None, {"output": str(tmp_path)}))
    folder.begin()
    (tmp_path / "config.json").write_text("ours")
    refuse_foreign(tmp_path)
    (tmp_path / "checkpoint-500").mkdir()
    for keys in ({}, {"resume": "never", "overwrite": True}):
        with pytest.raises(
            RecipeError, match=r"checkpoint-500 is in the way, .* has no manifest of Seqloom\. Nothing was"
        ):
            train(resolve_recipe(None, {"output": str(tmp_path), **keys}))
    assert (tmp_path / "checkpoint-500").is_dir()


def test_a_foreign_checkpoint_that_appears_while_it_trains_is_not_replaced(tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "model.bin").write_text("theirs")
    (tmp_path / "checkpoint-900").mkdir()
    keys = {"max_steps": 3, "save_steps": 1, "save_total_limit": 1, "eval_strategy": "steps", "eval_steps": 1}
    with pytest.raises(ValueError, match="checkpoint-2 is in the way and was not written by Seqloom; move it away"):
        tiny_trainer(tmp_path, **keys).train()
    (tmp_path / "checkpoint-2").rename(tmp_path / "theirs")
    trainer = tiny_trainer(tmp_path, **keys, load_best_model_at_end=True, metric_for_best_model="loss")
    trainer.train()
    left = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert left == {"checkpoint-900", Path(trainer.state.best_model_checkpoint).name}


@pytest.mark.parametrize("kind", ["file", "broken link", "below a file"])
def test_an_output_that_is_no_folder_is_refused(tmp_path, kind):
    output = tmp_path / "model"
    if kind == "broken link":
        output.symlink_to(tmp_path / "nowhere")
    else:
        output.write_text("theirs")
    with pytest.raises(RecipeError, match="name another --output"):
        train(resolve_recipe(None, {"output": str(output / "deep" if kind == "below a file" else output)}))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("output", ["", " "])
def test_an_unset_variable_of_the_shell_does_not_mean_this_folder(output):
    with pytest.raises(RecipeError, match=r"names no folder; write --output DIR .* or --output \. for the folder"):
        resolve_recipe(None, {"output": output})


def test_a_link_to_a_folder_is_that_folder(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    refuse_foreign(tmp_path / "link")
    (tmp_path / "disk" / "run").symlink_to(tmp_path)
    with pytest.raises(RecipeError, match="run is in the way"):
        refuse_foreign(tmp_path / "link")


@pytest.mark.parametrize("name", FOLDERS)
def test_in_a_folder_of_ours_no_link_is_written_through(tmp_path, name):
    """Somebody's folder may bring a recipe, and a link to yours."""
    output, victim = tmp_path / "theirs", tmp_path / "mine"
    folder = RunFolder(output)
    folder.open(resolve_recipe(None, {"output": str(output)}))
    folder.begin()
    (output / name).parent.mkdir(parents=True, exist_ok=True)
    if (output / name).exists():
        (output / name).rename(victim)
    else:
        victim.mkdir()
        (victim / "letter.txt").write_text("mine")
    before = files_of(victim)
    (output / name).symlink_to(victim)
    refused = f"{name} is a link, and a run would write and delete where it leads"
    with pytest.raises(RecipeError, match=refused), RunFolder(output).hold():
        pass
    assert files_of(victim) == before
    (output / name).unlink()
    victim.rename(output / name)  # a folder in its place
    refuse_foreign(output)


@pytest.mark.parametrize("name", ["../../../mine", "/{mine}", "..", ".", "target/../../../../mine"])
def test_a_manifest_forgets_nothing_outside_its_folder(tmp_path, name):
    mine, records = tmp_path / "mine", tmp_path / "theirs" / "run"
    mine.mkdir()
    (records / "tokenizer" / "target").mkdir(parents=True)
    for path in (mine / "letter.txt", records / "mine.txt", records / "tokenizer" / "merges.txt"):
        path.write_text("mine")
    files = {name.replace("/{mine}", str(mine)): {}, "merges.txt": {}}
    (records / "tokenizer" / "checkpoint_manifest.json").write_text(json.dumps({"files": files}))
    forget_records(records)
    assert files_of(tmp_path) == {"mine/letter.txt": b"mine", "theirs/run/mine.txt": b"mine"}


def test_the_list_knows_every_name_that_a_run_writes(tmp_path):
    files = write_reversals(tmp_path, train=60, valid=4)
    model = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "tokenizer": "char", "vocab_size": 300}
    keys = {"max_steps": 2, "save_steps": 1, "max_new_tokens": 4, "num_beams": 1, "joint_vocabulary": False}
    output = tmp_path / "out"
    more = {"test": files["valid"], "log_gradient_flow": True, "preset": "demo", "disable_tqdm": True}
    train(resolve_recipe(None, {**files, **model, **keys, **more, "output": str(output)}))
    names = names_of_ours()
    assert [path.name for path in output.iterdir() if not any(fnmatch(path.name, name) for name in names)] == []
    records = {path.name for path in (output / "run").iterdir()}
    assert records - {*RECORDS, "recipe.yaml", "tokenizer"} == set()
    assert len(records) > 7
