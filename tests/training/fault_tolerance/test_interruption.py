"""Stop signals: what they do while a run trains, while it does not, and in its data workers."""

import os
import signal
import threading
import time

import pytest
from transformers import Seq2SeqTrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from seqloom.training.fault_tolerance.interruption import (
    ORPHANED,
    SIGNALS,
    Flags,
    StopAfterUpdate,
    StopSignals,
    ignore_stop_signals,
    name_of,
)
from seqloom_cli.command import EXIT_INTERRUPTED, EXIT_STOPPED, StoppedError, run_command

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # Python runs the handler between two of its instructions


@pytest.fixture
def signals():
    with StopSignals() as signals:
        yield signals


@pytest.mark.parametrize("number", SIGNALS)
def test_while_training_a_signal_only_leaves_a_note(signals, number, capfd):
    signals.is_training = True
    send(number)
    assert signals.received == number
    said = capfd.readouterr().err
    assert f"{name_of(number)}: saving a checkpoint after the running update, then stopping." in said
    assert ("Ctrl-C again stops at once" in said) == (number == signal.SIGINT)


def test_schedulers_may_repeat_themselves(signals, capfd):
    signals.is_training = True
    for _ in range(3):
        send(signal.SIGTERM)
    assert capfd.readouterr().err.count("SIGTERM") == 1


def test_a_second_ctrl_c_stops_at_once(signals):
    signals.is_training = True
    send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)


def test_where_nothing_is_trained_a_signal_ends_the_run(signals):
    with pytest.raises(StoppedError, match="Stopped by SIGTERM while nothing was being trained; what was saved"):
        send(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt) as caught:
        send(signal.SIGINT)
    assert not isinstance(caught.value, StoppedError)


def test_handlers_are_given_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopSignals():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_other_threads_cannot_listen_and_do_not_fail():
    problems = []

    def use():
        try:
            with StopSignals():
                pass
        except ValueError as error:
            problems.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert not problems


def in_a_child(action):
    """Return the signal that a child died of while or after `action`, or 0."""
    child = os.fork()
    if child == 0:
        action()
        time.sleep(0.05)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def test_data_workers_end_when_told_and_ignore_what_their_parent_decides_on(signals):
    signals.is_training = True
    assert in_a_child(lambda: send(signal.SIGTERM)) == signal.SIGTERM
    assert in_a_child(lambda: [send(signal.SIGINT), send(signal.SIGINT), send(signal.SIGUSR1)]) == 0
    assert in_a_child(lambda: [ignore_stop_signals(), *(send(number) for number in SIGNALS)]) == 0
    assert signals.received == 0


# What the training loop makes of it ----------------------------------------------------------------------------------


@pytest.fixture
def loop(tmp_path, signals):
    """Return a function that ends an update and then perhaps its epoch, and what is then to be done."""
    args = Seq2SeqTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", eval_strategy="epoch")
    state, control = TrainerState(global_step=7, max_steps=100), TrainerControl()
    stopper = StopAfterUpdate(signals)
    stopper.on_train_begin(args, state, control)

    def end_update(epoch, *, should_save=False, end_epoch=False):
        state.epoch = epoch
        control.should_save, control.should_evaluate = should_save, False
        stopper.on_step_end(args, state, control)
        if end_epoch:
            control.should_evaluate = True
            stopper.on_epoch_end(args, state, control)
        return control

    end_update.stopper, end_update.state = stopper, state
    end_update.save = lambda: stopper.on_save(args, state, control)
    yield end_update
    stopper.on_train_end(args, state, control)
    assert not signals.is_training


def test_without_a_signal_nothing_changes(loop):
    assert not loop(0.5).should_save
    assert loop(0.5, should_save=True).should_save
    loop.save()
    assert not loop(0.7).should_training_stop


def test_a_signal_saves_and_then_stops(loop, signals):
    signals.received = signal.SIGUSR1
    control = loop(0.5)
    assert (control.should_save, control.should_training_stop) == (True, False)
    assert loop.stopper.is_extra
    loop.save()
    assert control.should_training_stop


def test_a_checkpoint_that_was_due_anyway_is_no_extra_one(loop, signals):
    signals.received = signal.SIGTERM
    assert loop(0.5, should_save=True).should_save
    assert not loop.stopper.is_extra


def test_an_epoch_is_saved_after_its_evaluation(loop):
    assert not loop(2.0, should_save=True).should_save
    assert loop(2.0, should_save=True, end_epoch=True).should_save


def test_an_epoch_that_was_broken_off_is_not_evaluated(loop, signals):
    signals.received = signal.SIGTERM
    loop(0.5)
    loop.save()
    control = loop(0.5, end_epoch=True)
    assert (control.should_evaluate, control.should_save) == (False, False)


def test_a_killed_launcher_is_a_reason_to_stop(loop):
    loop.stopper._launcher = 1 if os.getppid() != 1 else 2
    assert loop(0.5).should_save
    assert loop.stopper.reason == ORPHANED
    assert "Stopped by the end of its launcher" in str(loop.stopper.error("checkpoint-7", loop.state))


@pytest.mark.parametrize("name", ["TORCHELASTIC_RUN_ID", "ACCELERATE_USE_CPU"])
def test_every_launcher_is_looked_after(monkeypatch, name):
    """accelerate hands no signal on to a single process; only its end can be seen."""
    for launcher in ("TORCHELASTIC_RUN_ID", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(launcher, raising=False)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "inductor")  # TrainingArguments set it for torch_compile
    assert StopAfterUpdate()._launcher is None
    monkeypatch.setenv(name, "no")
    assert StopAfterUpdate()._launcher == os.getppid()


def test_a_stop_is_noted_before_anything_is_saved(loop, signals):
    """A scheduler may kill the run before it has."""
    noted = []
    signals.note = noted.append
    assert not loop(0.5).should_save
    signals.received = signal.SIGUSR1
    for _ in range(2):
        assert loop(0.5).should_save
    assert noted == ["Stopping by SIGUSR1 after update 7."]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, EXIT_STOPPED), (signal.SIGINT, EXIT_INTERRUPTED)])
def test_the_end_says_how_to_go_on_and_has_its_own_exit_code(loop, number, code, capsys):
    loop.stopper.reason = number

    def command():
        raise loop.stopper.error("run/checkpoint-7", loop.state)

    assert run_command(command) == code
    assert capsys.readouterr().err == (
        f"\nStopped by {name_of(number)} after update 7 of 100, saved in run/checkpoint-7. "
        "The same command started again goes on from there.\n"
    )
    loop.state.is_world_process_zero = False
    assert run_command(command) == code
    assert capsys.readouterr().err == ""


def test_a_process_alone_reads_its_own_flag_at_once():
    flags = Flags()
    assert [flags.exchange(flag) for flag in (0, 15, 2)] == [0, 15, 2]
    flags.close()
