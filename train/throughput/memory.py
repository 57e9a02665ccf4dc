"""The peak memory of a rank."""

import resource
import sys

import torch


def peak_memory(*, gpu: bool) -> int:
    """Peak memory in bytes. On a GPU, this is the maximum that torch has allocated; otherwise, it is the maximum
    resident set size of this process."""
    if gpu:
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
