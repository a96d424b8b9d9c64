"""Folders as an attacker or an accident makes them, and every command that opens one.

    python -m tests.fuzz.fuzz_folders --seconds 3600

A tiny real folder is changed in one to three ways: bytes and values of its JSON files, names, links, sizes, code,
pickles, records. Then each command has to end in an answer or in one paragraph, in time, without obeying an escape code
and without running anything of the folder.
"""

import argparse
import contextlib
import io
import json
import os
import pickle
import random
import re
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from seqloom.configuration.configuration_seqloom import SeqloomConfig
from seqloom.hub.bundle import MANIFEST_NAME
from seqloom.hub.files import sha256_of
from seqloom.modeling.modeling_seqloom import SeqloomForConditionalGeneration
from seqloom_cli import verbs
from tests.exploit import Exploit
from tests.old_folder import unpack_old_folder
from tests.toy import TINY

MOST_SECONDS = 60
"""Of one command; on an idle machine none takes more than three."""

EVIL = "\x1b[2J\x1b[Hok\r\u202e{}\n---\nsdk: docker\n<script>alert(1)</script>`'\"|$(touch trace);#"
NAMES = [
    "\x1b[1A\x1b[2Kok        a.json",
    "a\nok        b.json",
    "\u202egnp.py",
    "x" * 250,
    "`id`;$(id).txt",
    "<b>|*.md",
]
VALUES: list[Any] = [None, True, -1, 0, 10**9, 10**400, 1e308, float("nan"), "", EVIL, [], {}, [[[]]], {"a": {"b": 1}}]
VALUES += [
    "../../etc/passwd",
    "/dev/zero",
    "owner/repo--evil.Evil",
    "checkpoint-5/model.safetensors",
    "C:\\x",
    ["x"] * 99,
]
KEYS = ["auto_map", "custom_pipelines", "weight_map", "transformers_weights", "tokenizer_file", "attn_implementation"]
KEYS += [
    "num_beams",
    "max_new_tokens",
    "encoder_layers",
    "num_hidden_layers",
    "d_model",
    "vocab_size",
    "model_type",
    EVIL,
]
KEYS += [
    "chat_template",
    "quantization_config",
    "dtype",
    "architectures",
    "eos_token_id",
    "license",
    "languages",
    "seed",
]
TEMPLATES = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 10**11 }}",
    EVIL,
]


def make_folders(place: Path) -> list[Path]:
    """Write the folders that are changed: of an earlier commit and of today, with a run's records and a checkpoint."""
    torch.manual_seed(0)
    model = SeqloomForConditionalGeneration(SeqloomConfig(**TINY)).eval()
    old = unpack_old_folder(place / "old", model)
    new = place / "new"
    shutil.copytree(old, new, ignore=shutil.ignore_patterns("*.py", "*manifest*", "README.md"))
    model.generation_config.update(max_new_tokens=5)
    model.save_pretrained(new)
    recipe = {"data": {"task": "pairs", "train": ["a.tsv"], "languages": ["de", "en"]}, "training": {"license": "mit"}}
    rows = {"name": "a.tsv", "files": [{"path": "a.tsv", "num_bytes": 9, "sha256": "0" * 64}], "num_rows": 9}
    results = {"updates": 9, "epochs": 1.0, "seconds": 3.0, "test_bleu": 1.5, "bleu_signature": "a|b"}
    (new / "run").mkdir()
    (new / "run" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for name, record in (("data", {"train": rows, "test": rows}), ("results", results), ("environment", {})):
        (new / "run" / f"{name}.json").write_text(json.dumps(record))
    shutil.copytree(new, new / "checkpoint-5", ignore=shutil.ignore_patterns("run", "checkpoint-*"))
    return [old, new]


# Changes --------------------------------------------------------------------------------------------------------------

Change = Callable[[random.Random, Path, Path], None]
"""Takes chance, the folder, and the file whose appearance would tell that code of the folder was run."""


def flip_bytes(chance: random.Random, folder: Path, trace: Path) -> None:
    path = _any_file(chance, folder)
    content = bytearray(path.read_bytes())
    for _ in range(chance.randint(1, 8)):
        if content:
            content[chance.randrange(len(content))] = chance.randrange(256)
    path.write_bytes(content)


def cut(chance: random.Random, folder: Path, trace: Path) -> None:
    path = _any_file(chance, folder)
    path.write_bytes(path.read_bytes()[: chance.choice([0, 1, 8, 100, -1])])


def change_value(chance: random.Random, folder: Path, trace: Path) -> None:
    path = _any_file(chance, folder, "*.json")
    with contextlib.suppress(ValueError, RecursionError):
        content = json.loads(path.read_text())
        place = content
        while isinstance(place, dict) and place:
            key = chance.choice(sorted(place))
            if not isinstance(place[key], dict) or not place[key] or chance.random() < 0.3:
                place[key] = chance.choice(VALUES)
                break
            place = place[key]
        path.write_text(json.dumps(content))


def add_value(chance: random.Random, folder: Path, trace: Path) -> None:
    path = folder / chance.choice(["config.json", "generation_config.json", "tokenizer_config.json", MANIFEST_NAME])
    value = chance.choice([chance.choice(VALUES), {EVIL: chance.choice(VALUES)}, {"a": "evil.Evil"}])
    if not path.is_file():  # a pipe, which would never end
        return
    with contextlib.suppress(OSError, ValueError, RecursionError, TypeError):  # or a list
        path.write_text(json.dumps(json.loads(path.read_text()) | {chance.choice(KEYS): value}))


def change_record(chance: random.Random, folder: Path, trace: Path) -> None:
    (folder / "run").mkdir(exist_ok=True)
    key, value = chance.choice([*KEYS, "task", "train", "hub_model_id"]), chance.choice(VALUES)
    bomb = "a: &a [x, x]\n" + "".join(
        f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi")
    )
    texts = [yaml.safe_dump({"data": {key: value, "task": "pairs"}}), bomb, f"license: {EVIL}", "- 1", "[" * 9999]
    (folder / "run" / "recipe.yaml").write_text(chance.choice(texts))


def nest(chance: random.Random, folder: Path, trace: Path) -> None:
    _any_file(chance, folder, "*.json").write_text(chance.choice(["[" * 100_000, '{"a":' * 50_000, "[1]", "1" * 9999]))


def change_code(chance: random.Random, folder: Path, trace: Path) -> None:
    path = chance.choice([*sorted(folder.glob("*.py")), folder / "evil.py", folder / "custom_generate" / "generate.py"])
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(f"\nopen({str(trace)!r}, 'w')\n")
    if chance.random() < 0.7 and (folder / MANIFEST_NAME).is_file():
        digests = {path.name: sha256_of(path) for path in folder.glob("*.py") if path.is_file()}
        text = json.dumps({"seqloom_version": chance.choice(["0.1.0.dev0", EVIL, "9.9"]), "sha256": digests})
        (folder / MANIFEST_NAME).write_text(text)


def add_pickle(chance: random.Random, folder: Path, trace: Path) -> None:
    name = chance.choice(["pytorch_model.bin", "weights", "model.safetensors", "a/b.txt", "checkpoint-5/x.dat", *NAMES])
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if chance.random() < 0.5:
        torch.save({"x": Exploit(trace)}, path)
    else:
        path.write_bytes(pickle.dumps(Exploit(trace), chance.randint(0, 5)))


def add_name(chance: random.Random, folder: Path, trace: Path) -> None:
    with contextlib.suppress(OSError):
        (folder / chance.choice(NAMES)).write_text(chance.choice(["", "{}", EVIL]))


def replace_by_no_file(chance: random.Random, folder: Path, trace: Path) -> None:
    path = _any_file(chance, folder)
    path.unlink()
    kind = chance.randrange(7)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    elif kind == 2:
        with path.open("wb") as file:
            file.truncate(chance.choice([1 << 20, 1 << 31, 1 << 40]))
    elif kind < 6:
        path.symlink_to(chance.choice(["/dev/zero", "/etc/passwd", "/nowhere", path.name, "..", "config.json", "."]))


def change_template(chance: random.Random, folder: Path, trace: Path) -> None:
    name = chance.choice(["chat_template.jinja", "additional_chat_templates/a.jinja"])
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(chance.choice(TEMPLATES))


CHANGES: list[Change] = [flip_bytes, cut, change_value, change_value, add_value, add_value, change_record, nest]
CHANGES += [change_code, add_pickle, add_name, replace_by_no_file, change_template]


def _any_file(chance: random.Random, folder: Path, pattern: str = "*") -> Path:
    files = sorted(path for path in folder.rglob(pattern) if path.is_file() and path.stat().st_size < 1 << 20)
    return chance.choice([path for path in files if not path.is_symlink()] or [folder / "config.json"])


# What has to hold -----------------------------------------------------------------------------------------------------


def commands(folder: Path, place: Path) -> list[list[str]]:
    """Return the command lines that open a folder and change nothing of it."""
    (place / "in.txt").write_text("abc\n")
    return [
        ["verify", str(folder)],
        ["upgrade", str(folder), "--dry_run"],
        ["push", str(folder), "alice/dates", "--dry_run"],
        ["space", str(folder), "-o", str(place / "space")],
        ["generate", str(folder), "-i", str(place / "in.txt"), "-o", str(place / "out.txt")],
    ]


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise AssertionError(f"more than {MOST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(MOST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run_command(arguments: list[str]) -> tuple[int, str]:
    """Return the exit code of a command, and all it said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), _in_time():
        return verbs.main(arguments), said.getvalue()


def fault_of(code: int, said: str, space: Path) -> str | None:
    """Return what is wrong with the end of a command."""
    if code not in (0, 1):
        return f"exit code {code}"
    if any(word in said for word in ("Traceback", "PanicException", f"more than {MOST_SECONDS} s")):
        return "no answer and no paragraph"
    if hidden := re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069]", said):
        return f"it printed {hidden[0]!r}"
    readme = space / "README.md"
    if readme.is_file() and yaml.safe_load(readme.read_text().split("---\n")[1]).get("sdk") != "gradio":
        return "the head of the Space is not ours"
    return None


def try_one(folders: list[Path], seed: int) -> str | None:
    """Change a folder by chance and try every command.

    Returns:
        What went wrong, with all that is needed to see it again.
    """
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        folder, trace = place / "model", place / "trace"
        shutil.copytree(chance.choice(folders), folder)
        changes = chance.choices(CHANGES, k=chance.randint(1, 3))
        changes.sort(key=lambda change: change is replace_by_no_file)  # last: who opens a pipe to write waits for ever
        for change in changes:
            with contextlib.suppress(OSError):  # an earlier change may have made the file a folder
                change(chance, folder, trace)
        for arguments in commands(folder, place):
            code, said = run_command(arguments)
            fault = "code of the folder was run" if trace.exists() else fault_of(code, said, place / "space")
            OUTCOMES[f"{arguments[0]} {'answered' if code == 0 else 'refused'}"] += 1
            if "(unexpected;" in said:
                UNEXPECTED[f"{arguments[0]}: {said.strip().splitlines()[-1][:200]}"] += 1
            if fault:
                made = ", ".join(change.__name__ for change in changes)
                return f"seed {seed} ({made}), {arguments[0]}: {fault}\n{said[-2000:]}"
    return None


OUTCOMES: Counter[str] = Counter()
"""How the commands ended, since the import."""

UNEXPECTED: Counter[str] = Counter()
"""Paragraphs without a rule and a remedy: whatever transformers says of its own files."""


def run(seconds: float, examples: int, first_seed: int = 0) -> int:
    """Try folders until the time is up or there were enough; returns how many were tried.

    Raises:
        AssertionError: at the first that does something else than answer or refuse.
    """
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as name:
        folders = make_folders(Path(name))
        for number in range(examples):
            if time.monotonic() > end:
                return number
            fault = try_one(folders, first_seed + number)
            assert fault is None, fault
    return examples


def main() -> None:
    """Fuzz by hand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--examples", type=int, default=10**9)
    parser.add_argument("--first_seed", type=int, default=0)
    namespace = parser.parse_args()
    tried = run(namespace.seconds, namespace.examples, namespace.first_seed)
    print(f"{tried} folders; {dict(OUTCOMES)}")
    print("\n".join(f"{number} x {said}" for said, number in UNEXPECTED.most_common()))


if __name__ == "__main__":
    main()
