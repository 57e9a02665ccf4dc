import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from train.hardware.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()

def step():
    made = [torch.ones(2 << 20) for _ in range(12)]  # 96 MiB in 12 tensors, allocated as in a step, then all freed

for _ in range(5):  # the heap grows in pieces, until all fit
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc's malloc")
def test_freed_memory_is_not_fetched_from_the_kernel_again() -> None:
    # By default glibc adapts its thresholds to what a process frees; set by these variables, they are constant.
    thresholds = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}

    def faults(how: str) -> int:
        command = [sys.executable, "-c", FAULTS, how]
        done = subprocess.run(command, capture_output=True, check=True, text=True, env=os.environ | thresholds)
        return int(done.stdout)

    kept, given_back = faults("keep"), faults("give back")
    assert kept * 3 < given_back
