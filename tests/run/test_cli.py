import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

import train.main
from data.base.errors import ConfigError, DataError
from tests.helpers.small_config import LEAST
from tests.helpers.toy_run import write_toy_run
from train.main import main
from train.supervision import error_report

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "composer", "transformers", "streaming", "datasets", "numpy")


@pytest.fixture
def config(tmp_path, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "RUN_NAME"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "small.yaml"
    (tmp_path / "rows.jsonl").write_text("")
    data = f"hf_name: json, hf_kwargs: {{data_files: {tmp_path / 'rows.jsonl'}}}"
    # test_device.py tests the choice of device; choosing the CPU would hide the GPUs from later tests.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    path.write_text(LEAST.replace("hf_name: json", data) + "device: cpu\n")
    return str(path)


def launched(monkeypatch, world_size: int, rank: int = 0) -> None:
    """Set torchrun's variables. torchrun's own process would host the store."""
    variables = {"RANK": rank, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
    for name, value in (variables | {"TORCHELASTIC_USE_AGENT_STORE": True}).items():
        monkeypatch.setenv(name, str(value))


def trains_with(monkeypatch, fit) -> None:
    """Replace `fit`, which the command line imports last."""
    module = types.ModuleType("train.run.fit")
    module.fit = fit  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "train.run.fit", module)
    monkeypatch.setattr("train.run.inputs.open_inputs", lambda config, problems, **_: problems.raise_if_any())


def run(*arguments: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.endswith(("RANK", "WORLD_SIZE"))}
    return subprocess.run(arguments, cwd=cwd, env=clean | env, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.subprocess
@pytest.mark.parametrize("argument", ["--help", "nope.yaml", "yamls/finetune/dbrx_tiny.yaml seeed=3"])
def test_help_and_config_errors_import_nothing_slow(argument):
    code = (
        "import sys; from train.main import main; code = main(sys.argv[1:]); "
        f"print(code, [name for name in {HEAVY} if name in sys.modules])"
    )
    done = run(sys.executable, "-c", code, *argument.split())
    assert done.stdout.splitlines()[-1] == f"{0 if argument == '--help' else 2} []"


EXPORTS = "callbacks={hf_checkpointer: {save_folder: 'azure://bucket/x', save_interval: 1dur}}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.freeze=['*']"], "optimizer.freeze is ['*'], but these patterns freeze every parameter"),
        (
            ["lora={r: 4, alpha: 8, target_modules: [attn]}", "optimizer.freeze=['*.lora_?']"],
            "optimizer.freeze is ['*.lora_?'], but these patterns freeze every parameter",
        ),
        (
            ["optimizer.param_groups=[{match: ['*.qkv']}]"],
            "optimizer.param_groups[0].match has '*.qkv', but this pattern matches",
        ),
        (
            ["save_folder=azure://bucket/x"],
            "save_folder is 'azure://bucket/x', but the supported object stores are s3:// and gs://",
        ),
        (["save_folder=runs", EXPORTS], "callbacks.hf_checkpointer.save_folder is 'azure://bucket/x', but"),
    ],
)
def test_an_early_error_is_reported_before_data_is_prepared(tmp_path, overrides, message, monkeypatch, capsys):
    monkeypatch.setattr("train.run.inputs.open_data", lambda *_: pytest.fail("the data was prepared"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main([write_toy_run(tmp_path), *overrides]) == 2
    assert capsys.readouterr().err.startswith(f"error: command line: {message}")


def test_early_errors_are_reported_together(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("train.run.inputs.open_data", lambda *_: pytest.fail("the data was prepared"))
    launched(monkeypatch, 3)
    monkeypatch.delenv("RUN_NAME", raising=False)
    (tmp_path / "bad.jsonl").write_bytes(b"PK\x03\x04")
    errors = {
        "autoresume=true;run_name=null;save_folder=runs/{run_name}": "autoresume is true, but without",
        "global_train_batch_size=8": "global_train_batch_size is 8, but it must be divisible by the number of ranks",
        "optimizer.freeze=['*.none']": "optimizer.freeze has '*.none', but this pattern matches no parameter",
        "train_loader.dataset.hf_kwargs.data_files=none.jsonl": "train_loader.dataset.hf_kwargs.data_files has 'none.",
        f"eval_loader.dataset.hf_kwargs.data_files={tmp_path}/bad.jsonl": f"{tmp_path}/bad.jsonl is not UTF-8 text",
        "tokenizer.kwargs.vocab_file=none": "tokenizer.kwargs.vocab_file is 'none', but",
        "load_path=nowhere": "load_path is 'nowhere', which does not exist",
        EXPORTS: "callbacks.hf_checkpointer.save_folder is 'azure://bucket/x', but",
    }
    config = write_toy_run(tmp_path)
    assert main([config, *";".join(errors).split(";")]) == 2
    out, err = capsys.readouterr()
    first, *lines = err.splitlines()
    assert (out, first, len(lines)) == ("", f"error: {config}: {len(errors)} problems", len(errors))
    for message in errors.values():
        assert [line for line in lines if line.removeprefix("  command line: ").strip().startswith(message)], (
            message,
            lines,
        )


def test_missing_weights_are_reported_with_other_errors(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    overrides = ["model={pretrained_model_name_or_path: ./none}", "load_path=nowhere", "optimizer.freeze=['*.none']"]
    assert main([write_toy_run(tmp_path), *overrides]) == 2
    err = capsys.readouterr().err
    assert "2 problems\n" in err
    assert "model.pretrained_model_name_or_path is './none', but" in err
    assert "load_path is 'nowhere', which does not exist" in err


@pytest.mark.subprocess
def test_script_from_another_folder(tmp_path):
    done = run(sys.executable, str(ROOT / "train.py"), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: no config is given: run `python train.py CONFIG [key=value ...]`, where CONFIG is a YAML file such as "
        "yamls/finetune/dbrx_tiny.yaml; --help shows all options\n"
    )


@pytest.mark.slow
@pytest.mark.subprocess
def test_under_the_launcher_an_error_is_printed_once_and_first():
    composer = str(Path(sys.executable).with_name("composer"))
    done = run(composer, "-n", "2", "train.py", "yamls/finetune/dbrx_tiny.yaml", "optimizer.lrr=3")
    assert done.returncode == 2
    both = done.stdout + done.stderr
    assert both.count("optimizer.lrr is not a key; did you mean lr?") == 1
    assert done.stderr.startswith("error: command line: optimizer.lrr is not a key")
    assert "Traceback" not in both


def test_other_local_ranks_report_their_own_error_after_a_wait(monkeypatch, capsys):
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "9")
    assert main(["nope.yaml"]) == 2
    assert waited == [error_report._GRACE_SECONDS]
    assert (
        capsys.readouterr().err
        == f"error: rank 9: nope.yaml does not exist (relative to the working directory, {Path.cwd()})\n"
    )


@pytest.mark.subprocess
def test_launcher_ends_a_waiting_rank(tmp_path):
    env = {key: value for key, value in os.environ.items() if not key.endswith(("RANK", "WORLD_SIZE"))}
    command = [sys.executable, str(ROOT / "train.py"), "nope.yaml"]
    env |= {"RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    rank = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    with pytest.raises(subprocess.TimeoutExpired):
        rank.wait(timeout=1.5)
    rank.send_signal(signal.SIGTERM)
    assert rank.communicate(timeout=10)[1] == ""


def test_help_is_printed_by_local_rank_0_alone(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == ""


def test_config_comes_first(capsys):
    assert main(["optimizer.lr=3", "x.yaml"]) == 2
    assert "error: the first argument must be the config, but 'optimizer.lr=3' is not a file" in capsys.readouterr().err


def test_a_summary_is_printed_before_training(config, monkeypatch, capsys):
    seen = []
    trains_with(monkeypatch, lambda config, **_: seen.append((config, capsys.readouterr().out)))
    assert main([config, "seed=3"]) == 0
    (given, printed), = seen  # fmt: skip
    assert given.seed == 3
    keys = [line.split()[0] for line in printed.splitlines() if not line.startswith(" ")]
    assert keys == ["model", "parameters", "ranks", "precision", "batch", "memory", "config"]
    assert " seed=3" in printed


def test_debug_shows_the_traceback_of_a_configuration_error(config, capsys):
    assert main([config, "seed=-1", "--debug"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1].endswith("seed is -1, but it must be in [0, 2**32)")


@pytest.mark.parametrize("rehash", [True, False])
def test_rehash_may_be_at_any_position(config, monkeypatch, rehash):
    seen = []
    trains_with(monkeypatch, lambda config, **_: seen.append(config.seed))
    monkeypatch.setattr("train.run.inputs.open_inputs", lambda *_, rehash: seen.append(rehash))
    assert main([config, *(["--rehash"] if rehash else []), "seed=3"]) == 0
    assert seen == [rehash, 3]


def test_only_rank_0_prints_the_config(config, monkeypatch, capsys):
    trains_with(monkeypatch, lambda config, **_: None)
    launched(monkeypatch, 2, rank=1)
    assert main([config]) == 0
    assert capsys.readouterr().out == ""


def test_a_missing_master_address_is_a_one_line_error(config, monkeypatch, capsys):
    trains_with(monkeypatch, lambda config, **_: None)
    launched(monkeypatch, 2, rank=1)
    monkeypatch.delenv("MASTER_ADDR")
    assert main([config]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: rank 1: MASTER_ADDR is not set")


@pytest.mark.parametrize("error", [ConfigError("a.b is 3"), DataError("x.jsonl, line 3: no")])
def test_user_errors_are_one_line(config, monkeypatch, capsys, error):
    def fit(config, **_):
        raise error

    trains_with(monkeypatch, fit)
    assert main([config]) == 2
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_bug_keeps_its_traceback(config, monkeypatch):
    def fit(config, **_):
        raise ValueError("a bug")

    trains_with(monkeypatch, fit)
    with pytest.raises(ValueError, match="a bug"):
        main([config])


def test_a_batch_that_cannot_be_split_over_the_ranks(config, monkeypatch, capsys):
    launched(monkeypatch, 3)
    assert main([config]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "global_train_batch_size is 8, but it must be divisible by the number of ranks (3)" in err


def test_the_132b_is_counted_and_refused_before_anything_is_allocated_or_read(monkeypatch, capsys):
    monkeypatch.setattr(train.main, "choose_device", lambda wanted: "cpu")
    monkeypatch.setattr(train.planning.machine, "cpu_memory", lambda: 16e9)
    trains_with(monkeypatch, lambda config, **_: pytest.fail("it went on to train"))
    assert main([str(ROOT / "yamls/finetune/dbrx.yaml")]) == 2
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "parameters     131,596,523,520 (36.47 B active)"
    assert err.startswith("error: 131,596,523,520 parameters do not fit: 1 rank needs at least 1.45tb")
    assert err.count("\n") == 1
