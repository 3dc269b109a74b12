"""Memory of a process that frees and takes large tensors again and again on a CPU."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MMAP_BYTES = 32 * 2**20  # glibc takes no larger one; above it memory goes back to the system at once
_TRIM_BYTES = 2**31 - 1


def keep_heap() -> None:
    """Have glibc keep up to 2 GiB of freed memory for the next tensors instead of giving it back to the system.

    Memory that is taken anew is cleared page by page at its first use: in training on a CPU that was a third of the
    time (mallopt(3)). Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
