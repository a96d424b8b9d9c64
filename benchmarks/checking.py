"""How well `seqloom check` finds faults that are known, and how long it takes for many rows.

    python benchmarks/checking.py recall FOLDER       FOLDER/manifest.json and *.labels say what is wrong, line by line
    python benchmarks/checking.py made A B            our own faults in two clean, line-aligned files
    python benchmarks/checking.py quiet A [B]         what is said of a clean corpus: false alarms
    python benchmarks/checking.py speed NUM_PAIRS     generated pairs: seconds and peak memory

`recall` prints per rule how many of the lines that have a fault are named (recall), and how many of the lines named
have it (precision).
"""

from __future__ import annotations

import gzip
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.training.checking.check import check_corpora

LABELS = {
    "copy": "copy",
    "identical": "copy",
    "swapped-languages": "swapped",
    "markup": "markup",
    "length-ratio": "ratio",
    "ratio": "ratio",
    "length": "length",
    "duplicate": "duplicate",
    "wrong-translation": "wrong-translation",
}
"""What *.labels call a fault -> our rule; nothing finds a wrong translation."""

SEED = 7


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file, plain or .gz, without their ends."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return content.decode("utf-8", "replace").removesuffix("\n").split("\n")


def found_in(**recipe: Any) -> dict[str, set[int]]:
    """Return rule -> lines that `seqloom check` names, in all splits."""
    found: dict[str, set[int]] = {}
    for finding in check_corpora(resolve_recipe(None, recipe)).findings:
        found.setdefault(finding.rule, set()).update(finding.lines or [0])
    return found


def tell(name: str, rule: str, truth: set[int], found: set[int]) -> None:
    """Print one row of the table."""
    hits = len(truth & found)
    recall = hits / len(truth) if truth else float("nan")
    precision = hits / len(found) if found else float("nan")
    print(f"{name:28}{rule:18}{len(truth):7,}{len(found):8,}{recall:9.3f}{precision:11.3f}", flush=True)


# Known faults ---------------------------------------------------------------------------------------------------------


def recall(folder: Path) -> None:
    """Compare with a folder of broken files whose manifest says what is wrong."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    print(f"{'file':28}{'rule':18}{'faults':>7}{'named':>8}{'recall':>9}{'precision':>11}")
    for labels in sorted(folder.glob("*.labels*")):
        compare_labels(folder, labels)
    for name, facts in manifest.items():
        for key, rule in (("bad_0based", "encoding"), ("at_0based", "separator"), ("odd_0based", "record")):
            if key in facts:
                columns = {"columns": ["src", "tgt"]} if name.endswith(".jsonl") else {}
                found = found_in(train=pair_of(folder, name), **columns)
                named = (
                    found.get(rule, set()) | found.get("blank", set()) if rule == "record" else found.get(rule, set())
                )
                tell(name, rule, {line + 1 for line in facts[key]}, named)
    compare_blank(folder, manifest)
    compare_whole_files(folder, manifest)


def pair_of(folder: Path, name: str) -> list[str]:
    """Return a file and the one beside it that has the same stem."""
    if name.endswith((".tsv", ".jsonl", ".csv")):
        return [str(folder / name)]
    stem = name.split(".")[0]
    files = [
        path for path in sorted(folder.iterdir()) if path.name.split(".")[0] == stem and ".labels" not in path.name
    ]
    return [str(path) for path in files]


def compare_labels(folder: Path, labels: Path) -> None:
    """Compare with one label a line; a duplicate has the fault of the row that it repeats as well."""
    files = pair_of(folder, labels.name)
    rows = list(zip(*(read_lines(Path(file)) for file in files)))
    truth: dict[str, set[int]] = {}
    first: dict[tuple[str, ...], str] = {}
    for line, (row, label) in enumerate(zip(rows, read_lines(labels)), 1):
        for each in {label, first.setdefault(row, label)} - {"ok"}:
            truth.setdefault(LABELS[each], set()).add(line)
    found = found_in(train=files)
    for rule, lines in truth.items():
        tell(labels.name, rule, lines, found.get(rule, set()))


def compare_blank(folder: Path, manifest: dict[str, Any]) -> None:
    """Compare blank lines, which either side may have."""
    sides = [facts["blank_0based"] for facts in manifest.values() if "blank_0based" in facts]
    if sides:
        name = next(name for name, facts in manifest.items() if "blank_0based" in facts)
        truth = {line + 1 for side in sides for line in side}
        tell(name, "blank", truth, found_in(train=pair_of(folder, name)).get("blank", set()))


def compare_whole_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Compare what a whole file or split has: missing lines, leaks, long lines, containers."""
    for name, facts in manifest.items():
        if missing := facts.get("missing_0based"):
            found = check_corpora(resolve_recipe(None, {"train": pair_of(folder, name)})).findings
            starts = [finding.lines[0] for finding in found if finding.rule == "shifted"]
            off = [min((abs(start - line - 1) for start in starts), default=-1) for line in missing]
            print(f"{name:28}shifted from {starts}, missing after {missing}: off by {off} lines")
    if (folder / "leak.train.de").exists():
        train, valid = ([str(folder / f"leak.{split}.{side}") for side in ("de", "en")] for split in ("train", "valid"))
        tell("leak.valid", "leak", set(range(1, 301)), found_in(train=train, valid=valid).get("leak", set()))
    if (folder / "special_tokens.de").exists():
        found = found_in(train=pair_of(folder, "special_tokens.de"))
        tell("special_tokens", "special-token", set(range(1, 61)), found.get("special-token", set()))
    if long := manifest.get("long_lines.de.gz", {}).get("long_0based"):
        found = found_in(train=pair_of(folder, "long_lines.de.gz"))
        tell("long_lines", "length", {int(line) + 1 for line in long} | {181}, found.get("length", set()))
    for path in sorted(folder.glob("*.txt*")) + sorted(folder.glob("*.csv")):
        task = {"task": "continuation"} if ".txt" in path.name else {}
        rules = sorted(found_in(train=[str(path)], **task))
        print(f"{path.name:28}{', '.join(rules) or 'nothing found'}")


# Faults of our own ----------------------------------------------------------------------------------------------------

Fault = Callable[[str, str, random.Random], tuple[str, str]]

FAULTS: dict[str, Fault] = {
    "copy": lambda a, b, r: (a, a),
    "swapped": lambda a, b, r: (b, a),
    "language": lambda a, b, r: (b.removesuffix(b[-1]) + "!", b) if r.random() < 0.5 else (a, a[::1] + " " + a),
    "script": lambda a, b, r: (a, "".join(chr(0x10D0 + ord(c) % 33) if c.isalpha() else c for c in b)),
    "garbled": lambda a, b, r: (f"{a} Ã¤hnlich â€“ cafÃ©", b) if r.random() < 0.7 else (a, b + " \ufffd"),
    "ratio": lambda a, b, r: (a, " ".join([b] * r.randint(5, 9))) if r.random() < 0.5 else (a * 6, b),
    "markup": lambda a, b, r: (r.choice(["<b>%s</b>", "%s &quot;", "%s http://a.b/c", "[[%s]]"]).replace("%s", a), b),
    "special-token": lambda a, b, r: (a, b + r.choice([" </s>", " <unk>", " [SEP]", " <|im_end|>", " {name}", " %s"])),
    "control": lambda a, b, r: (a[:3] + r.choice("\x00\x1b\x07\u202e") + a[3:], b),
    "separator": lambda a, b, r: (a[:3] + r.choice("\u2028\x85\x0b\r") + a[3:], b),
    "invisible": lambda a, b, r: (a, b[:2] + r.choice("\u200b\ufeff\xad") + b[2:]),
    "blank": lambda a, b, r: ("\u3000 ", b) if r.random() < 0.5 else (a, ""),
    "near-duplicate": lambda a, b, r: (a.upper().rstrip(".!?"), b.rstrip(".!?") + " !"),
}
"""Rule -> how a pair comes by the fault; a near duplicate is put behind the pair itself."""


def made(source: Path, target: Path) -> None:
    """Give 2 % of the rows of a clean corpus each fault, and see which are found."""
    rng = random.Random(SEED)
    rows = list(zip(read_lines(source), read_lines(target)))[:20_000]
    truth: dict[str, set[int]] = {rule: set() for rule in FAULTS}
    out: list[tuple[str, str]] = []
    for a, b in rows:
        rule = rng.choice(list(FAULTS)) if rng.random() < 0.02 * len(FAULTS) and min(len(a), len(b)) > 5 else None
        if rule == "near-duplicate":
            out.append((a, b))
        out.append(FAULTS[rule](a, b, rng) if rule else (a, b))
        if rule:
            truth[rule].add(len(out))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"made.{side}" for side in (0, 1)]
        for file, side in zip(files, zip(*out)):
            file.write_bytes("".join(f"{text}\n" for text in side).encode())
        found = found_in(train=[str(file) for file in files])
    print(f"{'file':28}{'rule':18}{'faults':>7}{'named':>8}{'recall':>9}{'precision':>11}")
    for rule, lines in truth.items():
        tell(source.name, rule, lines, found.get(rule, set()))


def quiet(files: list[str]) -> None:
    """Print what is said of a corpus."""
    found = found_in(train=files)
    print(Path(files[0]).name, {rule: len(lines) for rule, lines in found.items()})


def speed(num_pairs: int) -> None:
    """Check generated pairs, and print seconds and the most memory of the command."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"big.{side}" for side in ("de", "en")]
        generate(num_pairs, *files)
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "seqloom_cli", "check", *map(str, files), "--fail_on", "never"], check=True
        )
        seconds = time.perf_counter() - start
        num_bytes = sum(file.stat().st_size for file in files)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{num_pairs:,} pairs, {num_bytes / 1e6:,.0f} MB: {seconds:,.0f} s, of CPU "
        f"{usage.ru_utime + usage.ru_stime:,.0f} s, largest process {usage.ru_maxrss / 1024:,.0f} MiB"
    )


def generate(num_pairs: int, source: Path, target: Path) -> None:
    """Write pairs of made-up words that go together in length, with a few of every fault."""
    rng = random.Random(SEED)
    sides = [
        [f"{rng.choice(p)}{rng.choice(q)}{rng.choice(p)}" for _ in range(5000)]
        for p, q in (
            (["ber", "schau", "lich", "zen", "heit"], ["ä", "en", "ung", "sch"]),
            (["the", "ing", "wor", "ly"], ["ou", "y", "ea"]),
        )
    ]
    with source.open("w", encoding="utf-8") as a, target.open("w", encoding="utf-8") as b:
        for line in range(num_pairs):
            size = rng.randint(3, 14)
            words = rng.choices(range(5000), k=size)
            texts = [" ".join(side[word] for word in words) for side in sides]
            if line % 1000 == 7:
                texts = list(FAULTS[rng.choice(list(FAULTS))](*texts, rng))
            a.write(texts[0] + "\n")
            b.write(texts[1] + "\n")


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "recall":
        recall(Path(rest[0]))
    elif what == "made":
        made(Path(rest[0]), Path(rest[1]))
    elif what == "quiet":
        quiet(rest)
    else:
        speed(int(rest[0]))
