"""Memory that never moves, memory that vector units like, and inputs that kernels accept."""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from streamtrain.errors import ConfigError

__all__ = ["aligned_empty", "as_input", "give_back", "populate", "reserve"]

CACHE_LINE = 64
HUGE_PAGE = 2 << 20

# Python knows the name from 3.13 on; the numbers are those of the systems' headers.
MADV_POPULATE_WRITE = 23  # Linux 5.14
NO_RESERVE = {"linux": 0x4000, "darwin": 0x0040}.get(sys.platform, 0)


def reserve(shape: tuple[int, ...], dtype: DTypeLike, purpose: str) -> NDArray[Any]:
    """Reserves address space for an array of zeros that never moves; memory is taken page by page as it is touched.

    So a table can grow to its bound without a copy and without a second buffer, and costs what it holds.

    Args:
      shape: C-contiguous; may be far larger than the machine's memory.
      dtype: the element type.
      purpose: what it is for, for the error's text.

    Returns:
      The array, aligned to a page.

    Raises:
      ConfigError: the system does not hand out that much address space.
    """
    size = max(math.prod(shape) * np.dtype(dtype).itemsize, mmap.PAGESIZE)
    try:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
        memory = mmap.mmap(-1, size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    except (OSError, OverflowError, ValueError) as error:
        raise ConfigError(
            f"{purpose}: cannot reserve {size / 2**30:.1f} GiB of address space ({error}); lower rows_max, "
            "or lift `ulimit -v` and vm.overcommit_memory = 2 on this machine"
        ) from error
    if hasattr(mmap, "MADV_HUGEPAGE") and size > 2 * HUGE_PAGE:
        # Rows are touched at random, so that most misses of the caches are misses of the TLB too; huge pages cure
        # those. The first 2 MiB stay small pages: a small table should not cost a huge one.
        memory.madvise(mmap.MADV_HUGEPAGE, HUGE_PAGE, size - HUGE_PAGE)
    return np.frombuffer(memory, dtype, math.prod(shape)).reshape(shape)


def give_back(array: NDArray[Any], first: int, end: int) -> None:
    """Gives the memory of `array[first:end]` back to the system, and what follows on the last page; nothing of it is in use.

    Args:
      array: whole, from `reserve`; what is given back reads as zeros from then on, or as it was where the system cannot do it.
    """
    memory: Any = array
    while not isinstance(memory, mmap.mmap):
        memory = memory.obj if isinstance(memory, memoryview) else memory.base
    row, page = array.strides[0], mmap.PAGESIZE
    start, stop = -(-first * row // page) * page, -(-end * row // page) * page
    # Elsewhere it may leave the contents, or zero them only later.
    if sys.platform == "linux" and start < stop:
        memory.madvise(mmap.MADV_DONTNEED, start, stop - start)


def populate(array: NDArray[Any], first: int, end: int) -> None:
    """Has the system find memory for `array[first:end]` now, all at once, rather than page by page as it is touched.

    For any thread, also while others write there: contents do not change. A system that cannot do it does nothing.

    Args:
      array: whole, from `reserve`.
    """
    row, page = array.strides[0], mmap.PAGESIZE
    start, stop = first * row // page * page, -(-min(end, len(array)) * row // page) * page
    if sys.platform == "linux" and start < stop:
        # Python's own madvise refuses advice that it does not know, and keeps other threads waiting.
        libc = ctypes.CDLL(None)
        address = ctypes.c_void_p(array.ctypes.data + start)
        libc.madvise(address, ctypes.c_size_t(stop - start), MADV_POPULATE_WRITE)


def aligned_empty(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """An uninitialised C-contiguous array on a cache line's boundary (64 bytes), which JAX can take without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % CACHE_LINE
    return raw[start : start + size].view(dtype).reshape(shape)


def as_input(array: Any, dtype: DTypeLike) -> NDArray[Any]:
    """`array` as a kernel's input: C-contiguous, aligned, of `dtype`, read-only; copied only where it must be.

    Arrays from files, Arrow and JAX may be read-only or unaligned, and numba compiles anew for each such kind. This
    makes them one kind, so that nothing compiles after warm-up.
    """
    result = np.require(array, dtype, ("C", "A")).view()
    result.flags.writeable = False
    return result
