"""What a folder may cost its reader: the sizes of its files, the numbers in its settings, the time of its template.

A few bytes can ask for time or memory without end: a file that never ends, ten million layers, a template that loops.
Each bound here is far above what any model of ours needs, and is said together with the value that breaks it.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from seqloom.configuration.configuration_seqloom import LARGEST, MOST_BEAMS, MOST_TOKENS, SeqloomConfig
from seqloom.hub.chat_template import ChatTemplate, TemplateFault
from seqloom.hub.files import MOST_SETTINGS, read_object, read_text
from seqloom.hub.quoting import shown

MOST_RECIPE = 1 << 20
"""Bytes of the largest recipe.yaml that is read; YAML is slow."""

MOST_BYTES = {
    "run/recipe.yaml": MOST_RECIPE,
    "run/tokenizer/*": 1 << 30,
    "run/*.json": MOST_SETTINGS,
    "run/*": math.inf,
    "*config.json": MOST_SETTINGS,
    "*.index.json": MOST_SETTINGS,
    "*_manifest.json": MOST_SETTINGS,
    "*.jinja": 1 << 20,
    "*.py": 1 << 24,
    "*.md": 1 << 24,
    "*.json": 1 << 30,
    "*.txt": 1 << 30,
    "*.model": 1 << 30,
    "*.safetensors": 1 << 36,
}
"""Pattern of names -> the largest file that is read; the first that fits counts. Other files are not read."""

MOST = {
    **LARGEST,
    "*layers": LARGEST["encoder_layers"],
    **dict.fromkeys(("*max_new_tokens", "*min_new_tokens", "*max_length", "*min_length", "*ngram_*"), MOST_TOKENS),
    **dict.fromkeys(("context_*", "sampling_table_size"), 1 << 20),  # of watermarks
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences"), MOST_BEAMS),
    **dict.fromkeys(("num_assistant_tokens", "prompt_lookup_num_tokens"), 1_000),
}
"""Pattern of settings in config.json and generation_config.json -> the largest number that is obeyed."""

_REMEDY = "correct the entry, or get the folder anew."


def size_fault(name: str, num_bytes: int) -> str | None:
    """Return what is wrong with the size of a file, named relative to its folder."""
    most = next((most for pattern, most in MOST_BYTES.items() if fnmatch(name, pattern)), math.inf)
    if num_bytes <= most:
        return None
    return f"it has {num_bytes:,} bytes, and such a file is read up to {most:,}; get the folder anew, or save it again."


def number_faults(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the numbers of config.json or generation_config.json, down to the last object."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from number_faults(value)
        most = next((most for pattern, most in MOST.items() if fnmatch(key, pattern)), None)
        if most is not None and isinstance(value, int | float) and not value <= most:
            yield f"{key} is {_number(value)}, and a folder may ask for {most:,} at most; {_REMEDY}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, float) or value < 10**18 else f"a number of {len(str(value))} digits"


# Weights --------------------------------------------------------------------------------------------------------------


def read_header(path: Path) -> dict[str, list[int]]:
    """Return tensor -> shape of a safetensors file, whose size has to be the one that its header says.

    Raises:
        ValueError: if it is no safetensors file, or not a whole one.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, MOST_SETTINGS):
            raise ValueError("it does not begin as a safetensors file")
        header = json.loads(file.read(length))
    tensors = {name: entry for name, entry in dict(header).items() if name != "__metadata__"}
    shapes = {name: list(map(int, entry["shape"])) for name, entry in tensors.items()}
    if odd := next((name for name in tensors if not name.isprintable()), None):
        raise ValueError(f"a tensor is called {odd[:60]!a}, which a terminal would obey")
    end = 8 + length + max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
    if end != size:
        raise ValueError(f"it has {size:,} bytes, and its header says {end:,}")
    return shapes


def weight_fault(path: Path) -> str | None:
    """Return why a file is not what its name promises, safetensors."""
    try:
        read_header(path)
        with safe_open(path, framework="numpy"):
            pass  # the library knows which kinds of numbers there are
    except SafetensorError as error:
        return f"no whole safetensors file: {shown(str(error), 200).rstrip('.')}; get it anew, or save the model again."
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        why = str(error) if type(error) is ValueError else "its header cannot be read"
        return f"no whole safetensors file: {why}; get it anew, or save the model again."
    return None


def parameter_fault(folder: Path) -> str | None:
    """Return that config.json describes more parameters than the weights hold; loading would make up the others."""
    settings = read_object(folder / "config.json") or {}
    weights = [path for path in sorted(folder.glob("model*.safetensors")) if path.is_file()]
    if settings.get("model_type") != SeqloomConfig.model_type or not weights or any(map(weight_fault, weights)):
        return None
    held = sum(math.prod(shape) for path in weights for shape in read_header(path).values())
    described = _least_parameters(settings)
    if described <= held:
        return None
    return (
        f"it describes a network of at least {_number(described)} parameters, and the weights hold {held:,}; {_REMEDY}"
    )


def _least_parameters(settings: Mapping[str, Any]) -> int:
    """Count the matrices that every variant of the network has."""

    def size(name: str) -> int:
        aliases = [alias for alias, own in SeqloomConfig.attribute_map.items() if own == name]
        values = [settings[key] for key in (name, *aliases) if isinstance(settings.get(key), int)]
        return max([0, *values] if values else [getattr(SeqloomConfig, name)])

    width = size("d_model")
    encoder_layer = 2 * width + 2 * size("encoder_ffn_dim")
    decoder_layer = 4 * width + 2 * size("decoder_ffn_dim")
    return width * (
        size("vocab_size") + size("encoder_layers") * encoder_layer + size("decoder_layers") * decoder_layer
    )


# Chat templates -------------------------------------------------------------------------------------------------------

OUR_TEMPLATES = frozenset({"ea2ba42ff5a13ee50590215ca74686187d80aa2569926596339316859a268df1"})
"""SHA-256 of the templates that Seqloom writes, blanks at the ends left out."""

CPU_SECONDS, MOST_CHARACTERS = 2, 1 << 20
"""What a template of others may take for a short conversation."""

MOST_TEMPLATES = 16
"""In one file."""

CONVERSATION = [{"role": role, "content": "a b"} for role in ("system", "user", "assistant", "user")]


def template_faults(folder: Path, name: str) -> Iterator[str]:
    """Yield that there are too many chat templates in a file, or which is the first that is too costly."""
    templates = _templates_in(folder / name)
    if len(templates) > MOST_TEMPLATES:
        yield f"{len(templates):,} chat templates, and a file may have {MOST_TEMPLATES}; delete all but those in use."
        return
    for template in templates:
        if why := None if is_ours(template) else _cost_of(template):
            yield (
                f"a chat template that is not done with a conversation of four messages: {why}; delete the template, "
                f"or get the folder anew."
            )
            return


def is_ours(template: str) -> bool:
    """Return whether Seqloom wrote a template: it gives the last user message and nothing else, in no time."""
    return hashlib.sha256(template.strip().encode()).hexdigest() in OUR_TEMPLATES


def _templates_in(path: Path) -> list[str]:
    try:
        if path.suffix == ".jinja":
            return [read_text(path)]
        found = (read_object(path) or {}).get("chat_template")
    except (OSError, ValueError):
        return []  # said elsewhere
    entries = found if isinstance(found, list) else [found]
    templates = [entry.get("template") if isinstance(entry, dict) else entry for entry in entries]
    return [template for template in templates if isinstance(template, str)]


@lru_cache
def _cost_of(template: str) -> str | None:
    """Return why a template is too costly; what fails soon fails for its user, and is none of this."""
    renderer = ChatTemplate(template, cpu_seconds=CPU_SECONDS)
    try:
        renderer.render_chat(CONVERSATION, MOST_CHARACTERS)
    except TemplateFault as fault:
        return str(fault) if fault.is_costly else None
    finally:
        renderer.close()
    return None


__all__ = [
    "MOST",
    "MOST_BYTES",
    "MOST_RECIPE",
    "OUR_TEMPLATES",
    "is_ours",
    "number_faults",
    "parameter_fault",
    "read_header",
    "size_fault",
    "template_faults",
    "weight_fault",
]
