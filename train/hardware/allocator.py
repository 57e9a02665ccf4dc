"""What the process's allocator does with memory that was freed."""

import ctypes

# Of glibc's malloc.h, and the largest value that it takes for the second.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 1 << 25


def keep_freed_memory() -> None:
    """Lets glibc keep what is freed for the next allocation; elsewhere nothing happens.

    By itself it gives every step's gradients and activations back to the kernel, and a step on CPU then spends a tenth
    of its time in page faults. Tensors over 32 MiB come from the kernel all the same.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST)
    mallopt(_M_TRIM_THRESHOLD, -1)
