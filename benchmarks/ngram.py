"""A character 5-gram model beside ours: bits per character of the same continuations, given the same prompts.

    seqloom evaluate FOLDER --test TEST.jsonl ... -o EVALUATION
    python benchmarks/ngram.py TRAIN.jsonl.gz EVALUATION/outputs.jsonl [--column text] [--where source=tatoeba ...]

Interpolated Kneser-Ney with one discount an order (Ney, Essen & Kneser 1994; the formulas of Chen & Goodman 1998,
section 4.1.6), over the characters of the training texts, an end, and one class for all other characters. A character
of that class is one of the 1,114,112 code points of Unicode. Sources and references of an evaluation are read as one
text; the references and their ends are counted, as `bits_per_character` of `seqloom evaluate` counts them.

Tidy rows on stdout: order, bits per character. On stderr: what the model adds up to behind some contexts, which is 1.
"""

import argparse
import csv
import gzip
import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

END, OTHER = "\u0003", "\u001a"
"""Control characters that no text has; a text begins with ends."""

CODE_POINTS = 0x110000


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """Yield the records of a JSONL file, plain or .gz."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


class KneserNey:
    """P(character | the `order` - 1 before it)."""

    def __init__(self, texts: Sequence[str], order: int) -> None:
        """Count the texts."""
        self.order = order
        self.characters = {END, OTHER}.union(*texts)
        counts = [Counter[str]() for _ in range(order + 1)]
        """Of n-grams: how often; below the highest order, behind how many characters."""
        for text in texts:
            padded = END * (order - 1) + text + END
            counts[order].update(padded[end - order : end] for end in range(order, len(padded) + 1))
        for length in range(order - 1, 0, -1):
            counts[length].update(gram[1:] for gram in counts[length + 1])
        self.counts = counts
        self.totals: list[dict[str, int]] = [defaultdict(int) for _ in range(order + 1)]
        self.kinds: list[dict[str, int]] = [defaultdict(int) for _ in range(order + 1)]
        self.discounts = [0.0] * (order + 1)
        for length in range(1, order + 1):
            once, twice = (sum(count == times for count in counts[length].values()) for times in (1, 2))
            self.discounts[length] = once / max(1, once + 2 * twice)
            for gram, count in counts[length].items():
                self.totals[length][gram[:-1]] += count
                self.kinds[length][gram[:-1]] += 1

    def probability(self, context: str, character: str) -> float:
        """Return P(character | context)."""
        found = 1 / len(self.characters)
        for length in range(1, self.order + 1):
            before = context[len(context) - length + 1 :]
            if total := self.totals[length].get(before):
                discount = self.discounts[length]
                own = max(0.0, self.counts[length].get(before + character, 0) - discount)
                found = (own + discount * self.kinds[length][before] * found) / total
        return found

    def bits(self, prompt: str, text: str) -> float:
        """Return the bits of a text and its end, behind a prompt."""
        known = [character if character in self.characters else OTHER for character in prompt + text]
        line = END * (self.order - 1) + "".join(known) + END
        start = self.order - 1 + len(prompt)
        bits = known[len(prompt) :].count(OTHER) * math.log2(CODE_POINTS)
        for place in range(start, len(line)):
            bits -= math.log2(self.probability(line[place - self.order + 1 : place], line[place]))
        return bits

    def sums(self, texts: Sequence[str]) -> list[float]:
        """Return what the probabilities behind the beginnings of some texts add up to."""
        contexts = [(END * self.order + text)[len(text) // 2 :][: self.order - 1] for text in texts]
        return [sum(self.probability(context, character) for character in self.characters) for context in contexts]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("outputs", type=Path)
    parser.add_argument("--column", default="text")
    parser.add_argument("--where", nargs="*", default=[])
    parser.add_argument("--orders", type=int, nargs="+", default=[2, 3, 4, 5])
    options = parser.parse_args()
    allowed = defaultdict(set)
    for condition in options.where:
        column, value = condition.split("=", 1)
        allowed[column].add(value)
    rows = read_rows(options.train)
    texts = [row[options.column] for row in rows if all(row[column] in allowed[column] for column in allowed)]
    pairs = [(row["source"], row["references"][0]) for row in read_rows(options.outputs)]
    writer = csv.writer(sys.stdout, delimiter="\t", lineterminator="\n")
    writer.writerow(["order", "bits_per_character", "texts", "pairs"])
    for order in options.orders:
        model = KneserNey(texts, order)
        print(f"order {order}: adds up to {model.sums(texts[:5])}", file=sys.stderr)
        bits = sum(model.bits(*pair) for pair in pairs)
        characters = sum(len(reference) + 1 for _, reference in pairs)
        writer.writerow([order, f"{bits / characters:.3f}", len(texts), len(pairs)])


if __name__ == "__main__":
    main()
