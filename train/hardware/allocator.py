"""How the process's allocator treats freed memory."""

import ctypes

# Parameter numbers from glibc's malloc.h, and the largest M_MMAP_THRESHOLD that glibc accepts.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 1 << 25


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for later allocations. Has no effect with other C libraries.

    By default, glibc returns the memory of gradients and activations to the kernel in every step, so a step on a CPU
    spends a tenth of its time in page faults. Memory for tensors larger than 32 MiB is still requested from the kernel.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST)
    mallopt(_M_TRIM_THRESHOLD, -1)
