"""Where does a model keep its alignments? Cross attention against two things that are known, layer by layer.

    python benchmarks/aligning.py FOLDER PAIRS.tsv [--sentences 60] [-o ROWS.tsv]

`same_word`: how often the weight is largest on the source token that spells like the output token, of output tokens
that have one such source token. `left_out`: how often it is largest on the source token without which the output token
loses most of its probability, of those that lose more than one nat. Both for the step that chose a token, and for the
step that reads it (Shift-Att, Chen et al. 2020).
"""

import argparse
import csv
import sys
from collections import Counter

import torch

from seqloom.hub.loading import load_folder, target_tokenizer
from seqloom.hub.word_alignment import CLEAR, attention_of, fall_without, find_place

COLUMNS = "layer step same_word same_words left_out left_outs found".split()


@torch.inference_mode()
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("pairs")
    parser.add_argument("--sentences", type=int, default=60)
    parser.add_argument("-o", "--output", default=None)
    options = parser.parse_args()
    model, tokenizer = load_folder(options.folder, "cpu")
    targets = target_tokenizer(options.folder, tokenizer)
    with open(options.pairs, encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t")[:2] for _, line in zip(range(options.sentences), file)]
    pairs = [(tokenizer(source).input_ids, targets(target).input_ids) for source, target in rows]
    hits: dict[str, Counter[tuple[int, str]]] = {"same_word": Counter(), "left_out": Counter()}
    totals: Counter[str] = Counter()
    for source, target in pairs:
        known = {"same_word": same_words(tokenizer, source, target), "left_out": without(model, source, target)}
        attention = attention_of(model, source, target).mean(dim=1)  # (L, T, S)
        for name, places in known.items():
            totals[name] += len(places)
            for layer, weights in enumerate(attention.argmax(dim=-1)):
                for step, shift in (("chose", 0), ("reads", 1)):
                    hits[name][layer, step] += sum(int(weights[t + shift]) == s for t, s in places.items())
    found = find_place(model, pairs)
    with open(options.output, "w", encoding="utf-8") if options.output else sys.stdout as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(COLUMNS)
        for layer in range(model.config.decoder_layers):
            for step in ("chose", "reads"):
                shares = [
                    value
                    for name in hits
                    for value in (f"{hits[name][layer, step] / max(1, totals[name]):.3f}", totals[name])
                ]
                is_found = (layer, step == "reads") == (found.layer, found.is_shifted)
                writer.writerow([layer, step, *shares, "*" if is_found else ""])


def same_words(tokenizer: object, source: list[int], target: list[int]) -> dict[int, int]:
    """Return output place -> source place of tokens that spell alike, where there is one."""
    spell = [[tokenizer.decode([token]).strip() for token in ids] for ids in (source, target)]  # type: ignore[attr-defined]
    return {
        place: spell[0].index(word)
        for place, word in enumerate(spell[1][:-1])
        if word.isalpha() and spell[0].count(word) == 1
    }


def without(model: object, source: list[int], target: list[int]) -> dict[int, int]:
    """Return output place -> the source place that it loses most without."""
    fall = fall_without(model, source, target)[:-1]
    clear = (fall.max(dim=-1).values > CLEAR).nonzero()[:, 0].tolist()
    return {place: int(fall[place].argmax()) for place in clear}


if __name__ == "__main__":
    main()
