"""`seqloom evaluate` through its door: the numbers against sacreBLEU's own command and against the model itself."""

import gzip
import itertools
import json
import math
import random
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers.normalizers import NFC

from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.hub.loading import load_folder
from seqloom.hub.tags import Tags
from seqloom.modeling.modeling_seqloom import SeqloomForConditionalGeneration
from seqloom.training.reading.tasks import get_task
from seqloom.training.scoring import evaluation as module
from seqloom.training.scoring.evaluation import EvaluationOptions, evaluate_folder
from seqloom.training.scoring.evaluation_files import describe_evaluation, sacrebleu_command, write_evaluation
from seqloom.training.scoring.evaluation_text import ReadingOptions, read_evaluation_text
from seqloom.training.scoring.score_page import render_page
from seqloom.training.scoring.system_answers import Answers, answer
from seqloom_cli.verbs import main

SOURCES = ["abc", "p", "bacd", "hgfedcba", "mn", "ponm", "aab"]


@pytest.fixture(scope="module")
def folder(save_toy, tmp_path_factory):
    return save_toy(tmp_path_factory.mktemp("toy") / "model", max_new_tokens=9)


@pytest.fixture
def files(tmp_path):
    """Line-aligned test files, of which the model should have all but the first and the last line right."""
    references = [text.upper() for text in SOURCES]
    references[0], references[-1] = "AXC", "B"
    for name, lines in (("test.src", SOURCES), ("test.tgt", references)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    return [str(tmp_path / "test.src"), str(tmp_path / "test.tgt")]


def test_the_command_scores_writes_and_says_where(folder, files, tmp_path, capsys):
    output = tmp_path / "found"
    assert main(["evaluate", str(folder), "--test", *files, "--beams", "1", "-o", str(output), "--debug"]) == 0
    printed = capsys.readouterr().out
    outputs = (output / "output.txt").read_text().splitlines()
    references = (output / "reference.txt").read_text().splitlines()
    right = 100 * sum(map(str.__eq__, outputs, references)) / len(SOURCES)
    assert 0 < right < 100
    record = json.loads((output / "scores.json").read_text())
    assert {row["metric"]: row["value"] for row in record["scores"]}["exact_match"] == pytest.approx(right)
    assert f"{right:8.2f}  [" in printed
    rows = [json.loads(line) for line in (output / "outputs.jsonl").read_text().splitlines()]
    assert [row["source"] for row in rows] == SOURCES
    assert [row["output"] for row in rows] == outputs
    table = [line.split("\t") for line in (output / "outputs.tsv").read_text().splitlines()]
    column = table[0].index("cer")
    assert [float(line[column]) for line in table[1:]] == [row["cer"] for row in rows]
    assert str(output / "evaluation.html") in printed
    assert "The training text is not recorded in the folder; with --train FILES examples are compared" in printed


def test_truncated_outputs_are_counted(folder, files, capsys):
    found = evaluate_folder(folder, files, EvaluationOptions(num_beams=1, max_new_tokens=3))
    long = [len(output) >= 3 for output in found.answers.outputs]
    assert found.answers.is_cut.tolist() == long
    assert f"{sum(long)} of 7 outputs were cut before their end" in found.notes[0]


def corrupted(sentences, share, seed):
    rng = random.Random(seed)
    return [" ".join(word for word in text.split() if rng.random() > share) for text in sentences]


@pytest.fixture
def sentences(tmp_path, monkeypatch):
    """A test set with two references and two systems, none of which is a model."""
    rng = random.Random(3)
    words = "the a cat dog sees eats small big house tree garden, stands near old and new".split()
    references = [[" ".join(rng.choices(words, k=9)) + "." for _ in range(2)] for _ in range(60)]
    first, second = map(list, zip(*references, strict=True))
    for name, lines in (("s", [f"source {n}" for n in range(60)]), ("a", first), ("b", second)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    outputs = {"one": corrupted(first, 0.1, 1), "other": corrupted(first, 0.2, 2)}
    for name in outputs:
        (tmp_path / name).mkdir()
    monkeypatch.setattr(module, "answer", lambda folder, text, **_: Answers(str(folder), outputs[folder.name]))
    return tmp_path


@pytest.mark.parametrize("names", [["s", "a"], ["s", "a", "b"], ["s", "a", "a", "b"]])
def test_the_printed_command_of_sacrebleu_says_the_same(sentences, names):
    options = EvaluationOptions(metrics=("bleu", "chrf", "ter"))
    found = evaluate_folder(sentences / "one", [str(sentences / name) for name in names], options)
    write_evaluation(found, sentences / "out dir")
    (line,) = [line for line in describe_evaluation(found, sentences / "out dir").splitlines() if " sacrebleu " in line]
    theirs = json.loads(run_sacrebleu(shlex.split(line)[3:]))
    ours = {row.label.split()[0]: row for row in found.rows}
    for score, row in zip(theirs, ("BLEU", "chrF", "Translation"), strict=True):
        assert score["score"] == pytest.approx(ours[row].value, abs=0.05), row  # it rounds to one digit
        assert f"nrefs:{len(names) - 1}" in score["signature"]


def test_a_comparison_is_sacrebleus_own(sentences):
    options = EvaluationOptions(metrics=("bleu", "chrf", "exact_match"), compare=str(sentences / "hypotheses.txt"))
    (sentences / "hypotheses.txt").write_text(
        "".join(f"{t}\n" for t in module.answer(sentences / "other", None).outputs)
    )
    found = evaluate_folder(sentences / "one", [str(sentences / "s"), str(sentences / "a")], options)
    write_evaluation(found, sentences / "out")
    files = [str(sentences / "out" / name) for name in ("reference.txt", "other.txt", "output.txt")]
    for kind, key in (("--paired-ar", "p_value"), ("--paired-bs", "p_bootstrap")):
        table = run_sacrebleu([files[0], "-i", *files[1:], "-m", "bleu", "chrf", kind], "text")  # its JSON fails for bs
        theirs = [float(number) for number in re.findall(r"\(p = ([\d.]+)\)", table)]
        assert [getattr(row.difference, key) for row in found.rows[:2]] == pytest.approx(theirs, abs=1e-4), kind
    assert found.rows[0].difference.interval[0] < found.rows[0].difference.value < found.rows[0].difference.interval[1]
    assert "p by bootstrap is sacreBLEU's own for BLEU, chrF and TER" in found.notes[-2]
    assert found.rows[2].difference is not None, "and where sacreBLEU has no such metric, by the same sums"


def test_everything_is_scored_in_the_form_that_the_folder_writes(sentences, monkeypatch):
    (sentences / "n").write_text("".join(f"{text}\n" for text in ["e\u0301t\u0065\u0301"] * 59 + ["plain"]))
    composed = Answers("toy", ["\u00e9t\u00e9"] * 59 + ["plain"], normalizer=NFC())
    monkeypatch.setattr(module, "answer", lambda *_, **__: composed)
    options = EvaluationOptions(metrics=("exact_match",), compare=str(sentences / "n"))
    found = evaluate_folder(sentences / "one", [str(sentences / name) for name in ("s", "n")], options)
    assert (found.rows[0].value, found.rows[0].other) == (100, 100)
    assert found.notes[0].startswith("The references of 59 of 60 examples are scored in the Unicode form that toy")
    composed = replace(composed, normalizer=None)
    assert evaluate_folder(sentences / "one", [str(sentences / name) for name in ("s", "n")]).rows[0].value < 100


def test_outputs_of_another_system_are_read_by_the_name_of_their_file(sentences, tmp_path):
    outputs = [line.removesuffix("\n") for line in (sentences / "a").read_text().splitlines()]
    rows = {
        "o.jsonl.gz": "".join(json.dumps({"output": text}) + "\n" for text in outputs),
        "o.json": "".join(json.dumps({"source": f"source {n}", "output": t}) + "\n" for n, t in enumerate(outputs)),
        "o.tsv.gz": "output\tn\n" + "".join(f"{text}\t1\n" for text in outputs),
        "o.txt.gz": "".join(f"{text}\n" for text in outputs),
    }
    for name, content in rows.items():
        (tmp_path / name).write_bytes(gzip.compress(content.encode()) if name.endswith("gz") else content.encode())
        options = EvaluationOptions(metrics=("exact_match",), compare=str(tmp_path / name))
        found = evaluate_folder(sentences / "one", [str(sentences / "s"), str(sentences / "a")], options)
        assert found.other.outputs == outputs, name


def test_what_is_read_or_counted_otherwise_is_not_compared(sentences, tmp_path):
    files = [str(sentences / "s"), str(sentences / "a")]
    tagged = tmp_path / "tagged"
    tagged.mkdir()
    settings = {"seqloom_tokenizer": {"tag_columns": ["language"], "tags": ["<language=hun>"]}}
    (tagged / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"tagged knows other tags than .* compare with the outputs\.jsonl"):
        evaluate_folder(sentences / "one", files, EvaluationOptions(compare=str(tagged)))


def test_no_command_of_sacrebleu_where_references_are_not_as_many(sentences, tmp_path):
    pairs = zip(*((sentences / name).read_text().splitlines() for name in ("s", "a")))
    rows = [f"{source}\t{target}\t{'x y' * (n % 2)}" for n, (source, target) in enumerate(pairs)]
    (tmp_path / "t.tsv").write_text("\n".join(["source\ttarget\tmore", *rows]) + "\n")
    options = EvaluationOptions(metrics=("bleu",), references=("more",))
    found = evaluate_folder(sentences / "one", [str(tmp_path / "t.tsv")], options)
    assert sacrebleu_command(found, tmp_path) == ""


def test_a_column_that_is_called_as_something_of_ours_keeps_both(sentences, tmp_path):
    sources, references = ((sentences / name).read_text().splitlines() for name in ("s", "a"))
    kinds = itertools.cycle(["poem", "prose"])
    lines = ["en\tde\tsource\tlength", *(f"{s}\t{r}\t{next(kinds)}\tx" for s, r in zip(sources, references))]
    (tmp_path / "test.tsv").write_text("\n".join(lines) + "\n")
    options = EvaluationOptions(metrics=("exact_match",), columns=("en", "de"), by=("source", "length"))
    found = evaluate_folder(sentences / "one", [str(tmp_path / "test.tsv")], options)
    write_evaluation(found, tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "outputs.jsonl").read_text().splitlines()]
    assert [row["source"] for row in rows] == sources
    assert {row["column source"] for row in rows} == {"poem", "prose"}
    assert {"source", "column length"} <= {group.name for group in found.groups}


def run_sacrebleu(arguments, form="json"):
    """Run the installed command, and return what it prints."""
    command = [sys.executable, "-m", "sacrebleu", *arguments, "-f", form]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_folder_compared_with_itself_does_not_differ(folder, files):
    found = evaluate_folder(folder, files, EvaluationOptions(num_beams=1, compare=str(folder)))
    assert {row.difference.value for row in found.rows} == {0}
    assert {row.difference.p_value for row in found.rows} == {1}


def test_bits_and_next_characters_are_those_of_the_model(folder, files):
    """Sentence by sentence and token by token, in double precision, from the model's own logits."""
    text = read_evaluation_text(files, ReadingOptions())
    forced = answer(folder, text, num_beams=1, is_continuation=True).forced
    model, tokenizer = load_folder(folder)
    bits, characters, ranks = 0.0, 0, []
    for source, (target,) in zip(text.sources, text.references, strict=True):
        labels = tokenizer(target, return_tensors="pt").input_ids
        with torch.no_grad():
            logits = model(**tokenizer(source, return_tensors="pt"), labels=labels).logits[0].double()
        chosen = logits.log_softmax(-1)[range(len(labels[0])), labels[0]]
        bits -= float(chosen.sum()) / math.log(2)
        characters += len(target) + 1
        ranks += (logits > logits[range(len(labels[0])), labels[0]][:, None]).sum(-1).tolist()
    assert forced["bits_per_character"].value == pytest.approx(bits / characters, rel=1e-5)
    assert forced["token_accuracy"].value == pytest.approx(100 * np.mean(np.array(ranks) == 0))
    assert forced["token_top5"].value == pytest.approx(100 * np.mean(np.array(ranks) < 5))
    assert forced["perplexity"].value == pytest.approx(2 ** (bits / len(ranks)), rel=1e-5)


def test_what_has_no_learned_positions_is_in_no_forced_score(tiny_config, save_toy, tmp_path):
    torch.manual_seed(0)
    config = tiny_config(position_embedding_type="learned", max_position_embeddings=6)
    folder = save_toy(tmp_path / "model", SeqloomForConditionalGeneration(config), max_new_tokens=4)
    documents = {"short": "mnop", "long": "abcdefghabcdefgh"}
    for name, texts in {"both": documents.values(), "long": [documents["long"]] * 2, "short": ["mnop"] * 2}.items():
        rows = [json.dumps({"text": text, "n": str(n)}) + "\n" for n, text in enumerate(texts)]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    options = EvaluationOptions(task="continuation", num_beams=1, by=("n",))
    found = evaluate_folder(folder, [str(tmp_path / "both.jsonl")], options)
    assert (
        "1 of 2 examples have a side with more tokens than the model has learned positions, and are in no score "
        in (" ".join(found.notes))
    )
    rows = {row.metric: row.value for row in found.rows}
    assert rows["perplexity"] > 1
    assert rows["bits_per_character"] == found.sentence_scores[0]
    assert np.isfinite([row.interval for row in found.rows]).all()
    assert np.isnan(found.sentence_scores[1])
    assert found.order.tolist() == [0, 1]
    assert [group.label for each in found.groups if each.name == "n" for group in each.groups] == ["0"]
    assert "nan" not in render_page(found)
    write_evaluation(found, tmp_path / "out")
    lines = (tmp_path / "out" / "outputs.jsonl").read_text().splitlines()
    assert json.loads(lines[1])["bits_per_character"] is None
    assert "NaN" not in (tmp_path / "out" / "scores.json").read_text()
    with pytest.raises(
        ValueError, match="can read none of 2 examples: each has a side with more tokens than there are"
    ):
        evaluate_folder(folder, [str(tmp_path / "long.jsonl")], options)
    written = evaluate_folder(folder, [str(tmp_path / "long.jsonl")], replace(options, metrics=("chrf",)))
    assert [row.metric for row in written.rows] == ["chrf"]
    assert "2 of 2 examples have a side with more tokens" in " ".join(written.notes)


def test_a_continuation_is_cut_where_training_cuts(folder, tmp_path, monkeypatch):
    documents = ["abcdef", "ponmlk", "aabbcc"]
    (tmp_path / "text.txt").write_text("\n".join(documents) + "\n")
    text = read_evaluation_text([str(tmp_path / "text.txt")], ReadingOptions("continuation", seed=7))
    pairs = get_task("continuation").to_pairs(Dataset.from_dict({"text": documents}), seed=7)
    assert (text.sources, text.first_references) == (pairs["source"][:], pairs["target"][:])
    options = EvaluationOptions(task="continuation", num_beams=1)
    found = evaluate_folder(folder, [str(tmp_path / "text.txt")], options)
    assert "bits_per_character" in [row.metric for row in found.rows]
    assert found.sentence_metric == "bits_per_character"
    assert "bits" in render_page(found).lower()


def test_documents_are_cut_before_tags_stand_in_front(tmp_path):
    """As training does: a tag holds places where a document without spaces could be cut."""
    documents = ["我们今天去学校看书", "吃饭了吗我们去看书", "unbelievable", "The cat sat on the mat"]
    rows = [json.dumps({"text": text, "lang": "zh"}) + "\n" for text in documents]
    (tmp_path / "d.jsonl").write_text("".join(rows))
    tags = Tags(("lang",), ("<lang=zh>",))
    text = read_evaluation_text([str(tmp_path / "d.jsonl")], ReadingOptions("continuation", tags=tags, seed=42))
    pairs = get_task("continuation").to_pairs(Dataset.from_dict({"text": documents}), seed=42)
    assert text.sources == [f"<lang=zh>{source}" for source in pairs["source"]]
    assert text.first_references == pairs["target"][:]


def test_columns_group_and_rows_of_one_source_are_one_example(folder, tmp_path):
    rows = ["source\ttarget\tkind", "abc\tABC\tx", "abc\tCBA\tx", "p\tP\ty", "mn\tQ\ty"]
    (tmp_path / "t.tsv").write_text("\n".join(rows) + "\n")
    options = EvaluationOptions(by=("kind",), merge=True, num_beams=1, metrics=("exact_match",))
    found = evaluate_folder(folder, [str(tmp_path / "t.tsv")], options)
    assert found.text.references == [["ABC", "CBA"], ["P"], ["Q"]]
    assert not found.text.num_rivals
    apart = evaluate_folder(folder, [str(tmp_path / "t.tsv")], replace(options, merge=False))
    assert apart.notes[0].startswith("2 of 4 examples have a source that others have with another reference, ")
    (by_kind,) = [each for each in found.groups if each.name == "kind"]
    assert {group.label: group.count for group in by_kind.groups} == {"y": 2, "x": 1}
    assert "By kind" in render_page(found)


def test_rows_are_selected_as_the_run_did(folder, tmp_path):
    """And tags at the start of sources make groups."""
    run = tmp_path / "run-folder"
    shutil.copytree(folder, run)
    (run / "run").mkdir()
    recipe = resolve_recipe(None, {"train": ["gone.tsv"], "where": ["kind=x"], "valid": "none", "metrics": ["cer"]})
    recipe.save(run / "run" / "recipe.yaml")
    (tmp_path / "t.tsv").write_text("source\ttarget\tkind\n<a>abc\tABC\tx\n<b>p\tP\ty\n<b>mn\tMN\tx\n")
    found = evaluate_folder(run, [str(tmp_path / "t.tsv")], EvaluationOptions(num_beams=1))
    assert found.text.sources == ["<a>abc", "<b>mn"]
    assert [group.label for each in found.groups if each.name == "tag" for group in each.groups] == ["<a>", "<b>"]
    assert found.rows[0].metric == "cer", "as the run scored"
    assert "The training text cannot be read here" in found.notes[-1]
    everything = evaluate_folder(run, [str(tmp_path / "t.tsv")], EvaluationOptions(num_beams=1, where=()))
    assert len(everything.text) == 3


def test_nearness_and_learned_sources_are_said(folder, files, tmp_path):
    (tmp_path / "train.tsv").write_text("abc\tABC\nMN\tMN\nmnop\tMNOP\nhgfedcbb\tHGFEDCBB\n")
    options = EvaluationOptions(training=(str(tmp_path / "train.tsv"),), num_beams=1, metrics=("exact_match",))
    found = evaluate_folder(folder, files, options)
    assert found.nearness.nearest[3].source == "hgfedcbb"
    assert found.nearness.nearest[4].similarity == 1, "but for letter case, which in formulas and dates is no copy"
    others = 100 * np.mean(found.sentence_scores[1:] == 0)
    assert f"1 of 7 sources are training sources, which proves nothing; the others score exact_match {others:.2f}." in (
        found.notes
    )
    assert "By nearness to the training text" in [each.title for each in found.groups]


def test_an_example_of_several_groups_is_in_none_of_them_alone(tmp_path):
    rows = ["source\ttarget\tdialect", "lead\tL IY D\tUS", "lead\tL EH D\tUK", "read\tR IY D\tUK", "tear\tT\t"]
    (tmp_path / "p.tsv").write_text("\n".join([*rows, "tear\tT\tUS"]) + "\n")
    text = read_evaluation_text([str(tmp_path / "p.tsv")], ReadingOptions(by=("dialect",), merge=True))
    assert (text.sources, text.columns["dialect"]) == (["lead", "read", "tear"], ["UK + US", "UK", "US"])


def test_a_page_shows_and_obeys_nothing(folder, tmp_path):
    (tmp_path / "t.tsv").write_text("abc\t<script>alert(1)</script>\x1b[2J\nmn\tMN\np\tQ\n")
    page = render_page(evaluate_folder(folder, [str(tmp_path / "t.tsv")], EvaluationOptions(num_beams=1)))
    assert "<script" not in page
    assert "\x1b" not in page
    assert "http" not in page.replace("http-equiv", ""), "nothing comes from elsewhere"
    assert "<del" in page
    assert "<ins" in page


@pytest.mark.parametrize(
    ("contents", "arguments", "sentence"),
    [
        ({"a": "", "b": ""}, "--test a b", "a + b holds nothing to score; a test set needs at least one line with"),
        ({"a": "x\ny\n", "b": "x\n"}, "--test a b", "a has 2 lines and b 1; they must be line-aligned."),
        ({"a": "x\ny\n", "b": "x\n \n"}, "--test a b", "1 of 2 lines cannot be scored. line 2: no reference"),
        ({"a": "x\n", "b": "x\n"}, "--test a b --by kind", "plain text without columns, and --by names some; leave it"),
        (
            {"a": "x\n", "b": "x\n", "c": "1\n2\n"},
            "--test a b --compare c",
            "c has 2 outputs and a + b 1 examples; each",
        ),
        ({"a": "x\n", "b": "x\n"}, "--test a b --compare d", "compare=d is neither a folder nor a file of outputs"),
        ({"a": "x\n", "b": "x\n"}, "--test a b --metrics blue", "metric 'blue' is unknown; did you mean 'bleu'?"),
        (
            {"a": "x\n", "b": "x\n", "c.tsv": "x\ty\n"},
            "--test a b --compare c.tsv",
            "c.tsv has no column output, only x",
        ),
        (
            {"a": "x\n", "b": "x\n", "c.tsv": "source\toutput\nx\n"},
            "--test a b --compare c.tsv",
            "c.tsv line 2 has 1 columns and its first line 2; mend it",
        ),
        (
            {"a": "x\n", "b": "x\n", "c.jsonl": "x\n"},
            "--test a b --compare c.jsonl",
            "c.jsonl line 1 is no JSON object",
        ),
        (
            {"a": "x\n", "b": "x\n", "c.jsonl": '{"output": null}\n'},
            "--test a b --compare c.jsonl",
            "c.jsonl line 1 is no JSON object with a text as its output",
        ),
        (
            {"a": "x\ny\n", "b": "x\ny\n", "c.tsv": "source\toutput\ny\ty\nx\tx\n"},
            "--test a b --compare c.tsv",
            "output 1 of c.tsv has the source 'y', and example 1 of a + b 'x'; compare outputs for the same examples",
        ),
    ],
)
def test_scores_that_cannot_be_are_errors(folder, tmp_path, monkeypatch, capsys, contents, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    assert main(["evaluate", str(folder), *arguments.split()]) == 1
    assert sentence in capsys.readouterr().err
