"""Arguments, exit codes and output streams of scripts/checkpoint.py."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.load_script import SCRIPTS, load_script
from tests.helpers.saved_checkpoints import flip, write_save_folder

GOLDEN = Path(__file__).parents[1] / "golden" / "run"
main = load_script("checkpoint").main


def test_ls_lists_checkpoints_and_ends_with_2_after_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_save_folder(tmp_path, 10, 20)
    assert main(["ls", str(folder)]) == 0
    flip(folder / "ep0-ba10" / "manifest.json", 200)
    assert main(["ls", str(folder), "--json"]) == 2
    out, err = capsys.readouterr()
    assert len(json.loads(out[out.index("{") :])["checkpoints"]) == 2
    assert f"error: checkpoint {folder / 'ep0-ba10'} is corrupt: manifest.json is damaged" in err


def test_verify_continues_after_a_corrupt_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_save_folder(tmp_path, 10, 20)
    flip(folder / "ep0-ba10" / "__0_0.distcp")
    assert main(["verify", str(folder), str(GOLDEN), str(folder / "ep0-ba20")]) == 2
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{folder / 'ep0-ba10'}: corrupt: __0_0.distcp does not match its hash")
    assert second.startswith(f"{folder / 'ep0-ba20'}: verified, 3 files")
    assert third.startswith(f"{GOLDEN / 'ep0-ba4'}: cannot be verified")
    assert main(["verify", str(folder / "ep0-ba20")]) == 0


def test_diff_ends_with_1_for_differences_and_2_for_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(GOLDEN, tmp_path / "run")
    assert main(["diff", str(GOLDEN), str(tmp_path / "run" / "ep0-ba4")]) == 0
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("seed: 5", "seed: 6"))
    assert main(["diff", str(GOLDEN), str(tmp_path / "run")]) == 1
    assert "  seed: 5 -> 6\n" in capsys.readouterr().out
    assert main(["diff", str(GOLDEN), str(tmp_path / "none")]) == 2
    assert main(["diff", str(GOLDEN), str(GOLDEN), "--top", "-1"]) == 2


def test_prune_deletes_only_with_yes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_save_folder(tmp_path, 10, 20)
    assert main(["prune", str(folder), "--keep", "1"]) == 0
    assert "nothing was deleted: with --yes, the command frees 4." in capsys.readouterr().out
    assert main(["prune", str(folder), "--keep", "1", "--yes"]) == 0
    assert "deleted ep0-ba10\nfreed 4." in capsys.readouterr().out
    assert main(["prune", str(folder), "--keep", "1", "--yes"]) == 0
    assert capsys.readouterr().out == "keep ep0-ba20\nnothing to delete\n"


@pytest.mark.parametrize(
    "arguments", [["ls", "no"], ["ls", "x" * 300], ["verify", "a\0b"], ["diff", "no", "no"], ["prune", ".", "--keep=0"]]
)
def test_a_bad_argument_is_one_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("error: "), err.count("\n")) == ("", 1, 1)


@pytest.mark.subprocess
def test_listing_and_verifying_import_no_torch(tmp_path: Path) -> None:
    folder = write_save_folder(tmp_path, 10)
    code = "import runpy, sys; sys.argv[:] = sys.argv[1:]\ntry: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    code += "finally: print('torch' in sys.modules)"
    for command in ("ls", "verify"):
        program = [sys.executable, "-c", code, str(SCRIPTS / "checkpoint.py"), command, str(folder)]
        done = subprocess.run(program, capture_output=True, text=True, check=True)
        assert "ep0-ba10" in done.stdout
        assert done.stdout.endswith("False\n")
