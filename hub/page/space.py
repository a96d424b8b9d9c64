"""Writes the folder of a Hugging Face Space: a Gradio page that serves a model and walks through it.

    DIR/app.py                          the page, from a template
    DIR/*.py, walk.html                 copies of the files of these names in hub/page/, hub/templates/ and hub/
    DIR/examples.json                   sources from the run's test set, where it left some
    DIR/requirements.txt, README.md     what a Space is told: packages, SDK and its version
    DIR/model/                          the model itself, unless the page loads it from a repository

The folder needs Gradio, torch and transformers, and no Seqloom; it runs on any machine as it does on the Hub.
"""

import json
import re
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from os import PathLike
from pathlib import Path

from seqloom.hub import word_alignment
from seqloom.hub.files import names_below, recorded_outputs
from seqloom.hub.model_card import CardFacts, card_environment, read_facts
from seqloom.hub.page import explain, walk, walk_numbers, walk_search
from seqloom.hub.page.walk_file import TEMPLATE
from seqloom.hub.push import plan_push, write_files
from seqloom.hub.quoting import markdown, shell, shown, yaml_head

GRADIO_VERSION = "6.31.0"
"""The page was seen on this one."""

REQUIREMENTS = f"""gradio>={GRADIO_VERSION},<{int(GRADIO_VERSION.split(".")[0]) + 1}
torch>=2.6
transformers>=5.21,<6
"""

NUM_EXAMPLES, MOST_CHARACTERS, MOST_ROWS = 5, 120, 200
"""Examples on the page; characters of the longest; rows of the test set that are looked at."""

HEADING = """# {name}
{parameters:,} parameters in {encoder_layers} + {decoder_layers} layers. It can be wrong; check what matters."""


def write_space(folder: str | PathLike[str], output: str | PathLike[str], *, repo: str | None = None) -> list[str]:
    """Write a Space for a model.

    Args:
        folder: the model.
        output: the folder to write; it must not exist, or be empty.
        repo: `owner/name` of the model on the Hub, which the page then loads; None: the model is copied into the Space.

    Returns:
        The files that were written, relative to `output`.

    Raises:
        ValueError: if `folder` is no model, its code is none that Seqloom wrote, `output` holds something, or `repo` is
            no name.
    """
    output = Path(output)
    files = plan_push(folder, repo)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(
            f"{shown(output)} holds something already; name a folder that does not exist, or empty this one."
        )
    output.mkdir(parents=True, exist_ok=True)
    examples = example_sources(folder)
    for name, text in space_files(read_facts(folder, repo), repo, examples).items():
        (output / name).write_text(text, encoding="utf-8", newline="\n")
    if repo is None:
        write_files(files, output / "model")
    return names_below(output)


def example_sources(folder: str | PathLike[str]) -> list[str]:
    """Return some short sources from the run's test set; none where the run left none, or what is none of ours."""
    try:
        sources = [row["source"] for row in recorded_outputs(Path(folder), MOST_ROWS) or ()]
    except (OSError, ValueError):
        return []
    return list(dict.fromkeys(source for source in sources if 0 < len(source.strip()) <= MOST_CHARACTERS))[
        :NUM_EXAMPLES
    ]


def space_files(facts: CardFacts, repo: str | None = None, examples: Sequence[str] = ()) -> dict[str, str]:
    """Return file name -> text of what is not the model, which the page loads from `repo`, or None: from `model/`."""
    environment = card_environment()
    heading = HEADING.format(name=markdown(facts.name), parameters=facts.num_parameters, **facts.config)
    known = {"name": facts.name, "heading": heading, "repo": repo, "examples": examples}
    known["example"] = next(iter(examples), facts.example if facts.is_demo else "")
    known["head"] = yaml_head(
        {"title": facts.name, "emoji": "🧵", "colorFrom": "blue", "colorTo": "green", "sdk": "gradio"}
        | {"sdk_version": GRADIO_VERSION, "app_file": "app.py", "pinned": False, "models": [repo] if repo else None}
        | {"license": facts.license, "tags": ["seqloom"]}
    )
    templates = {"app.py": "space_app.py.jinja", "README.md": "space_readme.md.jinja"}
    files = {name: environment.get_template(template).render(known) for name, template in templates.items()}
    files |= {Path(str(module.__file__)).name: _copy_of(module.__name__, module.__file__) for module in _COPIED}
    files["walk.html"] = TEMPLATE.read_text(encoding="utf-8")
    if examples:
        files["examples.json"] = json.dumps(list(examples), ensure_ascii=False, indent=1)
    return {name: text.rstrip("\n") + "\n" for name, text in files.items()} | {"requirements.txt": REQUIREMENTS}


def describe_space(output: str | PathLike[str], files: Iterable[str]) -> str:
    """Return what a person does next: look at the page here, then push it."""
    page, packages = shell(Path(output) / "app.py"), shell(Path(output) / "requirements.txt")
    names = list(files)
    quoted = "\nexamples.json quotes sources of the test set; delete it if they are private." * (
        "examples.json" in names
    )
    return (
        f"{shown(output)}: {len(names)} files.{quoted}\n"
        f"Look at it here:  pip install -r {packages} && python {page}\n"
        f"Send it:          hf repos create OWNER/NAME --repo-type space --space-sdk gradio --private\n"
        f"                  hf upload OWNER/NAME {shell(output)} . --repo-type space"
    )


_COPIED = (explain, walk, walk_numbers, walk_search, word_alignment)


def _copy_of(module: str, path: str | None) -> str:
    place = "/".join(module.split(".")[1:])
    header = f"# Seqloom {version('seqloom')}, {place}.py: a copy.\n# SPDX-License-Identifier: Apache-2.0\n"
    return header + re.sub(r"from seqloom\.hub\.(page\.)?", "from ", Path(str(path)).read_text(encoding="utf-8"))


__all__ = ["describe_space", "space_files", "write_space"]
