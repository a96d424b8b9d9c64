"""What is printed before the first update is true, and what cannot fit is refused with what can."""

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import SchedulerType, Seq2SeqTrainingArguments
from transformers.trainer_callback import TrainerState

import seqloom
from seqloom.configuration.recipe import RecipeError
from seqloom.training import preflight
from seqloom.training.batching import BatchSettings, UpdateSampler
from seqloom.training.preflight import Memory, Survey, TimeEstimate, describe, duration, measure, survey
from seqloom.training.quality.muon import matrices_of
from seqloom.training.tokenizer import train_tokenizer
from seqloom.training.trainer import SeqloomTrainer


@pytest.fixture(scope="module")
def tokenizers() -> Any:
    return train_tokenizer(["ab"], ["ba"], kind="char", vocab_size=270, show_progress=False)


@pytest.fixture
def trainer(tmp_path: Any, tokenizers: Any, tiny_config: Any) -> SeqloomTrainer:
    rows = {"input_ids": [[5, 2], [5, 6, 2], [5, 6, 7, 2]], "labels": [[5, 2]] * 3}
    return SeqloomTrainer(
        seqloom.SeqloomForConditionalGeneration(tiny_config(vocab_size=tokenizers.vocab_size, dropout=0.1)),
        Seq2SeqTrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True),
        tokenizers=tokenizers,
        batching=BatchSettings(100),
        train_dataset=Dataset.from_dict(rows),
    )


def ask_for_checkpointing(trainer: SeqloomTrainer) -> None:
    """Set both names of the argument; before transformers 5.24 it had the second alone."""
    trainer.args.activation_checkpointing = trainer.args.gradient_checkpointing = True


def test_the_survey_is_that_of_the_batches() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 30, (500, 2))
    sampler = UpdateSampler(lengths, BatchSettings(1000, seed=1, accumulation_steps=2))
    seen = survey(sampler)
    shapes = [(len(rows), *lengths[rows].max(axis=0)) for rows in sampler]
    padded = [rows * (source + target) for rows, source, target in shapes]
    assert seen.num_updates * 2 == len(shapes)
    assert seen.num_tokens == lengths.sum()
    assert seen.padding == pytest.approx(1 - lengths.sum() / sum(padded))
    assert seen.largest == shapes[int(np.argmax(padded))]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_autograd_keeps_is_measured(trainer: SeqloomTrainer, checkpointing: bool) -> None:
    if checkpointing:
        ask_for_checkpointing(trainer)
    estimated = measure(trainer, (24, 9, 11)).activations / preflight.TRANSIENT
    kept = preflight.kept_for_backward(trainer, 24, 9, 11)
    assert estimated == pytest.approx(kept, rel=0.02), "two probes of few rows tell what all rows need"
    assert kept > 24 * 20 * trainer.model.config.d_model * 4
    assert not trainer.model.is_gradient_checkpointing, "Trainer turns it on when it begins"


def test_checkpointing_and_fewer_rows_need_less(trainer: SeqloomTrainer) -> None:
    plain = measure(trainer, (24, 9, 11)).activations
    assert measure(trainer, (6, 9, 11)).activations < plain
    ask_for_checkpointing(trainer)
    assert measure(trainer, (24, 9, 11)).activations < plain


def test_narrow_numbers_need_less(trainer: SeqloomTrainer) -> None:
    """Trainer wraps the model for them when it begins, and the look ahead comes before."""
    plain = preflight.kept_for_backward(trainer, 200, 9, 11)
    trainer.args.bf16 = True
    assert preflight.kept_for_backward(trainer, 200, 9, 11) < 0.75 * plain


def test_a_model_that_is_still_on_the_cpu_is_looked_at_there(trainer: SeqloomTrainer, monkeypatch: Any) -> None:
    """FSDP and DeepSpeed move it when the training begins; what is free on the device is not taken by it yet."""
    monkeypatch.setattr(preflight, "free_bytes", lambda device: 10**9)
    there = measure(trainer, (4, 5, 6))
    assert there.available == 10**9 + 4 * trainer.model.num_parameters()
    monkeypatch.setattr(Seq2SeqTrainingArguments, "device", torch.device("meta"))
    assert measure(trainer, (4, 5, 6)) == replace(there, available=10**9)


def test_shards_are_shared_by_the_processes(trainer: SeqloomTrainer, monkeypatch: Any) -> None:
    weights = 4 * trainer.model.num_parameters()
    monkeypatch.setattr(Seq2SeqTrainingArguments, "world_size", 4)
    assert preflight.state_bytes(trainer) == 5 * weights, "DDP has the gradients twice"
    trainer.is_deepspeed_enabled = True
    assert preflight.state_bytes(trainer) == weights + 3 * weights // 4, "ZeRO-2 leaves the weights whole"
    trainer.is_fsdp_enabled = True
    assert preflight.state_bytes(trainer) == weights


def test_a_look_ahead_changes_nothing(trainer: SeqloomTrainer) -> None:
    before, state = {n: p.clone() for n, p in trainer.model.named_parameters()}, torch.get_rng_state()
    measure(trainer, (4, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_weights_gradients_and_adam_are_four_copies(trainer: SeqloomTrainer) -> None:
    assert measure(trainer, (4, 5, 6)).weights == 4 * 4 * trainer.model.num_parameters() + preflight.KERNELS
    trainer.args.optim = "sgd"
    assert measure(trainer, (4, 5, 6)).weights == 2 * 4 * trainer.model.num_parameters() + preflight.KERNELS
    trainer.args.bf16 = True
    narrow = measure(trainer, (4, 5, 6)).weights
    assert narrow == 2 * 4 * trainer.model.num_parameters() + preflight.NARROW_CPU_KERNELS


def test_muon_keeps_one_number_for_each_weight_of_a_matrix(trainer: SeqloomTrainer) -> None:
    adam = measure(trainer, (4, 5, 6)).weights
    trainer.has_muon = True
    matrices = 4 * sum(each.numel() for each in matrices_of(trainer.model))
    assert measure(trainer, (4, 5, 6)).weights == adam - matrices < adam


def test_what_fits_passes() -> None:
    Memory(weights=3 * 10**9, activations=10**9, available=4 * 10**9).check(8192)


def test_what_cannot_fit_is_refused_with_the_largest_that_does() -> None:
    memory = Memory(weights=10**9, activations=6 * 10**9, available=4 * 10**9)
    with pytest.raises(RecipeError, match=r"needs about 7.0 GB a device and 4.0 GB are free") as caught:
        memory.check(8192)
    lower = int(re.search(r"lower it to (\d+)", str(caught.value))[1])
    assert lower == 4000
    Memory(memory.weights, memory.activations * lower // 8192, memory.available).check(lower)


def test_a_model_that_is_too_large_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"weights, gradients and optimizer states alone take 5.0 GB. Use a smaller"):
        Memory(weights=5 * 10**9, activations=1, available=4 * 10**9).check(8192)


def test_the_lines_hold_the_numbers(trainer: SeqloomTrainer) -> None:
    seen = Survey(num_updates=10, num_tokens=12345, padding=0.0234, largest=(7, 20, 22))
    memory = Memory(weights=10**9, activations=2 * 10**8, available=9 * 10**9)
    lines = describe(trainer, seen, memory, {"train": 300, "validation": 20}, num_updates=25)
    assert lines["model"].endswith(f"{trainer.model.num_parameters():,} parameters")
    assert lines["data"] == "300 train, 20 validation examples"
    assert lines["epoch"] == "12,345 source + target tokens, 10 updates"
    assert lines["run"] == "25 updates = 2.5 epochs on 1 x cpu, in 1 micro-batches each"
    assert lines["padding"] == "2.3 % of what is computed; the largest micro-batch is 7 x (20 + 22) tokens"
    assert lines["memory"] == "about 1.2 GB a device; 9.0 GB are free"


@pytest.mark.parametrize(
    ("num_updates", "line"),
    [
        (1206, "time      10 min to go, evaluations not counted (0.5 s an update)"),
        (200_006, f"time      27 h 47 min to go, evaluations not counted (0.5 s an update){preflight.SHORTER}"),
    ],
)
def test_the_time_is_said_once_after_the_first_updates(num_updates: int, line: str, monkeypatch: Any) -> None:
    said: list[str] = []
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(preflight.time, "perf_counter", lambda: now.seconds)
    estimate = TimeEstimate(said.append, warm_up=2, sample=4)
    for step in range(1, 10):
        now.seconds += 50.0 if step in (1, 2, 4) else 0.5  # the first are slow, and one has an evaluation before it
        state = SimpleNamespace(global_step=step, max_steps=num_updates, is_world_process_zero=True)
        estimate.on_step_end(None, state, None)
    assert said == [line]


@pytest.mark.parametrize(("seconds", "text"), [(40, "40 s"), (780, "13 min"), (7500, "2 h 05 min")])
def test_a_time_is_said_as_people_say_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_disk_is_counted_and_what_cannot_fit_is_refused_with_what_can(
    trainer: SeqloomTrainer, tmp_path: Any
) -> None:
    trainer.args.save_steps = 10
    weights = 4 * trainer.model.num_parameters()
    disk = preflight.measure_disk(trainer, 100, 2)
    assert (disk.checkpoint, disk.num_checkpoints, disk.model) == (3 * weights, 3, weights)
    assert preflight.measure_disk(trainer, 100, None).num_checkpoints == 10
    assert preflight.measure_disk(trainer, 5, 2).num_checkpoints == 1
    assert " for 1 checkpoint and the model; " in str(preflight.measure_disk(trainer, 5, 2))
    assert " for 3 checkpoints at a time, the one being written among them, and the model; " in str(disk)
    disk.check()
    full = replace(disk, available=disk.total - 1)
    with pytest.raises(RecipeError, match=r"--save_total_limit 1, make room, or name an --output on another disk"):
        full.check()
    replace(full, num_checkpoints=preflight.measure_disk(trainer, 100, 1).num_checkpoints).check()  # the advice works
    with pytest.raises(RecipeError, match=r"are free there; make room"):
        replace(disk, available=1).check()
    trainer.args.load_best_model_at_end = True
    best = preflight.measure_disk(trainer, 100, 3)
    assert best.num_checkpoints == 4, "the best is one of the three"
    assert preflight.measure_disk(trainer, 100, 1).num_checkpoints == 3, "the best and the newest"
    with pytest.raises(RecipeError, match=r"--save_total_limit 2, make room"):
        replace(best, available=best.total - 1).check()
    with pytest.raises(RecipeError, match=r"are free there; make room"):  # three are averaged
        replace(preflight.measure_disk(trainer, 100, 3, 3), available=best.total - 1).check()


@pytest.mark.parametrize(
    ("schedule", "warmup", "said"),
    [
        ("inverse_sqrt", 5, "its learning rate is the one that it would have had from the start"),
        ("linear", 0, "at update 10 it was 0 and is 0.0005 now. The model will not be that of a run planned so long"),
        ("inverse_sqrt", 0.5, "another: at update 10 it was"),
    ],
)
def test_a_longer_run_is_told_what_its_schedule_does(
    trainer: SeqloomTrainer, tmp_path: Any, schedule: str, warmup: float, said: str
) -> None:
    trainer.args.lr_scheduler_type, trainer.args.warmup_steps = SchedulerType(schedule), warmup
    trainer.args.learning_rate = 1e-3
    TrainerState(global_step=10, max_steps=10).save_to_json(str(tmp_path / "trainer_state.json"))
    assert preflight.describe_new_end(trainer, tmp_path, 10) == ""
    told = preflight.describe_new_end(trainer, tmp_path, 20)
    assert told.startswith("It was planned for 10 updates and has 20 now")
    assert said in told
