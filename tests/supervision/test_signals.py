import ctypes
import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from data.base.errors import WaitInterrupted
from tests.helpers.ranks import run_ranks
from tests.helpers.toy_run import write_toy_run
from train.supervision.signals import stop_signals

LINE = "stopped: {} received; with autoresume=true the next start resumes from the newest checkpoint\n"


def signal_group(number: int) -> None:
    """Send a signal to the process and all of its workers, like a terminal or a scheduler."""
    os.killpg(os.getpgrp(), number)


def signal_in_worker(row):
    if row["prompt"] in signal.Signals.__members__ and os.getpid() != os.getpgrp():
        signal_group(signal.Signals[row["prompt"]])
    return row


def _main(config: str, overrides: list[str], place: str, number: int) -> tuple[int, str]:
    """Return main's exit code and stderr if the signal arrives when `place` (module:class.method) is called."""
    from train.main import main

    os.setpgrp()
    sys.argv[0] = "train.py"  # replaces the fork server's script, which is also in the parent's command line
    if place:
        module, _, path = place.partition(":")
        owner, _, name = path.partition(".")
        cls = getattr(__import__(module, fromlist=[owner]), owner)
        real = getattr(cls, name)

        def with_signal(*args, **kwargs):
            signal_group(number)
            return real(*args, **kwargs)

        setattr(cls, name, with_signal)
    with tempfile.TemporaryFile("w+") as err:
        os.dup2(err.fileno(), 2)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        code = main([config, *overrides])
        err.seek(0)
        return code, err.read()


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("number", "place"),
    [
        # The loader's worker receives it too, although its batches are still needed.
        (signal.SIGTERM, "train.composer_model:DbrxForComposer.forward"),
        (signal.SIGINT, "torch.distributed.checkpoint.filesystem:FileSystemWriter.write_data"),
    ],
)
def test_a_signal_to_all_processes_saves_and_ends_a_run(number, place, tmp_path):
    config = write_toy_run(tmp_path, 40)
    overrides = ["max_duration=2ba", "save_interval=1ba", "train_loader.num_workers=1", "save_async=false"]
    ((code, err),) = run_ranks(_main, 1, config, overrides, place, number)
    saved = f"stopped: {number.name} received: batch 1 is saved in {tmp_path}/toy/ep0-ba1; resume with: composer -n 1 "
    assert code == 75
    assert err.startswith(saved)
    assert err.endswith(f" {config} {' '.join(overrides)} autoresume=true\n")
    assert err.count("\n") == 1


def _launch_and_die(config: str, ended: Path) -> None:
    """Act like a launcher that is killed while its rank trains."""
    from train.composer_model import DbrxForComposer
    from train.main import main

    if os.fork():
        time.sleep(60)
    forward, calls = DbrxForComposer.forward, iter(range(100))

    def with_kill(*args, **kwargs):
        if next(calls) == 0:
            os.kill(os.getppid(), signal.SIGKILL)
        return forward(*args, **kwargs)

    DbrxForComposer.forward = with_kill
    sys.argv = ["train.py", config, "max_duration=2ba", "device_train_microbatch_size=8"]
    code = main()
    ended.with_suffix(".part").write_text(str(code))
    ended.with_suffix(".part").rename(ended)
    os._exit(0)


@pytest.mark.ranks
@pytest.mark.skipif(sys.platform != "linux", reason="a process is not signalled when its parent dies")
def test_a_rank_whose_launcher_dies_saves_and_ends(tmp_path):
    config = write_toy_run(tmp_path, 40)
    with pytest.raises(RuntimeError, match=r"exit codes \[-9\]"):
        run_ranks(_launch_and_die, 1, config, tmp_path / "ended")
    deadline = time.monotonic() + 60
    while not (tmp_path / "ended").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (tmp_path / "ended").read_text() == "75"
    assert (tmp_path / "toy/ep0-ba1/.metadata").exists()


@pytest.mark.ranks
def test_a_signal_while_weights_are_loaded_ends_the_run_immediately(tmp_path):
    config = write_toy_run(tmp_path, 40)
    place = "train.models.dbrx:DbrxForCausalLM.__init__"
    ((code, err),) = run_ranks(_main, 1, config, ["max_duration=2ba"], place, signal.SIGUSR1)
    assert (code, err) == (138, LINE.format("SIGUSR1"))


@pytest.mark.ranks
@pytest.mark.parametrize("name", ["SIGINT", "SIGUSR1"])
def test_signal_ends_preparation_with_its_workers(name, tmp_path):
    config = write_toy_run(tmp_path, 40)
    (tmp_path / "signal.jsonl").write_text(json.dumps({"prompt": name, "response": "Stop."}))
    files = f"hf_kwargs.data_files=[{tmp_path}/train.jsonl, {tmp_path}/signal.jsonl]"
    dataset = ("preprocessing_fn=tests.supervision.test_signals:signal_in_worker", "prepare_workers=2", files)
    overrides = [f"train_loader.dataset.{override}" for override in dataset]
    ((code, err),) = run_ranks(_main, 1, config, overrides, "", 0)
    assert (code, err) == (128 + signal.Signals[name], LINE.format(name))


def _in_child(act) -> tuple[int, str]:
    """Return the exit code (negative: the signal) and stderr of a forked process that calls act(signals)."""
    with tempfile.TemporaryFile("w+") as err:
        if (pid := os.fork()) == 0:
            os.dup2(err.fileno(), 2)
            sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
            code = 99
            try:
                with stop_signals() as signals:
                    code = act(signals) or 0
            except SystemExit as error:
                code = error.code
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        err.seek(0)
        return code, err.read()


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_before_training_a_signal_raises_once(number):
    def act(signals):
        try:
            send(number)
        finally:
            send(number)
            send(signal.SIGTERM)
            assert signals.received == number

    assert _in_child(act) == (128 + number, "")


def test_before_training_a_signal_that_a_destructor_swallows_is_raised_again(monkeypatch):
    monkeypatch.setattr("train.supervision.signals._AGAIN_SECONDS", 0.1)
    monkeypatch.setattr("train.supervision.signals.IGNORED_SECONDS", 0.0)

    class Swallows:
        def __del__(self):
            send()

    def act(signals):
        try:
            Swallows()
            sys.stderr.write("swallowed\n")
            time.sleep(5)
        finally:
            time.sleep(0.5)  # this sleep is not interrupted
            sys.stderr.write("cleaned up\n")

    assert _in_child(act) == (143, "swallowed\ncleaned up\n")


def _hang():
    """Block like a collective: the main thread waits in C, and Python calls no handler."""
    lock = ctypes.create_string_buffer(256)
    libc = ctypes.CDLL(None)
    libc.pthread_mutex_lock(lock)
    libc.pthread_mutex_lock(lock)


@pytest.mark.parametrize("where", [_hang, lambda: time.sleep(5)], ids=["hung", "in Python"])
def test_while_training_duplicates_are_ignored_and_a_later_signal_ends_the_process(where, monkeypatch):
    monkeypatch.setattr("train.supervision.signals.IGNORED_SECONDS", 0.3)

    def act(signals):
        with signals.deferred():
            send(signal.SIGUSR1)
            assert signals.received == signal.SIGUSR1
            for _ in range(3):
                send()
            time.sleep(0.1)
            threading.Timer(0.1, send).start()  # still counts as a duplicate
            threading.Timer(0.5, send).start()
            where()

    again = "received again, and nothing has been saved since the first signal"
    line = LINE.format("SIGUSR1").replace("received", again)
    assert _in_child(act) == (138, line)


def test_while_the_saved_run_ends_signals_are_ignored(monkeypatch):
    monkeypatch.setattr("train.supervision.signals.IGNORED_SECONDS", 0.0)

    def act(signals):
        with signals.deferred():
            send()
            signals.ignore_all()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                send(number)
                time.sleep(0.02)
        return 75

    assert _in_child(act) == (75, "")


def test_waiting_for_data_is_interrupted_by_a_signal_before_it_or_in_it():
    def act(signals):
        interrupted = 0
        with signals.deferred():
            with signals.interruptible():
                pass
            for wait in (send, time.sleep):
                try:
                    with signals.interruptible():
                        wait(*([] if wait is send else [60]))
                except WaitInterrupted:
                    interrupted += 1
            send()  # not interrupted outside of the context
        return interrupted

    assert _in_child(act) == (2, "")


def test_the_signals_of_a_forked_process_are_not_its_parents():
    def act(signals):
        with signals.deferred():
            if (pid := os.fork()) == 0:
                send()
                os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
            time.sleep(0.1)
            assert signals.received is None

    assert _in_child(act) == (0, "")
