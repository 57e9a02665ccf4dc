"""The peak memory of a rank."""

import resource
import sys

import torch


def peak_memory(*, gpu: bool) -> int:
    """Peak memory in bytes: the memory that torch allocated on the GPU or, without a GPU, the largest resident set size
    of this process."""
    if gpu:
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
