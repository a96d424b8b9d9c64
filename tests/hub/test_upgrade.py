"""`seqloom upgrade`: a folder of commit 8d00292 gets today's code and nothing else; killed anywhere, it still works.

What such a folder answers before and after where Seqloom is missing is in tests/system/test_old_folder.py.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import dynamic_module_utils
from transformers.pipelines import PIPELINE_REGISTRY

from seqloom import __version__
from seqloom.hub import upgrade
from seqloom.hub.bundle import AUTO_MAP, CUSTOM_PIPELINES, MANIFEST_NAME, bundle_files
from seqloom.hub.model_card import CARD_NAME, is_generated, write_model_card
from seqloom.hub.upgrade import describe_upgrade, plan_upgrade, take, upgrade_folder
from seqloom.hub.verify import FolderError, check_folder, verify_folder
from seqloom.modeling import canary
from seqloom.modeling.canary import CANARY_NAME, read_canary
from seqloom.modeling.library import describe_running, running_library
from seqloom.training.fault_tolerance import checkpoints
from seqloom_cli import verbs
from tests.old_folder import unpack_old_folder
from tests.toy import edit

MODELING = "modeling_seqloom.py"
UNTOUCHED = (
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)
IDS = torch.tensor([[5, 6, 7, 2]])


@pytest.fixture(scope="module")
def unpacked(taught_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_old_folder(tmp_path_factory.mktemp("old") / "dates", taught_model())


@pytest.fixture
def old(unpacked: Path, tmp_path: Path) -> Path:
    """Return a copy to upgrade."""
    return Path(shutil.copytree(unpacked, tmp_path / "dates"))


@pytest.fixture(scope="module")
def upgraded(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(unpacked, tmp_path_factory.mktemp("new") / "dates"))
    upgrade_folder(folder)
    return folder


@pytest.fixture
def new(upgraded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(upgraded, tmp_path / "dates"))


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refusal(folder: Path, **options: Any) -> str:
    """Return what is said, and see that the folder is as it was."""
    before = content(folder)
    with pytest.raises(ValueError, match=r".") as error:
        upgrade_folder(folder, **options)
    assert content(folder) == before
    return str(error.value)


# What it does ---------------------------------------------------------------------------------------------------------


def test_code_manifest_and_canary_are_todays_and_all_else_is_as_it_was(unpacked: Path, upgraded: Path) -> None:
    before, after = content(unpacked), content(upgraded)
    assert {name: after[name].decode() for name in bundle_files()} == bundle_files()
    assert set(after) == {*bundle_files(), *UNTOUCHED, "config.json", CANARY_NAME, CARD_NAME}
    for name in UNTOUCHED:
        assert after[name] == before[name], name
    was, now = json.loads(before["config.json"]), json.loads(after["config.json"])
    assert now == was | {"auto_map": AUTO_MAP, "custom_pipelines": CUSTOM_PIPELINES}
    assert not [found for found in verify_folder(upgraded) if found.is_problem]
    check_folder(upgraded)


def test_the_canary_says_what_the_weights_say(upgraded: Path, taught_model: Callable[..., Any]) -> None:
    made = read_canary(upgraded / CANARY_NAME)
    assert made.tested == [running_library()]
    assert [row.written for row in made.rows] == [row.written for row in canary.sing_here(taught_model())]
    assert len({tuple(row.written) for row in made.rows}) == 3


def test_twice_changes_nothing(new: Path) -> None:
    before = content(new), times(new)
    plan = upgrade_folder(new)
    assert plan.steps == ()
    assert (content(new), times(new)) == before
    assert describe_upgrade(plan) == f"{new} has the code of Seqloom {__version__}; there is nothing to do."


def test_a_dry_run_says_all_and_changes_nothing(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(old), times(old)
    assert verbs.main(["upgrade", str(old), "--dry_run"]) == 0
    assert (content(old), times(old)) == before
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == f"{old}: nothing was changed; without --dry_run this is done."
    assert {"write     modeling_seqloom.py", "write     library.py", "remove    packing.py"} < set(lines)
    assert "write     seqloom_canary.json" in lines
    assert not [line for line in lines if "_next_" in line or "safetensors" in line or "tokenizer" in line]

    assert verbs.main(["upgrade", str(old)]) == 0
    *done, last = capsys.readouterr().out.splitlines()
    assert done == lines
    assert last == (
        f"{old} has the code of Seqloom {__version__} and answers rightly under {describe_running()}. The weights are "
        f"as they were (SHA-256 {digest(old / 'model.safetensors')[:12]}...), and so is the tokenizer."
    )


def test_a_folder_without_a_manifest_is_known_by_its_code(old: Path) -> None:
    """transformers leaves the manifest out when it saves a model where Seqloom is not installed."""
    (old / MANIFEST_NAME).unlink()
    upgrade_folder(old)
    assert not (old / "packing.py").exists()
    assert not [found for found in verify_folder(old) if found.is_problem]


def test_a_folder_that_has_a_canary_already_keeps_what_it_says(
    taught_model: Callable[..., Any], tmp_path: Path
) -> None:
    old = unpack_old_folder(tmp_path / "dates", taught_model(), "0d384d5")
    before = content(old)
    upgrade_folder(old)
    after = content(old)
    assert {name: after[name].decode() for name in bundle_files()} == bundle_files()
    for name in (*UNTOUCHED, CANARY_NAME):
        assert after[name] == before[name], name
    assert not [found for found in verify_folder(old) if found.is_problem]


def test_others_classes_and_pipelines_stay(old: Path) -> None:
    (old / "my_tokenizer.py").write_text("class Mine: ...\n")
    config = json.loads((old / "config.json").read_text())
    mine = {"impl": "my_tokenizer.Rhyme", "pt": ["AutoModel"], "type": "text"}
    config["auto_map"]["AutoTokenizer"] = ["my_tokenizer.Mine", None]
    config["custom_pipelines"]["rhyme"] = mine
    edit(old / "config.json", **config)
    plan = upgrade_folder(old)
    after = json.loads((old / "config.json").read_text())
    assert after["auto_map"] == AUTO_MAP | {"AutoTokenizer": ["my_tokenizer.Mine", None]}
    assert after["custom_pipelines"] == CUSTOM_PIPELINES | {"rhyme": mine}
    assert (old / "my_tokenizer.py").read_text() == "class Mine: ...\n"
    assert "keep      my_tokenizer.py: not Seqloom's." in describe_upgrade(plan).splitlines()


def test_a_copy_of_our_file_under_anothers_name_is_theirs(old: Path) -> None:
    shutil.copyfile(old / "packing.py", old / "my_packing.py")
    upgrade_folder(old)
    assert (old / "my_packing.py").exists()
    assert not (old / "packing.py").exists()


# Cards ----------------------------------------------------------------------------------------------------------------


def test_a_card_that_we_wrote_is_renewed_and_an_edited_one_is_kept_and_named(old: Path) -> None:
    before = (old / CARD_NAME).read_text()  # for the weights that the fixture was made with
    edited = Path(shutil.copytree(old, old.parent / "edited"))
    (edited / CARD_NAME).write_text(before.replace("# dates", "# My dates"))
    upgrade_folder(old)
    assert is_generated((old / CARD_NAME).read_text())
    assert digest(old / "model.safetensors") in (old / CARD_NAME).read_text()
    assert digest(old / "model.safetensors") not in before

    plan = upgrade_folder(edited)
    assert (edited / CARD_NAME).read_text() == before.replace("# dates", "# My dates")
    assert "keep      README.md: edited, and not overwritten." in describe_upgrade(plan).splitlines()


def test_line_ends_and_encoding_of_an_edited_card_stay(old: Path) -> None:
    card = (old / CARD_NAME).read_text().replace("# dates", "# Ärger").replace("\n", "\r\n").encode("latin-1")
    (old / CARD_NAME).write_bytes(card)
    plan = upgrade_folder(old)
    assert (old / CARD_NAME).read_bytes() == card
    assert "keep      README.md: edited, and not overwritten." in describe_upgrade(plan).splitlines()


def test_a_folder_without_a_card_gets_none(old: Path) -> None:
    (old / CARD_NAME).unlink()
    upgrade_folder(old)
    assert not (old / CARD_NAME).exists()


# Edited code ----------------------------------------------------------------------------------------------------------


def test_edited_code_is_named_and_nothing_is_changed(old: Path) -> None:
    (old / MODELING).write_text((old / MODELING).read_text() + "\nTHREADS = 1\n")
    assert refusal(old) == (
        f"modeling_seqloom.py in {old} is not as Seqloom wrote it, and half old, half new code would not run; nothing "
        f"was changed. Move the file out of the way, or let --replace_edited keep it as modeling_seqloom.py.edited."
    )
    (old / "library.py").write_text("SHELVES = 3\n")
    assert refusal(old).startswith(f"library.py, modeling_seqloom.py in {old} are not as Seqloom wrote them, and ")


def test_edited_code_is_replaced_on_request_and_kept_beside_it(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edited = (old / MODELING).read_bytes() + b"\r\nTHREADS = 1  # \xff\r\n"
    (old / MODELING).write_bytes(edited)
    (old / f"{MODELING}.edited").write_text("an earlier one")
    assert verbs.main(["upgrade", str(old), "--replace-edited"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert f"keep      {MODELING}.edited~: {MODELING} as you had edited it." in printed
    assert (old / f"{MODELING}.edited~").read_bytes() == edited
    assert (old / f"{MODELING}.edited").read_text() == "an earlier one"
    assert (old / MODELING).read_text() == bundle_files()[MODELING]
    assert not [found for found in verify_folder(old) if found.is_problem]


def test_an_edited_file_that_nobody_needs_is_kept_and_named(old: Path) -> None:
    (old / "packing.py").write_text("# mine now\n")
    plan = upgrade_folder(old)
    assert (old / "packing.py").read_text() == "# mine now\n"
    line = "keep      packing.py: once Seqloom's, edited since; nothing of ours reads it any more."
    assert line in describe_upgrade(plan).splitlines()


def test_a_manifest_does_not_make_anothers_file_ours(old: Path) -> None:
    (old / "data.py").write_text("ROWS = 3\n")
    manifest = json.loads((old / MANIFEST_NAME).read_text())
    edit(old / MANIFEST_NAME, sha256=manifest["sha256"] | {"data.py": digest(old / "data.py")})
    upgrade_folder(old)
    assert (old / "data.py").read_text() == "ROWS = 3\n"


# What is refused ------------------------------------------------------------------------------------------------------


def test_what_is_no_seqloom_folder(old: Path, tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"nowhere holds no config\.json; name the folder that seqloom train wrote"):
        upgrade_folder(tmp_path / "nowhere")
    edit(old / "config.json", model_type="marian")
    assert refusal(old) == (f"{old} holds a model of type marian, not seqloom; only Seqloom's folders are upgraded.")


def test_a_folder_without_weights(old: Path) -> None:
    (old / "model.safetensors").unlink()
    assert refusal(old).startswith(f"{old} is not a model: it lacks config.json or model.safetensors; ")


def test_a_dangerous_folder(old: Path) -> None:
    torch.save({}, old / "pytorch_model.bin")
    assert refusal(old).startswith(f"{old / 'pytorch_model.bin'}: a pickle, and loading one can run anything; ")


def test_a_folder_that_cannot_be_written(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != old)  # root may write everywhere
    assert refusal(old) == f"{old} cannot be written, so nothing was changed; copy it, and upgrade the copy."


def test_a_copy_in_the_hubs_cache(old: Path) -> None:
    snapshot = old.parent / "snapshots" / "0123abc"
    snapshot.parent.mkdir()
    old.rename(snapshot)
    assert refusal(snapshot) == (
        f"{snapshot} is a copy in the Hub's cache, which the next download replaces; get one of your own with hf "
        f"download OWNER/NAME --local-dir DIR, upgrade DIR, and push it."
    )


def test_weights_that_are_not_the_networks(old: Path) -> None:
    edit(old / "config.json", encoder_layers=3)
    assert re.fullmatch(
        rf"{old}: the weights are not those of the network in config.json: \d+ missing: model\.encoder\.layers"
        rf"\.2\.\S+, .* Nothing was changed; use it with the Seqloom that wrote it, for {__version__} is another\.",
        refusal(old),
    )


def test_a_library_that_does_not_answer_rightly(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade, "find_faults", lambda model, rows: ["it stutters", "it lisps"])
    text = refusal(old)
    assert text.startswith(
        f"{old} would not answer rightly with today's code under {describe_running()}: it stutters; it lisps. Nothing "
        f"was changed. Upgrade it under a tested library; install a tested pair, as with pip install transformers=="
    )


def test_a_folders_own_rows_must_hold(new: Path) -> None:
    (new / MODELING).unlink()
    rows = json.loads((new / CANARY_NAME).read_text())["rows"]
    rows[0]["logits"][0][0] += 1.0
    edit(new / CANARY_NAME, rows=rows)
    assert "would not answer rightly with today's code" in refusal(new)


def test_a_folder_that_has_a_canary_keeps_its_rows_and_gets_another_library(new: Path) -> None:
    edit(new / CANARY_NAME, tested=[{"transformers": "5.20.0", "digest": "0", "torch": "2.9.0"}])
    assert plan_upgrade(new).steps == (), "what answers rightly is noted by verify --run"
    (new / MODELING).unlink()
    before = read_canary(new / CANARY_NAME)
    upgrade_folder(new)
    after = read_canary(new / CANARY_NAME)
    assert after.rows == before.rows
    assert after.tested == [*before.tested, running_library()]


# Killed ---------------------------------------------------------------------------------------------------------------


class KilledError(BaseException):
    """Stands for the end of the process."""


def answer_of_its_own_code(folder: Path) -> list[int]:
    """Return what forced passes write with the classes that config.json leads to; half of one code does not load."""
    reference = json.loads((folder / "config.json").read_text())["auto_map"]["AutoModelForSeq2SeqLM"]
    model = dynamic_module_utils.get_class_from_dynamic_module(reference, str(folder)).from_pretrained(folder).eval()
    written = [1]
    with torch.no_grad():
        for _ in range(4):
            logits = model(IDS, decoder_input_ids=torch.tensor([written])).logits
            written.append(int(logits[0, -1].argmax()))
    return written


def test_killed_between_any_two_steps_the_folder_works_and_the_next_start_ends_it(
    unpacked: Path, upgraded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    text_generation = PIPELINE_REGISTRY.supported_tasks["text-generation"]  # a folder's code puts its class there
    monkeypatch.setitem(text_generation, "impl", text_generation["impl"])
    steps = plan_upgrade(unpacked).steps
    expected = answer_of_its_own_code(unpacked)
    assert len(set(expected)) > 2
    model = upgrade._load(unpacked)  # once: what is tried on the copy is the same each time
    monkeypatch.setattr(upgrade, "_load", lambda folder: model)
    states = set()
    for number in range(len(steps) + 1):
        folder = Path(shutil.copytree(unpacked, tmp_path / f"{number} killed" / "dates"))
        take(folder, steps[:number])
        check_folder(folder)
        config = json.loads((folder / "config.json").read_text())
        state = tuple(sorted((path.name, digest(path)) for path in folder.glob("*.py"))), config["auto_map"].values()
        named = {f"{reference.split('.')[0]}.py" for reference in state[1]}
        key = tuple(entry for entry in state[0] if entry[0] in named | neighbours(folder, named))
        if key not in states:  # what is read did change
            assert answer_of_its_own_code(folder) == expected, number
            states.add(key)
        upgrade_folder(folder)
        assert {name: data for name, data in content(folder).items() if name != CANARY_NAME} == {
            name: data for name, data in content(upgraded).items() if name != CANARY_NAME
        }, number
        assert read_canary(folder / CANARY_NAME).rows == read_canary(upgraded / CANARY_NAME).rows
    assert len(states) == 3, "old code, the stand-ins, new code: and never a mixture"


def neighbours(folder: Path, names: set[str]) -> set[str]:
    """Return the files that code imports, and theirs."""
    found = {f"{name}.py" for file in names for name in re.findall(r"from \.(\w+) import", (folder / file).read_text())}
    return found if found <= names else found | neighbours(folder, names | found)


def test_killed_inside_a_step_the_file_is_as_it_was(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(old)

    def kill(*_: Any) -> None:
        raise KilledError

    plan = plan_upgrade(old)
    monkeypatch.setattr(os, "replace", kill)
    with pytest.raises(KilledError):
        take(old, plan.steps)
    assert content(old) == before


def test_edited_code_is_safe_before_it_is_replaced(old: Path) -> None:
    (old / MODELING).write_text((old / MODELING).read_text() + "\nTHREADS = 1\n")
    steps = plan_upgrade(old, replace_edited=True).steps
    assert [name for name, _ in steps].index(f"{MODELING}.edited") < [name for name, _ in steps].index(MODELING)


# Checkpoints ----------------------------------------------------------------------------------------------------------


def test_a_sealed_checkpoint_stays_whole_for_the_run_that_goes_on(unpacked: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(unpacked, tmp_path / "run" / "checkpoint-3"))
    (checkpoint / "trainer_state.json").write_text("{}")
    torch.save({}, checkpoint / "optimizer.pt")
    checkpoints.seal(checkpoint, step=3)
    steps = plan_upgrade(checkpoint).steps
    for number in range(len(steps)):
        take(checkpoint, steps[number : number + 1])
        assert checkpoints.find_fault(checkpoint) is None, steps[number][0]
    sealed = json.loads((checkpoint / upgrade.SEAL_NAME).read_text())
    assert upgrade.SEAL_NAME == checkpoints.MANIFEST
    assert sealed["step"] == 3
    left = {checkpoints.MANIFEST, checkpoints.CARD}
    assert set(sealed["files"]) == {path.name for path in checkpoint.iterdir()} - left
    (checkpoint / MODELING).write_text("")
    assert checkpoints.find_fault(checkpoint) is not None


def test_checkpoints_beside_a_model_are_named(new: Path, unpacked: Path) -> None:
    before = content(Path(shutil.copytree(unpacked, new / "checkpoint-3")))
    plan = upgrade_folder(new)
    assert content(new / "checkpoint-3") == before
    line = f"keep      checkpoint-3: a folder of its own; seqloom upgrade {new / 'checkpoint-3'} upgrades it."
    assert line in describe_upgrade(plan).splitlines()


def test_a_bare_network_gets_todays_code_and_a_canary_that_says_why_it_is_silent(
    tiny_model: Callable[..., Any], tmp_path: Path
) -> None:
    tiny_model("SeqloomModel").save_pretrained(tmp_path)
    (tmp_path / CANARY_NAME).unlink()
    (tmp_path / "library.py").unlink()
    write_model_card(tmp_path)
    upgrade_folder(tmp_path)
    made = read_canary(tmp_path / CANARY_NAME)
    assert (made.rows, made.tested, made.not_checked) == ([], [], "saved without an LM head, and so without words")
    assert (tmp_path / "library.py").read_text() == bundle_files()["library.py"]
