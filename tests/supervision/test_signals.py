import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.helpers.ranks import run_ranks
from tests.helpers.toy_run import write_toy_run

ROOT = Path(__file__).parents[2]
LINE = "stopped: {} received; with autoresume=true the next start resumes from the newest checkpoint\n"


def signal_group(number: int) -> None:
    """As a terminal does, or a scheduler: the process and all of its workers."""
    os.killpg(os.getpgrp(), number)


def signal_in_worker(row):
    if row["prompt"] in signal.Signals.__members__ and os.getpid() != os.getpgrp():
        signal_group(signal.Signals[row["prompt"]])
    return row


def _main(config: str, overrides: list[str], place: str, number: int) -> tuple[int, str]:
    """main's exit code and stderr, when the signal comes as `place` (module:class.method) is called."""
    from train.main import main

    os.setpgrp()
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
    ("number", "place", "overrides"),
    [
        (signal.SIGTERM, "train.composer_model:DbrxForComposer.forward", ["train_loader.num_workers=1"]),
        (signal.SIGTERM, "train.composer_model:DbrxForComposer.eval_forward", ["eval_first=true"]),
        (signal.SIGINT, "torch.distributed.checkpoint.filesystem:FileSystemWriter.write_data", ["save_interval=1ba"]),
    ],
)
def test_signal_ends_a_run_with_one_line(number, place, overrides, tmp_path):
    config = write_toy_run(tmp_path, 40)
    ((code, err),) = run_ranks(_main, 1, config, ["max_duration=2ba", *overrides], place, number)
    assert (code, err) == (128 + number, LINE.format(number.name))


@pytest.mark.ranks
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signal_ends_preparation_with_its_workers(name, tmp_path):
    config = write_toy_run(tmp_path, 40)
    (tmp_path / "signal.jsonl").write_text(json.dumps({"prompt": name, "response": "Stop."}))
    files = f"hf_kwargs.data_files=[{tmp_path}/train.jsonl, {tmp_path}/signal.jsonl]"
    dataset = ("preprocessing_fn=tests.supervision.test_signals:signal_in_worker", "prepare_workers=2", files)
    overrides = [f"train_loader.dataset.{override}" for override in dataset]
    ((code, err),) = run_ranks(_main, 1, config, overrides, "", 0)
    assert (code, err) == (128 + signal.Signals[name], LINE.format(name))


@pytest.mark.subprocess
@pytest.mark.proof
def test_ctrl_c_under_the_launcher(tmp_path):
    config = write_toy_run(tmp_path)
    launcher = [str(Path(sys.executable).with_name("composer")), "-n", "2", str(ROOT / "train.py")]
    endless = ["max_duration=100000ba", "train_loader.dataset.max_repeats=1e9", "eval_loader=null"]
    env = {key: value for key, value in os.environ.items() if not key.endswith(("RANK", "WORLD_SIZE"))}
    run = subprocess.Popen(
        [*launcher, config, *endless], env=env, stdout=-1, stderr=-1, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "toy/ep0-ba4/.metadata").exists() and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(run.pid, signal.SIGINT)
        out, err = run.communicate(timeout=60)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 130
    assert (out + err).count("stopped: ") == 1
    assert LINE.format("SIGINT").strip() in err
    assert "main.py" not in out + err  # the launcher prints a traceback of its own, in which it is not
