"""Pushing to a Hub on loopback: what goes, what stays at home, what a second push does, and every way to fail."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqloom.hub.model_card import CARD_NAME
from seqloom.hub.push import (
    HubError,
    belongs,
    check_repo_name,
    copy_folder,
    create_repository,
    format_size,
    plan_push,
    push_folder,
)
from seqloom_cli import verbs
from tests.loopback_hub import Repository, logged_in

MODEL_FILES = {
    ".gitattributes",
    "README.md",
    "config.json",
    "configuration_seqloom.py",
    "generation_config.json",
    "model.safetensors",
    "modeling_seqloom.py",
    "pipeline_seqloom.py",
    "seqloom_canary.json",
    "seqloom_manifest.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory, taught_model, char_tokenizer):
    """A model, and beside it what a run leaves and what lies about."""
    folder = tmp_path_factory.mktemp("push") / "dates"
    model = taught_model()
    model.generation_config.update(max_new_tokens=9, do_sample=False)  # as a run saves it
    model.save_pretrained(folder)
    words = "abcdefghijklmnop"  # the toy language: its target words are the source's in capitals
    char_tokenizer(words + "0123" + words.upper()).save_pretrained(folder)
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "optimizer.pt").write_bytes(b"PK\x03\x04")
    (folder / "run" / "tokenizer").mkdir(parents=True)
    (folder / "run" / "tokenizer" / "tokenizer.json").write_text("{}")
    (folder / "run" / "test_outputs.jsonl").write_text('{"source": "secret"}\n')
    (folder / "run" / "recipe.yaml").write_text("data:\n  task: pairs\n  train: [a.src, a.tgt]\n")
    (folder / "training_args.bin").write_bytes(b"PK\x03\x04")
    (folder / ".DS_Store").write_text("x")
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "dates")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that knows alice, who is logged in."""
    with logged_in(monkeypatch, tmp_path / "no token") as server:
        yield server


def push(*arguments):
    return verbs.main(["push", *map(str, arguments)])


def test_a_push_makes_a_private_repository_with_the_whole_model(folder, hub, capsys):
    assert push(folder, "alice/dates") == 0
    repository = hub.repositories["alice/dates"]
    assert repository.private
    assert repository.messages == ["initial commit", "Upload a Seqloom model"]
    bundled = {path.name for path in folder.glob("*.py")}
    assert set(repository.files) == MODEL_FILES | bundled
    for name in MODEL_FILES - {".gitattributes", CARD_NAME}:
        assert repository.files[name] == (folder / name).read_bytes(), name
    assert b'model="alice/dates"' in repository.files[CARD_NAME]
    assert not (folder / CARD_NAME).exists(), "a push changes nothing at home"
    said = capsys.readouterr().out
    assert f"Made {hub.url}/alice/dates (private)." in said
    assert 'pipeline("text-generation", model="alice/dates", trust_remote_code=True)' in said


def test_the_card_makes_tags_and_task_of_the_repository(folder, hub):
    push_folder(folder, "alice/dates")
    from huggingface_hub import HfApi

    info = HfApi().model_info("alice/dates")
    assert (info.pipeline_tag, info.library_name) == ("text-generation", "transformers")
    assert {"seqloom", "encoder-decoder"} <= set(info.tags)


LOAD = """
import sys
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline
model = AutoModelForSeq2SeqLM.from_pretrained("alice/dates", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("alice/dates", trust_remote_code=True)
write = pipeline("text-generation", model="alice/dates", trust_remote_code=True)
assert "seqloom" not in sys.modules
batch = tokenizer(["abc"], return_tensors="pt")
ids = model.generate(**batch)
print(tokenizer.batch_decode(ids, skip_special_tokens=True)[0])
print(write("abc", return_full_text=False)[0]["generated_text"])
"""


@pytest.mark.slow
def test_what_was_pushed_loads_from_the_hub_by_name(folder, hub, tmp_path):
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    push_folder(folder, "alice/dates")
    environment = {**os.environ, **hub.environment(), "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", LOAD], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr[-3000:]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = AutoModelForSeq2SeqLM.from_pretrained(folder).generate(**tokenizer(["abc"], return_tensors="pt"))
    (text,) = tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert text.isupper()
    assert run.stdout.split() == [text, text]


def test_a_dry_run_lists_what_would_go_and_asks_nobody(folder, hub, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert push(folder, "alice/dates", "--dry-run") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    listed = {row[2] for row in rows if len(row) == 3}
    assert MODEL_FILES - {".gitattributes"} <= listed
    assert not {name for name in listed if "run" in name or "checkpoint" in name or name.endswith(".bin")}
    size = (folder / "model.safetensors").stat().st_size
    assert [*format_size(size).split(), "model.safetensors"] in rows
    assert rows[-1][:3] == ["Nothing", "was", "sent"]
    assert hub.requests == []


def test_records_of_the_run_go_only_when_asked_for(folder, hub):
    paths = {file.path for file in plan_push(folder, "alice/dates")}
    with_run = {file.path for file in plan_push(folder, "alice/dates", with_run=True)}
    assert with_run - paths == {"run/test_outputs.jsonl", "run/recipe.yaml"}


def test_pushing_again_is_an_update(folder, hub, capsys):
    push(folder, "alice/dates")
    capsys.readouterr()
    hub.requests.clear()
    (folder / "generation_config.json").write_text('{"num_beams": 2}')
    assert push(folder, "alice/dates", "--message", "Wider beams", "--public") == 0
    said = capsys.readouterr().out
    assert f"Updated {hub.url}/alice/dates (private); its earlier versions stay in its history." in said
    assert f"It stays private: an existing repository is made public at {hub.url}/alice/dates/settings." in said
    repository = hub.repositories["alice/dates"]
    assert repository.messages[-1] == "Wider beams"
    assert repository.files["generation_config.json"] == b'{"num_beams": 2}'
    assert not [request for request in hub.requests if request.startswith("PUT")], "weights were there already"


def test_weights_of_an_earlier_push_do_not_hide_the_new_ones(folder, hub):
    push_folder(folder, "alice/dates")
    files = hub.repositories["alice/dates"].files
    files |= {"model-00001-of-00002.safetensors": b"old", "model.safetensors.index.json": b"{}", "notes.md": b"mine"}
    push_folder(folder, "alice/dates")
    left = set(hub.repositories["alice/dates"].files)
    assert "notes.md" in left
    assert {name for name in left if name.startswith("model")} == {"model.safetensors", "modeling_seqloom.py"}


def test_code_and_vocabulary_of_an_earlier_push_do_not_stay(folder, hub):
    push_folder(folder, "alice/dates")
    files = hub.repositories["alice/dates"].files
    files |= {"packing.py": b"old", "target/tokenizer.json": b"{}", "mine.py": b"mine", "target/notes.md": b"mine"}
    push_folder(folder, "alice/dates")
    left = set(hub.repositories["alice/dates"].files)
    assert {"mine.py", "target/notes.md"} <= left
    assert not {"packing.py", "target/tokenizer.json"} & left


def test_a_branch_is_made_where_there_is_none(folder, hub):
    push_folder(folder, "alice/dates", revision="second")
    push_folder(folder, "alice/dates", revision="second")
    assert hub.repositories["alice/dates"].branches == {"main", "second"}
    assert len(hub.repositories["alice/dates"].commits) == 2, "nothing had changed"


def test_a_token_that_may_make_no_repository_writes_to_its_own(folder, hub):
    push_folder(folder, "alice/dates")
    hub.answers["POST /api/repos/create"] = 403
    assert not push_folder(folder, "alice/dates").is_new
    with pytest.raises(ValueError, match="the token may not write to alice/other"):
        push_folder(folder, "alice/other")


def test_public_must_be_asked_for(folder, hub, capsys):
    assert push(folder, "lab/dates", "--public") == 0
    assert not hub.repositories["lab/dates"].private
    assert f"Made {hub.url}/lab/dates (public)." in capsys.readouterr().out


def test_a_bare_name_belongs_to_the_tokens_owner(folder, hub):
    assert push_folder(folder, "dates").repo == "alice/dates"
    assert b'model="alice/dates"' in hub.repositories["alice/dates"].files[CARD_NAME]


def test_an_edited_card_goes_as_it_is(folder, hub):
    card = "---\r\nlicense: mit\r\n---\r\nÄrger.\r\n"
    (folder / CARD_NAME).write_bytes(card.encode())
    push_folder(folder, "alice/dates")
    assert hub.repositories["alice/dates"].files[CARD_NAME] == card.encode()
    (folder / CARD_NAME).write_bytes(card.encode("latin-1"))
    with pytest.raises(ValueError, match=r"README.md is no UTF-8, and the Hub takes no other card; save it so."):
        push_folder(folder, "alice/dates")
    assert next(file for file in plan_push(folder, None) if file.path == CARD_NAME).content == card.encode("latin-1")


class TestRefusals:
    """Each is one sentence with the remedy; nothing is lost."""

    def assert_fails(self, capsys, folder, repo, *parts):
        assert push(folder, repo) == 1
        error = capsys.readouterr().err
        assert "Traceback" not in error
        last_line = error.splitlines()[-1]  # above it, progress bars of earlier uploads
        for part in parts:
            assert part in last_line

    def test_no_token(self, folder, hub, capsys, monkeypatch):
        monkeypatch.delenv("HF_TOKEN")
        text = "no Hugging Face token is set, and alice/dates can only be written with one; run `hf auth login`, or set"
        self.assert_fails(capsys, folder, "alice/dates", text)

    def test_refused_token(self, folder, hub, capsys, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_expired")
        text = f"{hub.url} does not accept the token (401); make one with write access at {hub.url}/settings/tokens"
        self.assert_fails(capsys, folder, "alice/dates", text)
        assert hub.repositories == {}

    def test_read_only_token(self, folder, hub, capsys, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", hub.READER)
        text = (
            "the token may not write to alice/dates (403): it is read-only; take a token with write access to alice at"
        )
        self.assert_fails(capsys, folder, "alice/dates", text)

    def test_somebody_elses_name(self, folder, hub, capsys):
        text = (
            "the token may not write to alcie/dates (403): it is alice's, who is not alcie and not in an organisation "
            "of this name; use alice/dates."
        )
        self.assert_fails(capsys, folder, "alcie/dates", text)

    @pytest.mark.parametrize("private", [True, False])
    def test_somebody_elses_repository(self, folder, hub, capsys, private):
        hub.repositories["bob/dates"] = Repository(private)
        self.assert_fails(capsys, folder, "bob/dates", "the token may not write to bob/dates (403): it is alice's, who")
        assert len(hub.repositories["bob/dates"].commits) == 1

    def test_a_repository_of_another_kind(self, folder, hub, capsys):
        files = {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"precious"}
        hub.repositories["alice/bert"] = Repository(True, [files])
        text = (
            "alice/bert exists and holds a model of the type bert, which this push would replace; push to another name"
        )
        self.assert_fails(capsys, folder, "alice/bert", text)
        hub.repositories["alice/gguf"] = Repository(True, [{"model.gguf": b"precious"}])
        self.assert_fails(capsys, folder, "alice/gguf", "alice/gguf exists and holds model.gguf and no Seqloom model")
        assert len(hub.repositories["alice/bert"].commits) == 1

    @pytest.mark.parametrize("cut", ["preupload", "PUT /objects", "objects/batch", "POST .*/commit/"])
    def test_a_broken_connection(self, folder, hub, capsys, cut):
        push_folder(folder, "alice/dates")
        before = dict(hub.repositories["alice/dates"].files)
        model = folder / "model.safetensors"
        model.write_bytes(model.read_bytes()[:-1] + b"\x01")
        at_home = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        hub.cut = cut
        text = "the folder is unchanged, and a push is one commit: it has arrived whole or not at all. Start the same"
        self.assert_fails(
            capsys, folder, "alice/dates", f"the connection to {hub.url} broke while pushing to alice/dates (", text
        )
        assert hub.repositories["alice/dates"].files == before
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == at_home
        hub.cut = None
        push_folder(folder, "alice/dates")
        assert hub.repositories["alice/dates"].files["model.safetensors"] == model.read_bytes()

    def test_nobody_answers(self, folder, hub, capsys, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        self.assert_fails(capsys, folder, "alice/dates", "the connection to http://127.0.0.1:9 broke while pushing to")

    def test_the_hub_is_ill(self, folder, hub, capsys):
        hub.answers["POST .*/commit/"] = 500
        text = f"{hub.url} answered 500 to the push to alice/dates: "
        self.assert_fails(capsys, folder, "alice/dates", text, "Nothing was changed, here or there; try again later.")

    def test_offline(self, folder, hub, capsys, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        from huggingface_hub.utils import close_session

        close_session()
        self.assert_fails(
            capsys, folder, "alice/dates", "HF_HUB_OFFLINE=1 forbids to send anything to alice/dates; unset"
        )

    def test_code_that_nobody_knows_although_the_manifest_was_renewed(self, folder, hub, capsys):
        file = folder / "pipeline_seqloom.py"
        file.write_text(file.read_text() + "import os\n")
        digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.py")}
        manifest = json.loads((folder / "seqloom_manifest.json").read_text()) | {"sha256": digests}
        (folder / "seqloom_manifest.json").write_text(json.dumps(manifest))
        remedy = f"If the folder is your own, seqloom upgrade {folder} gives it the code of the installed Seqloom."
        self.assert_fails(capsys, folder, "alice/dates", "pipeline_seqloom.py: SHA-256 ", remedy)
        assert hub.requests == []
        assert verbs.main(["upgrade", str(folder)]) == 0
        assert push(folder, "alice/dates") == 0

    def test_code_that_is_not_seqlooms(self, folder, hub, capsys):
        (folder / "mine.py").write_text("")
        (folder / "__pycache__").mkdir()
        (folder / "__pycache__" / "mine.pyc").write_text("")  # stays at home, and so is nobody's business
        self.assert_fails(capsys, folder, "alice/dates", "mine.py: no part of the released code", "hf upload sends")
        (folder / "mine.py").unlink()
        assert push(folder, "alice/dates") == 0

    def test_no_model_and_no_safe_one(self, folder, hub, capsys, tmp_path):
        self.assert_fails(capsys, tmp_path / "nowhere", "alice/dates", "nowhere holds no config.json; name the folder")
        (folder / "extra.pkl").write_bytes(b"\x80\x04.")
        self.assert_fails(capsys, folder, "alice/dates", "extra.pkl: a pickle, and loading one can run anything")
        assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("alice/dates/more", "e.g. alice/date-normaliser."),
        ("alice dates", "without -- and ..; e.g. alice/date-normaliser."),
        ("alice/", "e.g. alice/date-normaliser."),
        ("alice/da--tes", "e.g. alice/date-normaliser."),
        ("alice/-dates", "e.g. alice/date-normaliser."),
        ("alice/dates.", "e.g. alice/date-normaliser."),
        ("alice/" + "x" * 97, "at most 96 characters"),
        ("https://hub.example/alice/dates", "write alice/dates."),
        ("https://hub.example/alice/dates/tree/main", "write alice/dates."),
        ("日期/模型", "of letters, digits, - _ and ."),
    ],
)
def test_a_name_that_is_none(name, hint):
    with pytest.raises(HubError, match="is not the name of a repository: it is owner/name, each of letters") as caught:
        check_repo_name(name)
    assert hint in str(caught.value)


@settings(max_examples=500, deadline=None)
@given(st.text("ab0-_./", min_size=1, max_size=12))
def test_names_are_those_that_huggingface_hub_takes(name):
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        with pytest.raises(HubError):
            check_repo_name(name)
    else:
        if not re.search("(^|/)_", name):  # the Hub has none that begins so
            check_repo_name(name)


def test_creating_twice_finds_what_is_there(hub):
    assert create_repository("alice/new") == ("alice/new", True)
    assert create_repository("alice/new") == ("alice/new", False)
    assert hub.repositories["alice/new"].private


def test_what_belongs():
    for path in ("config.json", "target/tokenizer.json", "pipeline_seqloom.py", "model-00001-of-00002.safetensors"):
        assert belongs(path)
    for path in ("checkpoint-10/config.json", "optimizer.pt", "run/results.json", ".git/config", "a/__pycache__/b.pyc"):
        assert not belongs(path)
    assert belongs("run/results.json", with_run=True)
    assert not belongs("run/tokenizer/tokenizer.json", with_run=True)


def test_sizes():
    assert [format_size(size) for size in (0, 999, 1000, 1536, 2_500_000, 3_210_000_000)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "1.5 kB",
        "2.5 MB",
        "3.2 GB",
    ]


def test_the_stand_in_checks_cards_as_the_hub_does(hub, folder):
    (folder / CARD_NAME).write_text("---\npipeline_tag: text2text-generation\n---\n")
    with pytest.raises(ValueError, match="pipeline_tag text2text-generation is unknown"):
        push_folder(folder, "alice/dates")
    assert json.loads((folder / "config.json").read_text())["model_type"] == "seqloom"


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_a_copy_is_what_a_push_would_send_readable_as_the_umask_says(folder, tmp_path):
    (folder / "model.safetensors").chmod(0o600)
    assert verbs.main(["copy", str(folder), str(tmp_path / "new" / "to go")]) == 0
    copied = tmp_path / "new" / "to go"
    assert {path.name for path in copied.iterdir()} == {file.path for file in plan_push(folder, None)}
    assert "test_outputs.jsonl" not in {path.name for path in copied.rglob("*")}
    (tmp_path / "mine").touch()
    assert {path.stat().st_mode for path in copied.iterdir()} == {(tmp_path / "mine").stat().st_mode}
    assert copy_folder(folder, copied / "again", with_run=True)[-1].path.startswith("tokenizer")
    with pytest.raises(ValueError, match="holds something; name a folder that does not exist, or empty this one"):
        copy_folder(folder, copied)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["to go"], "nothing half"


def test_an_empty_folder_is_filled_and_not_replaced(folder, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert verbs.main(["copy", str(folder), "."]) == 0
    assert {path.name for path in Path().iterdir()} == {file.path for file in plan_push(folder, None)}


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_saved_weights_are_as_readable_as_other_files(tmp_path, tiny_model):
    before = os.umask(0o027)
    try:
        tiny_model().save_pretrained(tmp_path / "model")
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "model").iterdir()} == {"0o640"}
