"""Output of the commands that the quickstart runs."""

import pytest

from data.base.errors import ConfigError
from train.run.quickstart import run

LAUNCHER = "Waiting up to 30 seconds for all training processes to terminate. Press Ctrl-C to exit immediately."


@pytest.mark.subprocess
def test_the_launcher_s_last_line_is_hidden_and_a_failure_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    code = f"print('a line'); print('{LAUNCHER}'); raise SystemExit(3)"
    with pytest.raises(ConfigError, match="ended with exit code 3"):
        run("python", "-c", code)
    assert capsys.readouterr().out.splitlines()[-1] == "a line"
