"""How every kernel of this package is compiled, and a hint that hides the latency of memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

__all__ = ["kernel", "prefetch", "prefetch_row"]

LINE = 64
LINES_MAX = 8  # The processor goes on by itself from there.

F = TypeVar("F", bound=Callable[..., object])


def kernel(function: F) -> F:
    """Compiles `function` with numba on first call, and caches the machine code on disk.

    Kernels release the interpreter lock, follow IEEE 754 to the letter (no `fastmath`, so no reordering and no fused
    multiply-add: the same bits on every run) and divide like NumPy does (by zero gives inf or NaN, no exception).

    The cache knows a kernel's own file only. So a kernel calls no kernel of another file: a change of that file
    would leave stale machine code behind. A test holds the package to it; the hints below, which have no result, are
    excepted.
    """
    return cast(F, numba.njit(nogil=True, cache=True, fastmath=False, error_model="numpy")(function))


def _prefetch(_context: Any, array: Any, index: Any, byte: Any) -> Any:
    signature = types.void(array, types.int64, types.int64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        stride = cgutils.unpack_tuple(builder, view.strides)[0]
        start = builder.ptrtoint(view.data, stride.type)
        line = builder.add(builder.add(start, builder.mul(arguments[1], stride)), arguments[2])
        pointer, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", [pointer], ir.FunctionType(ir.VoidType(), [pointer, flag, flag, flag])
        )
        # To read, into all levels, as data.
        builder.call(function, [builder.inttoptr(line, pointer), flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return signature, generate


prefetch: Callable[[NDArray[Any], Any, Any], None] = cast(Any, intrinsic)(_prefetch)
"""In kernels, `prefetch(array, index, byte)` asks for the cache line `byte` bytes behind `array[index]`.

It changes nothing, and is harmless at any address. Rows lie all over the memory: asking for the next few while working
on one turns a sum of latencies into their maximum. `index` and `byte` are int64; nothing is checked.
"""


@kernel
def prefetch_row(words: NDArray[np.float32], rows: NDArray[np.int32], at: int, size: int) -> None:
    """Asks for the first `size` bytes of the row `words[rows[at]]`; does nothing where `at` is behind `rows`."""
    if at < rows.size:
        # Rows begin anywhere in a cache line, so that they may lie in one more than their size says.
        for byte in range(0, min(size, LINES_MAX * LINE) + LINE - 1, LINE):
            prefetch(words, np.int64(rows[at]), np.int64(byte))
