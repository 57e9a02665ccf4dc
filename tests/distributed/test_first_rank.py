"""Work of rank 0 for all ranks, and how the others wait for it."""

import pytest
from torch._C._distributed_c10d import HashStore

from train.distributed import first_rank
from train.distributed.first_rank import on_first_rank


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> HashStore:
    shared = HashStore()
    monkeypatch.setattr(first_rank, "_get_default_store", lambda: shared)
    monkeypatch.setattr(first_rank.dist, "get_world_size", lambda: 2)
    return shared


def be(monkeypatch: pytest.MonkeyPatch, rank: int, meet: object) -> None:
    monkeypatch.setattr(first_rank.dist, "get_global_rank", lambda: rank)
    monkeypatch.setattr(first_rank.dist, "broadcast_object_list", meet)


def test_other_ranks_join_rank_0_after_the_slow_work(store: HashStore, monkeypatch) -> None:
    done, met = [], []
    be(monkeypatch, 0, lambda errors, src: met.append(0))
    on_first_rank(lambda: done.append(store.check(["sent"])), slow="sent")  # pyright: ignore[reportAttributeAccessIssue]
    assert (done, met) == ([False], [0])
    be(monkeypatch, 1, lambda errors, src: met.append(1))
    on_first_rank(lambda: done.append(True), slow="sent")
    assert (done, met) == ([False], [0, 1])


def test_other_ranks_do_not_join_rank_0_before_the_slow_work(store: HashStore, monkeypatch) -> None:
    met = []

    def sleep(seconds: float) -> None:
        assert met == []
        store.set("sent", "")

    monkeypatch.setattr(first_rank.time, "sleep", sleep)
    be(monkeypatch, 1, lambda errors, src: met.append(1))
    on_first_rank(lambda: None, slow="sent")
    assert met == [1]


def test_an_error_on_rank_0_ends_the_wait_of_other_ranks(store: HashStore, monkeypatch) -> None:
    be(monkeypatch, 0, lambda errors, src: None)

    def fail() -> None:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        on_first_rank(fail, slow="sent")
    assert store.check(["sent"])  # pyright: ignore[reportAttributeAccessIssue]: torch's stubs lack it
