"""Decoding files: the order of the lines, their number, and the scores, held against transformers' own beam search."""

import gzip
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqloom.hub import generate, pipeline_seqloom
from seqloom.hub.generate import generate_file, generate_lines, plan_batches, read_lines
from seqloom_cli.verbs import main

WORDS = "abcdefghijklmnop"  # ids 4 to 19, the toy language's source words; its target words are ids 24 to 39
LINES = ["abc", "p", "", "bacd", "  ", "hgfedcba", "abc", "mn"]


@pytest.fixture(scope="module")
def folder(taught_model: Callable[..., Any], char_tokenizer: Callable[..., Any], tmp_path_factory: Any) -> Path:
    path = tmp_path_factory.mktemp("toy") / "model"
    model = taught_model()
    model.generation_config.update(max_new_tokens=9, num_beams=2, length_penalty=0.7)
    model.save_pretrained(path)
    char_tokenizer(WORDS + "0123" + WORDS.upper()).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    return generate.load_folder(folder)


def one_by_one(loaded: tuple[Any, Any], line: str, **options: Any) -> list[str]:
    model, tokenizer = loaded
    inputs = tokenizer([line], return_tensors="pt")
    ids = model.generate(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, **options)
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_each_line_gets_what_it_gets_alone(loaded: tuple[Any, Any], num_beams: int) -> None:
    outputs = generate_lines(*loaded, LINES, num_beams=num_beams)
    expected = [one_by_one(loaded, line, num_beams=num_beams) if line.strip() else [""] for line in LINES]
    assert [[hypothesis.text for hypothesis in group] for group in outputs] == expected
    assert outputs[0][0].text.isupper()  # the toy language: every word in capitals
    assert all(hypothesis.score is None for group in outputs for hypothesis in group)


def test_scores_are_those_of_the_beam_search(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_seqloom, "LOGITS_PER_PASS", 1000)  # a few rows a pass
    groups = generate_lines(*loaded, LINES, n_best=3)
    model, tokenizer = loaded
    for line, group in zip(LINES, groups, strict=True):
        assert len(group) == 3
        if not line.strip():
            assert all(hypothesis == generate.NO_OUTPUT for hypothesis in group)
            continue
        inputs = tokenizer([line], return_tensors="pt")
        search = {"num_beams": 3, "num_return_sequences": 3, "output_scores": True, "return_dict_in_generate": True}
        output = model.generate(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, **search)
        assert [hypothesis.score for hypothesis in group] == pytest.approx(output.sequences_scores.tolist(), abs=1e-5)


def test_greedy_has_scores_too(loaded: tuple[Any, Any]) -> None:
    greedy = generate_lines(*loaded, ["abc"], num_beams=1, n_best=1)[0][0]
    beam = generate_lines(*loaded, ["abc"], num_beams=4, n_best=1)[0][0]
    assert greedy.text == beam.text
    assert greedy.score == pytest.approx(beam.score, abs=1e-5)


def test_length_comes_from_the_folder_or_the_caller(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    assert len(generate_lines(model, tokenizer, ["abcdefgh"], max_new_tokens=3)[0][0].text) == 3
    assert "max_new_tokens" not in generate._options(model, None, 1, None)
    model.generation_config.max_new_tokens = None
    try:
        assert generate._options(model, None, 1, None)["max_new_tokens"] == generate.FALLBACK_MAX_NEW_TOKENS
    finally:
        model.generation_config.max_new_tokens = 9


def test_more_outputs_than_beams_are_refused(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match=r"n_best=3 needs as many beams, and beams=2; use --beams 3 or more."):
        generate_lines(*loaded, ["a"], num_beams=2, n_best=3)
    assert len(generate_lines(*loaded, ["a"], n_best=3)[0]) == 3  # the folder's 2 are raised


def test_a_file_in_a_file_out(folder: Path, loaded: tuple[Any, Any], tmp_path: Path) -> None:
    source, target = tmp_path / "in.txt", tmp_path / "out.txt.gz"
    source.write_bytes("\ufeffabc\r\n\na\u2028b\nmn".encode())
    generate_file(folder, input_file=str(source), output_file=str(target))
    rows = gzip.decompress(target.read_bytes()).decode().split("\n")
    assert rows == [
        text for line in ("abc", "", "a\u2028b", "mn", "") for text in (one_by_one(loaded, line) if line else [""])
    ]


def test_n_best_rows(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: Any) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"abc\n\n")))
    generate_file(folder, n_best=2)
    rows = capsysbinary.readouterr().out.decode().split("\n")
    assert rows[2:] == ["", "", ""]
    (best, text), (second, _) = (row.split("\t") for row in rows[:2])
    assert text.isupper()
    assert 0 > float(best) >= float(second)


def test_nothing_in_nothing_out(folder: Path, tmp_path: Path) -> None:
    for content in ("", "\n"):
        (tmp_path / "in").write_text(content)
        generate_file(folder, input_file=str(tmp_path / "in"), output_file=str(tmp_path / "out"))
        assert (tmp_path / "out").read_text() == content


def test_a_line_end_the_model_writes_does_not_break_the_line() -> None:
    assert generate._one_line("a\nb\r\nc") == "a b c"


def test_wrong_files_and_folders(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"ok\nb\xffd\n")
    with pytest.raises(ValueError, match=r"bad: line 2 is not UTF-8 \(byte 2\); convert it first."):
        read_lines(str(tmp_path / "bad"))
    for content in (b"abc", gzip.compress(b"abc" * 99)[:-9], gzip.compress(b"")[:10] + b"\xff" * 20):
        (tmp_path / "bad.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad.gz is not a whole gzip file \(.*\); copy it again, or rename it."):
            read_lines(str(tmp_path / "bad.gz"))
    with pytest.raises(ValueError, match=r"nowhere holds no config.json; name the folder that seqloom train wrote"):
        generate.load_folder("nowhere")
    with pytest.raises(ValueError, match=r"no/out.txt: the folder .*no does not exist; create it."):
        generate_file(folder, output_file=str(tmp_path / "no" / "out.txt"))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 100))
def test_batches_hold_every_line_once_and_keep_the_budget(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    for batch in batches:
        sizes = [lengths[position] for position in batch]
        assert sizes == sorted(sizes, reverse=True)
        assert len(batch) == 1 or max(sizes) * len(batch) <= budget


def test_scoring_leaves_no_gradients(loaded: tuple[Any, Any]) -> None:
    generate_lines(*loaded, ["abc"], n_best=2)
    assert all(parameter.grad is None for parameter in loaded[0].parameters())
    assert torch.is_grad_enabled()


def test_a_line_that_is_too_long_loses_no_other(
    tiny_model: Callable[..., Any],
    char_tokenizer: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    tiny_model(position_embedding_type="learned", max_position_embeddings=8).save_pretrained(tmp_path / "model")
    char_tokenizer(WORDS + "0123" + WORDS.upper()).save_pretrained(tmp_path / "model")
    (tmp_path / "in").write_text("abc\n" + "a" * 8 + "\nbacdabc\n\n" + "a" * 1_000_001 + "\n")
    arguments = ["generate", str(tmp_path / "model"), "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    assert main([*arguments, "--max_new_tokens", "30"]) == 1
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith(
            f"2 of 5 lines are too long for {tmp_path / 'model'} and have an empty output: 2, 5. Split them into "
            f"shorter ones; all others are written."
        )
    )
    outputs = (tmp_path / "out").read_text().split("\n")
    assert [bool(line) for line in outputs] == [True, False, True, False, False, False]
    assert all(len(line) <= 8 for line in outputs), "as many as there are positions to write them"
    assert "line 2 has 9 tokens, more than the 8 positions that the model has learned; its output is" in caplog.text
    assert "line 5 has 1,000,001 characters, more than 1,000,000, the most that is tokenized; its ou" in caplog.text
    assert main([*arguments, "--n_best", "2"]) == 1
    assert len((tmp_path / "out").read_text().split("\n")) == 11

    (tmp_path / "in").write_text("abc\nbacdabc\n")
    assert main(arguments) == 0


def test_a_line_beyond_what_is_tried_costs_nothing(loaded: tuple[Any, Any], caplog: pytest.LogCaptureFixture) -> None:
    groups = generate_lines(*loaded, ["abc", "ab" * 8192])
    assert groups[1][0] is generate.TOO_LONG
    assert groups[0][0].text
    assert "line 2 has 16,385 tokens, more than 16,384, the most that is tried; its output is empty." in caplog.text


@pytest.mark.parametrize(
    ("file", "text", "what"),
    [
        ("tokenizer.json", '{"version": "1.0", "model": 7}', "tokenizer"),
        ("tokenizer.json", "{}", "tokenizer"),
        ("tokenizer_config.json", '{"eos_token": {"a": [1]}}', "tokenizer"),
        ("generation_config.json", '{"max_new_tokens": "many"}', "model"),
        ("config.json", {"dropout": "much"}, "model"),
        ("config.json", {"norm_eps": "tiny"}, "model"),
    ],
)
def test_a_file_that_no_library_can_read_is_an_error_with_words(folder, tmp_path, file, text, what, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    entries = text if isinstance(text, dict) else None
    (copy / file).write_text(json.dumps(json.loads((copy / file).read_text()) | entries) if entries else text)
    source = tmp_path / "in.txt"
    source.write_text("a\n")
    assert main(["generate", str(copy), "-i", str(source)]) == 1
    error = capsys.readouterr().err
    assert "(unexpected" not in error
    assert str(copy) in error
    assert what in error
    shutil.copy(folder / file, copy / file)  # copy the folder again
    assert main(["generate", str(copy), "-i", str(source)]) == 0
