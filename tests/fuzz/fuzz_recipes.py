"""Recipes that nobody would write: each is resolved, or refused in one sentence that says why.

python -m tests.fuzz.fuzz_recipes --seconds 3600
"""

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from seqloom.configuration.recipe_flags import parse_flags
from seqloom.configuration.recipe_keys import RESERVED, SYNONYMS, known_keys
from seqloom.configuration.recipe_layers import resolve_recipe, shipped_recipes
from tests.fuzz.fuzzing import fuzz, main

ODD = [
    *("", " ", "null", "~", "true", "no", "-1", "0", "1", "1e3", "1e400", "nan", "inf", "-0.0", "0x10", "1_000", "010"),
    *("[]", "{}", "[a, b]", "{a: 1}", "[[1]]", "&a [*a]", "!!python/object:os.system x", "a: b: c", "\x00", "\x1b[2J"),
    *("9" * 400, "今天", "\ud800", "'", '"', "---", "%", "@", "a=b", "=", "pairs", "bpe", "steps", "auto", "tiny"),
]

names = st.one_of(st.sampled_from(sorted([*known_keys(), *RESERVED, *SYNONYMS])), st.text(max_size=12))
values = st.one_of(st.sampled_from(ODD), st.text(max_size=20), st.integers().map(str), st.floats().map(str))
flags = st.lists(st.one_of(names.map("--{}".format), values, st.tuples(names, values).map("--{0[0]}={0[1]}".format)))
lines = st.tuples(st.integers(0, 3), names, values).map(lambda part: f"{'  ' * part[0]}{part[1]}: {part[2]}")
chapters = st.sampled_from(["data:", "tokenizer:", "model:", "training:", "evaluation:"])
documents = st.one_of(
    st.lists(st.one_of(lines, chapters), max_size=12).map("\n".join).map(lambda text: text.encode("utf-8", "replace")),
    st.binary(max_size=60),
)
recipes = st.tuples(flags, st.one_of(st.none(), documents, st.sampled_from(shipped_recipes())))


def check(recipe: tuple[list[str], Any]) -> None:
    """Resolve one; a refusal is a ValueError with words, and what is resolved comes back from its own YAML."""
    arguments, source = recipe
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "r.yaml"
        if isinstance(source, bytes):
            file.write_bytes(source)
        try:
            resolved = resolve_recipe(file if isinstance(source, bytes) else source, parse_flags(arguments))
        except ValueError as error:
            refused = str(error)
        else:
            resolved.save(file)
            assert resolve_recipe(file) == resolved
            return
    assert len(refused) > 10


def run(*, seconds: float | None = None, examples: int = 300) -> int:
    """Fuzz; see `fuzz`."""
    return fuzz(check, recipes, seconds=seconds, examples=examples)


if __name__ == "__main__":
    main(run)
