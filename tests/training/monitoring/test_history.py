"""What a run leaves for plots: each reading once however often it was killed, and a page that holds what it shows."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from seqloom.training.monitoring import history
from seqloom.training.monitoring.console import SampleOutputs
from seqloom.training.monitoring.history import History, draw_curve, histogram, rows_of, write_report
from tests.tiny_trainer import tiny_pairs, tiny_tokenizers, tiny_trainer

TIMES = {"tokens_per_second", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
TIMES |= {"train_runtime", "train_samples_per_second", "train_steps_per_second", "eval_model_preparation_time"}


def read(folder):
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def run(folder, **keys):
    """A trainer of six updates that logs, evaluates and shows two samples at every second one."""
    steps = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "logging_steps": 2}
    trainer = tiny_trainer(folder, **steps, **keys)
    trainer.add_callback(SampleOutputs(tiny_pairs(tiny_tokenizers()), 2, trainer.write_texts))
    trainer.add_callback(History(folder, {"name": "tiny"}))
    return trainer


def test_each_line_stands_there_once_across_a_kill(tmp_path):
    run(tmp_path).train()
    whole = read(tmp_path)
    kinds = [next(kind for kind in ("loss", "eval_loss", "samples", "train_loss") if kind in row) for row in whole]
    assert kinds == ["loss", "eval_loss", "samples"] * 3 + ["train_loss"]
    assert [row["update"] for row in whole] == [2, 2, 2, 4, 4, 4, 6, 6, 6, 6]
    assert set(whole[2]["samples"][0]) == {"source", "output", "reference"}
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"update": 7, "los')  # killed while it wrote
    run(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert read(tmp_path) == whole


def test_a_number_that_json_lacks_is_null():
    rows = rows_of([{"step": 3, "eval_perplexity": float("inf"), "loss": 1.0, "samples": []}])
    assert rows == [{"update": 3, "eval_perplexity": None, "loss": 1.0, "samples": []}]


@pytest.mark.parametrize("longest", [1, 7, 40, 41, 1000])
def test_every_example_is_in_the_histogram_once(longest):
    lengths = np.random.default_rng(0).integers(1, longest + 1, (500, 2))
    counts = histogram(lengths)
    assert sum(counts["source"]) == sum(counts["target"]) == 500
    assert len(counts["edges"]) == len(counts["source"]) + 1 <= 42
    low, high = counts["edges"][0], counts["edges"][1]
    assert counts["target"][0] == ((lengths[:, 1] >= low) & (lengths[:, 1] < high)).sum()


def test_no_text_of_the_data_leaves_its_place_in_the_report(tmp_path):
    text = "</script><script>alert(1)</script> <!-- \u2028 C'est"
    rows = [{"update": 1, "samples": [{"source": text, "output": text, "reference": ""}]}]
    write_report(tmp_path / "report.html", rows, {"name": text})
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.count("</script>") == 3
    assert "http" not in page.replace("http://www.w3.org/2000/svg", ""), "it loads nothing"
    data = page.split('id="data">')[1].split("</script>")[0]
    assert json.loads(data) == {"rows": rows, "facts": {"name": text}}


def test_the_curve_is_drawn_where_it_can_be(tmp_path, monkeypatch):
    log = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_loss": 1.5, "eval_bleu": 3.0}]
    assert draw_curve(log, tmp_path / "curve.png", "bleu")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert not draw_curve([], tmp_path / "none.png", "bleu")
    monkeypatch.setattr(history, "can_draw", lambda: False)
    assert not draw_curve(log, tmp_path / "none.png", "bleu")
    assert not (tmp_path / "none.png").exists()


def test_other_processes_write_nothing(tmp_path):
    watcher = History(tmp_path, {})
    state = SimpleNamespace(is_world_process_zero=False, log_history=[{"step": 1, "loss": 1.0}])
    for event in (watcher.on_train_begin, watcher.on_log, watcher.on_evaluate, watcher.on_train_end):
        event(None, state, None)
    assert list(tmp_path.iterdir()) == []
