"""What ends a run badly: found when it is there, not when it is not, and said with value, rule and remedy."""

import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from transformers import Seq2SeqTrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from seqloom.training.fault_tolerance import run_health
from seqloom.training.fault_tolerance.checkpoints import seal
from seqloom.training.fault_tolerance.run_health import (
    LossGuard,
    LossWatch,
    MicroBatch,
    TrainingError,
    broken_weights,
    explained_disks,
    explained_writing,
    is_finite_without_waiting,
    is_lost_peer,
    is_out_of_memory,
    is_refused_write,
    lost_peer,
    not_finite,
    out_of_memory,
)

VOCABULARY = 8000


@pytest.fixture
def args(tmp_path):
    return Seq2SeqTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", learning_rate=3e-3, warmup_steps=400
    )


@pytest.fixture
def state():
    return TrainerState(global_step=40, max_steps=1000)


def every(interval, losses):
    return [(interval * (index + 1), float(loss)) for index, loss in enumerate(losses)]


def falling(count, level=1.0):
    return level + (math.log(VOCABULARY) - level) * np.exp(-np.arange(count) / (count / 6))


def first_found(losses):
    """Return after how many entries a divergence is found, and which; (None, None) if it is not."""
    watch = LossWatch(VOCABULARY)
    found = ((count, watch.add(update, loss)) for count, (update, loss) in enumerate(losses, 1))
    return next(((count, each) for count, each in found if each), (None, None))


def empty_checkpoint(output, update):
    (output / f"checkpoint-{update}").mkdir()
    seal(output / f"checkpoint-{update}")


# Divergence ----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    noise=st.floats(0, 0.4),
    level=st.floats(0.01, 4),
    interval=st.sampled_from([1, 10, 50, 500]),
)
def test_a_noisy_run_has_not_diverged(seed, noise, level, interval):
    rng = np.random.default_rng(seed)
    losses = falling(400, level) + rng.normal(0, noise, 400) / math.sqrt(interval)  # an entry is a mean over updates
    assert first_found(every(interval, losses)) == (None, None)


def test_a_spike_that_recovers_has_not_diverged():
    losses = falling(200)
    losses[120] = 30.0
    assert first_found(every(50, losses)) == (None, None)


@pytest.mark.parametrize("interval", [1, 50])
def test_a_loss_that_climbs_and_stays_is_found(interval):
    count, found = first_found(every(interval, np.concatenate([falling(300), np.full(300, 6.5)])))
    assert found.loss > found.reference + 1
    assert found.reference == pytest.approx(1.0, abs=0.2)
    assert found.last_good_update == 300 * interval
    assert (count - 300) * interval <= max(run_health.UPDATES, run_health.ENTRIES * interval)


def test_a_run_that_never_learned_is_measured_against_guessing():
    count, found = first_found(every(10, [25, 60, 80, 70]))
    assert (count, found.reference, found.last_good_update) == (4, pytest.approx(math.log(VOCABULARY)), 0)
    assert first_found(every(10, [12, 11, 10, 11])) == (None, None)  # bad, as at the start of any run
    assert first_found(every(10, [60, 70, 80])) == (None, None)  # too early to tell


def test_the_error_of_a_diverged_run_names_value_reference_checkpoint_and_remedy(args, state, tmp_path):
    for update in (10, 20, 30):
        empty_checkpoint(tmp_path, update)
    state.log_history = [{"step": step, "loss": loss} for step, loss in every(10, [5, 2, 60, 70, 80])]
    guard = LossGuard(vocab_size=50)
    guard.on_train_begin(args, state, TrainerControl())  # the run goes on: its past counts
    with pytest.raises(TrainingError) as caught:
        guard.on_log(args, state, TrainerControl(), logs={"loss": 90.0})
    text = str(caught.value)
    assert "the loss has climbed to 75 and stays there (update 40 of 1,000): far above 3.91" in text
    assert f"The last good checkpoint, {tmp_path / 'checkpoint-20'}, is kept." in text
    assert "for example --learning_rate 0.001 --warmup_steps 800 --resume never" in text


# No number -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("logs", [{"loss": math.nan}, {"loss": math.inf}, {"loss": 2.0, "grad_norm": math.nan}])
def test_a_logged_value_that_is_no_number_ends_the_run(args, state, logs):
    with pytest.raises(TrainingError, match="after update 40 of 1,000: from here on nothing is learned any more"):
        LossGuard(VOCABULARY).on_log(args, state, TrainerControl(), logs=logs)


def test_other_entries_are_left_alone(args, state):
    guard = LossGuard(VOCABULARY)
    guard.on_log(args, state, TrainerControl(), logs={"eval_bleu": math.nan})
    guard.on_log(args, state, TrainerControl(), logs={"loss": 2.0, "grad_norm": 1.0})
    args.fp16 = True  # its scaler tries scales until the gradient is finite
    guard.on_log(args, state, TrainerControl(), logs={"loss": 2.0, "grad_norm": math.inf})


def test_the_error_names_the_values_and_says_there_is_no_checkpoint(args, state):
    args.fp16 = True
    text = str(not_finite(args, state, grad_norm=math.inf, loss=2.5))
    assert text.startswith("grad_norm=inf and loss=2.5 after update 40")
    assert "There is no checkpoint from before." in text
    assert "Train in bf16 or fp32 instead of fp16, with a lower learning rate" in text


def test_weights_that_are_not_finite_are_named():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    assert broken_weights(model) is None
    model[1].bias.data[0] = math.inf
    assert broken_weights(model) == "1.bias"


def test_nothing_waits_for_a_device():
    assert not is_finite_without_waiting(torch.tensor(math.nan))
    assert not is_finite_without_waiting(math.inf)
    assert is_finite_without_waiting(torch.tensor(1.0))
    assert is_finite_without_waiting(torch.empty((), device="meta"))
    assert is_finite_without_waiting(None)


# Memory --------------------------------------------------------------------------------------------------------------


def batch(rows, source, target):
    return {"input_ids": torch.zeros(rows, source), "labels": torch.zeros(rows, target)}


def test_the_error_of_a_full_memory_names_a_size_that_is_likely_to_fit(args, state):
    micro_batch = MicroBatch()
    micro_batch.start(batch(40, 20, 10))
    micro_batch.finish()
    micro_batch.start(batch(100, 20, 20))
    text = str(out_of_memory(args, state, micro_batch, "cuda:0"))
    assert "out of memory on cuda:0 after update 40 of 1,000" in text
    assert (
        "a micro-batch of 100 x (20 source + 20 target) = 4,000 padded tokens (the largest that it held had 1,200)"
        in text
    )
    assert "--tokens_per_device 1200: it goes on with the same updates" in text
    micro_batch.largest_done = 0
    assert "--tokens_per_device 2000:" in str(out_of_memory(args, state, micro_batch, "cuda:0"))


def test_one_long_example_needs_another_remedy(args, state):
    micro_batch = MicroBatch()
    micro_batch.start(batch(1, 5000, 5000))
    remedy = "It is one example, so smaller micro-batches do not help: turn on --gradient_checkpointing"
    assert remedy in str(out_of_memory(args, state, micro_batch, "cpu"))
    micro_batch.start({**batch(1, 5000, 5000), "cu_seq_lens_q": torch.tensor([0, 2000, 5000])})  # two, packed
    assert "--tokens_per_device" in str(out_of_memory(args, state, micro_batch, "cpu"))


def test_evaluation_has_a_remedy_of_its_own(args, state):
    args.per_device_eval_batch_size = 64
    text = str(out_of_memory(args, state, MicroBatch(is_evaluating=True), "cpu"))
    assert "while evaluating" in text
    assert "--per_device_eval_batch_size 32" in text
    args.per_device_eval_batch_size = 1
    assert "with fewer --num_beams, or a smaller" in str(out_of_memory(args, state, MicroBatch(is_evaluating=True), ""))


def test_what_counts_as_a_full_memory():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_a_lost_process_is_told_from_a_mistake(args, state):
    gloo = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:16204"
    assert is_lost_peer(RuntimeError(gloo))
    assert not is_lost_peer(RuntimeError("shapes do not match"))
    assert "another process of this run has ended (update 40 of 1,000)" in str(lost_peer(args, state))


# Disk ----------------------------------------------------------------------------------------------------------------

REFUSALS = {
    "No space left on device": OSError(28, "No space left on device"),
    "I/O error: No space left on device (os error 28)": SafetensorError(
        "Error while serializing: I/O error: No space left on device (os error 28)"
    ),
    "[enforce fail at inline_container.cc:672]": RuntimeError(
        "[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0\nframe #0: ..."
    ),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_what_a_disk_refuses_is_said_with_what_is_kept(why, args, tmp_path):
    empty_checkpoint(tmp_path, 20)
    with (
        pytest.raises(TrainingError) as caught,
        explained_writing(tmp_path / "checkpoint-30", tmp_path),
    ):
        raise REFUSALS[why]
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'checkpoint-30'} could not be written: {why}")
    assert "MB are free on that disk" in text
    assert f"The last good checkpoint, {tmp_path / 'checkpoint-20'}, is kept. Make room" in text
    assert "then start the same command again" in text


def test_a_disk_that_takes_no_writing_is_not_called_full(tmp_path):
    with (
        pytest.raises(
            TrainingError, match=r"Read-only file system .* Allow writing there, then start .* another --output"
        ),
        explained_writing(tmp_path / "checkpoint-30", tmp_path),
    ):
        raise OSError(30, "Read-only file system")


def test_a_full_disk_is_named_where_torch_does_not_name_it(tmp_path, monkeypatch):
    monkeypatch.setattr(run_health.shutil, "disk_usage", lambda path: SimpleNamespace(free=4096))
    with (
        pytest.raises(TrainingError, match=r"could not be written: No space left on device \(0.0 MB are free"),
        explained_writing(tmp_path, tmp_path),
    ):
        raise REFUSALS["[enforce fail at inline_container.cc:672]"]


def test_other_errors_are_not_the_disks(tmp_path):
    for error in (RuntimeError("Connection closed by peer"), ConnectionResetError(104, "reset"), KeyError("loss")):
        assert not is_refused_write(error)
        with pytest.raises(type(error)), explained_writing(tmp_path, tmp_path):
            raise error


LIBRARIES = {
    "python": lambda file: OSError(28, "No space left on device", str(file)),
    "python, no file": lambda file: OSError(28, "No space left on device"),
    "rust": lambda file: Exception("No space left on device (os error 28)"),
    "arrow": lambda file: OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),
    "quota": lambda file: OSError(122, "Disk quota exceeded", str(file)),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_any_write_that_a_full_disk_refuses_is_explained(library, tmp_path):
    empty_checkpoint(tmp_path, 20)
    file = tmp_path / "run" / "data.json"
    with pytest.raises(TrainingError) as caught, explained_disks(tmp_path):
        raise LIBRARIES[library](file)
    text = str(caught.value)
    assert text.startswith(f"{file if library in ('python', 'quota') else tmp_path} could not be written: ")
    assert f"The last good checkpoint, {tmp_path / 'checkpoint-20'}, is kept. Make room" in text


@pytest.mark.parametrize(
    ("number", "remedy"), [(28, "Make room there"), (30, "Allow writing there"), (13, "Allow writing there")]
)
def test_the_cache_of_texts_is_named_with_its_variable(number, remedy, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf" / "datasets")
    file = tmp_path / "hf" / "datasets" / "seqloom" / "abc"
    with pytest.raises(TrainingError) as caught, explained_disks(tmp_path / "run"):
        raise OSError(number, os.strerror(number), str(file))
    text = str(caught.value)
    assert text.startswith(f"{file} could not be written: {os.strerror(number)} (")
    assert f"the cache of texts, {tmp_path / 'hf' / 'datasets'}. {remedy}, or name another folder in the" in text
    assert "HF_HOME" in text


def test_the_disk_that_is_full_is_found_where_the_library_names_none(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    full = {tmp_path / "hf"}
    (tmp_path / "hf").mkdir()
    monkeypatch.setattr(run_health.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9 * (path not in full)))
    with pytest.raises(TrainingError, match=r"hf could not be written: .* \(0.0 MB .* HF_HOME"):  # noqa: SIM117
        with explained_disks(tmp_path / "run"):
            raise LIBRARIES["arrow"](None)


def test_what_is_no_write_of_ours_stays_what_it_is(tmp_path):
    strange = tmp_path / "train.de"
    for error in (FileNotFoundError(2, "No such file", str(strange)), PermissionError(13, "denied", str(strange))):
        with pytest.raises(type(error)), explained_disks(tmp_path / "run"):
            raise error
    with pytest.raises(ValueError, match="a text"), explained_disks(tmp_path):
        raise ValueError("a text with errno 5 or 6 in it")
