"""A checkpoint is whole or not there, whatever happens to the process and to the files."""

import json
import os
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqloom.training.fault_tolerance import checkpoints
from seqloom.training.fault_tolerance.checkpoints import (
    MANIFEST,
    STAGING,
    checkpoints_in,
    clear_staging,
    discard_extra,
    find_fault,
    foreign_checkpoints_in,
    install,
    last_whole_checkpoint,
    put_in_place,
    rotate,
    seal,
    write_json,
)

FILES = {
    "model.safetensors": b"w" * 900,
    "optimizer.pt": b"o" * 500,
    "trainer_state.json": b"{}",
    "target/t.json": b"t",
}


def fill(folder, files=FILES):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def save(output, update):
    staged = fill(output / STAGING / f"checkpoint-{update}")
    seal(staged, update=update, processes=1)
    put_in_place(staged, output / staged.name)
    return output / staged.name


def names(output):
    return [path.name for path in checkpoints_in(output)]


def test_the_newest_whole_checkpoint_is_taken(tmp_path):
    assert last_whole_checkpoint(tmp_path) is None
    for update in (5, 10, 100):
        save(tmp_path, update)
    (tmp_path / "checkpoint-final").mkdir()
    assert names(tmp_path) == ["checkpoint-5", "checkpoint-10", "checkpoint-100"]
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-100"
    assert last_whole_checkpoint(tmp_path / "nowhere") is None


def truncate(folder, name):
    (folder / name).write_bytes(FILES[name][:-1])


def flip_a_bit(folder, name):
    (folder / name).write_bytes(FILES[name][:-1] + b"!")


DAMAGES = {
    "truncated weights": (lambda c: truncate(c, "model.safetensors"), "model.safetensors has 899 bytes instead of 900"),
    "truncated optimizer": (lambda c: truncate(c, "optimizer.pt"), "optimizer.pt has 499 bytes instead of 500"),
    "flipped bit": (lambda c: flip_a_bit(c, "model.safetensors"), "model.safetensors is damaged"),
    "missing file": (lambda c: (c / "trainer_state.json").unlink(), "trainer_state.json is missing"),
    "no seal": (
        lambda c: (c / MANIFEST).rename(c / "seqloom_manifest.json"),
        f"it has no {MANIFEST}, so it was not saved to its end",
    ),
    "empty manifest": (lambda c: (c / MANIFEST).write_text(""), f"its {MANIFEST} cannot be read"),
    "other manifest": (lambda c: (c / MANIFEST).write_text('{"files": {"a": 1}}'), f"its {MANIFEST} cannot be read"),
    "a list": (lambda c: (c / MANIFEST).write_text("[]"), f"its {MANIFEST} cannot be read"),
    "empty files": (lambda c: [path.write_bytes(b"") for path in c.rglob("*.*")], f"its {MANIFEST} cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_checkpoint_is_named_and_the_one_before_is_taken(tmp_path, caplog, damage):
    good, broken = save(tmp_path, 5), save(tmp_path, 10)
    spoil, why = DAMAGES[damage]
    spoil(broken)
    assert last_whole_checkpoint(tmp_path) == good
    assert f"{broken} is skipped: {why}" in caplog.text
    assert "It is kept as _broken-checkpoint-10." in caplog.text
    assert names(tmp_path) == ["checkpoint-5"]
    assert (tmp_path / "_broken-checkpoint-10").is_dir()


def test_what_others_call_a_checkpoint_is_none_of_ours(tmp_path):
    """It is not taken, set aside, rotated away or thrown away, wherever it stands among ours."""
    good = save(tmp_path, 5)
    foreign = [fill(tmp_path / f"checkpoint-{update}", {"model.safetensors": b"theirs"}) for update in (1, 7, 900)]
    (tmp_path / "checkpoint-3").write_text("a file")
    assert names(tmp_path) == ["checkpoint-5"]
    assert [path.name for path in foreign_checkpoints_in(tmp_path)] == [f"checkpoint-{n}" for n in (1, 3, 7, 900)]
    assert last_whole_checkpoint(tmp_path) == good
    rotate(tmp_path, 1, None)
    discard_extra(tmp_path, None)
    assert all((path / "model.safetensors").read_bytes() == b"theirs" for path in foreign)


def test_a_broken_checkpoint_does_not_replace_an_older_broken_one(tmp_path):
    for number in range(3):
        truncate(save(tmp_path, 5), "model.safetensors")
        (tmp_path / "checkpoint-5" / "number").write_text(str(number))
        assert last_whole_checkpoint(tmp_path) is None
    kept = {path.name: (path / "number").read_text() for path in tmp_path.glob("_broken-*")}
    assert kept == {f"_broken-checkpoint-5{ending}": str(n) for n, ending in enumerate(("", "-1", "-2"))}


def test_a_link_is_removed_and_what_it_leads_to_stays(tmp_path):
    """A user may move a checkpoint to a larger disk and leave a link."""
    moved = tmp_path / "large"
    shutil.move(save(tmp_path / "run", 5), moved)
    (tmp_path / "run" / "checkpoint-5").symlink_to(moved)
    save(tmp_path / "run", 10)
    assert last_whole_checkpoint(tmp_path / "run").name == "checkpoint-10"
    rotate(tmp_path / "run", 1, None)
    clear_staging(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-10"]
    assert find_fault(moved) is None


def test_a_checkpoint_without_the_optimizer_cannot_be_gone_on_from(tmp_path):
    staged = fill(tmp_path / "checkpoint-5", {"model.safetensors": b"w", "trainer_state.json": b"{}"})
    seal(staged)
    assert find_fault(staged) == "it holds the weights but not the optimizer's state (save_only_model)"


def test_an_edited_card_breaks_nothing(tmp_path):
    staged = fill(tmp_path / STAGING / "checkpoint-5", {**FILES, "README.md": b"# A model"})
    seal(staged)
    put_in_place(staged, tmp_path / "checkpoint-5")
    (tmp_path / "checkpoint-5" / "README.md").write_text("# My model")
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-5"


def test_the_manifest_says_what_a_person_wants_to_know(tmp_path):
    manifest = json.loads((save(tmp_path, 5) / MANIFEST).read_text())
    assert (manifest["update"], manifest["processes"]) == (5, 1)
    assert manifest["files"]["model.safetensors"]["bytes"] == 900
    assert set(manifest["files"]) == set(FILES)


def test_a_checkpoint_saved_twice_is_replaced(tmp_path):
    save(tmp_path, 5)
    (tmp_path / "checkpoint-5" / "model.safetensors").write_bytes(b"old")
    assert find_fault(save(tmp_path, 5)) is None
    assert list((tmp_path / STAGING).iterdir()) == []


@settings(deadline=None, max_examples=25)
@given(
    updates=st.lists(st.integers(1, 50), unique=True, min_size=1, max_size=6),
    limit=st.one_of(st.none(), st.integers(0, 4)),
    best=st.one_of(st.none(), st.integers(1, 50)),
)
def test_rotation_keeps_the_newest_and_the_best(tmp_path_factory, updates, limit, best):
    output = tmp_path_factory.mktemp("run")
    for update in updates:
        seal(fill(output / f"checkpoint-{update}", {"w": b"w"}))
    rotate(output, limit, str(output / f"checkpoint-{best}") if best else None)
    left = [int(name.partition("-")[2]) for name in names(output)]
    protected = {max(updates)} | ({best} & set(updates))
    assert protected <= set(left)
    if not limit:
        assert left == sorted(updates)
    else:
        assert len(left) == min(len(updates), max(limit, len(protected)))
        gone = set(updates) - set(left)
        assert not gone or max(gone) < min(set(left) - protected, default=99)
    assert not list(output.glob("_*/*"))


def dies_at(monkeypatch, call_number, functions=("rename", "replace", "fsync", "unlink")):
    """Let the process "die" at the n-th system call that changes a folder."""
    count = iter(range(10**6))

    def dying(original):
        def call(*args, **kwargs):
            if next(count) == call_number:
                raise SystemExit
            return original(*args, **kwargs)

        return call

    for name in functions:
        monkeypatch.setattr(os, name, dying(getattr(os, name)))


def test_killed_at_any_call_of_a_save_a_whole_checkpoint_is_left(tmp_path, monkeypatch):
    """Also where the newest is replaced, and the oldest rotated away."""
    num_survived = 0
    for call in range(60):
        output = tmp_path / str(call)
        save(output, 5)
        save(output, 10)
        with monkeypatch.context() as patch:
            dies_at(patch, call)
            try:
                save(output, 10)
                rotate(output, 1, None)
                num_survived += 1
            except SystemExit:
                pass
        clear_staging(output)
        assert last_whole_checkpoint(output) is not None
        assert last_whole_checkpoint(output).name == "checkpoint-10"
        assert not list(output.glob("_*"))
        if num_survived:
            break
    assert call > 10  # the kill went through all the calls there are
    assert num_survived


def test_killed_at_any_call_of_installing_no_half_model_is_left(tmp_path, monkeypatch):
    model = {
        "config.json": b"new",
        "model.safetensors": b"new",
        "tokenizer.json": b"new",
        "target/tokenizer.json": b"new",
    }
    num_survived = 0
    for call in range(60):
        output = tmp_path / str(call)
        fill(output, dict.fromkeys(model, b"old"))
        staged = fill(output / STAGING / "model", model)
        with monkeypatch.context() as patch:
            dies_at(patch, call)
            try:
                install(staged, output)
                num_survived += 1
            except SystemExit:
                pass
        found = {name: (output / name).read_bytes() for name in model if (output / name).is_file()}
        if "config.json" in found:  # what looks like a model is one: all old, or all new
            assert len(set(found.values())) == 1
            assert set(found) == set(model)
        if num_survived:
            break
    assert found == model
    assert call > 5


def test_an_extra_checkpoint_goes_when_the_run_has_gone_on(tmp_path):
    save(tmp_path, 5)
    extra = fill(tmp_path / "checkpoint-7")
    seal(extra, is_extra=True)
    discard_extra(tmp_path, best=str(extra))
    assert names(tmp_path) == ["checkpoint-5", "checkpoint-7"]
    truncate(save(tmp_path, 6), "model.safetensors")
    discard_extra(tmp_path, best=None)
    assert names(tmp_path) == ["checkpoint-5", "checkpoint-6"]


def test_what_a_killed_run_left_is_removed(tmp_path):
    fill(tmp_path / STAGING / "checkpoint-7")
    kept = save(tmp_path, 5)
    clear_staging(tmp_path)
    assert not (tmp_path / STAGING).exists()
    assert find_fault(kept) is None


def test_a_replaced_checkpoint_comes_back_if_its_successor_did_not_get_there(tmp_path):
    save(tmp_path, 5)
    shutil.move(tmp_path / "checkpoint-5", tmp_path / STAGING / "replaced-checkpoint-5")
    clear_staging(tmp_path)
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-5"


def test_records_are_whole_or_old(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"text": "今天"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"text": "今天"}

    def refuse(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.os, "fsync", refuse)
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.json'"):
        write_json(tmp_path / "a.json", {"text": "half"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"text": "今天"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
