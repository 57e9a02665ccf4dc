"""What rank 0 does for all, and how the others wait for it."""

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


def test_the_others_meet_rank_0_once_what_is_slow_is_done(store: HashStore, monkeypatch) -> None:
    done, met = [], []
    be(monkeypatch, 0, lambda errors, src: met.append(0))
    on_first_rank(lambda: done.append(store.check(["sent"])), slow="sent")  # pyright: ignore[reportAttributeAccessIssue]
    assert (done, met) == ([False], [0])
    be(monkeypatch, 1, lambda errors, src: met.append(1))
    on_first_rank(lambda: done.append(True), slow="sent")
    assert (done, met) == ([False], [0, 1])


def test_they_do_not_meet_before(store: HashStore, monkeypatch) -> None:
    met = []

    def sleep(seconds: float) -> None:
        assert met == []
        store.set("sent", "")

    monkeypatch.setattr(first_rank.time, "sleep", sleep)
    be(monkeypatch, 1, lambda errors, src: met.append(1))
    on_first_rank(lambda: None, slow="sent")
    assert met == [1]


def test_a_defect_on_rank_0_ends_their_wait(store: HashStore, monkeypatch) -> None:
    be(monkeypatch, 0, lambda errors, src: None)

    def fail() -> None:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        on_first_rank(fail, slow="sent")
    assert store.check(["sent"])  # pyright: ignore[reportAttributeAccessIssue]: torch's stubs lack it
