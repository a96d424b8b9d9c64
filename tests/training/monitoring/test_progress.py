"""The numbers beside the bar are those of the batches, and the bar shows where a run stands."""

import math
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from seqloom.training.monitoring import progress
from seqloom.training.monitoring.progress import RunClock, TokenMeter, TrainingProgress, brief, describe, mean_loss

BATCH = {
    "input_ids": torch.tensor([[5, 6, 2], [7, 2, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    "labels": torch.tensor([[9, 2, -100, -100], [9, 9, 9, 2]]),
}  # 5 + 6 of 14 positions are tokens


@pytest.fixture
def clock(monkeypatch) -> Any:
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now.seconds)
    return now


def update(meter: TokenMeter, clock: Any, seconds: float, batches: list[Any]) -> None:
    meter.start(batches)
    clock.seconds += seconds
    meter.on_step_end(None, None, None)


def test_counts_tokens_of_both_sides_and_padding(clock: Any) -> None:
    meter = TokenMeter(world_size=2)
    update(meter, clock, 2.0, [BATCH, BATCH])
    clock.seconds += 100  # evaluation, saving
    update(meter, clock, 1.0, [BATCH])
    assert meter.read() == {"tokens_per_second": pytest.approx(2 * 33 / 3), "padding": pytest.approx(21.43)}
    assert meter.read() == {}, "a reading begins anew"


def test_the_clock_of_a_resumed_run_goes_on_from_its_checkpoint(clock: Any) -> None:
    first = RunClock()
    first.on_train_begin(None, None, None)
    clock.seconds += 40
    kept = first.state()
    clock.seconds += 1000  # killed, and started again later
    second = RunClock(**kept["args"])
    clock.seconds += 5  # reading the data again
    second.on_train_begin(None, None, None)
    clock.seconds += 2
    assert second.seconds == 42


def test_the_loss_of_a_run_is_that_of_all_its_updates() -> None:
    history = [{"step": 4, "loss": 3.0}, {"step": 4, "eval_loss": 9.0}, {"step": 5, "loss": 1.0}]
    assert mean_loss(history) == pytest.approx((4 * 3 + 1) / 5)
    assert math.isnan(mean_loss([]))


def logs(**values: Any) -> dict[str, Any]:
    return {"loss": 3.21456, "learning_rate": 0.0002, "epoch": 1.25, "total_flos": 1.0, **values}


def test_a_reading_is_one_line() -> None:
    line = describe(logs(tokens_per_second=12345.6, padding=2.31, **{"gradient_norm/encoder.0": 1.0}), "13 min to go")
    assert line == "epoch 1.25  loss 3.215  12,346 tokens/s  13 min to go  learning_rate 0.0002  padding 2.31"
    assert describe({"eval_bleu": 3.0, "eval_truncated": 4, "eval_runtime": 9.0}) == "eval_bleu 3  eval_truncated 4"
    assert brief(logs(tokens_per_second=12345.6, padding=2.31)) == {
        "loss": "3.215",
        "tokens/s": "12,346",
        "padding": "2.3%",
    }
    assert brief(logs()) == {"loss": "3.215"}


def test_the_bar_begins_where_a_resumed_run_stands(capsys: Any) -> None:
    bar = TrainingProgress(shows_bars=True)
    state = SimpleNamespace(is_world_process_zero=True, global_step=40, max_steps=100)
    bar.on_train_begin(None, state, None)
    assert (bar.training_bar.n, bar.training_bar.total) == (40, 100)
    state.global_step = 41
    bar.on_step_end(None, state, None)
    assert bar.training_bar.n == 41
    bar.on_log(None, state, None, logs=logs(tokens_per_second=10.0, padding=1.0))
    assert bar.training_bar.postfix == "loss=3.215, tokens/s=10, padding=1.0%"
    bar.on_log(None, state, None, logs={"eval_bleu": 31.5})
    bar.on_train_end(None, state, None)
    out = capsys.readouterr().out
    assert "update     41  epoch 1.25  loss 3.215" in out
    assert "update     41  eval_bleu 31.5" in out


@pytest.mark.parametrize("is_first", [True, False])
def test_an_evaluation_has_a_bar_of_its_own_on_one_process(is_first: bool, capsys: Any) -> None:
    bar = TrainingProgress(shows_bars=True)
    state = SimpleNamespace(is_world_process_zero=is_first, global_step=0, max_steps=9)
    bar.on_train_begin(None, state, None)
    for _ in range(2):
        bar.on_prediction_step(None, state, None, eval_dataloader=[1, 2, 3])
    assert (bar.evaluation_bar.n if is_first else bar.evaluation_bar) == (2 if is_first else None)
    bar.on_evaluate(None, state, None)
    bar.on_step_end(None, state, None)
    bar.on_log(None, state, None, logs={"loss": 1.0})
    bar.on_train_end(None, state, None)
    assert (bar.evaluation_bar, bar.training_bar) == (None, None)
    assert ("0/3" in capsys.readouterr().err) is is_first


def test_a_log_file_has_lines_with_the_time_to_go_and_no_bars(capsys: Any, clock: Any) -> None:
    progress_ = TrainingProgress()  # stderr is no terminal here
    state = SimpleNamespace(is_world_process_zero=True, global_step=10, max_steps=40)
    progress_.on_train_begin(None, state, None)
    clock.seconds, state.global_step = 60.0, 20
    progress_.on_step_end(None, state, None)
    progress_.on_prediction_step(None, state, None, eval_dataloader=[1, 2])
    progress_.on_evaluate(None, state, None)
    progress_.on_log(None, state, None, logs=logs())
    progress_.on_log(None, state, None, logs={"train_loss": 0.0, "train_runtime": 0.02})
    state.global_step = 40
    progress_.on_log(None, state, None, logs=logs())
    progress_.on_train_end(None, state, None)
    captured = capsys.readouterr()
    first, last = captured.out.splitlines()
    assert first == "update     20  epoch 1.25  loss 3.215  2 min to go  learning_rate 0.0002"
    assert last == "update     40  epoch 1.25  loss 3.215  learning_rate 0.0002"
    assert captured.err == ""


def test_a_machine_that_slept_is_soon_forgotten(capsys: Any, clock: Any) -> None:
    progress_ = TrainingProgress()
    state = SimpleNamespace(is_world_process_zero=True, global_step=0, max_steps=1_000_000)
    progress_.on_train_begin(None, state, None)
    for reading in range(1, 25):
        clock.seconds += 50_000.0 if reading == 3 else 50.0
        state.global_step = 50 * reading
        progress_.on_log(None, state, None, logs={"loss": 1.0})
    told = [re.search(r"(\d+) h \d\d min to go", line) for line in capsys.readouterr().out.splitlines()]
    hours = [int(found[1]) for found in told if found]
    assert len(hours) == 24
    assert hours[0] == hours[-1] == 277  # a second an update
    assert hours[2] > 10_000
