"""Where our code lies, and under which names it is imported."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("configuration", "modeling", "training", "hub")
FOLDERS = ("seqloom", "cli", *ROOMS)


def is_source(path):
    return "__pycache__" not in path.parts and path.suffix != ".pyc"


def code_files(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")) if is_source(path)]


def relative(path):
    return str(path.relative_to(ROOT))


def package_of(place):
    """Return the name under which a folder or a file is imported: modeling -> seqloom.modeling, cli -> seqloom_cli."""
    parts = [part for part in Path(place).with_suffix("").parts if part != "__init__"]
    names = {"seqloom": ["seqloom"], "cli": ["seqloom_cli"]}
    return ".".join([*names.get(parts[0], ["seqloom", parts[0]]), *parts[1:]])
