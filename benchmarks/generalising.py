"""A test of generalisation out of COGS's own training and validation text, to choose by where the real one decides.

    python benchmarks/generalising.py data/cogs/train.tsv.gz data/cogs/valid.tsv.gz -o built.tsv [--limit 100]
    seqloom evaluate FOLDER --test built.tsv --columns sentence form --by case

COGS shows some words once, in one context, and tests them in another (Kim & Linzen 2020, section 3). Its training text
marks such lines, so such a test can be built without a look at theirs: a validation sentence in which a common word
stands in the other context, with the rare word in its place, in the sentence and in its logical form. That
makes 18 of the 21 cases; not made are the three of structure (deeper recursion, and a phrase behind a subject).

Tidy rows in the file: sentence, form, case. On stdout: case, rows.
"""

import argparse
import csv
import gzip
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WORDS = {
    "hedgehog": "exposure_example_subj_common",
    "Lina": "exposure_example_subj_proper",
    "cockroach": "exposure_example_obj_common",
    "Charlie": "exposure_example_obj_proper",
    "cobra": "exposure_example_transitive_subj",
    "hippo": "exposure_example_unacc_subj",
    "bless": "exposure_example_active",
    "squeeze": "exposure_example_passive",
    "bake": "exposure_example_obj_omitted_transitive",
    "shatter": "exposure_example_unacc",
    "ship": "exposure_example_pp_dative",
    "teleport": "exposure_example_do_dative",
    "shark": "primitive",
    "Paula": "primitive",
    "crawl": "primitive",
}
"""A word as logical forms have it -> how the training text marks its one line; `primitive`: the word alone."""


@dataclass(frozen=True)
class Context:
    """Where a rare word is put: in the place of a verb, or of what fills a role of a verb."""

    word: str
    roles: frozenset[str] | None = None
    """The roles of the verb, just these, or None: any."""
    fills: str | None = None
    """The role that the word fills, or None: it is the verb itself."""
    passive: bool = False
    transitive: bool | None = None
    """Whether the verb has agent and theme elsewhere in the training text, or None: either."""
    words_before: tuple[str, ...] = ()
    """What stands before the verb, one of these, or nothing: anything."""
    has_to: bool | None = None
    """Whether the sentence has "to": the recipient is behind the theme, or None: either."""


SUBJECT, BOTH, THREE = frozenset({"agent"}), frozenset({"agent", "theme"}), frozenset({"agent", "theme", "recipient"})

CASES = {
    "subj_to_obj_common": Context("hedgehog", BOTH, "theme"),
    "subj_to_obj_proper": Context("Lina", BOTH, "theme"),
    "obj_to_subj_common": Context("cockroach", None, "agent"),
    "obj_to_subj_proper": Context("Charlie", None, "agent"),
    "prim_to_subj_common": Context("shark", None, "agent"),
    "prim_to_subj_proper": Context("Paula", None, "agent"),
    "prim_to_obj_common": Context("shark", BOTH, "theme"),
    "prim_to_obj_proper": Context("Paula", BOTH, "theme"),
    "prim_to_inf_arg": Context("crawl", SUBJECT, words_before=("to",)),
    "active_to_passive": Context("bless", BOTH, passive=True),
    "passive_to_active": Context("squeeze", BOTH),
    "obj_omitted_transitive_to_transitive": Context("bake", BOTH),
    "unacc_to_transitive": Context("shatter", BOTH),
    "pp_dative_to_do_dative": Context("ship", THREE, has_to=False),
    "do_dative_to_pp_dative": Context("teleport", THREE, has_to=True),
    "only_seen_as_transitive_subj_as_unacc_subj": Context("cobra", frozenset({"theme"}), "theme"),
    "only_seen_as_unacc_subj_as_obj_omitted_transitive_subj": Context("hippo", SUBJECT, "agent", transitive=True),
    "only_seen_as_unacc_subj_as_unerg_subj": Context("hippo", SUBJECT, "agent", transitive=False),
}
"""Cases by their names in COGS."""

ROLE = re.compile(r"(\w+) \. (agent|theme|recipient|xcomp|ccomp) \( x _ (\d+) , (x _ \d+|\w+) \)")
NOUN = re.compile(r"(\w+) \( (x _ \d+) \)")


@dataclass(frozen=True)
class Verb:
    """A verb of a line: its lemma, its place in the sentence, and what fills its roles: a noun, a name, or a place."""

    lemma: str
    place: int
    filled: dict[str, str]


@dataclass(frozen=True)
class Line:
    """A line of COGS."""

    sentence: str
    form: str
    mark: str

    @property
    def verbs(self) -> list[Verb]:
        """The verbs of the form."""
        nouns = {place: noun for noun, place in NOUN.findall(self.form)}
        found: dict[tuple[str, int], dict[str, str]] = {}
        for lemma, role, place, filler in ROLE.findall(self.form):
            found.setdefault((lemma, int(place)), {})[role] = nouns.get(filler, filler)
        return [Verb(*verb, filled) for verb, filled in found.items()]


def read(path: Path) -> list[Line]:
    """Read a file of COGS, plain or .gz."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8", newline="\n") as file:
        return [Line(*row.rstrip("\n").split("\t")) for row in file]


def surfaces(lines: list[Line]) -> dict[str, str]:
    """Return the words of WORDS as sentences have them, all held against the training text."""
    found = {}
    for word, mark in WORDS.items():
        having = [line for line in lines if line.mark == mark and word in line.form.split()]
        if len(having) != 1 or (mark != "primitive" and sum(line.mark == mark for line in lines) != 1):
            sys.exit(f"the training text has {len(having)} lines with {word!r} that it marks {mark}; COGS has one")
        found[word] = word
        for verb in having[0].verbs:
            if verb.lemma == word and mark != "primitive":
                found[word] = having[0].sentence.split()[verb.place]
    return found


def made(line: Line, context: Context, surface: str, transitive: set[str]) -> Iterator[tuple[str, str]]:
    """Yield sentence and form of a line with the word of a context in that context, for each place that it fits."""
    words = line.sentence.split()
    for verb in line.verbs:
        before = words[verb.place - 1] if verb.place else ""
        if (
            (context.roles is not None and context.roles != set(verb.filled))
            or context.passive != (before == "was")
            or (context.transitive is not None and context.transitive != (verb.lemma in transitive))
            or (context.words_before and before not in context.words_before)
            or (context.has_to is not None and context.has_to != ("to" in words))
        ):
            continue
        old = verb.lemma if context.fills is None else verb.filled.get(context.fills, "")
        written = words[verb.place] if context.fills is None else old
        proper = context.word[0].isupper()
        if words.count(written) == 1 and (context.fills is None or old[0].isupper() == proper):
            yield (
                " ".join(surface if word == written else word for word in words),
                " ".join(context.word if sign == old else sign for sign in line.form.split()),
            )


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("valid", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=100, help="lines of a case, drawn with one seed [100]")
    options = parser.parse_args()

    training = read(options.train)
    written = surfaces(training)
    transitive = {verb.lemma for line in training for verb in line.verbs if set(verb.filled) >= BOTH}
    validation = [line for line in read(options.valid) if line.mark == "in_distribution"]
    random.Random(42).shuffle(validation)

    counts = csv.writer(sys.stdout, delimiter="\t", lineterminator="\n")
    counts.writerow(["case", "rows"])
    with options.output.open("w", encoding="utf-8", newline="\n") as file:
        file.write("sentence\tform\tcase\n")
        for case, context in CASES.items():
            pairs: dict[str, str] = {}
            for line in validation:
                pairs.update(made(line, context, written[context.word], transitive))
            rows = list(pairs.items())[: options.limit]
            file.writelines(f"{sentence}\t{form}\t{case}\n" for sentence, form in rows)
            counts.writerow([case, len(rows)])


if __name__ == "__main__":
    main()
