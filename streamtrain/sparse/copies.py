"""Memory for the copies of rows that a cut makes, used again when nobody holds the copy before."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from streamtrain.sparse.memory import CACHE_LINE

__all__ = ["Copies"]

# One that is being written and one that waits for it: an epoch more is not cut before the first is durable.
_BLOCKS_MAX = 2
# A block is made larger than what it is for, and let go of where far less is wanted, so that one large epoch does not
# hold memory for ever.
_ROOM, _WASTE_MAX = 1.25, 8
# What references a free block: the list of blocks, and the loop and the call that count.
_FREE = 3


class Copies:
    """Hands out arrays that share one block of memory, and takes a block again once no array of it is left.

    Fresh memory costs more than what is copied into it: the system finds and clears every page of it, at each cut, while
    the trainer stands still. For one thread; arrays may be held, and let go of, by any.
    """

    def __init__(self) -> None:
        self._blocks: list[NDArray[np.uint8]] = []

    def empty(self, specs: Sequence[tuple[tuple[int, ...], DTypeLike]]) -> list[NDArray[Any]]:
        """Uninitialised C-contiguous arrays by shape and dtype, each on a cache line of its own."""
        sizes = [math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in specs]
        strides = [-(-size // CACHE_LINE) * CACHE_LINE for size in sizes]
        block = self._block(sum(strides) + CACHE_LINE)
        at = -block.ctypes.data % CACHE_LINE
        arrays: list[NDArray[Any]] = []
        for (shape, dtype), size, stride in zip(specs, sizes, strides, strict=True):
            arrays.append(block[at : at + size].view(dtype).reshape(shape))
            at += stride
        return arrays

    @property
    def memory_bytes(self) -> int:
        """Bytes of all blocks, in use or not."""
        return sum(block.nbytes for block in self._blocks)

    def _block(self, size: int) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] | None = None
        for number in reversed(range(len(self._blocks))):
            block = self._blocks[number]
            # Views hold the block itself, whatever they were made from.
            if sys.getrefcount(block) > _FREE:
                continue
            if size <= block.nbytes <= _WASTE_MAX * size:
                found = block
            else:
                del self._blocks[number]
        if found is None:
            found = np.empty(int(size * _ROOM), np.uint8)
            if len(self._blocks) == _BLOCKS_MAX:
                # All are held, longer than epochs are: whoever holds the oldest keeps it.
                del self._blocks[0]
            self._blocks.append(found)
        return found
