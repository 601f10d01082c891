"""Padded minibatch sizes, and programs compiled ahead of time for each of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax

from streamtrain.errors import ConfigError

__all__ = ["Buckets", "Program"]

log = logging.getLogger(__name__)

_SMALLEST = 8
"""Below this a step costs the same whatever its size, so a smaller bucket would only cost a compilation."""


class Buckets:
    """The few sizes that minibatches are padded to, so that few programs serve every size."""

    def __init__(self, batch_size: int, sizes: Sequence[int] | None = None) -> None:
        """Prepares the sizes.

        Args:
          batch_size: the largest minibatch, >= 1.
          sizes: the sizes, of which `batch_size` must be the largest. Default: it, a quarter and a sixteenth of it.
        """
        if sizes is None:
            sizes = [batch_size, *(size for part in (4, 16) if (size := -(-batch_size // part)) >= _SMALLEST)]
        self.sizes = tuple(sorted(set(sizes)))
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


class Program:
    """A function of a state and a minibatch, with one executable a bucket.

    Executables are called directly: their dispatch is cheaper than jit's, and they cannot compile behind one's back.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        shapes: Callable[[int], tuple[Any, ...]],
    ) -> None:
        """Prepares the program; compiles nothing.

        Args:
          name: for log lines.
          function: pure, of (state, *minibatch).
          shapes: by bucket, the pytree of `jax.ShapeDtypeStruct` that `function` takes.
        """
        self._name, self._shapes = name, shapes
        self._jitted = jax.jit(function)
        self._executables: dict[int, Callable[..., Any]] = {}
        self.late = 0
        """Compilations that a caller of `run` had to wait for."""

    def compile(self, bucket: int) -> None:
        """Makes the bucket's executable, unless it is there."""
        if bucket not in self._executables:
            self._executables[bucket] = self._jitted.lower(*self._shapes(bucket)).compile()

    def run(self, bucket: int, *arguments: Any) -> Any:
        """Calls the bucket's executable. Arguments have the shapes and dtypes that it was compiled for."""
        executable = self._executables.get(bucket)
        if executable is None:
            self.late += 1
            log.warning("compiling %s for %d samples while they wait; call warm_up first", self._name, bucket)
            self.compile(bucket)
            executable = self._executables[bucket]
        return executable(*arguments)
