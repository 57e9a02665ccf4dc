"""The peak memory of a rank."""

import resource
import sys

import torch


def peak_memory(*, gpu: bool) -> int:
    """Bytes: those that torch has allocated on the GPU at most, or the largest resident set of this process."""
    if gpu:
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
