"""A blocked counting Bloom filter: how often ids came, in memory of fixed size and one cache line an id.

A block is 64 counters of 8 bits. All counters of an id lie in one block, so that an id costs one miss of the cache and
what an epoch changed is few blocks. For the id `x` and the filter's key, modulo 2^64, with `mix` and G as in
docs/initial-rows.md:

    h        = mix(key ^ mix(x + G))
    block    = floor((h >> 32) * blocks / 2^32)
    counters = bits 0 to 5, 6 to 11, ... of mix(h + G), k times; what repeats counts once

An id's estimate is the least of its counters: never below what was counted and not taken out, unless other ids that
shared all its counters were taken out.

- An occurrence adds one to each counter of the id; they stop at 255.
- An id that is admitted takes its estimate out of its counters, so that the filter holds the ids without a row alone
  and one that expires begins anew. Counters at 255 are left as they are: how far above they should be is not known
  (Fan, Cao, Almeida and Broder, "Summary cache", IEEE/ACM Transactions on Networking 8(3), 2000, section IV.C). What
  the estimate was too high by is taken from ids that share a counter: they are admitted a little later.
- Halving, a share of the blocks each step, gives counters back, those at 255 too.

Source: Putze, Sanders and Singler, "Cache-, hash- and space-efficient Bloom filters", WEA 2007, section 3 (blocked).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.sparse.jit import kernel, prefetch

__all__ = ["COUNTERS", "BloomSize", "admit", "bloom_size", "false_positive_rate", "halve", "undo"]

COUNTERS = 64
HASHES_MAX = 10  # Six bits each of one 64-bit word.
AHEAD = 16
MAX = 255
GAMMA = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)
S6, S27, S30, S31, S32 = np.uint64(6), np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32)
SIX_BITS, ONE = np.uint64(63), np.uint64(1)

Counters = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class BloomSize:
    """How large a filter is: `blocks` of 64 bytes, and k `hashes` an id."""

    blocks: int
    hashes: int


def false_positive_rate(ids_per_block: float, hashes: int) -> float:
    """The chance that an id which never came finds no counter of its own at 0.

    The number of ids in a block is Poisson with mean L (Putze et al., section 3, equation 3). One that counted there
    misses j given counters with r_j = (1 - j / 64)^k, so that by inclusion and exclusion all of d distinct ones are hit with

        sum over j from 0 to d of (-1)^j C(d, j) exp(-L (1 - r_j))

    and k draws out of 64 give d distinct ones with S(k, d) 64! / (64 - d)! / 64^k, S being Stirling's second kind. It is
    exact for ideal hashes, where the usual (1 - e^(-k/c))^k is too low by far in blocks so small.
    """
    missed = [math.exp(-ids_per_block * (1 - (1 - j / COUNTERS) ** hashes)) for j in range(hashes + 1)]
    chance = 0.0
    for distinct in range(1, hashes + 1):
        ways = _stirling(hashes, distinct) * math.perm(COUNTERS, distinct) / COUNTERS**hashes
        hit = math.fsum((-1) ** j * math.comb(distinct, j) * missed[j] for j in range(distinct + 1))
        chance += ways * max(hit, 0.0)
    return chance


def _stirling(n: int, k: int) -> int:
    """In how many ways n things form k groups."""
    return sum((-1) ** (k - j) * math.comb(k, j) * j**n for j in range(k + 1)) // math.factorial(k)


def bloom_size(expected_ids: int, error: float) -> BloomSize:
    """The fewest blocks, and their k, with which `expected_ids` ids leave an error of at most `error`."""
    loads = {hashes: _largest_load(hashes, error) for hashes in range(1, HASHES_MAX + 1)}
    best = max(loads, key=lambda hashes: loads[hashes])
    return BloomSize(math.ceil(expected_ids / loads[best]), best)


def _largest_load(hashes: int, error: float) -> float:
    """The most ids a block that keep the error: by bisection, since the rate rises with them."""
    low, high = 0.0, 4.0 * COUNTERS
    for _ in range(60):
        middle = (low + high) / 2
        if false_positive_rate(middle, hashes) <= error:
            low = middle
        else:
            high = middle
    return low


@kernel
def mix(z: np.uint64) -> np.uint64:
    z = (z ^ (z >> S30)) * MIX_1
    z = (z ^ (z >> S27)) * MIX_2
    return z ^ (z >> S31)


@kernel
def block_of(hash: np.uint64, blocks: int) -> np.int64:
    return np.int64(((hash >> S32) * np.uint64(blocks)) >> S32)


@kernel
def admit(
    ids: NDArray[np.uint64],
    occurrences: NDArray[np.uint32],
    key: np.uint64,
    hashes: int,
    threshold: int,
    counters: Counters,
    fill: NDArray[np.int64],
    admitted: NDArray[np.bool_],
    touched: NDArray[np.int64],
    before: Counters,
) -> int:
    """Counts ids that have no row, and decides which get one.

    An id with an estimate e that occurs o times is admitted where e + o >= threshold; then e is taken out of its
    counters, else o is added to them.

    Args:
      ids: `[N]` uint64, distinct.
      occurrences: `[N]` uint32, >= 1.
      key, hashes: of the filter; 1 <= hashes <= 10.
      threshold: at most 255.
      counters: `[B, 64]` uint8; mutated.
      fill: `[2]` int64, counters above 0 and counters at 255; mutated.
      admitted: `[N]` bool; overwritten.
      touched: `[>= N]` int64; overwritten with the blocks that were changed, in order; may repeat.
      before: `[>= N, 64]` uint8; overwritten with what each of them was.

    Returns:
      How many `touched` are.
    """
    blocks, count = counters.shape[0], 0
    for n in range(ids.size):
        if n + AHEAD < ids.size:
            prefetch(counters, block_of(mix(key ^ mix(ids[n + AHEAD] + GAMMA)), blocks), 0)
        hash = mix(key ^ mix(ids[n] + GAMMA))
        at = block_of(hash, blocks)
        block, word, occurred = counters[at], mix(hash + GAMMA), np.int64(occurrences[n])
        estimate, places = np.int64(MAX), word
        for _ in range(hashes):
            estimate = min(estimate, np.int64(block[np.int64(places & SIX_BITS)]))
            places >>= S6
        admitted[n] = estimate + occurred >= threshold
        if admitted[n] and estimate == 0:
            continue
        touched[count] = at
        for c in range(COUNTERS):
            before[count, c] = block[c]
        count += 1
        seen = np.uint64(0)
        for _ in range(hashes):
            place = word & SIX_BITS
            word >>= S6
            if (seen >> place) & ONE:
                continue
            seen |= ONE << place
            old: Any = np.int64(block[np.int64(place)])
            new: Any = min(old + occurred, MAX)
            if admitted[n]:
                new = old if old == MAX else old - estimate
            block[np.int64(place)] = np.uint8(new)
            fill[0] += np.int64(new > 0) - np.int64(old > 0)
            fill[1] += np.int64(new == MAX) - np.int64(old == MAX)
    return count


@kernel
def undo(counters: Counters, touched: NDArray[np.int64], before: Counters) -> None:
    """Gives the blocks `touched` (`[T]` int64) what they were `before` (`[>= T, 64]` uint8), the last change first."""
    for t in range(touched.size - 1, -1, -1):
        block = counters[touched[t]]
        for c in range(COUNTERS):
            block[c] = before[t, c]


@kernel
def halve(
    counters: Counters, first: int, last: int, fill: NDArray[np.int64], touched: NDArray[np.bool_]
) -> None:
    """Halves every counter of the blocks from `first` up to `last`, and sets `touched` (`[B]` bool) of those above 0."""
    for b in range(first, last):
        block = counters[b]
        used = np.uint8(0)
        for c in range(COUNTERS):
            used |= block[c]
        if used == 0:
            continue
        touched[b] = True
        for c in range(COUNTERS):
            old = block[c]
            block[c] = old >> np.uint8(1)
            fill[0] -= np.int64(old == 1)
            fill[1] -= np.int64(old == MAX)
