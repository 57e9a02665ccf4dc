"""Which rank prints which messages."""

import logging
import multiprocessing
import sys
from collections.abc import Callable

import pytest

from data.base import console


@pytest.mark.parametrize(
    ("rank", "local_rank", "shown"),
    [
        (0, 0, ["of the run", "of the node", "of its work"]),
        (1, 1, ["of its work"]),
        (8, 0, ["of the node", "of its work"]),
    ],
)
def test_rank_0_prints_for_the_run_and_local_rank_0_for_its_node(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: int, local_rank: int, shown: list[str]
) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    console.logger.info("of the run")
    console.node_logger.info("of the node")
    console.rank_logger.info("of its work")
    assert capsys.readouterr().out.splitlines() == shown


def test_warnings_are_marked_and_a_notice_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_on_console()  # has been called before
    console.logger.warning("100% of it")
    for _ in range(2):
        console.notice("a file is not read")
    assert capsys.readouterr().out == "warning: 100% of it\na file is not read\n"


def test_without_the_handler_nothing_is_printed_and_other_handlers_get_the_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(console.logger, "handlers", [caplog.handler])
    assert console.shown_in_workers() is None
    console.node_logger.info("of the node")
    assert (caplog.messages, capsys.readouterr().out) == (["of the node"], "")


def _speak(begin: Callable[[int], None]) -> None:
    begin(0)
    console.logger.info("from a worker")


@pytest.mark.subprocess
def test_a_spawned_worker_shows_what_its_parent_does(capfd: pytest.CaptureFixture[str]) -> None:
    context = multiprocessing.get_context("spawn")
    worker = context.Process(target=_speak, args=(console.shown_in_workers(),))
    worker.start()
    worker.join()
    assert (worker.exitcode, capfd.readouterr().out) == (0, "from a worker\n")


def test_secrets_are_hidden_in_messages_and_in_all_that_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_on_console()
    console.logger.info("from %s", "s3://key:word@bucket")
    logging.StreamHandler(sys.stderr).handle(logging.makeLogRecord({"msg": "its password=word"}))
    try:
        raise OSError("no s3://key:word@bucket")
    except OSError as error:
        sys.excepthook(OSError, error, error.__traceback__)
    out, err = capsys.readouterr()
    assert out == "from s3://***@bucket\n"
    assert err.startswith("its password=***\nTraceback (most recent call last):\n")
    assert err.endswith("OSError: no s3://***@bucket\n")
