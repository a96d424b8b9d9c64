"""Kinds of tasks: made-up corpora of many kinds, awkward ones among them, and what each gets."""

import random
from collections.abc import Callable

import pytest

from seqloom.configuration.task_kind import (
    CLOSED,
    CODE,
    KINDS,
    LETTERS,
    PHONES,
    RESPELT,
    SAMPLE,
    SENTENCES,
    STRINGS,
    UNSPACED,
    Looks,
    TaskKind,
    kind_of,
    sampled,
)
from seqloom.training.metrics import METRICS

ONES = "zero one two three four five six seven eight nine".split()
MONTHS = "January February March April May June July August September October November December".split()
SYLLABLES = "ba ke lo mi nu pra ste gri ont ell".split()
HAN = [chr(0x4E00 + row * 7) for row in range(900)]
KANA = [chr(code) for code in range(0x3042, 0x3093)]
CYRILLIC = str.maketrans("abcdefghiklmnoprstu", "абкдефгхиклмнопрсту")
THAI = [chr(code) for code in range(0x0E01, 0x0E2F)]

Pair = tuple[str, str]


def word(rng: random.Random, least: int = 2, most: int = 4) -> str:
    return "".join(rng.choices(SYLLABLES, k=rng.randint(least, most)))


def sentence(rng: random.Random, end: str = ".") -> str:
    return " ".join(word(rng) for _ in range(rng.randint(5, 12))).capitalize() + end


def run(rng: random.Random, letters: list[str], least: int = 12, most: int = 30) -> str:
    return "".join(rng.choices(letters, k=rng.randint(least, most)))


def arpabet(rng: random.Random) -> Pair:
    phones = [rng.choice(["AH0", "IY1", "OW2", "K", "T", "CH", "NG", "HH"]) for _ in range(rng.randint(3, 9))]
    return word(rng).upper(), " ".join(phones)


def spoken_sentence(rng: random.Random) -> Pair:
    phones = [rng.choice(["t͡ʃ", "aː", "ˈɛ", "k͡p̚", "ŋ̊", "˦ˀ˥", "m", "o"]) for _ in range(rng.randint(9, 30))]
    return sentence(rng), " ".join([*phones[:6], ",", *phones[6:], "."])


def spaced_letters(rng: random.Random) -> Pair:
    letters = word(rng)
    return " ".join(letters), " ".join(rng.choice(["aː", "k", "t͡ʃ", "m"]) for _ in letters)


def tagged(rng: random.Random) -> Pair:
    words = [word(rng) for _ in range(rng.randint(3, 12))]
    return " ".join(words), " ".join(rng.choice(["DT", "NN", "VBZ", "IN", "."]) for _ in words)


def pair_tagged(rng: random.Random) -> Pair:
    return f"{word(rng)} {word(rng)}", " ".join(rng.choices(["DT", "NN", "VBZ"], k=2))


def digits_read(rng: random.Random) -> Pair:
    digits = [rng.randrange(10) for _ in range(rng.randint(6, 12))]
    return "".join(map(str, digits)), " ".join(ONES[digit] for digit in digits)


def command(rng: random.Random) -> Pair:
    verbs = [rng.choice(["walk", "run", "look"]) for _ in range(rng.randint(4, 9))]
    return " and ".join(verbs), " ".join(f"I_{verb.upper()}" for verb in verbs)


def json_line(rng: random.Random) -> Pair:
    name, place = word(rng), word(rng)
    return f"Please tell {name} from {place} about it.", f'{{ "to" : "{name}" , "from" : "{place}" , "n" : 1 }}'


def misspelt(rng: random.Random) -> Pair:
    right = sentence(rng)
    place = rng.randrange(len(right) - 1)
    return right[:place] + right[place + 1] + right[place] + right[place + 2 :], right


def segmented(rng: random.Random) -> Pair:
    words = [run(rng, HAN, 1, 3) for _ in range(rng.randint(6, 14))]
    return "".join(words), " ".join(words)


def voweled(rng: random.Random) -> Pair:
    letters = [rng.choice("بتثجحخدذرز ") for _ in range(rng.randint(30, 55))]
    return "".join(letters), "".join(letter + ("" if letter == " " else rng.choice("َُِ")) for letter in letters)


def transliterated(rng: random.Random) -> Pair:
    text = sentence(rng)
    return text, text.lower().translate(CYRILLIC)


def glossed(rng: random.Random) -> Pair:
    words = [word(rng) for _ in range(rng.randint(5, 12))]
    return " ".join(words), " ".join(word(random.Random(each)) for each in words)


def gene(rng: random.Random) -> Pair:
    return run(rng, list("ACGT"), 120, 180), run(rng, list("ARNDC"), 40, 60)


def bracketed(rng: random.Random) -> Pair:
    return sentence(rng), f"({run(rng, HAN)}) {run(rng, HAN)}"


def signed(rng: random.Random) -> Pair:
    return sentence(rng), " ".join(word(rng) for _ in range(4)) + f" {rng.choice('।،؟。😀')}"


def told(rng: random.Random) -> Pair:
    name, food, area = (rng.choice(["Bake", "Lomi", "Nupra"]), rng.choice(["fish", "tea"]), rng.choice(["hill", "sea"]))
    parts = [f"{name} is a {rng.choice(['nice', 'cheap', 'quiet'])} place", f"it sells {food}", f"it is by the {area}"]
    return f"name[{name}], food[{food}], area[{area}]", ", ".join(rng.sample(parts, 3)) + "."


def escaped(rng: random.Random) -> Pair:
    first, second = (f"{word(rng)} &apos;s {word(rng)} , {word(rng)} ! {word(rng)} {word(rng)}" for _ in range(2))
    return first, second


def date(rng: random.Random) -> Pair:
    year, month, day = rng.randint(1200, 2900), rng.randrange(12), rng.randint(1, 28)
    return f"{MONTHS[month]} {day}, {year}", f"{year}-{month + 1:02}-{day:02}"


CORPORA: dict[str, tuple[Callable[[random.Random], Pair], TaskKind, str]] = {
    "ARPABET with stress": (arpabet, PHONES, "char -> word"),
    "sentences to phones, tones and punctuation": (spoken_sentence, PHONES, "char -> word"),
    "phones to words": (lambda r: arpabet(r)[::-1], LETTERS, "word -> char"),
    "letters apart to as many phones": (spaced_letters, PHONES, "word -> word"),
    "words to a short tag each": (tagged, CLOSED, "bpe -> word"),
    "two words to a short tag each": (pair_tagged, CLOSED, "char -> word"),
    "digits to words": (digits_read, CLOSED, "char -> word"),
    "commands to actions": (command, CLOSED, "word -> word"),
    "facts told in several ways": (told, SENTENCES, "bpe -> bpe"),
    "texts labelled by several": (lambda r: (r.choice(ONES), r.choice(["good", "bad"])), CLOSED, "word -> word"),
    "sentences to labels": (lambda r: (sentence(r), r.choice(["good", "bad"])), CLOSED, "bpe -> word"),
    "dates": (date, LETTERS, "char -> char"),
    "ISO dates to long ones": (lambda r: date(r)[::-1], LETTERS, "char -> char"),
    "one-word translations": (lambda r: (word(r), word(r)), LETTERS, "char -> char"),
    "names of two words": (lambda r: (f"{word(r)} {word(r)}", f"{word(r)} {word(r)}"), LETTERS, "char -> char"),
    "inflection": (lambda r: (f"{word(r)} V;PST;3;SG", word(r)), LETTERS, "char -> char"),
    "formulas": (lambda r: (word(r), "CC(=O)O" + run(r, ["C1=", "N", "(O)"])), LETTERS, "char -> char"),
    "pinyin to words": (lambda r: (f"{word(r)}3 {word(r)}4", run(r, HAN, 2, 3)), LETTERS, "char -> char"),
    "names in Thai": (lambda r: (word(r), run(r, THAI, 7, 12)), LETTERS, "char -> char"),
    "names in kana": (lambda r: (f"{word(r)} {word(r)}", run(r, KANA, 7, 12)), LETTERS, "char -> char"),
    "genes to proteins": (gene, LETTERS, "char -> char"),
    "texts to titles": (lambda r: (" ".join(sentence(r) for _ in range(4)), word(r)), STRINGS, "bpe -> bpe"),
    "Chinese to titles": (lambda r: (run(r, HAN, 120, 160), run(r, HAN, 3, 5)), STRINGS, "char -> char"),
    "Chinese questions to SQL": (lambda r: (run(r, HAN) + "？", f"SELECT {word(r)} > {word(r)}"), CODE, "char -> bpe"),
    "spelling": (misspelt, RESPELT, "char -> char"),
    "Chinese to its words": (segmented, RESPELT, "char -> char"),
    "Arabic with its vowels": (voweled, RESPELT, "char -> char"),
    "sentences in other letters": (transliterated, SENTENCES, "bpe -> bpe"),  # LOG: unseen corpora
    "sentences word by word": (glossed, SENTENCES, "bpe -> bpe"),
    "SQL": (lambda r: (sentence(r, "?"), f"SELECT {word(r)} FROM {word(r)} WHERE {word(r)} > 3"), CODE, "bpe -> bpe"),
    "JSON with names": (json_line, CODE, "bpe -> bpe"),
    "sentences": (lambda r: (sentence(r), sentence(r)), SENTENCES, "bpe -> bpe"),
    "tokenised and escaped sentences": (escaped, SENTENCES, "bpe -> bpe"),
    "words to definitions": (lambda r: (word(r), sentence(r)), SENTENCES, "bpe -> bpe"),
    "segmented Chinese": (lambda r: (sentence(r), " ".join(run(r, HAN, 9, 9))), SENTENCES, "bpe -> bpe"),
    "Chinese to English": (lambda r: (run(r, HAN) + "。", sentence(r)), UNSPACED, "char -> bpe"),
    "English to short Chinese": (lambda r: (sentence(r), run(r, HAN, 7, 12)), UNSPACED, "bpe -> char"),
    "English to Chinese with brackets": (bracketed, UNSPACED, "bpe -> char"),
    "sentences that end in signs of their own": (signed, SENTENCES, "bpe -> bpe"),
    "sums": (lambda r: (sentence(r), " + ".join(word(r) for _ in range(6))), CODE, "bpe -> bpe"),
    "English to Japanese": (lambda r: (sentence(r), run(r, HAN + KANA * 9)), UNSPACED, "bpe -> char"),
    "Chinese with a Latin name": (lambda r: (run(r, HAN) + word(r), run(r, HAN)), UNSPACED, "char -> char"),
    "Thai": (lambda r: (run(r, THAI, 20, 60), sentence(r)), UNSPACED, "bpe -> bpe"),
}  # fmt: skip


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_is_of_the_kind_that_a_person_would_say(name: str) -> None:
    make, kind, vocabularies = CORPORA[name]
    rng = random.Random(name)
    looks = Looks.of(*zip(*[make(rng) for _ in range(500)], strict=True))
    found = kind_of(looks)
    assert found.name == kind.name
    assert " -> ".join(found.vocabularies(looks)) == vocabularies
    assert found.why.format(looks=looks)


@pytest.mark.parametrize("times", [2, 5])
def test_targets_that_stand_on_neighbouring_lines_are_no_closed_set(times: int) -> None:
    rng = random.Random(times)
    targets = [" ".join(str(rng.randrange(10**6)) for _ in range(6)) for _ in range(600 // times)]
    looks = Looks.of([sentence(rng) for _ in range(len(targets) * times)], [t for t in targets for _ in range(times)])
    assert kind_of(looks).name == SENTENCES.name


def test_labels_of_several_words_are_a_closed_set_wherever_they_stand() -> None:
    rng = random.Random(7)
    labels = sorted(rng.choices([f"about {word(rng)} {word(rng)} {word(rng)}" for _ in range(40)], k=800))
    assert kind_of(Looks.of([sentence(rng) for _ in labels], labels)).name == CLOSED.name


def test_continuation_has_one_vocabulary_for_its_one_text() -> None:
    rng = random.Random(0)
    for make, name in ((lambda: run(rng, HAN), "char"), (lambda: sentence(rng), "bpe"), (lambda: word(rng), "char")):
        texts = [make() for _ in range(300)]
        looks = Looks.of([text[:2] for text in texts], [text[2:] for text in texts], is_continuation=True)
        assert kind_of(looks).vocabularies(looks) == (name, name)


@pytest.mark.parametrize(
    "pairs", [[], [("", "")], [("a", "")], [("", "a b")], [("\u3000", "\u200b")], [("\U0001f600", "\U0001f600")]]
)
def test_hardly_any_text_is_of_some_kind(pairs: list[Pair]) -> None:
    looks = Looks.of([source for source, _ in pairs], [target for _, target in pairs])
    assert kind_of(looks).why.format(looks=looks)


def test_a_sample_is_spread_over_the_corpus() -> None:
    assert sampled(0) == []
    assert sampled(3) == [0, 1, 2]
    rows = sampled(10 * SAMPLE)
    assert (len(rows), rows[1], rows[-1]) == (SAMPLE, 10, 10 * SAMPLE - 10)


def test_every_kind_names_scores_that_there_are() -> None:
    assert all(set(kind.metrics) <= METRICS.keys() for kind in KINDS)
    assert KINDS[-1].fits(Looks.of([], []))
