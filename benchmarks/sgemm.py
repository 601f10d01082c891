"""The roofline of the dense half: large float32 matrix products in numpy's BLAS, in rounds beside the competitors.

python -m benchmarks.sgemm
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.peers.rounds import serve

SIZE = 2048
"""Large enough that starting costs nothing, small enough for a tenth of a second."""
PRODUCTS_MAX = 6


def learn(first: int, end: int) -> dict[str, Any]:
    """As many products as a round has steps, or PRODUCTS_MAX; see `serve`."""
    rates = []
    for _ in range(min(end - first, PRODUCTS_MAX)):
        begin = time.perf_counter()
        np.matmul(_LEFT, _RIGHT, out=_OUT)
        rates.append(2 * SIZE**3 / (time.perf_counter() - begin) / 1e9)
    return {"loss": 0.0, "gflops": max(rates)}


_LEFT, _RIGHT = (np.random.default_rng(i).standard_normal((SIZE, SIZE), np.float32) for i in range(2))
_OUT = np.empty((SIZE, SIZE), np.float32)


if __name__ == "__main__":
    serve(learn, {"version": np.__version__})
