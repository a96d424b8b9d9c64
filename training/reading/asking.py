"""Where a file's columns are not clear, ask the person at the terminal; elsewhere an error names the flag."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from seqloom.configuration.recipe import Recipe
from seqloom.training.reading.corpus import open_corpus
from seqloom.training.reading.readers import UnclearColumnsError
from seqloom.training.reading.text_file import CorpusError
from seqloom_cli.command import ask, visible


def settle_columns(recipe: Recipe) -> Recipe:
    """Return the recipe with the columns of its training text, which are asked about at a terminal where need be.

    Several processes ask nothing: all need the answer, and only one can read it.
    """
    is_alone = os.environ.get("WORLD_SIZE", "1") == "1"
    is_seen = is_alone and sys.stdin.isatty() and sys.stderr.isatty()
    if recipe.is_demo or recipe.columns is not None or not is_seen:
        return recipe
    try:
        source, _ = open_corpus(
            recipe.train, task=recipe.task, where=recipe.selection(), tags=recipe.tags, num_proc=recipe.num_proc
        )
        next(iter(source.rows), None)
    except UnclearColumnsError as error:
        print(visible(error), file=sys.stderr)
        columns = error.answers.get((ask("Read it so? [y/n] ") or "").strip().lower()[:1])
        if columns:
            return replace(recipe, columns=columns, named=recipe.named | {"columns"})
    except CorpusError:
        pass  # the run says so in its place
    return recipe
