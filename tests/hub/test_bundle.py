"""The bundle: which files it takes, what it changes in them, and how it writes."""

import hashlib
import json
import threading
from pathlib import Path

import pytest
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.dynamic_module_utils import get_imports, get_relative_import_files, get_relative_imports

from seqloom import SeqloomConfig, __version__
from seqloom.hub import bundle
from seqloom.hub.bundle import BundleError, bundle_files, close_over, flatten, our_imports, write_bundle

SOURCES = [
    "configuration/configuration_seqloom.py",
    "modeling/canary.py",
    "modeling/fast_dropout.py",
    "modeling/fused_loss.py",
    "modeling/library.py",
    "modeling/limits.py",
    "configuration/suggestion.py",
    "modeling/modeling_seqloom.py",
    "hub/pipeline_seqloom.py",
    "hub/export/ctranslate2_loader.py",
]
CODE = [Path(source).name for source in SOURCES]


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def names_in(folder):
    return {path.name for path in folder.iterdir()}


# What goes in -------------------------------------------------------------------------------------------------------


def test_closure_follows_imports_of_imports_wherever_they_stand():
    sources = {
        "seqloom.a.one": "from seqloom.b.two import x\n",
        "seqloom.b.two": "def f():\n    from seqloom.c.three import (\n        y,\n    )\n",
        "seqloom.c.three": "import math\nfrom seqloom.a.one import z\n",
        "seqloom.d.four": "",
    }
    assert list(close_over(["seqloom.a.one"], sources.__getitem__)) == [
        "seqloom.a.one",
        "seqloom.b.two",
        "seqloom.c.three",
    ]


def test_bundle_imports_nothing_but_torch_and_transformers(tmp_path):
    for name in CODE:
        path = tmp_path / name
        path.write_text(bundle_files()[name])
        # transformers' own reading of the file, which decides what a reader must have
        assert set(get_imports(path)) <= bundle.ALLOWED_PACKAGES
        assert {f"{module}.py" for module in get_relative_imports(path)} <= set(CODE)


def test_auto_map_and_custom_pipelines_name_classes_of_the_bundle():
    pipelines = [entry["impl"] for entry in bundle.CUSTOM_PIPELINES.values()]
    assert len(pipelines) == 3
    for reference in [*bundle.AUTO_MAP.values(), *pipelines]:
        file, name = reference.split(".")
        assert f"class {name}(" in bundle_files()[f"{file}.py"]


@pytest.mark.parametrize(
    "line",
    [
        "import numpy as np",
        "import torch, datasets",
        "from safetensors.torch import save_file",
        "import seqloom.modeling.modeling_seqloom",
        "from seqloom import SeqloomConfig",
        "from seqloom.modeling import modeling_seqloom",
        "from .modeling_seqloom import SeqloomModel",
        "from . import modeling_seqloom",
        "import math; from seqloom.modeling.modeling_seqloom import SeqloomModel",
    ],
)
def test_import_that_a_reader_may_lack_is_refused(line):
    statement = line.split("; ")[-1]
    with pytest.raises(BundleError) as error:
        our_imports("seqloom.hub.helper", f'"""Docstring."""\n\nimport torch\n{line}\n')
    assert str(error.value) == (
        f"hub/helper.py, line 4: `{statement}` cannot go into a checkpoint folder, whose readers have torch, "
        "transformers and the standard library only; do without it, or, for a file of Seqloom, write "
        "`from seqloom.<folder>.<file> import ...` on a line of its own."
    )


def test_two_files_of_one_name_are_refused():
    sources = {"seqloom.a.util": "from seqloom.b.util import x\n", "seqloom.b.util": ""}
    with pytest.raises(BundleError) as error:
        close_over(["seqloom.a.util"], sources.__getitem__)
    assert str(error.value) == (
        "a/util.py and b/util.py have the same name, and a checkpoint folder is flat; rename one of them."
    )


def test_missing_file_is_named(monkeypatch):
    monkeypatch.setattr(bundle, "ENTRY_MODULES", ("seqloom.modeling.modelling_seqloom",))
    with pytest.raises(BundleError, match=r"^seqloom\.modeling\.modelling_seqloom is imported by the model and cannot"):
        bundle_files.__wrapped__()


# What changes -------------------------------------------------------------------------------------------------------


def test_flatten_shortens_our_imports_and_leaves_every_other_character():
    source = (
        '"""从 text: `from seqloom.a.b import c` stays in a docstring.\n\n'
        "from seqloom.a.b import c\n"
        '"""\n\x0c\n'
        "import math  # from seqloom.a.b import c\n"
        "from  seqloom.a.b  import (  # noqa: F401\n    c as d,\n)\n\n\n"
        "def f():\n\tfrom seqloom.a.e import g; return g\n"
    )
    flat = flatten("seqloom.hub.helper", source, "1.2.3")
    assert flat == (
        "# Seqloom 1.2.3, hub/helper.py: a copy, so that torch and transformers can load this folder.\n"
        "# SPDX-License-Identifier: Apache-2.0\n"
    ) + source.replace("from  seqloom.a.b  import (", "from  .b  import (").replace("\tfrom seqloom.a.e", "\tfrom .e")


def test_configuration_and_model_name_the_pipelines_file_so_that_transformers_copies_it_too(tmp_path):
    for name in CODE:
        (tmp_path / name).write_text(bundle_files()[name])

    def needed(name):
        return {Path(file).name for file in get_relative_import_files(tmp_path / name)}

    ours = {"ctranslate2_loader.py", "pipeline_seqloom.py", "suggestion.py"}
    assert needed("configuration_seqloom.py") == ours
    assert needed("modeling_seqloom.py") == set(CODE) - {"modeling_seqloom.py"}
    assert not get_relative_imports(tmp_path / "pipeline_seqloom.py")


def test_files_say_version_and_source():
    assert set(bundle_files()) == {*CODE, bundle.MANIFEST_NAME}
    for name, source in zip(CODE, SOURCES, strict=True):
        assert bundle_files()[name].startswith(f"# Seqloom {__version__}, {source}: ")


# What is written ----------------------------------------------------------------------------------------------------


def test_save_pretrained_writes_code_manifest_and_two_maps_and_nothing_else_changes(tmp_path, tiny_model, monkeypatch):
    model = tiny_model(norm_eps=1e-6, rope_parameters={"rope_theta": 5e5}, position_embedding_type="rotary")
    with monkeypatch.context() as patch:
        patch.setattr(SeqloomConfig, "after_save", None)
        model.save_pretrained(tmp_path / "bare")
    model.save_pretrained(tmp_path / "full")

    assert names_in(tmp_path / "full") - names_in(tmp_path / "bare") == {*CODE, bundle.MANIFEST_NAME}
    config = config_of(tmp_path / "full")
    assert config.pop("auto_map") == bundle.AUTO_MAP
    assert config.pop("custom_pipelines") == bundle.CUSTOM_PIPELINES
    as_transformers_writes = json.dumps(config, indent=2, sort_keys=True) + "\n"
    assert as_transformers_writes == (tmp_path / "bare" / "config.json").read_text()


def test_manifest_holds_the_digest_of_every_code_file(tmp_path, tiny_config):
    tiny_config().save_pretrained(tmp_path)
    manifest = json.loads((tmp_path / bundle.MANIFEST_NAME).read_text())
    digests = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in CODE}
    assert manifest == {"seqloom_version": __version__, "sha256": digests}


def test_writing_twice_changes_nothing(tmp_path, tiny_config):
    tiny_config().save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_bundle(str(tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_files_are_as_readable_as_any_other(tmp_path, tiny_config):
    tiny_config().save_pretrained(tmp_path)
    (tmp_path / "ordinary").touch()
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {(tmp_path / "ordinary").stat().st_mode}


def test_folder_without_config_is_refused(tmp_path):
    with pytest.raises(BundleError) as error:
        write_bundle(tmp_path)
    assert str(error.value) == f"{tmp_path} holds no config.json; save the model there with save_pretrained first."


def test_broken_config_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "_READ_ATTEMPTS", 2)
    (tmp_path / "config.json").write_text('{"model_type": "seq')
    with pytest.raises(
        BundleError, match=r"config\.json is not valid JSON \(Unterminated .*\); save the model again\.$"
    ):
        write_bundle(tmp_path)


def test_writers_at_the_same_time_leave_whole_files(tmp_path, tiny_config):
    """Two threads save the same folder again and again; whoever reads meanwhile sees whole code files."""
    tiny_config().save_pretrained(tmp_path)
    whole = {name: (tmp_path / name).read_text() for name in (*CODE, bundle.MANIFEST_NAME)}
    problems = []

    def save():
        try:
            for _ in range(15):
                tiny_config().save_pretrained(tmp_path)
        except Exception as error:
            problems.append(error)

    writers = [threading.Thread(target=save) for _ in range(2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert {name: (tmp_path / name).read_text() for name in whole} == whole
    assert problems == []
    assert config_of(tmp_path)["auto_map"] == bundle.AUTO_MAP
    assert names_in(tmp_path) == {*whole, "config.json"}  # no temporary file stays


# auto_map -----------------------------------------------------------------------------------------------------------


def test_auto_map_of_an_older_folder_is_brought_up_to_date(tmp_path, tiny_config):
    tiny_config().save_pretrained(tmp_path)
    config = config_of(tmp_path) | {"auto_map": {"AutoModel": "modeling_seqloom.OldName"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_bundle(tmp_path)
    assert config_of(tmp_path)["auto_map"] == bundle.AUTO_MAP


def test_auto_map_keeps_a_users_own_class(tmp_path, tiny_config):
    config = tiny_config()
    config.auto_map = {"AutoModel": "my_model.MyModel", "AutoTokenizer": ["my_tokenizer.MyTokenizer", None]}
    config.save_pretrained(tmp_path)
    assert config_of(tmp_path)["auto_map"] == bundle.AUTO_MAP | config.auto_map


def test_custom_pipelines_keep_a_users_own_and_bring_ours_up_to_date(tmp_path, tiny_config):
    tiny_config().save_pretrained(tmp_path)
    own = {"rhyme": {"impl": "my_pipeline.Rhyme", "pt": ["AutoModelForSeq2SeqLM"]}}
    old = {"summarization": {"impl": "pipeline_seqloom.OldName", "pt": []}}
    (tmp_path / "config.json").write_text(json.dumps(config_of(tmp_path) | {"custom_pipelines": {**old, **own}}))
    write_bundle(tmp_path)
    assert config_of(tmp_path)["custom_pipelines"] == bundle.CUSTOM_PIPELINES | own


# Who calls it -------------------------------------------------------------------------------------------------------


def test_trainer_checkpoints_and_the_saved_model_are_complete(tmp_path, tiny_model):
    row = {"input_ids": [5, 6, 2], "attention_mask": [1, 1, 1], "labels": [7, 8, 2]}
    arguments = TrainingArguments(
        tmp_path, max_steps=1, save_steps=1, report_to=[], use_cpu=True, per_device_train_batch_size=2
    )
    trainer = Trainer(tiny_model(), arguments, train_dataset=[row, row])
    trainer.train()
    trainer.save_model(tmp_path / "final")
    for folder in (tmp_path / "checkpoint-1", tmp_path / "final"):
        assert {*CODE, bundle.MANIFEST_NAME} <= names_in(folder)
        assert config_of(folder)["auto_map"] == bundle.AUTO_MAP


def test_push_of_a_configuration_alone_uploads_the_code(tmp_path, tiny_config, monkeypatch):
    """transformers uploads in the middle of save_pretrained; the folder has to be whole by then."""
    uploads = []

    class Hub:
        def create_repo(self, repo_id, **kwargs):
            return type("Repository", (), {"repo_id": repo_id})

        def create_commit(self, operations, **kwargs):
            files = {operation.path_in_repo: Path(operation.path_or_fileobj).read_text() for operation in operations}
            uploads.append(files)

    monkeypatch.setattr("transformers.utils.hub.hf_api", Hub)
    monkeypatch.setattr("transformers.configuration_utils.hf_api", Hub)
    config = tiny_config()
    config.save_pretrained(str(tmp_path / "new"), push_to_hub=True)
    config.save_pretrained(str(tmp_path / "new"), push_to_hub=True)  # a push takes what is newer than before the save
    config.push_to_hub("someone/model")
    assert len(uploads) == 3
    for files in uploads:
        assert {*CODE, bundle.MANIFEST_NAME, "config.json"} <= files.keys()
        assert json.loads(files["config.json"])["auto_map"] == bundle.AUTO_MAP


def test_push_uploads_the_code(tmp_path, tiny_model, monkeypatch):
    """Into a folder that already has it too: a push takes what is newer than before the save."""

    class Hub:
        def create_repo(self, repo_id, **kwargs):
            return type("Repository", (), {"repo_id": repo_id})

    uploads = []

    def upload(self, folder, repo_id, files_timestamps, **kwargs):
        folder = Path(folder)
        newer = {name for name in names_in(folder) if (folder / name).stat().st_mtime > files_timestamps.get(name, 0)}
        uploads.append((newer, config_of(folder)["auto_map"]))

    monkeypatch.setattr("transformers.utils.hub.hf_api", Hub)
    monkeypatch.setattr("transformers.modeling_utils.hf_api", Hub)
    monkeypatch.setattr(PreTrainedModel, "_upload_modified_files", upload)
    model = tiny_model()
    model.push_to_hub("someone/model")
    model.save_pretrained(tmp_path / "model", push_to_hub=True)
    model.save_pretrained(tmp_path / "model", push_to_hub=True)
    assert len(uploads) == 3
    for names, auto_map in uploads:
        assert {*CODE, bundle.MANIFEST_NAME, "config.json", "model.safetensors"} <= names
        assert auto_map == bundle.AUTO_MAP
