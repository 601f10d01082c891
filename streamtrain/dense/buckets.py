"""Padded minibatch sizes, and programs compiled ahead of time for each of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from itertools import combinations_with_replacement
from typing import Any

import jax

from streamtrain.errors import ConfigError

__all__ = ["Buckets", "Program", "Shape"]

log = logging.getLogger(__name__)

_SMALLEST = 8
"""Below this a step costs the same whatever its size, so a smaller bucket would only cost a compilation."""

Shape = tuple[int, ...]
"""Rows of a padded minibatch: of each level above the samples, the root's first, and of the samples. Not descending."""

_NODES: dict[int, tuple[float, ...]] = {
    0: (),
    1: (5 / 256, 5 / 64, 5 / 32, 5 / 16, 5 / 8),
    2: (5 / 128, 5 / 16),
    3: (5 / 64,),
}
"""By how many levels there are (3: or more), shares of a full minibatch's rows that a level above the samples may be padded
to, beside all of them: somewhat more than a half, an eighth and so on, so that what repeats 2, 8 or 50 times, give or take,
fits. Programs are as many as there are ascending choices, one a level: 6, 6 and 4, 5, 6."""
_NODES_PART = (5 / 128,)
"""The same of minibatches that are not full, which are many in serving, and there of a user or two."""


class Buckets:
    """The few shapes that minibatches are padded to, so that few programs serve every size."""

    def __init__(self, batch_size: int, sizes: Sequence[int] | None = None, levels: int = 0) -> None:
        """Prepares the shapes.

        Args:
          batch_size: the largest minibatch, >= 1.
          sizes: the sizes, of which `batch_size` must be the largest. Default: it, a quarter and a sixteenth of it.
          levels: how many levels there are above the samples.
        """
        if sizes is None:
            sizes = [batch_size, *(size for part in (4, 16) if (size := -(-batch_size // part)) >= _SMALLEST)]
        self.sizes = tuple(sorted(set(sizes)))
        self._levels = levels
        if batch_size < 1 or self.sizes[0] < 1 or self.sizes[-1] != batch_size:
            raise ConfigError(
                f"padded sizes {list(self.sizes)} must be positive and end with the batch size {batch_size}"
            )

    def of(self, size: int) -> int:
        """The smallest bucket that holds `size` samples.

        Raises:
          ValueError: more samples than the batch size.
        """
        for bucket in self.sizes:
            if size <= bucket:
                return bucket
        raise ValueError(f"{size} samples are more than the batch size {self.sizes[-1]}")

    @property
    def shapes(self) -> list[Shape]:
        """All of them, by the size of their samples."""
        return [
            (*nodes, size)
            for size in self.sizes
            for nodes in combinations_with_replacement(self._node_sizes(size), self._levels)
        ]

    def nodes_of(self, bucket: int, counts: Sequence[int]) -> Shape:
        """The smallest rows for the levels above the samples that hold their nodes.

        Args:
          bucket: rows of the samples, from `of`.
          counts: nodes of each level, the root's first; not descending, and no more than `bucket`.
        """
        sizes = self._node_sizes(bucket)
        return tuple(next(size for size in sizes if count <= size) for count in counts)

    def _node_sizes(self, bucket: int) -> list[int]:
        shares = _NODES[min(self._levels, max(_NODES))] if bucket == self.sizes[-1] else _NODES_PART
        return sorted({min(bucket, max(_SMALLEST, math.ceil(share * bucket))) for share in (*shares, 1.0)})


class Program:
    """A function of a state and a minibatch, with one executable a shape.

    Executables are called directly: their dispatch is cheaper than jit's, and they cannot compile behind one's back.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        arguments: Callable[[Shape], tuple[Any, ...]],
    ) -> None:
        """Prepares the program; compiles nothing.

        Args:
          name: for log lines.
          function: pure, of (state, *minibatch).
          arguments: by shape, the pytree of `jax.ShapeDtypeStruct` that `function` takes.
        """
        self._name, self._arguments = name, arguments
        self._jitted = jax.jit(function)
        self._executables: dict[Shape, Callable[..., Any]] = {}
        self.late = 0
        """Compilations that a caller of `run` had to wait for."""

    def compile(self, shape: Shape) -> None:
        """Makes the shape's executable, unless it is there."""
        if shape not in self._executables:
            self._executables[shape] = self._jitted.lower(*self._arguments(shape)).compile()

    def run(self, shape: Shape, *arguments: Any) -> Any:
        """Calls the shape's executable. Arguments have the shapes and dtypes that it was compiled for."""
        executable = self._executables.get(shape)
        if executable is None:
            self.late += 1
            rows = " of ".join(map(str, reversed(shape)))
            log.warning("compiling %s for %s rows while they wait; call warm_up first", self._name, rows)
            self.compile(shape)
            executable = self._executables[shape]
        return executable(*arguments)
