"""--debug shows the traceback of an error that is otherwise one line."""

from pathlib import Path

import pytest

from tests.helpers.load_script import load_script


@pytest.mark.parametrize(
    "arguments",
    [
        ["checkpoint", "ls", "nowhere"],
        ["plan", "nowhere.yaml"],
        ["inspect_data", "nowhere.yaml"],
        ["report", "nowhere"],
        ["doctor", "nowhere.yaml"],
        ["generate", "nowhere", "a prompt"],
        ["convert_text_to_mds", "--path", "nowhere.txt", "--out_root", "out", "--tokenizer", "tiktoken"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_debug_shows_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    script, *rest = arguments
    errors = []
    for more in ([], ["--debug"]):
        assert load_script(script).main([*rest, *more]) == 2
        errors.append(capsys.readouterr().err)
    assert "Traceback" not in errors[0]
    assert errors[1].startswith("Traceback")
    assert errors[1].endswith(errors[0])
