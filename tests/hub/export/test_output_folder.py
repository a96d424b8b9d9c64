"""The folder of an export: whole or not there, never mixed, and what is not ours is never lost."""

import pytest

from seqloom.hub.export import output_folder
from seqloom.hub.export.output_folder import EXPORT_NAME, ExportError, new_export, seal_export


def export(output, content="1"):
    with new_export(output) as staged:
        (staged / "sub").mkdir()
        (staged / "sub" / "model.bin").write_text(content)
        seal_export(staged, {"format": "test"})


def fail(output, kind):
    with new_export(output) as staged:
        (staged / "half").write_text("")
        raise kind


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_new_an_empty_and_an_own_folder_are_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    for output in (tmp_path / "a" / "new", tmp_path / "empty"):
        for content in ("1", "2"):
            export(output, content)
            assert (output / "sub" / "model.bin").read_text() == content
            assert names(output) == {"sub/model.bin", EXPORT_NAME}
    assert names(tmp_path) == {f"{o}/{n}" for o in ("a/new", "empty") for n in ("sub/model.bin", EXPORT_NAME)}


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError])
def test_what_fails_leaves_everything_as_it_was(kind, tmp_path):
    export(tmp_path / "out")
    for output in (tmp_path / "out", tmp_path / "new"):
        with pytest.raises(kind):
            fail(output, kind)
    assert names(tmp_path) == {"out/sub/model.bin", f"out/{EXPORT_NAME}"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("change", ["added", "edited", "linked", "hidden"])
def test_what_is_not_ours_is_never_lost(change, tmp_path):
    output = tmp_path / "out"
    export(output)
    name = {"added": "notes.txt", "edited": "sub/model.bin", "linked": "link", "hidden": ".env"}[change]
    if change == "linked":
        (output / name).symlink_to(tmp_path)
    else:
        (output / name).write_text("mine")
    with pytest.raises(ExportError, match=rf"{name} is not as an export has written it, and would be lost; name"):
        export(output, "2")
    assert (output / name).exists()
    if change != "edited":
        assert (output / "sub" / "model.bin").read_text() == "1"


def test_other_places_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"file is a file, and an export is a folder; name a folder that does not"):
        export(tmp_path / "file")
    for manifest in ("[]", "{", '{"sha256": 3}', '{"format": "x"}'):
        (tmp_path / EXPORT_NAME).write_text(manifest)
        with pytest.raises(ExportError, match=r"holds something, and no export of ours; name a folder"):
            export(tmp_path)
    (tmp_path / "of folders" / "empty").mkdir(parents=True)
    with pytest.raises(ExportError, match=r"holds something, and no export of ours"):
        export(tmp_path / "of folders")


def test_what_came_while_the_export_was_made_is_kept(tmp_path):
    output = tmp_path / "out"

    def meanwhile():
        with new_export(output):
            output.mkdir()
            (output / "mine").write_text("")

    with pytest.raises(ExportError, match=r"out holds something"):
        meanwhile()
    assert names(tmp_path) == {"out/mine"}


def test_an_older_export_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    export(tmp_path / "out")
    rename = output_folder.Path.rename

    def refuse(path, target):
        if path.name.endswith(".part"):
            raise OSError("no")
        return rename(path, target)

    monkeypatch.setattr(output_folder.Path, "rename", refuse)
    with pytest.raises(OSError, match="no"):
        export(tmp_path / "out", "2")
    assert (tmp_path / "out" / "sub" / "model.bin").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
