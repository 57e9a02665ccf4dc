"""Ranks that join late, fail, or cannot reach each other: dist_timeout starts when all ranks are ready."""

import os
import socket
import time
from collections.abc import Iterator

import pytest
import torch
from composer.devices import DeviceCPU
from composer.utils import dist

from data.base.errors import ConfigError, DataError
from tests.helpers.ranks import run_ranks
from train.distributed import process_group, rank_store
from train.distributed.process_group import initialize_dist, sharing_failures

TIMEOUT = 2.0


def join_late(late: int) -> float:
    with sharing_failures():
        if int(os.environ["RANK"]) == late:
            time.sleep(2 * TIMEOUT)
        initialize_dist(DeviceCPU(), TIMEOUT)
    total = torch.ones(1)
    dist.all_reduce(total)
    return total.item()


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("late", [0, 1])
def test_a_late_rank_is_waited_for(late: int) -> None:
    assert run_ranks(join_late, 2, late) == [2.0, 2.0]


def fail_on_rank_1() -> str:
    try:
        with sharing_failures():
            if os.environ["RANK"] == "1":
                while rank_store.why_not_served() is not None:
                    time.sleep(0.01)
                raise DataError("no rows in s3://key:word@bucket")
            initialize_dist(DeviceCPU(), 60)
    except (ConfigError, DataError) as error:
        return str(error)
    return ""


@pytest.mark.ranks
def test_a_rank_that_fails_is_named_by_those_that_wait_for_it() -> None:
    assert run_ranks(fail_on_rank_1, 2) == [f"{whose}no rows in s3://***@bucket" for whose in ("rank 1 failed: ", "")]


def join_rank_0_which_ends() -> str:
    with sharing_failures():
        if os.environ["RANK"] == "0":
            store = rank_store.connect()
            while store.add(process_group._ARRIVED, 0) < 1:
                time.sleep(0.01)
            return ""
        with pytest.raises(ConfigError) as raised:
            initialize_dist(DeviceCPU(), 60)
    return str(raised.value)


@pytest.mark.ranks
def test_rank_0_that_has_ended_is_reported() -> None:
    message = run_ranks(join_rank_0_which_ends, 2)[1]
    assert "connection to rank 0" in message
    assert "127.0.0.1:" in message


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server at the address of rank 0 that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
        yield f"127.0.0.1:{port}"


def test_another_programs_server_is_reported(listening: str) -> None:
    assert rank_store.why_not_served() is None
    with pytest.raises(ConfigError, match=f"{listening}, which does not respond like rank 0"):
        rank_store.connect(0.5)


def test_a_port_in_use_is_reported(listening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match=f"{listening}, which is in use"), sharing_failures():
        pass


@pytest.mark.parametrize("name", ["MASTER_ADDR", "MASTER_PORT", "RANK"])
def test_a_missing_variable_is_named(listening: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(name)
    with pytest.raises(ConfigError, match=f"^{name} is not set, but WORLD_SIZE is 2"), sharing_failures():
        pass


@pytest.mark.parametrize("port", ["x", "0", "65536"])
def test_an_invalid_port_is_named(listening: str, port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(ConfigError, match=f"^MASTER_PORT is '{port}'"), sharing_failures():
        pass


def arrive_twice() -> list[int]:
    """The number of arrived ranks, in a first and in a second attempt."""
    first = rank_store.connect()
    os.environ["TORCHELASTIC_RESTART_COUNT"] = "1"
    second = rank_store.connect()
    return [first.add("arrived", 1), second.add("arrived", 1)]


@pytest.mark.ranks
def test_a_restart_does_not_count_arrivals_of_an_earlier_attempt() -> None:
    assert run_ranks(arrive_twice, 1) == [[1, 1]]


def test_an_address_that_cannot_be_resolved_is_reported(listening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "a..b")
    with pytest.raises(ConfigError, match=r"^MASTER_ADDR is 'a\.\.b', which is not a valid host name"):
        initialize_dist(DeviceCPU(), 60)


@pytest.mark.parametrize(
    "error",
    [
        socket.gaierror(-2, "Name or service not known"),
        OSError(113, "No route to host"),
        ConnectionRefusedError(111, "Connection refused"),
    ],
)
def test_rank_0_that_is_never_reached_is_reported_with_the_reason(
    listening: str, error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(
        ConfigError, match=f"{listening} cannot be reached after 0.3 s .dist_timeout.: {error.strerror}"
    ):
        initialize_dist(DeviceCPU(), 0.3)


def test_polling_slows_down_and_the_notice_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    now, sleeps, notices = [0.0], [], []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(process_group.node_logger, "info", lambda _: notices.append(now[0]))
    assert not process_group._poll(lambda: False, lambda: "Waiting", 200)
    assert sleeps[0] == 0.2
    assert max(sleeps) == 5.0
    assert len(sleeps) < 70
    assert [round(notice) // 10 for notice in notices] == [1, 7, 13, 19]
