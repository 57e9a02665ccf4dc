"""Verify an export in the running process, because a new process takes seconds to import torch."""

import os
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any
from unittest.mock import patch

from train.export import verify

_run = subprocess.run


def verify_here(command: list[str], *, env: dict[str, str] | None = None, **kwargs: Any) -> Any:
    """Replaces subprocess.run for `python -m train.export.verify FOLDER ...`."""
    if command[0] == "git":
        return _run(command, env=env, **kwargs)
    assert command[1:3] == ["-m", "train.export.verify"]
    with patch.dict(os.environ, os.environ if env is None else env, clear=True):
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
            code = verify.main(command[3:])
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())
