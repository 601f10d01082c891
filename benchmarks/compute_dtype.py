"""What `compute_dtype = "bfloat16"` costs and gains: the dense half's step with each dtype, in turns.

    python -m benchmarks.compute_dtype [--rounds 30] [--batch 5000] [--hidden 200 80] [--width 414] [--threads 2] [--json]

The tower of `train_step` (414-200-80-1, Adam) through `DenseNet.step`; rates are medians over rounds. `ratio_bfloat16` is
bfloat16's rate over float32's; `has_products` says whether this processor multiplies bfloat16 at all: where not, it can
only lose. `logits_apart` is the largest difference of a logit before anything was learned, over their standard deviation.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import at_least_one, machine, parser_of, tell
from streamtrain.dense.model import parse_settings
from streamtrain.dense.net import DenseNet
from streamtrain.dense.threads import use_threads
from streamtrain.doctor.machine import has_short_products
from streamtrain.layout import Layout, PooledColumns
from streamtrain.sparse.memory import aligned_empty

__all__ = ["measure", "options_of"]

DTYPES = ("float32", "bfloat16")
_WARM = 3


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs everything; see the module."""
    use_threads(options.threads)
    layout = Layout((PooledColumns("a", "t", "sum", 0, options.width),), options.width, (), (), 0, ("y",))
    random = np.random.default_rng(1)
    pooled: NDArray[np.float32] = aligned_empty((options.batch, options.width), np.float32)
    pooled[:] = random.standard_normal(pooled.shape, np.float32) * np.float32(0.1)
    rest = (
        np.zeros((options.batch, 0), np.float32),
        (random.random((options.batch, 1)) < 0.3).astype(np.float32),
        np.ones(options.batch, np.float32),
    )
    nets = {
        dtype: DenseNet(
            layout,
            parse_settings({"kind": "mlp", "hidden": options.hidden, "compute_dtype": dtype}),
            seed=1,
            batch_size=options.batch,
            buckets=[options.batch],
        )
        for dtype in DTYPES
    }
    for net in nets.values():
        net.warm_up()
    first = {dtype: net.step(pooled, {}, *rest).logits.copy() for dtype, net in nets.items()}
    seconds: dict[str, list[float]] = {dtype: [] for dtype in DTYPES}
    for number in range(_WARM + options.rounds):
        for dtype, net in nets.items():
            begin = time.perf_counter()
            net.step(pooled, {}, *rest)
            if number >= _WARM:
                seconds[dtype].append(time.perf_counter() - begin)
    rates = {dtype: options.batch / statistics.median(found) for dtype, found in seconds.items()}
    apart = np.abs(first["float32"] - first["bfloat16"]).max() / first["float32"].std()
    return {
        "has_products": has_short_products(Path("/proc/cpuinfo").read_text(encoding="utf-8")),
        "samples_per_s": {dtype: round(rate) for dtype, rate in rates.items()},
        "ratio_bfloat16": round(rates["bfloat16"] / rates["float32"], 2),
        "logits_apart": round(float(apart), 4),
        "machine": machine(),
    }


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = parser_of("compute_dtype", __doc__)
    parser.add_argument("--rounds", type=int, default=30, help="steps of each (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=5000, help="samples a step (default: %(default)s)")
    parser.add_argument("--width", type=int, default=414, help="floats a sample (default: %(default)s)")
    parser.add_argument("--hidden", type=int, nargs="*", default=[200, 80], help="widths (default: 200 80)")
    parser.add_argument("--threads", type=int, default=2, help="XLA's threads (default: %(default)s)")
    options = parser.parse_args(arguments)
    at_least_one(parser, options, "rounds", "batch", "width", "threads")
    return options


def main() -> None:
    options = options_of()
    tell(measure(options), options.json)


if __name__ == "__main__":
    main()
