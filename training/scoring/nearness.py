"""How near a test set is to the training text: nearest training lines, and how rare the words are.

After TAME-MT (MIT, github.com/hunterschep/TAME-MT): beside how close outputs are to references it asks how close each
test source is to what was learned, and what copying the nearest training target would score. The small side is indexed
and the training text streams past it, twice: memory grows with the test set alone.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from datasets import Dataset
from rapidfuzz.distance import Indel

from seqloom.hub.progress_bar import progress_bar
from seqloom.hub.tags import NO_TAGS, Tags
from seqloom.training.held_out import same_source

MOST_CANDIDATES = 2000
"""Training lines that a test source is compared with, about: those that share its rarest pieces."""


@dataclass(frozen=True)
class TrainingLine:
    """The training line that is nearest to a test source."""

    similarity: float
    """1 - insertions and deletions / characters of both sources; 1: the same but for tags, spaces and letter case."""
    source: str = ""
    target: str = ""


@dataclass(frozen=True)
class Nearness:
    """What a training text says of a test set, a value for each source."""

    nearest: list[TrainingLine]
    rarest: list[int]
    """How often the rarest word of the source stands in the training text."""
    unit: str
    """What was counted: "word", or "pair of characters" where sources are single words."""
    num_rows: int
    """Training lines."""


def near_training(training: Dataset, sources: Sequence[str], tags: Tags = NO_TAGS) -> Nearness:
    """Look a test set up in a training text.

    Args:
        training: pairs of text, columns `source` and `target`.
        sources: of the test set.
        tags: those that stand in front of sources and are no text.

    Returns:
        The nearest line of each source; where it is a training source letter for letter, that one.
    """
    texts = [same_source(tags.text_of(text)) for text in sources]
    has_words = sum(" " in text for text in texts) * 2 > len(texts)
    size = 5 if median(map(len, texts)) > 25 else 3
    pieces = [_pieces(text, size) for text in texts]
    units = [_units(text, has_words) for text in texts]
    wanted = set().union(*pieces)
    wanted_units = set().union(*units)
    num_pieces, num_units = Counter[str](), Counter[str]()
    for source, _ in _rows(training, tags, "Counting words of the training text"):
        num_pieces.update(_pieces(source, size) & wanted)
        num_units.update(unit for unit in _unit_list(source, has_words) if unit in wanted_units)
    index = _index(pieces, num_pieces)
    nearest = [TrainingLine(0.0)] * len(texts)
    for source, row in _rows(training, tags, "Looking for the nearest training lines"):
        for number in {number for piece in _pieces(source, size) for number in index.get(piece, ())}:
            best = nearest[number].similarity
            similarity = Indel.normalized_similarity(source, texts[number], score_cutoff=best)
            if similarity > best or (similarity == best and row[0] == sources[number]):
                nearest[number] = TrainingLine(similarity, *row)
    rarest = [min((num_units[unit] for unit in each), default=0) for each in units]
    return Nearness(nearest, rarest, "word" if has_words else "pair of characters", len(training))


def _rows(training: Dataset, tags: Tags, description: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield each source as it is compared, and source and target as they are."""
    with progress_bar(description, len(training), "line") as bar:
        for batch in training.select_columns(["source", "target"]).iter(batch_size=1000):
            for row in zip(batch["source"], batch["target"], strict=True):
                yield same_source(tags.text_of(row[0])), row
            bar.update(len(batch["source"]))


def _pieces(text: str, size: int) -> set[str]:
    padded = f" {text} "
    return {padded[start : start + size] for start in range(max(1, len(padded) - size + 1))}


def _unit_list(text: str, has_words: bool) -> list[str]:
    return text.split() if has_words else [text[start : start + 2] for start in range(max(1, len(text) - 1))]


def _units(text: str, has_words: bool) -> set[str]:
    return set(_unit_list(text, has_words))


def _index(pieces: Sequence[set[str]], counts: Counter[str]) -> dict[str, list[int]]:
    """Return piece -> test sources that are compared with the training lines that have it: rarest pieces first."""
    index: dict[str, list[int]] = {}
    for number, own in enumerate(pieces):
        candidates = 0
        for piece in sorted((piece for piece in own if counts[piece]), key=lambda piece: (counts[piece], piece)):
            if candidates and candidates + counts[piece] > MOST_CANDIDATES:
                break
            candidates += counts[piece]
            index.setdefault(piece, []).append(number)
    return index


__all__ = ["Nearness", "TrainingLine", "near_training"]
