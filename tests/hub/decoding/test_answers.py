"""Answers on the taught toy language, where every output word is the source word in capitals: so all is known."""

import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from huggingface_hub import constants

from seqloom.hub.decoding.answers import Answer, answer, split
from seqloom.hub.decoding.engines import CTranslate2Engine, Engine, Search, SearchError, TorchEngine
from seqloom.hub.decoding.rows import Row
from seqloom.hub.word_alignment import Place, find_place, origins, pharaoh, target_spans

LINES = ["abc", "p", "", "bacd", "fedcba", "mn"]
ENGINES = [TorchEngine, CTranslate2Engine]


@pytest.fixture(scope="module")
def folder(taught_model: Callable[..., Any], save_toy: Callable[..., Path], tmp_path_factory: Any) -> Path:
    path = tmp_path_factory.mktemp("toy") / "model"
    return save_toy(path, taught_model(steps=600), max_new_tokens=12, num_beams=2, length_penalty=0.7)


def answers(engine: Engine, lines: Sequence[str], **options: Any) -> list[list[Answer]]:
    return answer(engine, [Row(number, line) for number, line in enumerate(lines, start=1)], **options)


def texts(groups: Sequence[Sequence[Answer]]) -> list[list[str]]:
    return [[output.text for output in group] for group in groups]


def test_both_engines_say_the_same(folder: Path) -> None:
    for search in (Search(num_beams=1, n_best=1), Search(n_best=2)):
        ours, theirs = (answers(engine(folder, search), LINES, units="tokens") for engine in ENGINES)
        assert texts(ours) == texts(theirs)
        for one, other in zip(itertools.chain(*ours), itertools.chain(*theirs), strict=True):
            assert one.score == (other.score and pytest.approx(other.score, abs=1e-3))
            assert one.is_cut is other.is_cut
            assert one.detail is None or one.detail.probabilities == pytest.approx(other.detail.probabilities, abs=1e-3)


def test_the_export_follows_the_weights(
    folder: Path, taught_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    copy = tmp_path / "model"
    model = taught_model()
    model.save_pretrained(copy)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).write_bytes((folder / name).read_bytes())
    before = texts(answers(CTranslate2Engine(copy, Search(num_beams=1)), LINES))
    (made,) = tmp_path.glob("cache/seqloom/model-ctranslate2-float32-*/model.bin")
    first = made.stat().st_mtime_ns
    CTranslate2Engine(copy, Search())
    assert made.stat().st_mtime_ns == first, "made once"
    with torch.no_grad():
        model.get_output_embeddings().weight[24:40] = model.get_output_embeddings().weight[24:40].flip(0)
    model.save_pretrained(copy)
    after = texts(answers(CTranslate2Engine(copy, Search(num_beams=1)), LINES))
    assert after == texts(answers(TorchEngine(copy, Search(num_beams=1)), LINES)) != before


@pytest.mark.parametrize("kind", ENGINES)
def test_prefixes(folder: Path, kind: type[Engine]) -> None:
    """Each output begins as it must, in whatever batch; the rest is the model's."""
    engine = kind(folder, Search(num_beams=1))
    rows = [Row(1, "abc", "P"), Row(2, "hgfe"), Row(3, "mn", "MNO")]
    first, second, third = (group[0].text for group in answer(engine, rows))
    assert first.startswith("P")
    assert second == "HGFE"
    assert third.startswith("MNO")
    assert all(group[0].text.startswith("NO") for group in answers(engine, ["abc", "hg"], prefix="NO"))


@pytest.mark.parametrize("kind", ENGINES)
def test_sampling(folder: Path, kind: type[Engine]) -> None:
    first, again, other = (
        texts(
            answers(
                kind(folder, Search(sample=True, temperature=3.0, top_k=16, n_best=8, seed=seed)), ["abcd"], seed=seed
            )
        )
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert len(set(first[0])) > 1
    frozen = kind(folder, Search(sample=True, top_k=1))
    assert texts(answers(frozen, ["bacd"])) == [["BACD"]]


@pytest.mark.parametrize("kind", ENGINES)
def test_the_best_sample_comes_first(folder: Path, kind: type[Engine]) -> None:
    search = Search(sample=True, temperature=3.0, top_k=16, n_best=8, seed=1)
    (group,) = answers(kind(folder, search), ["abcd"], seed=1)
    scores = [output.score or 0.0 for output in group]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) > 1


@pytest.mark.parametrize("beams", [1, 2])
def test_an_output_that_stops_at_a_string_is_not_cut(
    save_toy: Callable[..., Path], taught_model: Callable[..., Any], tmp_path: Path, beams: int
) -> None:
    """One row stops before the others, one at the last token that is allowed; each is scored without its padding."""
    folder = save_toy(tmp_path / "model", taught_model(steps=600), stop_strings=["C", "GH"], max_new_tokens=4)
    engine = TorchEngine(folder, Search(num_beams=beams, n_best=1))
    lines = ["bacd", "efgh", "mnop", "kpkpk", "ef"]
    groups = answers(engine, lines, units="tokens")
    assert texts(groups) == [["BAC"], ["EFGH"], ["MNOP"], ["KPKP"], ["EF"]]
    assert [group[0].is_cut for group in groups] == [False, False, True, True, False]
    assert [len(group[0].detail.probabilities) for group in groups if group[0].detail] == [3, 4, 4, 4, 3]
    plain = texts(answers(TorchEngine(folder, Search(num_beams=beams)), lines))
    assert plain == texts(groups)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample": True, "num_beams": 3}, "leave --beams or --sample away"),
        ({"temperature": 0.5}, "temperature=0.5 belongs to sampling; add --sample"),
        ({"sample": True, "temperature": 0.0}, "--beams 1 takes the likeliest"),
        ({"sample": True, "top_p": 1.5}, "top_p=1.5 must be a share"),
        ({"num_beams": 2, "n_best": 3}, "use --beams 3 or more"),
    ],
)
def test_searches_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SearchError, match=re.escape(message)):
        Search(**options)


@pytest.mark.parametrize("kind", ENGINES)
def test_a_cut_output_is_counted(folder: Path, kind: type[Engine]) -> None:
    groups = answers(kind(folder, Search(num_beams=1, max_new_tokens=4)), ["abc", "abcdef", "", "abcd"], units="tokens")
    assert texts(groups) == [["ABC"], ["ABCD"], [""], ["ABCD"]]
    assert [group[0].is_cut for group in groups] == [False, True, False, True]
    assert [len(group[0].detail.probabilities) for group in groups if group[0].detail] == [4, 4, 4]


@pytest.mark.parametrize("kind", ENGINES)
def test_long_lines(folder: Path, kind: type[Engine]) -> None:
    engine = kind(folder, Search(num_beams=1, n_best=1))
    refused, kept = answers(engine, ["abcdef", "abc"], most_tokens=5)
    assert (refused[0].text, kept[0].text) == ("", "ABC")
    assert refused[0].fault == "7 tokens, more than max_source_tokens=5"
    ((whole,),) = answers(engine, ["abcdef"], most_tokens=5, long_lines="split", units="tokens")
    assert (whole.text, whole.pieces, whole.source_tokens) == ("ABCDEF", 2, 8)
    assert whole.detail is not None
    assert whole.detail.tokens == list("ABCDEF")
    assert whole.score is not None


def test_a_line_that_is_longer_than_the_exports_table_is_left_out(folder: Path) -> None:
    engine = CTranslate2Engine(folder, Search(num_beams=1))
    refused, kept = answers(engine, ["a" * 4096, "abc"])
    assert refused[0].fault == "4,097 tokens, more than the 4,096 positions that the export computes"
    assert kept[0].text == "ABC"
    assert TorchEngine(folder, Search()).longest_source[0] == 16_384


@pytest.mark.parametrize("kind", ENGINES)
def test_every_piece_has_the_tags_of_its_line_and_the_first_the_prefix(folder: Path, kind: type[Engine]) -> None:
    engine = kind(folder, Search(num_beams=1, n_best=1))
    asked: list[str] = []
    tokenize, write = engine.tokenizer, engine.write
    prefixes: list[Any] = []

    class Tagged:
        init_kwargs: ClassVar[dict[str, Any]] = {"seqloom_tokenizer": {"tags": ["<0>", "<1>"], "tag_columns": ["n"]}}

        def __call__(self, text: Any) -> Any:
            asked.extend([text] if isinstance(text, str) else text)
            return tokenize(text)

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenize, name)

    def written(sources: Any, prefix: Any, **options: Any) -> Any:
        prefixes.extend(prefix or [])
        return write(sources, prefix, **options)

    engine.tokenizer, engine.write = Tagged(), written  # type: ignore[method-assign]
    answers(engine, ["<0><1>abcd"], most_tokens=9, long_lines="split", prefix="A")
    assert asked[-2:] == ["<0><1>ab", "<0><1>cd"]
    assert [bool(ids) for ids in prefixes] == [True, False]


def test_places_where_text_is_split(char_tokenizer: Callable[..., Any]) -> None:
    tokenizer = char_tokenizer("abcdefghijklmnopqrstuvwxyz .,!?。，今天很好")
    pieces = list(split(tokenizer, "one two. three, four! five", 18))
    assert pieces == ["one two.", "three, four!", "five"] or pieces == ["one two.", "three, four! five"]
    assert list(split(tokenizer, "今天很好。今天，很好。", 7)) == ["今天很好。", "今天，很好。"]
    assert list(split(tokenizer, "aaaa, bbbb bbbb", 7)) == ["aaaa,", "bbbb", "bbbb"]
    assert "".join(split(tokenizer, "a" * 50, 8)) == "a" * 50
    for limit in (3, 5, 9):
        pieces = list(split(tokenizer, "one two. three, four! five", limit))
        assert all(len(tokenizer(piece).input_ids) <= limit for piece in pieces)
        assert "".join("".join(pieces).split()) == "onetwo.three,four!five"


def test_alignments_of_a_model_that_copies(folder: Path) -> None:
    """In the toy language word t comes from word t; the model says so when it is asked where its alignments stand."""
    engine = TorchEngine(folder, Search(num_beams=1))
    groups = answers(engine, ["abcdef", "fedcba", "mnop"], units="characters")
    details = [group[0].detail for group in groups]
    pairs = [pair for detail in details if detail for pair in detail.pairs]
    assert sum(source == target for source, target in pairs) / len(pairs) > 0.8
    assert all(detail is not None and len(detail.uncovered) <= 1 for detail in details)


def test_origins_and_pairs() -> None:
    attention = torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.8, 0.1], [0.0, 0.1, 0.9]])
    ends = [False, False, True]
    assert origins(attention, 2, ends, Place(0, is_shifted=False)) == [0, 1]
    assert origins(attention, 2, ends, Place(0, is_shifted=True)) == [1, None]
    assert origins(attention[:2], 2, ends, Place(0, is_shifted=True)) == [1, None], "no step has read the last one"
    texts = ("ab cd", "x yz")
    spans = [(0, 2), (3, 5), (0, 0)], [(0, 1), (1, 3), (3, 4)]
    assert pharaoh([1, 0, 0], *spans, texts, "words") == [(0, 1), (1, 0)]
    assert pharaoh([1, None, 0], *spans, texts, "tokens") == [(1, 0), (0, 2)]
    assert pharaoh([0, 1, 1], *spans, texts, "characters") == [(0, 0), (1, 0), (2, 1), (2, 2), (3, 1), (3, 2)]


def test_a_byte_stands_where_its_character_does() -> None:
    class Bytes:
        """Writes a mark for each byte of a character that is not whole, as the vocabularies' decoder does."""

        pieces = (b"<s>", b"\xf0", b"\x9f", b"\x99", b"\x82", b" cat", b"</s>")

        def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
            raw = b"".join(self.pieces[token] for token in ids if token not in (0, 6))
            try:
                return raw.decode()
            except UnicodeDecodeError as error:
                return raw[: error.start].decode() + "\ufffd" * (len(raw) - error.start)

    assert target_spans(Bytes(), range(7)) == [(0, 0), *[(0, 1)] * 4, (1, 5), (5, 5)]


def test_the_place_is_found(taught_model: Callable[..., Any]) -> None:
    """A model that has learned to copy says that a word's source stands where it was chosen, or read; never a guess."""
    model = taught_model()
    sentences = [([4, 5, 6, 7, 2], [24, 25, 26, 27, 2]), ([9, 8, 7, 6, 2], [29, 28, 27, 26, 2])]
    place = find_place(model, sentences)
    assert place == find_place(model, sentences)
    assert 0 <= place.layer < model.config.decoder_layers
    assert find_place(model, []) == Place((model.config.decoder_layers - 1) // 2, is_shifted=True)
