"""How the process's allocator treats freed memory."""

import ctypes

# From glibc's malloc.h, and the largest value that it accepts for the second parameter.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 1 << 25


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for later allocations; has no effect with other C libraries.

    By default glibc returns every step's gradients and activations to the kernel, and a step on a CPU spends a tenth of
    its time in page faults. Tensors over 32 MiB are still allocated by the kernel.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST)
    mallopt(_M_TRIM_THRESHOLD, -1)
