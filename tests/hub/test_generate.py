"""Decoding files: the order of the lines, their number, and the scores, held against transformers' own beam search."""

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqloom.hub import generate, pipeline_seqloom
from seqloom.hub import lines as lines_module
from seqloom.hub.batches import plan_batches
from seqloom.hub.decoding import windows
from seqloom.hub.decoding.answers import Answer
from seqloom.hub.decoding.journal import JournalError
from seqloom.hub.generate import GenerateError, Job, Search, generate_file, generate_lines
from seqloom.hub.lines import read_lines, stream_lines
from seqloom.hub.loading import FALLBACK_MAX_NEW_TOKENS, load_folder
from seqloom.hub.verify import FolderError
from seqloom_cli.verbs import main

WORDS = "abcdefghijklmnop"  # ids 4 to 19, the toy language's source words; its target words are ids 24 to 39
LINES = ["abc", "p", "", "bacd", "  ", "hgfedcba", "abc", "mn"]


@pytest.fixture(scope="module")
def folder(save_toy: Callable[..., Path], tmp_path_factory: Any) -> Path:
    path = tmp_path_factory.mktemp("toy") / "model"
    return save_toy(path, max_new_tokens=9, num_beams=2, length_penalty=0.7)


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    return load_folder(folder)


def one_by_one(loaded: tuple[Any, Any], line: str, **options: Any) -> list[str]:
    model, tokenizer = loaded
    inputs = tokenizer([line], return_tensors="pt")
    ids = model.generate(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, **options)
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_each_line_gets_what_it_gets_alone(loaded: tuple[Any, Any], num_beams: int) -> None:
    outputs = generate_lines(*loaded, LINES, Search(num_beams=num_beams))
    expected = [one_by_one(loaded, line, num_beams=num_beams) if line.strip() else [""] for line in LINES]
    assert [[hypothesis.text for hypothesis in group] for group in outputs] == expected
    assert outputs[0][0].text.isupper()  # the toy language: every word in capitals
    assert all(hypothesis.score is None for group in outputs for hypothesis in group)


def test_scores_are_those_of_the_beam_search(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_seqloom, "LOGITS_PER_PASS", 1000)  # a few rows a pass
    groups = generate_lines(*loaded, LINES, Search(n_best=3))
    model, tokenizer = loaded
    for line, group in zip(LINES, groups, strict=True):
        assert len(group) == 3
        if not line.strip():
            assert all((hypothesis.text, hypothesis.score) == ("", None) for hypothesis in group)
            continue
        inputs = tokenizer([line], return_tensors="pt")
        search = {"num_beams": 3, "num_return_sequences": 3, "output_scores": True, "return_dict_in_generate": True}
        output = model.generate(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, **search)
        assert [hypothesis.score for hypothesis in group] == pytest.approx(output.sequences_scores.tolist(), abs=1e-5)


def test_greedy_has_scores_too(loaded: tuple[Any, Any]) -> None:
    greedy = generate_lines(*loaded, ["abc"], Search(num_beams=1, n_best=1))[0][0]
    beam = generate_lines(*loaded, ["abc"], Search(num_beams=4, n_best=1))[0][0]
    assert greedy.text == beam.text
    assert greedy.score == pytest.approx(beam.score, abs=1e-5)


def test_length_comes_from_the_folder_or_the_caller(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    assert len(generate_lines(model, tokenizer, ["abcdefgh"], Search(max_new_tokens=3))[0][0].text) == 3
    config = model.generation_config
    assert Search().settings(config).max_new_tokens == 9
    config.max_new_tokens = None
    try:
        assert Search().settings(config).max_new_tokens == FALLBACK_MAX_NEW_TOKENS
    finally:
        config.max_new_tokens = 9


def test_more_outputs_than_beams_are_refused(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match=r"n_best=3 needs as many beams, and beams=2; use --beams 3 or more."):
        generate_lines(*loaded, ["a"], Search(num_beams=2, n_best=3))
    assert len(generate_lines(*loaded, ["a"], Search(n_best=3))[0]) == 3  # the folder's 2 are raised


def test_a_file_in_a_file_out(folder: Path, loaded: tuple[Any, Any], tmp_path: Path) -> None:
    source, target = tmp_path / "in.txt", tmp_path / "out.txt.gz"
    source.write_bytes("\ufeffabc\r\n\na\u2028b\nmn".encode())
    generate_file(Job(str(folder), input_file=str(source), output_file=str(target)))
    rows = gzip.decompress(target.read_bytes()).decode().split("\n")
    assert rows == [
        text for line in ("abc", "", "a\u2028b", "mn", "") for text in (one_by_one(loaded, line) if line else [""])
    ]


def test_n_best_rows(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: Any) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"abc\n\n")))
    generate_file(Job(str(folder), search=Search(n_best=2)))
    rows = capsysbinary.readouterr().out.decode().split("\n")
    assert rows[2:] == ["", "", ""]
    (best, text), (second, _) = (row.split("\t") for row in rows[:2])
    assert text.isupper()
    assert 0 > float(best) >= float(second)


def test_nothing_in_nothing_out(folder: Path, tmp_path: Path) -> None:
    for content in ("", "\n"):
        (tmp_path / "in").write_text(content)
        generate_file(Job(str(folder), input_file=str(tmp_path / "in"), output_file=str(tmp_path / "out")))
        assert (tmp_path / "out").read_text() == content


def test_wrong_files_and_folders(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"ok\nb\xffd\n")
    with pytest.raises(ValueError, match=r"bad: line 2 is not UTF-8 \(byte 2\); convert it first."):
        read_lines(str(tmp_path / "bad"))
    for content in (b"abc", gzip.compress(b"abc" * 99)[:-9], gzip.compress(b"")[:10] + b"\xff" * 20):
        (tmp_path / "bad.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad.gz is not a whole gzip file \(.*\); copy it again, or rename it."):
            read_lines(str(tmp_path / "bad.gz"))
    with pytest.raises(ValueError, match=r"nowhere holds no config.json; name the folder that seqloom train wrote"):
        load_folder("nowhere")
    with pytest.raises(ValueError, match=r"no/out.txt: the folder .*no does not exist; create it."):
        generate_file(Job(str(folder), output_file=str(tmp_path / "no" / "out.txt")))


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
    generate_lines(*loaded, ["abc"], Search(n_best=2))
    assert all(parameter.grad is None for parameter in loaded[0].parameters())
    assert torch.is_grad_enabled()


def test_a_line_that_is_too_long_loses_no_other(
    tiny_model: Callable[..., Any],
    save_toy: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    save_toy(tmp_path / "model", tiny_model(position_embedding_type="learned", max_position_embeddings=8))
    (tmp_path / "in").write_text("abc\n" + "a" * 8 + "\nbacdabc\n\n" + "a" * 1_000_001 + "\n")
    arguments = ["generate", str(tmp_path / "model"), "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    assert main([*arguments, "--max_new_tokens", "30"]) == 1
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith(
            f"2 of 5 lines are too long for {tmp_path / 'model'} and have an empty output: 2, 5. With --long_lines "
            f"split they are cut at the ends of sentences, up to 1,000,000 characters; all others are written."
        )
    )
    outputs = (tmp_path / "out").read_text().split("\n")
    assert [bool(line) for line in outputs] == [True, False, True, False, False, False]
    assert all(len(line) <= 8 for line in outputs), "as many as there are positions to write them"
    assert "line 2 has 9 tokens, more than the 8 positions that the model has learned; its output is" in caplog.text
    assert "line 5 has 1,000,001 characters, more than 1,000,000, the most that is tokenized; its ou" in caplog.text
    assert main([*arguments, "--long_lines", "split"]) == 1
    said = capsys.readouterr().err.strip()
    assert said.endswith("empty output: 5. Cut them to 1,000,000 characters or less; all others are written.")
    assert main([*arguments, "--n_best", "2"]) == 1
    assert len((tmp_path / "out").read_text().split("\n")) == 11

    (tmp_path / "in").write_text("abc\nbacdabc\n")
    assert main(arguments) == 0


def test_a_line_beyond_what_is_tried_costs_nothing(loaded: tuple[Any, Any]) -> None:
    groups = generate_lines(*loaded, ["abc", "ab" * 8192])
    assert groups[1][0].fault == "16,385 tokens, more than 16,384, the most that is tried"
    assert groups[0][0].text


@pytest.mark.parametrize(
    ("file", "text", "what"),
    [
        ("tokenizer.json", '{"version": "1.0", "model": 7}', "tokenizer"),
        ("tokenizer.json", "{}", "tokenizer"),
        ("tokenizer_config.json", '{"eos_token": {"a": [1]}}', "tokenizer"),
        (
            "generation_config.json",
            '{"max_new_tokens": "many"}',
            "max_new_tokens is 'many', and should be a whole number",
        ),
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


# Files of any size ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def able(folder: Path, taught_model: Callable[..., Any], tmp_path_factory: Any) -> Path:
    """A folder that knows the toy language: every word in capitals."""
    path = tmp_path_factory.mktemp("able") / "model"
    shutil.copytree(folder, path)
    model = taught_model(steps=600)
    model.generation_config.update(max_new_tokens=9)
    model.save_pretrained(path)
    return path


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOW", 3)


def test_lines_that_are_longer_than_all_of_the_training(able: Path, tmp_path: Path, capsys: Any) -> None:
    """They are counted with the number that was trained on; the remedy, followed, cuts at that number."""
    folder = tmp_path / "short"
    shutil.copytree(able, folder)
    settings = folder / "generation_config.json"
    entries = {"longest_trained_source": 5, "_from_model_config": False}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | entries))
    (tmp_path / "in.txt").write_text("abc\nfedcba\n\nabcd\n")
    command = ["generate", str(folder), "-i", str(tmp_path / "in.txt"), "--beams", "1"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert said.out == "ABC\nFEDCBA\n\nABCD\n"
    assert "1 of 4 lines are longer than 5 tokens, the longest source of the training, and what is" in said.err
    report = tmp_path / "report.jsonl"
    assert main([*command, "--long_lines", "split", "--report", str(report)]) == 0
    assert "of the training" not in capsys.readouterr().err
    assert [json.loads(line).get("pieces") for line in report.read_text().splitlines()] == [1, 2, None, 1]


@pytest.mark.usefixtures("small_windows")
def test_a_killed_command_goes_on(
    able: Path, loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Killed in the third window: the same command answers the rest, counts what was, and says where it begins."""
    lines = ["abc", "p", "bacd", "mn", "", "a" * 99, "abc", "fedcba", "p"]
    (tmp_path / "in.txt").write_text("\n".join(lines))
    job = Job(
        str(able),
        input_file=str(tmp_path / "in.txt"),
        output_file=str(tmp_path / "out.txt"),
        report_file=str(tmp_path / "report.jsonl"),
        alignments_file=str(tmp_path / "alignments.txt"),
        alignment_units="characters",
        max_source_tokens=50,
        search=Search(num_beams=1),
    )
    answered: list[int] = []

    def dying(job: Job, engine: Any, rows: Any) -> Any:
        if len(answered) == limit:
            raise KeyboardInterrupt
        answered.append(rows[0].number)
        return answer_rows(job, engine, rows)

    answer_rows = generate.answer_rows
    monkeypatch.setattr(generate, "answer_rows", dying)
    limit = 2
    with pytest.raises(KeyboardInterrupt):
        generate_file(job)
    assert (tmp_path / "out.txt.part").read_text() == "ABC\nP\nBACD\nMN\n\n\n"
    with pytest.raises(JournalError, match="num_beams=1, and now it is 2"):
        generate_file(replace(job, search=Search(num_beams=2)))
    limit = 9
    with pytest.raises(generate.UnansweredError, match=r"1 of 9 lines are too long for .*: 6\. With --long_lines"):
        generate_file(job)
    assert answered == [1, 4, 7]
    assert "out.txt: going on behind line 6." in capsys.readouterr().err
    assert (tmp_path / "out.txt").read_text().split("\n") == [
        "ABC",
        "P",
        "BACD",
        "MN",
        "",
        "",
        "ABC",
        "FEDCBA",
        "P",
        "",
    ]
    reports = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert [report["line"] for report in reports] == list(range(1, 10))
    assert reports[5]["fault"] == "100 tokens, more than max_source_tokens=50"
    assert [reports[0][name] for name in ("source_tokens", "output_tokens", "length_ratio")] == [3, 3, 1], "no end"
    assert [token for token, _ in reports[0]["confidence"]] == ["A", "B", "C"]
    pairs = [" ".join(f"{place}-{place}" for place in range(len(line))) for line in lines]
    assert (tmp_path / "alignments.txt").read_text().split("\n") == [*pairs[:5], "", *pairs[6:], ""]
    names = ["alignments.txt", "in.txt", "out.txt", "report.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.usefixtures("small_windows")
def test_what_stands_before_a_broken_line_is_kept(able: Path, tmp_path: Path) -> None:
    """The line is named; once it is mended, the same command goes on behind what it has written."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    good = '{"source": "abc", "id": 1}\n'
    source.write_text(good * 4 + "{oops\n" + good)
    arguments = ["generate", str(able), "-i", str(source), "-o", str(target)]
    assert main(arguments) == 1
    assert (tmp_path / "out.jsonl.part").read_text() == '{"source": "abc", "id": 1, "output": "ABC"}\n' * 4
    source.write_text(good * 6)
    assert main(arguments) == 0
    assert target.read_text() == '{"source": "abc", "id": 1, "output": "ABC"}\n' * 6


def test_an_output_that_is_replaced_is_named(able: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_text("abc\n")
    arguments = ["generate", str(able), "-i", str(source), "-o", str(target)]
    assert main(arguments) == 0
    assert "it is replaced when all is written" not in capsys.readouterr().err
    source.write_text("abc\nab\n")
    assert main(arguments) == 0
    assert "out exists; it is replaced when all is written." in capsys.readouterr().err
    assert target.read_text() == "ABC\nAB\n"


def test_columns(able: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.tsv", tmp_path / "out.tsv"
    source.write_text("id\tsource\n1\tabc\n2\t\n")
    assert main(["generate", str(able), "-i", str(source), "-o", str(target), "--n_best", "2"]) == 0
    header, first, second, *blank, end = target.read_text().split("\n")
    assert header == "id\tsource\toutput\tscore"
    assert first.split("\t")[:3] == ["1", "abc", "ABC"]
    assert second.split("\t")[:2] == ["1", "abc"]
    assert (blank, end) == (["2\t\t"] * 2, "")


@pytest.mark.usefixtures("small_windows")
def test_several_processes_keep_the_order(able: Path, tmp_path: Path) -> None:
    lines = [WORDS[place % 16 : place % 16 + 1 + place % 4] or "a" for place in range(20)]
    (tmp_path / "in").write_text("\n".join(lines))
    arguments = ["generate", str(able), "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--beams", "1"]
    assert main([*arguments, "--processes", "2"]) == 0
    two = (tmp_path / "out").read_text()
    assert main(arguments) == 0
    assert two == (tmp_path / "out").read_text()
    assert len(two.splitlines()) == 20


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_pipe_that_is_named_loses_no_line(able: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "in")
    writer = threading.Thread(target=(tmp_path / "in").write_text, args=("abc\nmn\n",), daemon=True)
    writer.start()
    assert main(["generate", str(able), "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--beams", "1"]) == 0
    writer.join()
    assert (tmp_path / "out").read_text() == "ABC\nMN\n"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_pipe_is_answered_as_it_speaks(able: Path, processes: int) -> None:
    """Whoever writes a line gets its answer before the next one."""
    command = [sys.executable, "-m", "seqloom", "generate", str(able), "--beams", "1", "--processes", str(processes)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, encoding="utf-8") as process:
        assert process.stdin
        assert process.stdout
        too_long = threading.Timer(60, process.kill)
        too_long.start()
        for source in ("abc", "mn"):
            process.stdin.write(source + "\n")
            process.stdin.flush()
            assert process.stdout.readline() == source.upper() + "\n"
        process.stdin.close()
        assert process.wait(60) == 0
        too_long.cancel()


def test_at_a_terminal_every_line_is_answered(able: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", Mock(side_effect=["abc", " ", "mn", EOFError]))
    generate_file(Job(str(able)))
    assert capsys.readouterr().out == "ABC\nMN\n"
    for files in ({"report_file": "r"}, {"alignments_file": "a"}):
        with pytest.raises(GenerateError, match=r"tell of a file's or a pipe's lines; add -i FILE\."):
            generate_file(Job(str(able), **files))


class Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


def test_no_answer_moves_a_terminals_cursor(
    able: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: Any
) -> None:
    """Whoever made the vocabulary chose what a token writes."""
    evil = shutil.copytree(able, tmp_path / "evil")
    vocabulary = (evil / "tokenizer.json").read_text()
    (evil / "tokenizer.json").write_text(vocabulary.replace('"A":', '"\\u001b[2J":'))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", Mock(side_effect=["abc", EOFError]))
    generate_file(Job(str(evil)))
    assert capsysbinary.readouterr().out == b"\\x1b[2JBC\n"
    (tmp_path / "in.txt").write_text("abc\n")
    generate_file(Job(str(evil), input_file=str(tmp_path / "in.txt")))
    assert capsysbinary.readouterr().out == b"\x1b[2JBC\n", "a file gets what the model wrote"
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(terminal))
    generate_file(Job(str(evil), input_file=str(tmp_path / "in.txt")))
    assert terminal.getvalue() == b"\\x1b[2JBC\n"


def test_memory_does_not_grow_with_the_file(able: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more than a few windows of lines are held, however many there are."""
    monkeypatch.setattr(windows, "WINDOW", 8)
    held, most = 0, 0

    def counting(lines: Any) -> Any:
        nonlocal held, most
        for line in lines:
            held += 1
            most = max(most, held)
            yield line

    def releasing(job: Job, engine: Any, rows: Any) -> Any:
        nonlocal held
        held -= len(rows)
        return [[Answer("x")] for _ in rows]

    monkeypatch.setattr(generate, "stream_lines", lambda file: counting(stream_lines(file)))
    monkeypatch.setattr(generate, "answer_rows", releasing)
    (tmp_path / "in").write_text("a\n" * 5000)
    generate_file(Job(str(able), str(tmp_path / "in"), str(tmp_path / "out")))
    assert (tmp_path / "out").read_text() == "x\n" * 5000
    assert most <= 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_file": "{in}"}, "is read and written; give the output another name"),
        ({"output_file": "{dir}/a", "report_file": "{dir}/a"}, "two of them are the same file"),
        ({"column": "de"}, "is read as text, which has no columns; add --input_format tsv or jsonl"),
        ({"report_file": "{dir}/no/r"}, "no does not exist; create it"),
        ({"output_file": "/dev/null"}, "/dev/null is no place for a file; name another"),
        ({"output_file": "{dir}"}, "is no place for a file; name another"),
        ({"output_file": "{in}/x"}, "is no place for a file; name another"),
    ],
)
def test_jobs_that_cannot_be(able: Path, tmp_path: Path, options: dict[str, str], message: str) -> None:
    (tmp_path / "in").write_text("abc\n")
    files = {name: value.format(**{"in": tmp_path / "in", "dir": tmp_path}) for name, value in options.items()}
    with pytest.raises(ValueError, match=message):
        generate_file(Job(str(able), input_file=str(tmp_path / "in"), **files))
    assert (tmp_path / "in").read_text() == "abc\n"


def test_endless_lines_and_cut_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "MOST_LINE_BYTES", 10)
    (tmp_path / "in").write_bytes(b"ok\n" + "天".encode() * 1000 + b"\nend")
    assert read_lines(str(tmp_path / "in")) == ["ok", "天天天", "end"]


def test_a_pipe_in_the_folder_is_refused_and_not_waited_for(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "tokenizer_config.json").unlink()
    os.mkfifo(copy / "tokenizer_config.json")
    (tmp_path / "in").write_text("abc\n")
    with pytest.raises(FolderError, match=r"tokenizer_config\.json"):
        generate_file(Job(str(copy), str(tmp_path / "in"), str(tmp_path / "out")))
    assert not list(tmp_path.glob("out*"))


def test_a_link_stays_and_leads_to_the_output(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("abc\n")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    generate_file(Job(str(folder), str(tmp_path / "in"), str(tmp_path / "link")))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text().count("\n") == 1
