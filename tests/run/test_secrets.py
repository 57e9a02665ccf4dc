"""Secrets in unusual places of a config appear in none of the run's files and output, and its saved config still
works."""

from pathlib import Path

import pytest
import yaml

from tests.helpers.mds_folders import shorten_waits
from tests.helpers.toy_run import write_toy_run
from train.main import main

WORD = "wJalrXUtnFEMI/K7MDENG"
SECRETS = {"hf": "hf_" + "Ab12" * 8, "aws": WORD}
ODD = {
    "callbacks": {
        "generate": {"prompts": [f"Say {SECRETS['hf']}", f"pwd={WORD}"], "interval": "1ba", "max_new_tokens": 1}
    },
    "loggers": {
        "file": {"filename": "log.txt"},
        "tensorboard": {"log_dir": "board"},
    },
}
REMOTE = f"train_loader.dataset={{remote: 's3://AKIAIOSFODNN7EXAMPLE:{WORD}@no/x', max_seq_len: 128, cache_dir: cache}}"
INVALID = [f"train_loader.dataset.hf_kwargs.token={SECRETS['hf']}", f"precision={SECRETS['hf']}", REMOTE]


@pytest.mark.subprocess
def test_secrets_are_not_written_and_the_saved_config_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(write_toy_run(tmp_path))
    text = path.read_text()
    path.unlink()
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    given = tmp_path / "given.yaml"
    given.write_text(yaml.safe_dump({**yaml.safe_load(text), **ODD}))
    overrides = ["save_folder=saved", "save_interval=1ba", "max_duration=1ba", "scheduler.t_warmup=0ba"]
    assert main([str(given), *overrides, "eval_loader=null"]) == 0
    saved = Path("saved/config.yaml")
    assert main([str(saved), "autoresume=true", "max_duration=2ba"]) == 0
    shorten_waits(monkeypatch)
    for override in INVALID:
        assert main([str(given), override]) == 2
    out, err = capsys.readouterr()
    assert "error: command line: train_loader.dataset.remote is 's3://***@no/x', but" in err
    assert " from saved/ep0-ba1" in out
    written = {str(file): file.read_bytes().decode(errors="replace") for file in Path().rglob("*") if file.is_file()}
    assert {"saved/record.jsonl", "saved/config.yaml", "log.txt-rank0"} <= {*written}
    assert any(name.startswith("board/") for name in written)
    for name, content in {**written, "stdout": out, "stderr": err}.items():
        assert [kind for kind, secret in SECRETS.items() if secret in content] == [], name
