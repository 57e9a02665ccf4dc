"""A profile whose files cannot be written."""

from contextlib import ExitStack
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from train.config.supervision import ProfileConfig
from train.throughput.profile import Profile


def test_files_that_cannot_be_written_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    each = Profile(ProfileConfig(step=2), tmp_path / "file" / "profile")
    each._running = MagicMock(), ExitStack()
    each._write(MagicMock())
    (message,) = caplog.messages
    assert message.startswith(f"profile: {tmp_path}/file/profile cannot be written: ")
