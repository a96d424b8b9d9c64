"""A student learns what its teachers write; the writing goes on after a kill and is not done twice."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from seqloom.configuration.automatic import choose
from seqloom.configuration.recipe import RecipeError
from seqloom.configuration.recipe_layers import fit_recipe, resolve_recipe
from seqloom.configuration.task_kind import Looks
from seqloom.hub.decoding.journal import JournalError
from seqloom.hub.generate import UnansweredError
from seqloom.training import distillation
from seqloom.training.distillation import Teachers, write_corpus
from seqloom.training.reading.text_file import CorpusError

RECIPE = {"columns": ["word", "phones"], "tags": ["language"]}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Files of words, and a teacher that writes them backwards and counts how often it is asked."""
    words = "".join(f"{'hun' if i % 2 else 'fin'}\ta{i}\tx\n" for i in range(20))
    (tmp_path / "a.tsv").write_text(f"language\tword\tphones\n{words}")
    (tmp_path / "more.tsv").write_text("word\tlanguage\nb1\thun\nb2\tfin\n")
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "model.safetensors").write_text("1")
    asked = []

    def generate(job):
        asked.append(job)
        written = [{**row, "output": row[job.column][::-1]} for row in rows(job.input_file)]
        Path(job.output_file).write_text("".join(json.dumps(row) + "\n" for row in written))

    monkeypatch.setattr(distillation, "generate_file", generate)
    return tmp_path, asked


def recipe(home, *names, **keys):
    files = [str(home / name) for name in names or ("a.tsv",)]
    return resolve_recipe(None, {**RECIPE, "train": files, "output": str(home / "out"), **keys})


def rows(name):
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def test_the_student_reads_what_was_written_and_is_judged_by_what_is_true(home):
    home, asked = home
    student = write_corpus(recipe(home, valid=["4"]), Teachers((str(home / "teacher"),)), [str(home / "more.tsv")])
    assert (student.columns, student.where, student.tags) == (None, [], ["language"])
    assert [path.rpartition("/")[2] for path in (*student.train, *student.valid)] == ["train.jsonl", "validation.jsonl"]
    written, held = rows(student.train[0]), rows(student.valid[0])
    assert len(written) == 18
    assert {row["target"] for row in held} == {"x"}
    assert not {row["source"] for row in held} & {row["source"] for row in written}
    assert {"source": "b1", "language": "hun", "target": "1b"} in written
    assert asked[0].folder == str(home / "teacher")
    choice = choose(student, 500, Looks.of(["ablak"] * 20, ["a b l a k"] * 20))
    fitted = fit_recipe(student, choice)  # the preset is auto's, and what was written stays
    assert (fitted.train, fitted.valid) == (student.train, student.valid)


def test_several_teachers_write_together_as_was_asked(home):
    home, asked = home
    (home / "other").mkdir()
    (home / "other" / "model.safetensors").write_text("2")
    folders = str(home / "teacher"), str(home / "other")
    write_corpus(recipe(home), Teachers(folders, num_beams=3, processes=2))
    (job,) = asked
    assert (job.folder, job.ensemble, job.search.num_beams, job.processes) == (folders[0], folders[1:], 3, 2)


def test_weights_and_tags_of_corpora_are_kept(home):
    home, _ = home
    given = recipe(home, "a.tsv:2,tag=bt", "a.tsv", valid=["none"])
    student = write_corpus(given, Teachers((str(home / "teacher"),)))
    first, second = student.train
    assert first.endswith("train.jsonl:2,tag=<bt>")
    assert second.endswith("train-2.jsonl:1")
    assert rows(first.partition(":")[0]) == rows(second.partition(":")[0])


def test_what_is_written_is_not_written_again_unless_something_has_changed(home):
    home, asked = home
    for teacher, count in (("1", 1), ("1", 1), ("2", 2)):
        (home / "teacher" / "model.safetensors").write_text(teacher)
        write_corpus(recipe(home), Teachers((str(home / "teacher"),)))
        assert len(asked) == count
    (home / "out-distilled" / "outputs.jsonl").write_text("half")
    write_corpus(recipe(home), Teachers((str(home / "teacher"),)))
    assert len(asked) == 3


def test_what_cannot_be_is_refused(home, monkeypatch):
    home, _ = home
    teachers = Teachers((str(home / "teacher"),))
    with pytest.raises(RecipeError, match="distill needs sources"):
        write_corpus(resolve_recipe(None, {}), teachers)
    (home / "a.txt").write_text("a\n")
    with pytest.raises(CorpusError, match="plain text without columns, and tags to be made of language"):
        write_corpus(recipe(home), teachers, [str(home / "a.txt")])
    with pytest.raises(RecipeError, match=r"are several text files; write .*:1 .*:1, or join them"):
        write_corpus(recipe(home), teachers, [str(home / "a.txt"), str(home / "a.txt")])
    with pytest.raises(RecipeError, match="have a column source of their own; give this one another name"):
        write_corpus(recipe(home, tags=["source"]), teachers)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match=r"start it alone with --dry_run, then, .* that its line `student` shows"):
        write_corpus(recipe(home), teachers)


def test_what_is_too_long_for_the_teachers_is_left_out_once(home, monkeypatch, caplog):
    """Else every start would decode all others again."""
    home, asked = home
    write = distillation.generate_file

    def write_all_but_one(job):
        write(job)
        first, *others = rows(job.input_file)
        written = [{**first, "output": ""}, *({**row, "output": row[job.column][::-1]} for row in others)]
        Path(job.output_file).write_text("".join(json.dumps(row) + "\n" for row in written))
        raise UnansweredError("1 of 20 lines are too long")

    monkeypatch.setattr(distillation, "generate_file", write_all_but_one)
    for _ in range(2):
        student = write_corpus(recipe(home, valid=["none"]), Teachers((str(home / "teacher"),)))
        assert len(rows(student.train[0])) == 19
    assert len(asked) == 1
    assert "Sources that are too long for the teachers are left out; their outputs in" in caplog.text


def test_teachers_that_write_nothing_teach_no_demo(home, monkeypatch):
    home, _ = home
    monkeypatch.setattr(distillation, "_written_rows", lambda outputs: iter(()))
    with pytest.raises(RecipeError, match=r"teacher wrote nothing for any source, see .*outputs\.jsonl\."):
        write_corpus(recipe(home, valid=["none"]), Teachers((str(home / "teacher"),)))


def test_overwrite_begins_anew_only_what_others_have_begun(home, monkeypatch):
    """A killed command with `--resume never --overwrite` goes on, too, where its teachers are the same."""
    home, asked = home
    teachers = Teachers((str(home / "teacher"),))
    anew = {"resume": "never", "overwrite": True}
    write_corpus(recipe(home, **anew), teachers)
    assert [job.overwrite for job in asked] == [False]
    write = distillation.generate_file

    def refuse(job):
        write(job)
        if not job.overwrite:
            raise JournalError("written with num_beams=4, and now it is 2; or add --overwrite to begin anew")

    monkeypatch.setattr(distillation, "generate_file", refuse)
    with pytest.raises(JournalError, match="add --overwrite"):
        write_corpus(recipe(home), replace(teachers, num_beams=2))
    write_corpus(recipe(home, **anew), replace(teachers, num_beams=2))
    assert [job.overwrite for job in asked] == [False, False, False, True]


def test_a_folder_that_takes_no_student_is_refused_before_anything_is_written(home):
    home, asked = home
    teachers = Teachers((str(home / "teacher"),))
    with pytest.raises(RecipeError, match="is a teacher, and the student would replace it; take another --output"):
        write_corpus(recipe(home, output=str(home / "teacher")), teachers)
    (home / "out").mkdir()
    (home / "out" / "config.json").write_text("{}")
    with pytest.raises(RecipeError, match="is in the way"):
        write_corpus(recipe(home), teachers)
    (home / "out" / "run").mkdir()
    recipe(home).save(home / "out" / "run" / "recipe.yaml")
    (home / "out" / "run" / "results.json").write_text("{}")
    with pytest.raises(RecipeError, match="resume=never would replace it; choose another --output, or add --overwrite"):
        write_corpus(recipe(home, resume="never"), teachers)
    with pytest.raises(RecipeError, match=r"holds a run on another text than .*out-distilled; choose another"):
        write_corpus(recipe(home), teachers)
    assert not asked
    write_corpus(recipe(home, resume="never", overwrite=True), teachers)
    assert len(asked) == 1


def test_a_value_of_several_features_stays_whole_and_the_line_names_the_files(home, capsys):
    home, _ = home
    (home / "a.tsv").write_text("language\tword\tphones\n" + "".join(f"V;PST\ta{i}\tx\n" for i in range(20)))
    student = write_corpus(recipe(home, valid=["none"]), Teachers((str(home / "teacher"),)))
    assert {row["language"] for row in rows(student.train[0])} == {"V;PST"}
    assert f"student   --train {student.train[0]} --valid none\n" in capsys.readouterr().out


def test_a_source_that_stands_there_twice_is_read_and_learned_once(home):
    home, _ = home
    (home / "b.tsv").write_text("language\tword\tphones\n" + "hun\ta\tx\nhun\ta\ty\nfin\ta\tx\nhun\tb\tx\n")
    student = write_corpus(recipe(home, "b.tsv", valid=["none"]), Teachers((str(home / "teacher"),)))
    assert [(row["language"], row["source"]) for row in rows(student.train[0])] == [
        ("hun", "a"), ("fin", "a"), ("hun", "b"),
    ]  # fmt: skip
