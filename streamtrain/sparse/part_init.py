"""How rows of a hashed table start: as docs/initial-rows.md says of their row ids, and around 1 where they are factors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamtrain.sparse.init import Initializer
from streamtrain.sparse.jit import kernel
from streamtrain.sparse.settings import AnyInit
from streamtrain.sparse.tables import PART_BITS, Hashing

__all__ = ["PartInitializer", "add_one"]

PART_SHIFT = np.uint64(PART_BITS)
ONE = np.float32(1)


class PartInitializer(Initializer):
    """As `Initializer`; where rows are multiplied, those of every part but the first start 1 higher.

    A product of several numbers near 0 is nearer to 0 still, and so is the gradient of each: nothing would move. This
    way a vector starts as an ordinary row would, and the first part has the whole gradient from the first step. (Shi et
    al. start all parts uniform in (1 / sqrt(rows), 1): their products start far from 0, which serves no prediction.)
    """

    def __init__(self, settings: AnyInit, seed: int, table: str, hashing: Hashing) -> None:
        """Args: as `Initializer`; hashing: of the table."""
        super().__init__(settings, seed, table)
        self._factors = hashing.combine == "multiply"

    def fill(
        self,
        words: NDArray[np.float32],
        dim: int,
        ids: NDArray[np.uint64],
        rows: NDArray[np.int32],
        fresh: NDArray[np.bool_],
    ) -> None:
        super().fill(words, dim, ids, rows, fresh)
        if self._factors:
            add_one(words, dim, ids, rows, fresh)


@kernel
def add_one(
    words: NDArray[np.float32],
    dim: int,
    ids: NDArray[np.uint64],
    rows: NDArray[np.int32],
    fresh: NDArray[np.bool_],
) -> None:
    """Adds 1 to the weights of the fresh rows whose part is not the first; arguments as `Initializer.fill`."""
    for i in range(ids.size):
        if fresh[i] and ids[i] >> PART_SHIFT:
            for d in range(dim):
                words[rows[i], d] += ONE
