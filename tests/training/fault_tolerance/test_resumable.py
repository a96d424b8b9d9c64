"""ResumableTrainer: what its hooks add to Trainer, each seen on a run of a few updates."""

import contextlib
import json
import logging
import math
import os
import random
import resource
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import EarlyStoppingCallback, Seq2SeqTrainingArguments, TrainerCallback
from transformers.trainer_callback import TrainerState

from seqloom.training.fault_tolerance import resumable
from seqloom.training.fault_tolerance.checkpoints import checkpoints_in, find_fault
from seqloom.training.fault_tolerance.interruption import StopSignals
from seqloom.training.fault_tolerance.resumable import CheckpointPart, ResumableTrainer, ended_early, kept_random_state
from seqloom.training.fault_tolerance.run_health import TrainingError
from seqloom.training.quality.selection import EarlyStopping
from seqloom.training.trainer import LogLastUpdates
from seqloom_cli.command import EXIT_STOPPED, StoppedError
from tests.toy import toy_pairs


class Acting(TrainerCallback):
    """Does something at the end of one update."""

    def __init__(self, update, action, event="on_step_end"):
        self.update, self.action = update, action
        setattr(self, event, self._act)

    def _act(self, args, state, control, **kwargs):
        if state.global_step == self.update:
            self.action(kwargs["model"])


@pytest.fixture
def make_trainer(tmp_path, tiny_config):
    from seqloom.modeling.modeling_seqloom import SeqloomForConditionalGeneration

    source, mask, labels = toy_pairs(24)
    columns = ("input_ids", "attention_mask", "labels")
    rows = [dict(zip(columns, row)) for row in zip(source, mask, labels)]

    def make(*callbacks, name="run", dropout=0.1, kind=ResumableTrainer, **arguments):
        torch.manual_seed(0)
        defaults = {
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "max_steps": 9,
            "save_steps": 3,
            "per_device_train_batch_size": 6,  # 4 updates an epoch
            "logging_steps": 1,
            "learning_rate": 0.01,
            "logging_nan_inf_filter": False,
            "restore_callback_states_from_checkpoint": True,
            "dataloader_pin_memory": False,
        }
        return kind(
            SeqloomForConditionalGeneration(tiny_config(dropout=dropout)),
            Seq2SeqTrainingArguments(output_dir=str(tmp_path / name), **{**defaults, **arguments}),
            train_dataset=rows,
            eval_dataset=rows[:6],
            callbacks=list(callbacks),
        )

    return make


class Scored(ResumableTrainer):
    """Reports a worse score at each evaluation."""

    def evaluation_loop(self, *args, **kwargs):
        output = super().evaluation_loop(*args, **kwargs)
        output.metrics["eval_made_up"] = float(self.state.global_step)
        return output


SCORED = {
    "kind": Scored,
    "metric_for_best_model": "made_up",
    "greater_is_better": False,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "load_best_model_at_end": True,
}


def weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def names(folder):
    return [path.name for path in checkpoints_in(folder)]


@pytest.fixture
def learned(make_trainer):
    trainer = make_trainer(name="whole")
    trainer.train()
    return weights(trainer)


# Resume --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("update", [3, 6, 9])
def test_a_run_goes_on_from_any_checkpoint_to_the_same_weights(make_trainer, learned, tmp_path, update):
    """Also from the last one, where Trainer would compute one update more."""
    trainer = make_trainer()
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{update}"))
    assert trainer.state.global_step == 9
    assert torch.equal(weights(trainer), learned)


def test_more_updates_are_learned_when_more_are_asked_for(make_trainer, learned, tmp_path):
    trainer = make_trainer(max_steps=11)
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-9"))
    assert trainer.state.global_step == 11


def test_evaluation_does_not_change_what_is_learned(make_trainer, learned):
    trainer = make_trainer(eval_strategy="steps", eval_steps=1, eval_on_start=True)
    trainer.train()
    assert torch.equal(weights(trainer), learned)


def test_random_states_are_kept():
    def draw():
        return random.random(), float(np.random.random()), float(torch.rand(()))

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with kept_random_state():
        draw()
    assert draw() == expected


def test_a_run_that_was_stopped_early_does_not_go_on(make_trainer, tmp_path):
    def train(checkpoint=None):
        trainer = make_trainer(EarlyStoppingCallback(1), **SCORED)
        trainer.train(resume_from_checkpoint=checkpoint and str(tmp_path / "run" / checkpoint))
        return trainer

    stopped = train()
    assert stopped.state.global_step == 6
    for checkpoint in ("checkpoint-6", "checkpoint-3"):  # the end, and one from which patience has to be remembered
        again = train(checkpoint)
        assert again.state.global_step == 6
        assert torch.equal(weights(again), weights(stopped))


def test_on_another_number_of_processes_dropout_is_not_that_of_the_start(make_trainer, learned, tmp_path):
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")  # as two processes save it
    states = []
    for folder in ("whole", "whole", "other"):
        trainer = make_trainer(name=folder)
        trainer.state.global_step = 3 if folder == "whole" else 6
        trainer._load_rng_state(str(checkpoint))
        states.append(torch.random.get_rng_state())
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_tied_weights_are_not_called_missing(make_trainer, learned, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    make_trainer().train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-9"))
    assert "missing keys" not in caplog.text


# Checkpoints ---------------------------------------------------------------------------------------------------------


def test_checkpoints_appear_whole_and_hold_no_pickled_arguments(make_trainer, tmp_path):
    seen = []

    class Watching(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            seen.append(find_fault(Path(args.output_dir) / f"checkpoint-{state.global_step}"))

    make_trainer(Watching()).train()
    assert seen == [None, None, None]
    assert not list(tmp_path.rglob("training_args.bin"))
    for file in tmp_path.rglob("*.p*t*"):
        with torch.serialization.safe_globals(
            [np._core.multiarray._reconstruct, np.ndarray, np.dtype, np.dtypes.UInt32DType]
        ):
            torch.load(file, weights_only=True)


def test_the_best_checkpoint_is_named_where_it_is_and_never_rotated_away(make_trainer, tmp_path):
    trainer = make_trainer(save_total_limit=1, **SCORED)
    trainer.train()
    output = tmp_path / "run"
    assert trainer.state.best_model_checkpoint == str(output / "checkpoint-3")
    for folder in checkpoints_in(output):
        state = json.loads((folder / "trainer_state.json").read_text())
        assert state["best_model_checkpoint"] == str(output / "checkpoint-3")
        assert state["best_global_step"] == 3
    assert "checkpoint-3" in names(output)
    moved = output.rename(tmp_path / "moved")
    again = make_trainer(name="moved", save_total_limit=1, **SCORED)
    again.train(resume_from_checkpoint=str(moved / names(moved)[-1]))
    assert again.state.best_model_checkpoint == str(moved / "checkpoint-3")


def test_the_best_is_one_that_was_saved_and_not_one_that_was_evaluated_alone(make_trainer, tmp_path):
    class Uneven(ResumableTrainer):
        """Scores 5, 9, 7, 8, ... at updates 1, 2, 3, 4, ..."""

        def evaluation_loop(self, *args, **kwargs):
            output = super().evaluation_loop(*args, **kwargs)
            output.metrics["eval_made_up"] = [5.0, 9.0, 7.0, 8.0, 6.0, 6.0][self.state.global_step - 1]
            return output

    keys = {**SCORED, "kind": Uneven, "greater_is_better": True, "eval_steps": 1, "max_steps": 6}
    trainer = make_trainer(save_total_limit=1, **keys)
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "run" / "checkpoint-3")  # 2 was better, and not saved
    assert (trainer.state.best_global_step, trainer.state.best_metric) == (3, 7.0)
    assert names(tmp_path / "run") == ["checkpoint-3", "checkpoint-6"], "the best and the end"


def test_a_run_that_goes_on_takes_new_intervals(make_trainer, tmp_path):
    first = make_trainer(Acting(3, lambda model: signal.raise_signal(signal.SIGTERM)), save_steps=100)
    with StopSignals() as signals:
        first.listen_to(signals)
        with pytest.raises(StoppedError):
            first.train()
    trainer = make_trainer(save_steps=2, logging_steps=3)
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert names(tmp_path / "run")[-4:] == ["checkpoint-4", "checkpoint-6", "checkpoint-8", "checkpoint-9"]
    assert [row["step"] for row in trainer.state.log_history if "loss" in row and row["step"] > 3] == [6, 9]


def test_another_score_chooses_the_best_anew(make_trainer, tmp_path):
    make_trainer(save_total_limit=None, max_steps=6, **SCORED).train()  # made_up: 3, which is low; the loss falls
    keys = {**SCORED, "metric_for_best_model": "loss"}
    trainer = make_trainer(save_total_limit=None, max_steps=9, **keys)
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-6"))
    losses = {row["step"]: row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row}
    assert trainer.state.best_global_step == min(losses, key=losses.get) != 3
    assert trainer.state.best_metric == min(losses.values())


@pytest.mark.parametrize("ending", [{"max_steps": 6}, {"max_steps": -1, "num_train_epochs": 1.5}])
def test_the_end_in_the_middle_of_an_epoch_is_saved_with_its_scores(make_trainer, tmp_path, ending):
    make_trainer(eval_strategy="epoch", save_steps=2, **ending).train()  # 4 updates an epoch
    state = TrainerState.load_from_json(str(tmp_path / "run" / "checkpoint-6" / "trainer_state.json"))
    assert [row["step"] for row in state.log_history if "eval_loss" in row] == [4, 6]


def test_an_early_stop_between_two_saves_is_saved(make_trainer, tmp_path):
    keys = {**SCORED, "eval_steps": 2, "save_steps": 4, "load_best_model_at_end": False}
    trainer = make_trainer(EarlyStopping(2), **keys)  # the scores of 2, 4 and 6 are ever worse
    trainer.train()
    assert names(tmp_path / "run") == ["checkpoint-4", "checkpoint-6"]
    assert ended_early(TrainerState.load_from_json(str(tmp_path / "run" / "checkpoint-6" / "trainer_state.json")))
    again = make_trainer(EarlyStopping(2), **{**keys, "max_steps": 20})
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-6"))
    assert again.state.global_step == 6


def test_memory_that_runs_out_after_the_training_is_explained(make_trainer, monkeypatch):
    trainer = make_trainer(max_steps=1)

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(trainer, "evaluation_loop", fail)
    with pytest.raises(TrainingError, match=r"while evaluating .* --per_device_eval_batch_size 4: scores"):
        trainer.evaluate()
    assert not trainer.micro_batch.is_evaluating


def test_checkpoints_of_activations_change_no_weight(make_trainer, learned):
    trainer = make_trainer(name="other", gradient_checkpointing=True)
    trainer.train()
    assert torch.equal(weights(trainer), learned)


def test_a_callback_keeps_its_part_in_the_checkpoint(make_trainer, tmp_path):
    class Counting(TrainerCallback):
        num_seen = 0

        def on_step_end(self, *args, **kwargs):
            self.num_seen += 1

        def save_part(self, checkpoint):
            (checkpoint / "count.txt").write_text(str(self.num_seen))

        def load_part(self, checkpoint):
            self.num_seen = int((checkpoint / "count.txt").read_text())

    assert isinstance(Counting(), CheckpointPart)
    make_trainer(Counting()).train()
    manifest = json.loads((tmp_path / "run" / "checkpoint-6" / "checkpoint_manifest.json").read_text())
    assert "count.txt" in manifest["files"]
    counting = Counting()
    make_trainer(counting).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-6"))
    assert counting.num_seen == 9


@pytest.mark.parametrize(("callbacks", "logged"), [((), [4, 8, 9]), ((LogLastUpdates,), [4, 8, 9, 9])])
def test_the_log_goes_on_between_two_entries_as_if_nothing_had_happened(make_trainer, tmp_path, callbacks, logged):
    """Also where nothing is left to learn: the last entry comes after the last checkpoint."""

    def losses(**keys):
        trainer = make_trainer(*(callback() for callback in callbacks), logging_steps=4, name=keys.pop("name", "run"))
        trainer.train(**keys)
        kinds = ("loss", "train_loss")
        return [(row["step"], row[kind]) for row in trainer.state.log_history for kind in kinds if kind in row]

    whole = losses(name="whole")
    assert [step for step, _ in whole] == logged
    for update in (3, 6, 9):
        assert losses(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{update}")) == whole, update


def test_a_checkpoint_too_many_leaves_at_the_next_start(make_trainer, tmp_path):
    """As after a kill between the rename of the newest and the rotation."""
    make_trainer(max_steps=9, save_total_limit=2).train()
    shutil.copytree(tmp_path / "run" / "checkpoint-6", tmp_path / "run" / "checkpoint-3")
    assert len(names(tmp_path / "run")) == 3
    make_trainer(max_steps=9, save_total_limit=2).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-9"))
    assert names(tmp_path / "run") == ["checkpoint-6", "checkpoint-9"]


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_best_checkpoint_is_not_loaded_and_the_remedy_works(make_trainer, tmp_path, damage):
    class Damaging(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            best = tmp_path / "run" / "checkpoint-3"
            if state.global_step == 8 and damage == "changed":
                weights = (best / "model.safetensors").read_bytes()
                (best / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
            elif state.global_step == 8:
                best.rename(tmp_path / "gone")

    why = "model.safetensors is damaged" if damage == "changed" else "it is missing"
    with pytest.raises(TrainingError, match=rf"is to be loaded from .*checkpoint-3, but {why}.* Bring it back"):
        make_trainer(Damaging(), **SCORED).train()
    last = str(tmp_path / "run" / "checkpoint-9")
    with pytest.raises(TrainingError, match="best model is to be loaded from"):  # nor in silence by the next start
        make_trainer(**SCORED).train(resume_from_checkpoint=last)
    trainer = make_trainer(**{**SCORED, "load_best_model_at_end": False})
    trainer.train(resume_from_checkpoint=last)
    assert trainer.state.global_step == 9


# Stops ---------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize("update", [2, 3, 4, 9])
def test_a_signal_saves_stops_and_goes_on_to_the_same_weights(make_trainer, learned, tmp_path, update):
    """In an epoch, where a checkpoint is due, at the end of an epoch, and at the end of all."""
    trainer = make_trainer(Acting(update, lambda model: os.kill(os.getpid(), signal.SIGTERM)), save_total_limit=2)
    with StopSignals() as signals:
        trainer.listen_to(signals)
        with pytest.raises(
            StoppedError, match=rf"after update {update} of 9, saved in .*checkpoint-{update}\."
        ) as stop:
            trainer.train()
    assert stop.value.exit_code == EXIT_STOPPED
    checkpoint = tmp_path / "run" / f"checkpoint-{update}"
    assert find_fault(checkpoint) is None
    again = make_trainer(save_total_limit=2)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert torch.equal(weights(again), learned)
    assert names(tmp_path / "run") == ["checkpoint-6", "checkpoint-9"]  # as if nobody had stopped it


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_a_stop_that_saves_weights_alone_promises_nothing(make_trainer, tmp_path):
    trainer = make_trainer(Acting(2, lambda model: os.kill(os.getpid(), signal.SIGTERM)), save_only_model=True)
    with StopSignals() as signals:
        trainer.listen_to(signals)
        with pytest.raises(TrainingError, match=r"stopped by SIGTERM after update 2 of 9\. .* no run goes on from it"):
            trainer.train()
    assert names(tmp_path / "run") == ["checkpoint-2"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_a_signal_at_the_best_update_does_not_lose_the_best_model(make_trainer, tmp_path):
    """Where the best alone is saved, an evaluation decides on it after the signal was heard."""
    keys = {**SCORED, "save_strategy": "best", "save_total_limit": 1}
    trainer = make_trainer(Acting(3, lambda model: os.kill(os.getpid(), signal.SIGTERM)), **keys)
    with StopSignals() as signals:
        trainer.listen_to(signals)
        with pytest.raises(StoppedError, match=r"after update 3 of 9"):
            trainer.train()
    stopped = weights(trainer)
    again = make_trainer(**keys)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert again.saved_updates == [3]
    assert torch.equal(weights(again), stopped)


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize(
    ("strategy", "event"),
    [
        ("steps", "on_save"),
        ("steps", "on_epoch_end"),
        ("steps", "on_evaluate"),
        ("no", "on_epoch_end"),
        ("no", "on_evaluate"),
    ],
)
def test_a_signal_after_the_last_update_is_not_forgotten(make_trainer, learned, tmp_path, strategy, event):
    acting = Acting(9, lambda model: os.kill(os.getpid(), signal.SIGTERM), event=event)
    trainer = make_trainer(acting, save_strategy=strategy, eval_strategy="steps", eval_steps=9)
    with StopSignals() as signals:
        trainer.listen_to(signals)
        with pytest.raises(StoppedError, match=r"after update 9 of 9, saved in .*checkpoint-9\."):
            trainer.train()
    again = make_trainer(save_strategy=strategy)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-9"))
    assert torch.equal(weights(again), learned)


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_a_signal_while_the_training_is_closed_ends_the_run_at_once(make_trainer, monkeypatch):
    trainer = make_trainer(**SCORED)
    load = trainer._load_best_model

    def stopped_while_loading():
        load()
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(trainer, "_load_best_model", stopped_while_loading)
    with StopSignals() as signals:
        trainer.listen_to(signals)
        with pytest.raises(StoppedError, match="Stopped by SIGTERM while nothing was being trained; what was saved"):
            trainer.train()


# Losses that are no number -------------------------------------------------------------------------------------------


def spoil_gradient(model):
    model.lm_head.weight.register_hook(lambda gradient: gradient * math.nan)


def spoil_weights(model):
    model.lm_head.weight.data[7] = math.nan


@pytest.mark.parametrize("spoil", [spoil_gradient, spoil_weights])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_loss_that_is_no_number_stops_the_run_before_the_optimizer_takes_it(make_trainer, tmp_path, spoil, clip):
    trainer = make_trainer(Acting(4, spoil), max_grad_norm=clip)
    with pytest.raises(TrainingError, match=r"grad_norm=nan and loss=.* after update 4 of 9") as caught:
        trainer.train()
    assert f"The last good checkpoint, {tmp_path / 'run' / 'checkpoint-3'}, is kept." in str(caught.value)
    assert "--learning_rate 0.003" in str(caught.value)
    assert names(tmp_path / "run") == ["checkpoint-3"]
    if spoil is spoil_gradient:
        assert weights(trainer).isfinite().all()


def test_weights_that_are_not_finite_are_never_saved(make_trainer, tmp_path):
    trainer = make_trainer(Acting(6, spoil_weights), save_total_limit=1)
    with pytest.raises(TrainingError, match=r"embed_tokens.weight=nan after update 6 of 9: .* Nothing of it was saved"):
        trainer.train()
    assert names(tmp_path / "run") == ["checkpoint-3"]
    assert find_fault(tmp_path / "run" / "checkpoint-3") is None


def test_a_run_that_diverges_is_stopped(make_trainer):
    with pytest.raises(TrainingError, match=r"the loss has climbed to .* and stays there"):
        make_trainer(learning_rate=10.0, max_steps=40, lr_scheduler_type="constant").train()


# Memory and disk -----------------------------------------------------------------------------------------------------


class Exhausted(ResumableTrainer):
    """Runs out of memory in update 5, or while evaluating."""

    def compute_loss(self, *args, **kwargs):
        if self.state.global_step == 4 and not self.micro_batch.is_evaluating:
            raise self.failure
        return super().compute_loss(*args, **kwargs)

    def prediction_step(self, *args, **kwargs):
        raise self.failure


@pytest.mark.parametrize("failure", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_running_out_of_memory_is_explained(make_trainer, tmp_path, failure):
    trainer = make_trainer(kind=Exhausted)
    trainer.failure = failure
    with pytest.raises(
        TrainingError, match=r"it did not hold a micro-batch of 6 x \(9 source \+ 9 target\) = 108"
    ) as caught:
        trainer.train()
    assert f"{tmp_path / 'run' / 'checkpoint-3'}, is kept. Start the same command with --tokens_per_device 81" in str(
        caught.value
    )


def test_running_out_of_memory_while_evaluating_is_explained(make_trainer):
    trainer = make_trainer(kind=Exhausted, eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=8)
    trainer.failure = MemoryError()
    with pytest.raises(TrainingError, match="while evaluating after update 2 of 9, with per_device_eval_batch_size=8"):
        trainer.train()


def test_other_errors_stay_what_they_are(make_trainer):
    trainer = make_trainer(kind=Exhausted)
    trainer.failure = RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        trainer.train()


def check_refused(trainer, folder, why):
    with pytest.raises(
        TrainingError, match=rf"checkpoint-6 could not be written: .*{why}.* \(.* MB are free"
    ) as caught:
        trainer.train()
    assert f"The last good checkpoint, {folder / 'checkpoint-3'}, is kept. Make room" in str(caught.value)
    assert names(folder) == ["checkpoint-3"]
    assert find_fault(folder / "checkpoint-3") is None
    assert not list((folder / "_saving").iterdir())


@pytest.mark.skipif(os.name != "posix", reason="limits of a process")
@pytest.mark.parametrize("limit", [1000, 30_000, 60_000])
def test_a_disk_that_refuses_leaves_the_last_good_checkpoint(make_trainer, tmp_path, limit):
    """Files may not grow beyond the limit: first the JSON files fail, then the weights, then the optimizer's state."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            limits = (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
            trainer = make_trainer(Acting(5, lambda model: resource.setrlimit(resource.RLIMIT_FSIZE, limits)))
            check_refused(trainer, tmp_path / "run", "")
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_full_disk_is_named(make_trainer, tmp_path, monkeypatch):
    def fill_disk(model):
        def refuse(*args, **kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(TrainerState, "save_to_json", refuse)

    check_refused(make_trainer(Acting(5, fill_disk)), tmp_path / "run", "No space left on device")


# Devices that Trainer leaves out -------------------------------------------------------------------------------------


def test_the_random_state_of_every_device_comes_back(make_trainer, tmp_path, monkeypatch):
    state, restored = torch.arange(16, dtype=torch.uint8), []
    device = SimpleNamespace(get_rng_state=lambda: state, set_rng_state=restored.append)
    monkeypatch.setattr(resumable, "forgotten_device", lambda device_: device)
    trainer = make_trainer()
    trainer._save_rng_state(str(tmp_path))
    trainer._load_rng_state(str(tmp_path))
    assert [each.tolist() for each in restored] == [state.tolist()]
    trainer._load_rng_state(str(tmp_path / "none"))
    trainer._load_rng_state(None)
    assert len(restored) == 1


def test_a_look_aside_keeps_the_random_state_of_any_device(monkeypatch):
    asked = []

    @contextlib.contextmanager
    def fork(devices, device_type):
        asked.append((devices, device_type))
        yield

    monkeypatch.setattr(torch.random, "fork_rng", fork)
    with kept_random_state():
        pass
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    with kept_random_state():
        pass
    assert asked == [([], "cuda"), ([0], "mps")]
