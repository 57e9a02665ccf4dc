"""`train.py CONFIG --dry-run` shows the start of the run, and changes nothing."""

import io
import re
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from data.loading.batches import TrainBatches
from data.mds.row import IGNORED
from tests.helpers.ranks import run_ranks
from tests.helpers.toy_run import write_toy_run
from train.config.load import read_config
from train.main import main
from train.run.inputs import open_inputs


def outputs(path: str, commands: Sequence[Sequence[str]]) -> list[tuple[int, str, list[str]]]:
    """For each command on this rank: the exit code, stdout, and the files in the save folder afterwards."""
    found = []
    for command in commands:
        out = io.StringIO()
        with redirect_stdout(out):
            code = main([path, *command])
        files = Path(path).parent.glob("toy/**/*")
        found.append((code, out.getvalue(), sorted(f"{file} {file.stat().st_mtime_ns}" for file in files)))
    return found


@pytest.mark.ranks
def test_a_dry_run_shows_the_plan_and_the_next_batch_and_writes_no_files(tmp_path: Path) -> None:
    path, resume = write_toy_run(tmp_path), ["autoresume=true", "eval_loader=null"]
    commands = [
        ["--dry-run"],
        ["max_duration=4ba", *resume],
        ["--dry-run", *resume],
        ["--dry-run", *resume, "max_duration=4ba"],
    ]
    (first, trained, resumed, ended), other = run_ranks(outputs, 2, path, commands)
    assert [code for code, *_ in (first, trained, resumed, ended, *other)] == [0] * 8
    assert first[2] == []
    assert trained[2] == resumed[2] == ended[2] != []
    assert "dry run" not in trained[1]
    assert "31,952 of the elements on rank 0" in first[1]
    assert "each of 2 rank(s)" in first[1]
    assert re.search(
        r"\nbatch 0: 8 rows of 128 positions, (\d+) tokens .* a rank's input_ids: int64 \[4, 128\]\n", first[1]
    )
    assert "\nbatch 4: 8 rows" in resumed[1]
    assert f"resuming from {tmp_path}/toy/ep0-ba4" in " ".join(resumed[1].split())  # lines are wrapped
    assert "nothing to do: max_duration 4ba is 4 batches" in ended[1]
    assert [out for _, out, _ in other] == [""] * 4


def test_the_batch_is_the_loaders_next_batch(tmp_path: Path) -> None:
    from train.dry_run.first_batch import read_first_batch, texts_of

    config = read_config(write_toy_run(tmp_path))
    inputs = open_inputs(config)
    shown = read_first_batch(config, inputs)
    streams, plan, pad = inputs.data.streams, inputs.data.plan, inputs.tokenizer.pad_token_id
    batch = TrainBatches(streams, plan, max_seq_len=128, n_batches=10, rank=0, world_size=1, pad_token_id=pad)[0]
    assert (shown.number, shown.n_rows, shown.rank_shape) == (0, 8, (8, 128))
    assert shown.tokens == int((batch["document_ids"] >= 0).sum())
    assert shown.trained_tokens == int((batch["labels"] != IGNORED).sum()) > 0
    for place, (_, row_id, row) in enumerate(shown.rows):
        assert batch["input_ids"][place, : len(row.tokens)].tolist() == row.tokens.tolist()
        text = list(texts_of(shown, inputs, marks=True))[place].plain
        assert text.startswith(f"── row {row_id}, document 1 of {len(row.lengths)}")
        assert text.count("⟦") == len(row.lengths)


def test_a_dry_run_reports_the_problems_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_toy_run(tmp_path)
    (tmp_path / "train.jsonl").unlink()
    assert main([path, "--dry-run", "load_path=nowhere"]) == 2
    err = capsys.readouterr().err
    assert "2 problems" in err
    assert "train.jsonl" in err
    assert "load_path is 'nowhere'" in err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.yaml", "eval.jsonl", "vocab.tiktoken"]
