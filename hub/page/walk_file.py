"""`seqloom walk FOLDER TEXT -o FILE`: the walk through a trained folder as a file."""

from os import PathLike
from pathlib import Path

from seqloom.hub.files import refuse_no_place
from seqloom.hub.loading import load_folder, target_tokenizer
from seqloom.hub.page.walk import render_walk, walk
from seqloom.hub.quoting import shown
from seqloom.modeling.canary import write_whole

TEMPLATE = Path(__file__).parents[1] / "templates" / "walk.html"
MOST_SOURCE_TOKENS = 1024
"""Tokens of the longest source: attention weights of all layers and heads are in memory at once."""


def write_walk(
    folder: str | PathLike[str],
    text: str,
    output: str | PathLike[str],
    *,
    target: str | None = None,
    num_beams: int | None = None,
    every_layer: bool = False,
) -> str:
    """Write the page, and return what to tell a person.

    Args:
        folder: a trained model.
        text: the source.
        output: the HTML file; one that is there is replaced.
        target: walk through this output instead of the one that the model writes.
        num_beams: None: what the folder's generation_config.json says.
        every_layer: keep queries, keys and values of all layers, however large the page.

    Raises:
        ValueError: for a folder, a text or a place that does not fit, with the remedy.
    """
    output = Path(output)
    refuse_no_place(output)
    model, tokenizer = load_folder(folder)
    if (length := len(tokenizer(text)["input_ids"])) > MOST_SOURCE_TOKENS:
        raise ValueError(f"the text has {length:,} tokens, and a walk reads up to {MOST_SOURCE_TOKENS:,}; shorten it.")
    data = walk(
        model,
        tokenizer,
        text,
        target=target,
        target_tokenizer=target_tokenizer(folder, tokenizer),
        name=Path(folder).resolve().name,
        every_layer=every_layer,
        **({} if num_beams is None else {"num_beams": num_beams}),
    )
    page = render_walk(data, TEMPLATE.read_text(encoding="utf-8"))
    write_whole(output, page)
    size = len(page.encode()) / 1e6
    output_line = shown(data["output"]) or "(nothing)"
    return f"{output_line}\n{shown(output)}: {size:.1f} MB, no network needed; open it in a browser."


__all__ = ["write_walk"]
