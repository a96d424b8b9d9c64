"""index.html of an ONNX export: one file that runs the model in a browser, without a network, a server or other files.

    onnxruntime-web          the engine: a module of JavaScript and one of WebAssembly
    @huggingface/tokenizers  reads tokenizer.json as transformers.js does, of which it is a part    --> index.html
    the graphs of bytes, tokenizer.json, settings

All parts stand in the page as base64 of gzip, so it opens from a disk (file://) too, where a page may fetch nothing.
transformers.js itself would be larger (an engine of 26 MB instead of 14), and fetches what it loads. The two packages
are not ours to ship: they are taken from a `node_modules`, where Node would look for them.
"""

import base64
import gzip
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path

from seqloom.hub.export.onnx_engine import GreedySettings
from seqloom.hub.export.onnx_graphs import DECODER, ENCODER, QUANTIZED
from seqloom.hub.export.output_folder import ExportError
from seqloom.hub.files import read_object
from seqloom.hub.model_card import CardFacts

PACKAGES = {
    "onnxruntime-web": {"engine": "dist/ort.wasm.bundle.min.mjs", "wasm": "dist/ort-wasm-simd-threaded.wasm"},
    "@huggingface/tokenizers": {"tokenizers": "dist/tokenizers.min.mjs"},
}
"""Package of npm -> part of the page -> file. Licences: MIT, Apache-2.0."""

INSTALL = "npm install onnxruntime-web@1.30.0 @huggingface/tokenizers@0.2.0"
"""The versions that the tests know; 140 MB, of which 14 are used."""

TEMPLATE = Path(__file__).parents[1] / "templates" / "onnx_page.html"
PAGE_NAME, LICENSES_NAME = "index.html", "LICENSES.txt"


@dataclass(frozen=True)
class PageParts:
    """What a page is made of, as it is installed."""

    versions: dict[str, str]
    licenses: dict[str, str]
    """Package -> name of its licence."""
    texts: dict[str, str]
    """Package -> text of its licence; empty where it brings none."""
    files: dict[str, Path]
    """Part -> file."""

    @property
    def credits(self) -> list[str]:
        """One phrase a package."""
        return [f"{name} {version} ({self.licenses[name]})" for name, version in self.versions.items()]


def find_page_parts(start: Path) -> PageParts | None:
    """Return the packages in the `node_modules` of a folder or of one above it; None: they are not installed.

    Raises:
        ExportError: for a package that lacks a file.
    """
    versions: dict[str, str] = {}
    licenses: dict[str, str] = {}
    files: dict[str, Path] = {}
    texts: dict[str, str] = {}
    for name, wanted in PACKAGES.items():
        places = (folder / "node_modules" / name for folder in (start, *start.parents))
        place = next((place for place in places if (place / "package.json").is_file()), None)
        if place is None:
            return None
        about = read_object(place / "package.json") or {}
        versions[name], licenses[name] = str(about.get("version")), str(about.get("license"))
        files |= {part: place / file for part, file in wanted.items()}
        texts[name] = next((text.read_text(encoding="utf-8") for text in sorted(place.glob("LICENSE*"))), "")
        for file in wanted.values():
            if not (place / file).is_file():
                raise ExportError(f"{place} {versions[name]} has no {file}; {INSTALL}")
    return PageParts(versions, licenses, texts, files)


def write_page(staged: Path, name: str, facts: CardFacts, settings: GreedySettings, parts: PageParts) -> None:
    """Write index.html, and beside it the licences of what is in it.

    Args:
        staged: the folder of the export, with graphs and tokenizer.
        name: of the export.
        facts: of the folder.
        settings: of the search.
        parts: of the page.
    """
    graphs = {part: staged / "onnx" / f"{graph}{QUANTIZED}.onnx" for part, graph in GRAPHS.items()}
    shown = {"name": name, "example": facts.example, "credits": parts.credits, **asdict(settings)}
    page = TEMPLATE.read_text(encoding="utf-8")
    texts = [
        f"{credit}\n\n{parts.texts[package]}" for package, credit in zip(parts.versions, parts.credits, strict=True)
    ]
    (staged / LICENSES_NAME).write_text("\n\n".join(texts), encoding="utf-8", newline="\n")
    with (staged / PAGE_NAME).open("w", encoding="utf-8", newline="\n") as file:
        head, tail = page.split("<!-- parts -->\n")
        file.write(head)
        file.writelines(
            part_lines(
                {
                    "settings": json.dumps(shown, ensure_ascii=False).encode(),
                    **{key: (staged / f"{key}.json").read_bytes() for key in ("tokenizer", "tokenizer_config")},
                    **{part: path.read_bytes() for part, path in {**parts.files, **graphs}.items()},
                }.items()
            )
        )
        file.write(tail)


GRAPHS = {"encoder": ENCODER, "decoder": DECODER}


def part_lines(parts: Iterable[tuple[str, bytes]]) -> Iterable[str]:
    """Yield one script a part, which a browser keeps and does not run."""
    for name, content in parts:
        packed = base64.b64encode(gzip.compress(content, mtime=0)).decode()
        yield f'<script type="text/plain" id="{name}">{packed}</script>\n'


def describe_page(output: str | PathLike[str], versions: dict[str, str]) -> str:
    """Return where the page is, or how to get one."""
    page = Path(output) / PAGE_NAME
    if not versions:
        return f"No {PAGE_NAME}: the packages that run in it are not installed here. {INSTALL}  and export again."
    size = page.stat().st_size / 1e6
    return f"{page}: {size:,.1f} MB, the model in a page; open it in a browser, no network needed."


__all__ = ["PAGE_NAME", "PageParts", "describe_page", "find_page_parts", "write_page"]
