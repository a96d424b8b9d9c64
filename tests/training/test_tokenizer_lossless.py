"""Lossless: for every kind and every text, decoding what was encoded gives the normalised text back.

The vocabularies are learned from a few lines, so nearly every character drawn here has no entry of its own.
"""

import gzip
import os
import random
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqloom.training import vocabulary
from seqloom.training.tokenizer import SeqloomTokenizers, ids_of, train_tokenizer
from seqloom.training.vocabulary import KINDS, NORMALIZATIONS, Options, TokenizerError, normalize_text

DATA = os.environ.get("SEQLOOM_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="SEQLOOM_DATA does not name the folder of the shared data sets")

ODDITIES = [
    *["</s>", "<s>", "<pad>", "<unk>", "<0x41>", "<0xE4>", "<0xe4>", "<target>", "<source>a", "<", ">", "<<0x41>>"],
    *["▁", "▁the", " ", "  ", "   ", "\t", "\n", "\r", "\r\n", "\v", "\x00", "\x1b", "\x7f", "\x85", "\xa0", "\u3000"],
    *["\u2028", "\u2029", "\u200b", "\u200d", "\u202e", "\ufeff", "\ufffd", "\ufffe", "\uffff", "\ue000", "\U0010ffff"],
    *["e\u0301", "é", "\u0301", "a\u0323\u0307", "가", "\u1100\u1161", "葛\U000e0100", "𠮷", "ﬁ", "Å"],
    *["👨\u200d👩\u200d👧", "👍🏽", "🇨🇳", "क्षत्रिय", "می\u200cخواهم", "ไม่มี", "ー々"],
    *["the", " the", "weather", "今天", "don't", "l’été", "1984", " 7", "...", " \n "],
]
TEXTS = st.lists(st.one_of(st.text(max_size=20), st.sampled_from(ODDITIES)), max_size=8).map("".join)
PROPERTY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@cache
def tokenizers(
    kind: str, normalization: str = "nfc", joint: bool = True, target_kind: str | None = None
) -> SeqloomTokenizers:
    return train_tokenizer(
        ["the weather is <b>fine</b> today", "the the weather 1984", "</s> <0x41> ▁the"] * 2,
        ["今天的天气很好", "l’été e\u0301 <target> the"] * 2,
        kind=kind,
        target_kind=target_kind,
        vocab_size=320,
        joint=joint,
        normalization=normalization,
        show_progress=False,
    )


def assert_lossless(both: SeqloomTokenizers, texts: list[str], normalization: str) -> None:
    expected = [normalize_text(text, normalization) for text in texts]
    for encoder in (both.source, both.target):
        ids = encoder(texts).input_ids
        assert all(line[-1] == 2 and 3 not in line for line in ids), "ends with </s>, never <unk>"
        for decoder in (both.source, both.target):
            assert [decoder.decode(line, skip_special_tokens=True) for line in ids] == expected


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("kind", KINDS)
@PROPERTY
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_every_text_comes_back(kind, normalization, texts):
    assert_lossless(tokenizers(kind, normalization), texts, normalization)


@pytest.mark.parametrize(("kind", "other"), zip(KINDS, (*KINDS[1:], KINDS[0]), strict=True))
@PROPERTY
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_every_text_comes_back_through_either_view(kind, other, texts):
    assert_lossless(tokenizers(kind, target_kind=other, joint=False), texts, "nfc")


@pytest.mark.parametrize("kind", KINDS)
def test_every_oddity_comes_back_alone_and_between_words(kind):
    texts = [
        frame.format(oddity) for oddity in ODDITIES for frame in ("{}", " {}", "{} ", "the{}the", "今 {} 天", "{0}{0}")
    ]
    assert_lossless(tokenizers(kind), texts, "nfc")


@pytest.mark.parametrize("kind", KINDS)
def test_every_code_point_comes_back(kind):
    points = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    random.Random(0).shuffle(points)
    step = 40  # all of them take a minute; every 40th, shuffled, still meets every block
    texts = ["".join(points[start : start + 40]) for start in range(0, len(points), 40 * step)]
    assert_lossless(tokenizers(kind, "none"), texts, "none")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    corpus=st.lists(TEXTS, min_size=1, max_size=5),
    others=st.lists(TEXTS, min_size=1, max_size=5),
    kind=st.sampled_from(KINDS),
    normalization=st.sampled_from(NORMALIZATIONS),
    vocab_size=st.integers(261, 500),
    coverage=st.sampled_from([1.0, 0.9, 0.5]),
    joint=st.booleans(),
    split_digits=st.booleans(),
    texts=st.lists(TEXTS, max_size=3),
)
def test_whatever_it_was_trained_on(
    corpus, others, kind, normalization, vocab_size, coverage, joint, split_digits, texts
):
    try:
        both = train_tokenizer(
            corpus,
            others,
            kind=kind,
            vocab_size=vocab_size,
            joint=joint,
            normalization=normalization,
            character_coverage=coverage,
            split_digits=split_digits,
            min_frequency=1,
            show_progress=False,
        )
    except TokenizerError:
        return  # empty, or more characters than the vocabulary holds
    assert len(both) <= (vocab_size if joint else 2 * vocab_size - 260)
    assert_lossless(both, corpus + others + texts, normalization)


OLD_CHARACTERS = st.characters(exclude_categories=["Cs"]).filter(lambda c: unicodedata.ucd_3_2_0.category(c) != "Cn")


@pytest.mark.parametrize("normalization", ["nfc", "nfkc", "nfd"])
@PROPERTY
@given(text=st.text(alphabet=OLD_CHARACTERS))
def test_normalization_is_what_unicode_says(normalization, text):
    # Unicode's stability policy: text of assigned characters is normalised alike in every later version.
    assert normalize_text(text, normalization) == unicodedata.normalize(normalization.upper(), text)


# ---------------------------------------------------------------------------------------------------- the shared data


def read_lines(name: str) -> list[str]:
    path = Path(DATA or "") / name
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        return [line for line in file.read().decode("utf-8", errors="replace").split("\n") if line]


@cache
def trained_on_data(kind: str) -> SeqloomTokenizers:
    lines = read_lines("classical-modern-zh/train.zh.gz")[:1500] + read_lines("multi30k/train.de.gz")[:1500]
    return train_tokenizer(
        lines, kind=kind, vocab_size=3000, character_coverage=0.98, normalization="nfc", show_progress=False
    )


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    [
        "messy/unicode_zoo.txt",
        "messy/special_tokens.de",
        "messy/special_tokens.en",
        "messy/line_separators.de",
        "messy/noisy.en",
        "messy/utf8_bom_crlf.txt",
        "messy/real_crawl_noise.zh.gz",
        "messy/long_lines.de.gz",
        "multi30k/test.fr.gz",
        "classical-modern-zh/test.zh.gz",
        "classical-modern-zh/test.lzh.gz",
        "g2p-sigmorphon21/kor.valid.tsv.gz",
        "g2p-sigmorphon21/vie_hanoi.valid.tsv.gz",
    ],
)
def test_real_text_comes_back(kind, name):
    assert_lossless(trained_on_data(kind), read_lines(name)[:2000], "nfc")


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("folder", ["tatoeba-cmn-eng", "tatoeba-deu-eng", "zh-continuation", "cogs", "scan"])
def test_real_folders_come_back(folder):
    files = sorted(path for path in (Path(DATA or "") / folder).glob("*.gz") if "train" not in path.name)
    assert files
    for path in files:
        lines = read_lines(f"{folder}/{path.name}")[:1000]
        for kind in KINDS:
            assert_lossless(trained_on_data(kind), lines, "nfc")


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bpe", "unigram", "char", "word"])
def test_lines_of_a_million_characters_can_be_trained_on(kind):
    lines = read_lines("messy/long_lines.de.gz")
    both = train_tokenizer(lines, kind=kind, vocab_size=600, character_coverage=0.99, show_progress=False)
    assert_lossless(both, lines, "nfc")


@pytest.mark.parametrize("kind", KINDS)
@PROPERTY
@given(texts=st.lists(TEXTS, min_size=1, max_size=5))
def test_ids_are_those_of_transformers_own_call(kind: str, texts: list[str]) -> None:
    tokenizer = tokenizers(kind).source
    tokenizer(["padded", "and cut"], padding=True, truncation=True, max_length=4)  # leaves its traces in the backend
    assert ids_of(tokenizer, texts) == tokenizer(texts).input_ids


@PROPERTY
@given(texts=st.lists(TEXTS, min_size=1, max_size=7), normalization=st.sampled_from(NORMALIZATIONS))
def test_characters_are_counted_as_in_each_text_alone(texts: list[str], normalization: str) -> None:
    options = Options("char", 10_000, normalization, None, 1.0, False, False)
    expected = Counter("".join(normalize_text(text, normalization) for text in texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "_TEXTS_AT_ONCE", 2)
        if expected:
            assert vocabulary._read_text("training", [texts], options).characters == expected
