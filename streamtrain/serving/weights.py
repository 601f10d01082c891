"""How the weights of rows stand in an exported file: whole, or shorter with an error that is known (`docs/serving.md`)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Encoding", "decode", "encode"]

Encoding = Literal["float32", "bfloat16", "int8"]

_INT8_MAX = 127
_EXPONENT = 0x7F80
# The largest whose product with 127 is finite.
_SCALE_MAX = np.nextafter(np.finfo(np.float32).max / np.float32(_INT8_MAX), np.float32(0))


def encode(weights: NDArray[np.float32], encoding: Encoding) -> dict[str, NDArray[np.generic]]:
    """The tensors that stand for finite `weights` (`[R, D]` float32), by column.

    Returns:
      float32: `weights` `[R, D]` float32, as they are.
      bfloat16: `weights` `[R, D]` uint16, the upper halves of the float32 numbers, rounded to nearest, ties to even.
        Each weight w is off by 2^-8 |w| at most.
      int8: `weights` `[R, D]` int8 and `scales` `[R]` float32, the largest |w| of each row / 127: a weight is off by half
        its row's scale at most.
    """
    if encoding == "float32":
        return {"weights": weights}
    if encoding == "bfloat16":
        bits = np.ascontiguousarray(weights).view(np.uint32)
        rounded = (bits + (np.uint32(0x7FFF) + (bits >> 16 & 1))) >> 16
        # What would round up to infinity is cut instead.
        return {"weights": np.where(rounded & _EXPONENT == _EXPONENT, bits >> 16, rounded).astype(np.uint16)}
    scales = np.minimum(np.abs(weights).max(axis=1, initial=0.0) / np.float32(_INT8_MAX), _SCALE_MAX)
    # A row of zeros, or of numbers so small that their scale is 0, is a row of zeros.
    whole = np.rint(weights / np.where(scales > 0, scales, np.inf)[:, None])
    return {
        "weights": np.clip(whole, -_INT8_MAX, _INT8_MAX).astype(np.int8),
        "scales": scales.astype(np.float32),
    }


def decode(weights: NDArray[np.generic], scales: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """What `encode` made, as a float32 array of its own."""
    if weights.dtype == np.float32:
        return weights.astype(np.float32)
    if weights.dtype == np.uint16:
        return (weights.astype(np.uint32) << 16).view(np.float32)
    assert scales is not None, "the file was checked"
    return weights.astype(np.float32) * scales[:, None]
