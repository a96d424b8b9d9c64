"""Phonetisaurus beside ours: per cent of words that a weighted transducer of letters and phones gets wrong.

    pip install phonetisaurus
    python benchmarks/transducing.py [--normalization nfd] TRAIN.tsv.gz HELD_OUT.tsv.gz

Phonetisaurus (Novak, Minematsu & Hirose 2016) aligns letters with phones and counts 8-grams of the pairs; nothing is
tuned. Tables have a word and its phones a line, and a word may have several lines: one output is right if it is any of
them, as for `seqloom evaluate --any_reference`. A blank inside a word is a letter, written as `=`, for Phonetisaurus
reads blanks as ends of words and `_` as a sign of its own.

Tidy rows on stdout: system, text, words, per cent of them wrong, CPU-seconds of the training.
"""

import argparse
import csv
import gzip
import resource
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Callable
from pathlib import Path

BLANK, SIGNS = "=", "_|}"
"""What stands for a blank, and what a word must not have."""


def read_lexicon(path: Path, spell: Callable[[str], str]) -> dict[str, list[str]]:
    """Return the pronunciations of each word of a table, plain or .gz.

    Raises:
        ValueError: for a word with a sign that Phonetisaurus does not read as a letter.
    """
    lexicon: dict[str, list[str]] = {}
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        for line in file:
            word, phones = line.rstrip("\n").split("\t")[:2]
            if set(word) & {BLANK, *SIGNS}:
                raise ValueError(f"{path}: {word!r} has one of {BLANK + SIGNS}, which Phonetisaurus does not take.")
            lexicon.setdefault(spell(word), []).append(phones)
    return lexicon


def run_phonetisaurus(verb: str, model: Path, *lexicon: Path, words: str = "") -> str:
    """Return what Phonetisaurus prints, which takes letters as they are."""
    files = map(str, (model, *lexicon))
    command = [sys.executable, "-m", "phonetisaurus", verb, "--casing", "ignore", "--model", *files]
    run = subprocess.run(command, check=False, input=words, capture_output=True, encoding="utf-8")
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {run.returncode}: {run.stderr[-2000:]}")
    return run.stdout


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("--normalization", choices=["nfc", "nfd"], default="nfc", help="of the words [nfc]")
    arguments = parser.parse_args()

    def spell(word: str) -> str:
        return unicodedata.normalize(arguments.normalization.upper(), word).replace(" ", BLANK)

    known, asked = read_lexicon(arguments.train, spell), read_lexicon(arguments.held_out, spell)
    with tempfile.TemporaryDirectory() as folder:
        lexicon, model = Path(folder) / "lexicon.txt", Path(folder) / "model.fst"
        lines = (f"{word}\t{phones}\n" for word, several in known.items() for phones in several)
        lexicon.write_text("".join(lines), encoding="utf-8")
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        run_phonetisaurus("train", model, lexicon)
        seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        written = run_phonetisaurus("predict", model, words="".join(f"{word}\n" for word in asked))
    outputs = dict(line.split(" ", 1) for line in written.splitlines() if " " in line)
    wrong = sum(outputs.get(word, "").strip() not in right for word, right in asked.items())
    rows = csv.writer(sys.stdout, delimiter="\t", lineterminator="\n")
    rows.writerow(("system", "text", "words", "wrong_percent", "train_cpu_seconds"))
    score = f"{100 * wrong / len(asked):.2f}"
    rows.writerow(("phonetisaurus", arguments.held_out.name, len(asked), score, f"{seconds:.1f}"))


if __name__ == "__main__":
    main()
