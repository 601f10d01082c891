"""Which rows an id has in a table of fixed size: `docs/row-ids.md` specifies it, forever.

For the id `x` in the table `name` of a model with seed `s`, with `table_key`, `mix`, `key` and `G` of
`streamtrain/sparse/init.py`, all modulo 2^64:

    word(x, p) = mix(key(x) + (p + 1) * G)
    row_id     = p << 32 | bucket                      one for each part p = 0, 1, ...

- `independent`: the bucket of part p is word(x, p) mod sizes[p].
- `quotient_remainder`: h = word(x, 0) mod (sizes[0] * sizes[1]); the buckets are h mod sizes[0] and h div sizes[0].

Sources: Weinberger et al., "Feature hashing for large scale multitask learning", ICML 2009; Shi et al., "Compositional
embeddings using complementary partitions", KDD 2020, whose ids number a vocabulary without gaps: ours are hashes, so they are
folded to sizes[0] * sizes[1] numbers first; Tito Svenstrup et al., "Hash embeddings", NeurIPS 2017, from whom the k hashes are,
without their weights, which need a row for each id again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamtrain.sparse.init import table_key
from streamtrain.sparse.jit import kernel
from streamtrain.sparse.memory import as_input
from streamtrain.sparse.tables import PART_BITS, Hashing

__all__ = ["RowIds", "independent", "quotient_remainder"]

GAMMA = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)
S27, S30, S31 = np.uint64(27), np.uint64(30), np.uint64(31)
PART_SHIFT = np.uint64(PART_BITS)
SECOND_PART = np.uint64(1 << PART_BITS)


class RowIds:
    """The map from ids to row ids of one table. Immutable, for any number of threads."""

    def __init__(self, hashing: Hashing, seed: int, table: str) -> None:
        """Args: hashing: of the table; seed: the model's; table: the table's name."""
        self._kernel = independent if hashing.scheme == "independent" else quotient_remainder
        self._key = np.uint64(table_key(seed, table))
        self._sizes = np.array(hashing.sizes, np.uint64)

    def of(self, ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The row ids (`[N * parts]` uint64) of ids (`[N]` uint64): id after id, in an id part after part."""
        row_ids = np.empty(len(ids) * len(self._sizes), np.uint64)
        self._kernel(as_input(ids, np.uint64), self._key, self._sizes, row_ids)
        return row_ids


@kernel
def mix(z: np.uint64) -> np.uint64:
    # That of init.py: a kernel that calls one of another file does not notice its changes.
    z = (z ^ (z >> S30)) * MIX_1
    z = (z ^ (z >> S27)) * MIX_2
    return z ^ (z >> S31)


@kernel
def independent(
    ids: NDArray[np.uint64], key: np.uint64, sizes: NDArray[np.uint64], row_ids: NDArray[np.uint64]
) -> None:
    """One hash a part.

    Args:
      ids: `[N]` uint64, read-only.
      key: the table's.
      sizes: `[P]` uint64, rows of each part, in 1..2^32 - 1.
      row_ids: `[N * P]` uint64; overwritten.
    """
    parts = sizes.size
    for i in range(ids.size):
        word = mix(key ^ mix(ids[i] + GAMMA))
        for p in range(parts):
            word += GAMMA
            row_ids[i * parts + p] = np.uint64(p) << PART_SHIFT | mix(word) % sizes[p]


@kernel
def quotient_remainder(
    ids: NDArray[np.uint64], key: np.uint64, sizes: NDArray[np.uint64], row_ids: NDArray[np.uint64]
) -> None:
    """Remainder and quotient of one hash; arguments as `independent`, with P = 2."""
    numbers = sizes[0] * sizes[1]
    for i in range(ids.size):
        number = mix(mix(key ^ mix(ids[i] + GAMMA)) + GAMMA) % numbers
        row_ids[2 * i] = number % sizes[0]
        row_ids[2 * i + 1] = SECOND_PART | number // sizes[0]
