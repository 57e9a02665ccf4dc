"""Fixtures of several test files."""

import os
import random
import sys
import zlib
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from data.base.console import show_on_console
from tests.helpers.markers import running, watch_programs
from tests.helpers.reports import reports_at_end
from train.hardware import device

# One thread for each worker of pytest-xdist, and for what tests start: more would wait for each other. torch and numpy,
# which no import above needs, read it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.addaudithook(watch_programs)
show_on_console()  # as every program does
reports_at_end(False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker is left with one when the others have finished."""
    weights = Counter(item.path for item in items for marker in ("slow", "ranks") if item.get_closest_marker(marker))
    items.sort(key=lambda item: -weights[item.path])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    with running(item):
        return (yield)


@pytest.fixture(autouse=True, scope="session")
def an_unusable_gpu_does_not_matter():
    """Tests compute on the CPU where torch cannot use the machine's GPU, which a run would refuse."""

    def look() -> device.Machine:
        machine = real_look()
        return machine if machine.torch_gpus else replace(machine, nvidia_gpus=0, amd_gpus=0)

    real_look = device.look
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "look", look)
        yield


@pytest.fixture
def reports() -> Iterator[None]:
    """Runs of the test end with their report."""
    reports_at_end(True)
    yield
    reports_at_end(False)


@pytest.fixture(autouse=True)
def fixed_random_numbers(request: pytest.FixtureRequest) -> None:
    """Each test has random numbers of its own, the same in every run."""
    seed = zlib.crc32(request.node.nodeid.encode())
    random.seed(seed)
    # Not imported here: torch takes seconds, which tests that do without need not wait for. A test that is the first to
    # import them has their own initial state.
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


@pytest.fixture(autouse=True, scope="module")
def no_process_group_is_left() -> Iterator[None]:
    """A test of a run's start may begin one, and files run in any order, and in any company."""
    yield
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        distributed.destroy_process_group()


@pytest.fixture
def folder(tmp_path) -> Path:
    """An MDS folder of texts, in several shards."""
    from tests.helpers.mds_folders import write_texts  # imports for seconds what most files do not need

    return write_texts(tmp_path / "mds")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A save folder with one checkpoint of a small model."""
    from tests.helpers.small_export import write_run  # as above

    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    write_run(folder)
    return folder
