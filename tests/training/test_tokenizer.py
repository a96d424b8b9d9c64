"""The tokenizer as its users meet it: kinds, ids, folders, chats, streams, errors."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerFast, TextStreamer

from seqloom.training.tokenizer import SeqloomTokenizers, train_tokenizer
from seqloom.training.vocabulary import BYTE_TOKENS, KINDS, SPECIAL_TOKENS, TokenizerError, normalize_text

ENGLISH = ["the weather is fine today", "the weather was fine", "it was 1984 today, wasn't it?"] * 3
CHINESE = ["今天的天气很好。", "今天的天气不好。", "天气很好"] * 3
NUM_RESERVED = len(SPECIAL_TOKENS) + len(BYTE_TOKENS)


def train(sources=ENGLISH + CHINESE, targets=None, *, kind="bpe", vocab_size=400, **options) -> SeqloomTokenizers:
    return train_tokenizer(sources, targets, kind=kind, vocab_size=vocab_size, show_progress=False, **options)


def pieces(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The entries behind special tokens and bytes, in the order of their ids."""
    return tokenizer.convert_ids_to_tokens(list(range(NUM_RESERVED, len(tokenizer))))


def words(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False).input_ids)


# ------------------------------------------------------------------------------------------------------ ids and kinds


def test_the_sentence_of_the_mission_is_six_tokens():
    tokenizer = train(["今天的天气很好"], kind="char").source
    assert len(tokenizer("今天的天气很", add_special_tokens=False).input_ids) == 6
    assert len(tokenizer("今天的天气很").input_ids) == 7
    assert words(tokenizer, "今天的天气很") == list("今天的天气很")


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_and_bytes_have_fixed_ids(kind):
    tokenizer = train(kind=kind).source
    named = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    assert named == [0, 1, 2, 3]
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3]
    assert tokenizer.convert_tokens_to_ids(list(BYTE_TOKENS)) == list(range(4, 260))
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


@pytest.mark.parametrize("kind", KINDS)
def test_end_token_follows_the_text_and_padding_follows_that(kind):
    tokenizer = train(kind=kind).source
    batch = tokenizer(["the", "the weather is fine today"], padding=True)
    assert set(batch) == {"input_ids", "attention_mask"}
    short, long = batch.input_ids
    num_real = sum(batch.attention_mask[0])
    assert short[num_real - 1] == long[-1] == 2
    assert short[num_real:] == [0] * (len(long) - num_real)
    assert tokenizer("the", text_target="the").labels[-1] == 2


def test_kinds_cut_the_same_text_their_own_way():
    text = "the weather"
    assert words(train(kind="char").source, text) == list(text)
    assert words(train(kind="word").source, text) == ["the", " weather"]
    assert words(train(kind="bpe").source, text) == ["the", " weather"]
    assert "".join(words(train(kind="unigram", vocab_size=320).source, text)) == text


def test_a_word_without_an_entry_falls_back_to_characters_then_to_bytes():
    tokenizer = train(["say yes", "say yes"], kind="word").source
    assert words(tokenizer, "say yeas") == ["say", " ", "y", "e", "a", "s"]
    assert words(tokenizer, "é") == ["<0xC3>", "<0xA9>"]


def test_chinese_needs_no_spaces():
    assert words(train(kind="word").source, "今天 好") == ["今", "天", " ", "好"]
    assert words(train(["今天很好", "今天不好", "好天"] * 2).source, "今天好天") == ["今天", "好天"]


def test_pieces_keep_their_blank_and_stop_at_punctuation():
    learned = pieces(train(["well, well; well, well"] * 9).source)
    assert " well" in learned
    assert not [piece for piece in learned if "l" in piece and ("," in piece or piece.endswith(" "))]


def test_digits_can_stand_alone():
    text = "1984 1984"
    assert words(train([text] * 9).source, text) == ["1984", " 1984"]
    assert words(train([text] * 9, split_digits=True).source, text) == ["1", "9", "8", "4", " ", "1", "9", "8", "4"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_can_spell_a_reserved_token(kind):
    corpus = ["</s></s> <pad> <0x41> <target>a <unk>"] * 50
    tokenizer = train(corpus, kind=kind, min_frequency=1).source
    assert not [piece for piece in pieces(tokenizer) if piece.startswith("<") and len(piece) > 1]
    ids = tokenizer("</s><0x41><pad>", add_special_tokens=False).input_ids
    assert not set(ids) & {0, 1, 2, 3, tokenizer.convert_tokens_to_ids("<0x41>")}


# ----------------------------------------------------------------------------------------------------- vocabulary size


@pytest.mark.parametrize(("kind", "vocab_size"), [("bpe", 310), ("unigram", 295), ("char", 270), ("word", 295)])
def test_vocab_size_counts_everything(kind, vocab_size):
    tokenizers = train(kind=kind, vocab_size=vocab_size)
    assert len(tokenizers) == tokenizers.vocab_size == len(tokenizers.source) == vocab_size


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_small_text_gives_a_smaller_vocabulary_and_a_notice(kind, caplog):
    tokenizers = train(kind=kind, vocab_size=5000)
    assert NUM_RESERVED < len(tokenizers) < 5000
    assert f"has {len(tokenizers)} entries, not vocab_size=5000" in caplog.text


@pytest.mark.parametrize("kind", ["char", "word"])
def test_for_characters_and_words_the_size_is_a_cap(kind, caplog):
    train(kind=kind, vocab_size=5000)
    assert caplog.text == ""
    assert pieces(train(["aab aab b c"], kind=kind, vocab_size=NUM_RESERVED + 2).source) == ["a", " "]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_characters_that_do_not_fit_are_an_error_that_names_what_works(kind):
    text = ["abcdefghij" + "a" * 90]
    with pytest.raises(TokenizerError, match=r"vocab_size=265 cannot hold the 10 characters of the training text") as e:
        train(text, kind=kind, vocab_size=265)
    assert "use vocab_size=270 or more, or character_coverage=0.95 or less" in str(e.value)
    assert len(train(text, kind=kind, vocab_size=270)) == 270
    assert len(train(text, kind=kind, vocab_size=265, character_coverage=0.95)) == 265


@pytest.mark.parametrize("kind", KINDS)
def test_rare_characters_can_be_left_to_bytes(kind):
    text = ["abab" * 100 + " aXb"]
    tokenizer = train(text, kind=kind, character_coverage=0.99).source
    assert "X" in pieces(train(text, kind=kind).source)
    assert "X" not in "".join(pieces(tokenizer))
    assert words(tokenizer, "aXb") == ["a", "<0x58>", "b"]


def test_a_dropped_character_does_not_join_its_neighbours():
    learned = pieces(train(["aXb"] * 9 + ["a b"] * 90, character_coverage=0.95).source)
    assert learned == [" ", "a", "b", " b"]


@pytest.mark.parametrize(("kind", "rare"), [("bpe", "zq"), ("char", "q"), ("word", "zq")])
def test_min_frequency(kind, rare):
    text = ["zq the the", "z"]
    assert rare in pieces(train(text, kind=kind, min_frequency=1).source)
    assert rare not in pieces(train(text, kind=kind, min_frequency=2).source)


def test_min_frequency_of_unigram_is_refused_softly(caplog):
    train(kind="unigram", min_frequency=3)
    assert "min_frequency=3 is ignored: unigram training has no such limit" in caplog.text


# ----------------------------------------------------------------------------------------------------- normalization


@pytest.mark.parametrize(
    ("normalization", "expected"),
    [("nfc", "é ｆﬁ"), ("nfkc", "é ffi"), ("nfd", "e\u0301 ｆﬁ"), ("none", "e\u0301 ｆﬁ")],
)
def test_normalization_is_a_choice_that_is_saved(normalization, expected, tmp_path):
    train(normalization=normalization).save(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    decoded = tokenizer.decode(tokenizer("e\u0301 ｆﬁ").input_ids, skip_special_tokens=True)
    assert decoded == normalize_text("e\u0301 ｆﬁ", normalization) == expected


def test_a_side_may_be_read_in_letters_and_the_other_in_syllables():
    both = train_tokenizer(
        ["한국어", "각"], ["한국어 café"], kind="char", vocab_size=400, joint=False, normalization="nfd",
        target_normalization="nfc", show_progress=False,
    )  # fmt: skip
    assert both.source.convert_ids_to_tokens(both.source("각").input_ids)[:-1] == ["ᄀ", "ᅡ", "ᆨ"]
    assert both.target.decode(both.target("한국어 cafe\u0301").input_ids, skip_special_tokens=True) == "한국어 café"


# ------------------------------------------------------------------------------------------------ separate vocabularies


@pytest.mark.parametrize(("kind", "other"), zip(KINDS, (*KINDS[1:], KINDS[0]), strict=True))
def test_separate_vocabularies_are_two_views_of_one_id_space(kind, other, tmp_path):
    train(ENGLISH, CHINESE, kind=kind, target_kind=other, joint=False).save(tmp_path)
    tokenizers = SeqloomTokenizers.load(tmp_path)
    source, target = tokenizers.source, tokenizers.target
    assert not tokenizers.is_joint
    assert [side.init_kwargs["seqloom_tokenizer"]["kind"] for side in (source, target)] == [kind, other]
    assert len(source) == len(target) == len(tokenizers)

    source_ids = source("the weather", add_special_tokens=False).input_ids
    target_ids = target("天气 the", add_special_tokens=False).input_ids
    assert source.decode(source_ids) == target.decode(source_ids) == "the weather"
    assert source.decode(target_ids) == target.decode(target_ids) == "天气 the"
    learned = set(range(NUM_RESERVED, len(source)))
    assert set(source_ids) & learned
    assert set(target_ids) & learned
    assert not set(source_ids) & set(target_ids) & learned
    assert words(target, "th") == ["<0x74>", "<0x68>"], "no target text has a t or an h"


def test_a_separate_side_learns_from_its_own_text_only():
    tokenizers = train(ENGLISH, CHINESE, kind="char", joint=False)
    own = {entry for entry in pieces(tokenizers.source) if not entry.startswith("<target>")}
    assert own == set("".join(ENGLISH))
    assert {entry.removeprefix("<target>") for entry in pieces(tokenizers.source)} - own == set("".join(CHINESE))
    own = {entry for entry in pieces(tokenizers.target) if not entry.startswith("<source>")}
    assert own == set("".join(CHINESE))


def test_the_marker_of_the_other_side_is_text_in_text():
    tokenizer = train(ENGLISH, ENGLISH, kind="word", joint=False).source
    text = "<target> weather<target>weather"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_auto_tokenizer_finds_the_target_side(tmp_path):
    train(ENGLISH, CHINESE, joint=False).save(tmp_path)
    target = AutoTokenizer.from_pretrained(tmp_path, subfolder="target")
    assert target.convert_ids_to_tokens(target("今天").input_ids) == ["今天", "</s>"]


def test_a_joint_vocabulary_sees_both_sides_and_is_one_object(tmp_path):
    tokenizers = train(ENGLISH, CHINESE, kind="char")
    assert tokenizers.is_joint
    assert set(pieces(tokenizers.source)) == set("".join(ENGLISH + CHINESE))
    train(ENGLISH, CHINESE, joint=False).save(tmp_path)
    tokenizers.save(tmp_path)  # over a separate one
    assert SeqloomTokenizers.load(tmp_path).is_joint


def test_each_side_is_cut_its_own_way():
    tokenizers = train(["ablak"] * 2, ["ɒ t͡ʃ ˦ˀ˥ AH0 I_TURN_LEFT"] * 2, kind="char", target_kind="word", joint=False)
    assert words(tokenizers.source, "ablak") == list("ablak")
    assert words(tokenizers.target, "ɒ t͡ʃ ˦ˀ˥ AH0 I_TURN_LEFT") == ["ɒ", " t͡ʃ", " ˦ˀ˥", " AH0", " I_TURN_LEFT"]


def test_one_text_cannot_have_two_vocabularies(caplog):
    assert train(ENGLISH, joint=False).is_joint
    assert "the task has one text only" in caplog.text


# ------------------------------------------------------------------------------------------------------- the folder


@pytest.mark.parametrize("kind", KINDS)
def test_auto_tokenizer_loads_the_folder_without_our_code(kind, tmp_path):
    tokenizer = train(kind=kind).source
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is PreTrainedTokenizerFast
    assert "auto_map" not in json.loads((tmp_path / "tokenizer_config.json").read_text())
    texts = ["the weather </s> is", "今天 fine", "  \n<pad>"]
    assert loaded(texts).input_ids == tokenizer(texts).input_ids
    assert loaded.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert loaded.split_special_tokens
    assert not loaded.clean_up_tokenization_spaces


def test_loading_does_not_ask_what_the_model_is(tmp_path):
    train().save(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "nobody-knows-this", "auto_map": {"AutoConfig": "a.B"}}')
    assert len(SeqloomTokenizers.load(str(tmp_path))) > NUM_RESERVED


def test_loading_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(TokenizerError, match=r"holds no tokenizer\.json; name a folder that a training run has saved"):
        SeqloomTokenizers.load(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_text_gives_the_same_file(kind, tmp_path):
    corpus = [f"{a}{b}{c} {c}{b} 今天{a}气" for a in "abcde" for b in "fghij" for c in "klm"]
    for name in ("one", "two"):  # the trainers' hash maps are seeded anew each time
        train(corpus, corpus[::2], kind=kind, joint=False).save(tmp_path / name)
    for file in ("tokenizer.json", "target/tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["true", "false"])
def test_the_same_text_gives_the_same_file_in_other_processes(parallel, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallel)
    monkeypatch.setenv("PYTHONHASHSEED", "7" if parallel == "true" else "8")
    corpus = [f"item {a * b} of {a + b}: {a}x{b}y" for a in range(40) for b in range(40)]
    (tmp_path / "corpus.json").write_text(json.dumps(corpus))
    code = (
        "import json, sys; from seqloom.training.tokenizer import train_tokenizer\n"
        "corpus = json.load(open(sys.argv[1] + '/corpus.json'))\n"
        "for kind in ('bpe', 'unigram', 'char', 'word'):\n"
        "    tokenizers = train_tokenizer(corpus, kind=kind, vocab_size=600, show_progress=False)\n"
        "    tokenizers.save(sys.argv[1] + '/' + kind)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    for kind in KINDS:
        here = train(corpus, kind=kind, vocab_size=600).source.backend_tokenizer.to_str(pretty=True)
        assert (tmp_path / kind / "tokenizer.json").read_text(encoding="utf-8") == here


# ------------------------------------------------------------------------------------------------------------- chats


def render(*messages: dict, **options) -> str:
    tokenizer = train(kind="char").source
    return tokenizer.apply_chat_template(list(messages), tokenize=False, **options)


@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_the_source_is_the_last_user_message_and_nothing_else(add_generation_prompt):
    chat = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "answer"},
        {"role": "user", "content": "  {{ second }}\n</s>\n"},
    ]
    assert render(*chat, add_generation_prompt=add_generation_prompt) == "  {{ second }}\n</s>\n"


def test_the_template_survives_the_folder_and_takes_parts(tmp_path):
    train(kind="char").save(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    parts = [{"type": "text", "text": "今天 "}, {"type": "text", "text": "天气"}]
    chat = [{"role": "user", "content": parts}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "今天 天气"
    ids = tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
    assert ids == tokenizer("今天 天气", add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"role": "system", "content": "x"}, "The chat has no user message; the last user message is the source text"),
        ({"role": "user", "content": [{"type": "image"}]}, "a part of type 'image'; this model reads text only"),
    ],
)
def test_a_chat_without_text_is_a_readable_error(message, sentence):
    with pytest.raises(TemplateError, match=sentence):
        render(message)


def test_a_user_message_without_content_is_a_readable_error():
    # transformers before 5.23 looks at the content itself, and says so before the template can
    with pytest.raises((TemplateError, TypeError), match=r"The last user message has no content|NoneType"):
        render({"role": "user", "content": None})


# ---------------------------------------------------------------------------------------------- decoding and streaming


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["the weather, it was  fine today", "今天的天气很好。不", "a zoo: 棒棒🙂 end"])
def test_a_stream_prints_the_text(kind, text):
    tokenizer = train(kind=kind).source
    ids = tokenizer(text).input_ids
    printed: list[str] = []

    class Screen(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            printed.append(text)

    screen = Screen(tokenizer, skip_special_tokens=True)
    for token in ids:
        screen.put(torch.tensor([token]))
    screen.end()
    assert "".join(printed) == text
    assert len([part for part in printed if part]) > 1, "printed while it is generated, not at its end"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["the weather was fine", "今天的天气很好"])
def test_each_prefix_of_the_ids_is_a_prefix_of_the_text(kind, text):
    tokenizer = train(kind=kind).source
    ids = tokenizer(text).input_ids
    decoded = [tokenizer.decode(ids[:k], skip_special_tokens=True) for k in range(len(ids) + 1)]
    assert all(text.startswith(part) for part in decoded)
    assert "".join(tokenizer.decode([token], skip_special_tokens=True) for token in ids) == text


def test_prompt_and_continuation_join_without_a_seam():
    tokenizer = train().source
    ids = tokenizer("今天 the wea").input_ids + tokenizer("ther  is 好").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "今天 the weather  is 好"


def test_bytes_that_are_no_utf8_become_replacement_characters():
    tokenizer = train().source
    ids = tokenizer.convert_tokens_to_ids(["<0xE4>", "<0xBB>", "the", "<0xFF>", "</s>", "t", "<0x41>"])
    assert tokenizer.decode(ids, skip_special_tokens=True) == "\ufffd\ufffdthe\ufffdtA"


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kind": "BPE"}, r"tokenizer='BPE' is unknown\. Did you mean 'bpe'\? Use one of: bpe, unigram, char, word\."),
        ({"kind": "wordpiece"}, r"Did you mean 'word'\?"),
        (
            {"normalization": "NFKC"},
            r"normalization='NFKC' is unknown\. Did you mean 'nfkc'\? Use one of: nfc, nfkc, nf",
        ),
        ({"vocab_size": 260}, r"vocab_size=260 leaves no room: 4 special tokens and 256 bytes come first; use 261"),
        ({"min_frequency": 0}, r"min_frequency=0 is below 1; use 1 to keep everything"),
        ({"character_coverage": 99.95}, r"character_coverage=99\.95 is not a fraction of the text; use a number"),
    ],
)
def test_options_out_of_range(options, sentence):
    with pytest.raises(TokenizerError, match=sentence):
        train(**options)


def test_normalize_text_names_the_choices():
    with pytest.raises(TokenizerError, match=r"normalization='nfz' is unknown.*Use one of: nfc, nfkc, nfd, none"):
        normalize_text("x", "nfz")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("empty", [[], ["", ""]])
def test_an_empty_text(kind, empty):
    with pytest.raises(TokenizerError, match=rf"The training text is empty \({len(empty)} texts without a character\)"):
        train(empty, kind=kind)
    with pytest.raises(TokenizerError, match="The target text is empty"):
        train(ENGLISH, empty, kind=kind, joint=False)


def test_what_is_not_text_is_named_with_its_place():
    with pytest.raises(TokenizerError, match=r"Item 2 of the training text is None, not a string"):
        train(["a", None])
    with pytest.raises(TokenizerError, match=r"Item 1 of the training text holds the lone surrogate U\+D83D"):
        train(["a\ud83d"])


# --------------------------------------------------------------------------------------------------- input and progress


def test_text_that_can_be_read_once_is_enough():
    def once() -> Iterator[str]:
        yield from ENGLISH

    expected = train(ENGLISH, CHINESE).source.backend_tokenizer.to_str()
    assert train(once(), iter(CHINESE)).source.backend_tokenizer.to_str() == expected


def test_progress_is_shown_at_a_terminal_unless_told_otherwise(capfd, caplog, monkeypatch):
    caplog.set_level(logging.ERROR)
    train_tokenizer(ENGLISH, kind="bpe", vocab_size=400)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    train_tokenizer(ENGLISH, kind="bpe", vocab_size=400)
    assert "Counting characters" in capfd.readouterr().err
    train_tokenizer(ENGLISH, kind="bpe", vocab_size=400, show_progress=False)
    assert capfd.readouterr().err == ""


def test_saving_leaves_plain_files(tmp_path: Path):
    train(ENGLISH, CHINESE, joint=False).save(tmp_path / "new" / "folder")
    names = {path.name for path in (tmp_path / "new" / "folder").iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "target"}
