"""Fixtures that several test files use."""

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

# Use one thread per pytest-xdist worker and in the processes that tests start, because more threads would compete for
# cores. torch and numpy read the variable once, when they are imported, and none of the imports above loads them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.addaudithook(watch_programs)
show_on_console()  # all programs of this repository set this variable
reports_at_end(False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with slow tests first, so that no worker is still busy with such a file when the others have
    finished."""
    weights = Counter(item.path for item in items for marker in ("slow", "ranks") if item.get_closest_marker(marker))
    items.sort(key=lambda item: -weights[item.path])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    with running(item):
        return (yield)


@pytest.fixture(autouse=True, scope="session")
def an_unusable_gpu_does_not_matter():
    """Compute on the CPU if torch cannot use the machine's GPU. A real run would raise an error on such a machine."""

    def look() -> device.Machine:
        machine = real_look()
        return machine if machine.torch_gpus else replace(machine, nvidia_gpus=0, amd_gpus=0)

    real_look = device.look
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "look", look)
        yield


@pytest.fixture
def reports() -> Iterator[None]:
    """Make the runs of the test write their report."""
    reports_at_end(True)
    yield
    reports_at_end(False)


@pytest.fixture(autouse=True)
def fixed_random_numbers(request: pytest.FixtureRequest) -> None:
    """Seed the random numbers of each test by its name, so that they are the same in every session."""
    seed = zlib.crc32(request.node.nodeid.encode())
    random.seed(seed)
    # torch and numpy are not imported here, because that takes seconds that many tests do not need. A test that imports
    # them first uses their own initial state.
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


@pytest.fixture(autouse=True, scope="module")
def no_process_group_is_left() -> Iterator[None]:
    """End a process group that a test has started, because the files run in any order in the same process."""
    yield
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        distributed.destroy_process_group()


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return an MDS folder of texts in several shards."""
    from tests.helpers.mds_folders import (
        write_texts,
    )  # imported here because the import takes seconds, and most files do not need it

    return write_texts(tmp_path / "mds")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a save folder with one checkpoint of a small model."""
    from tests.helpers.small_export import write_run  # imported here for the same reason

    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    write_run(folder)
    return folder
