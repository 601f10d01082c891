"""Row optimizers: one kernel each, which touches every distinct row of a minibatch once.

All arithmetic is float32, in the order written; inner loops run over slices, of which LLVM makes vector instructions. A kernel's common arguments are

- `words`: `[C, D + K + 2]` float32, the arena; a row is [weights D | optimizer slots K | count | last step]; mutated.
- `bits`: the same memory as uint32, for the last two; mutated.
- `rows`: `[U]` int32, distinct but for those below 0, which are passed over: ids without a row.
- `gradients`: `[U, D]` float32, each row's gradient, summed over its occurrences in the minibatch.
- `occurrences`: `[U]` uint32, how often each row occurred; the row's count grows by it, up to 2^32 - 1.
- `step`: uint32, the row's new last step.
- `before`: `[U, D + K + 2]` uint32; overwritten with what the rows held before.

A kernel returns whether every weight and slot that it wrote is a number. It writes them in any case: where one is NaN or
an infinity, the caller puts `before` back with `restore`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.sparse.jit import kernel, prefetch_row
from streamtrain.sparse.settings import Adagrad, Adam, AnyOptimizer, Ftrl, RowwiseAdagrad, Sgd

__all__ = ["RowOptimizer", "restore", "row_optimizer", "slots_of", "state_of", "statistics_of"]

Words = NDArray[np.float32]
Bits = NDArray[np.uint32]
Rows = NDArray[np.int32]
Fresh = NDArray[np.bool_]

COUNT_MAX = np.uint32(0xFFFFFFFF)
AHEAD = 16
ZERO, ONE = np.float32(0), np.float32(1)
MAGNITUDE, INFINITY = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)


@dataclass(frozen=True, slots=True)
class RowOptimizer:
    """A row optimizer, ready to run.

    Attributes:
      slots: K, floats of state a row.
    """

    slots: int
    _start: Callable[..., None]
    _start_parameters: tuple[Any, ...]
    _update: Callable[..., bool]
    _update_parameters: tuple[Any, ...]

    def start(self, words: Words, dim: int, rows: Rows, fresh: Fresh) -> None:
        """Writes the initial optimizer slots of the fresh rows, whose initial weights are there already."""
        self._start(words, dim, rows, fresh, *self._start_parameters)

    def update(
        self,
        words: Words,
        bits: Bits,
        rows: Rows,
        gradients: NDArray[np.float32],
        occurrences: NDArray[np.uint32],
        step: np.uint32,
        before: Bits,
    ) -> bool:
        """Updates the rows once, in place; arguments and result as in the module's text."""
        return self._update(words, bits, rows, gradients, occurrences, step, before, *self._update_parameters)


def state_of(settings: AnyOptimizer) -> tuple[int, int]:
    """What the optimizer keeps for a row, in this order: how many floats for each weight, and how many for the row."""
    match settings:
        case Sgd():
            return 0, 0
        case Adagrad():
            return 1, 0
        case RowwiseAdagrad():
            return 0, 1
        case Adam():
            return 2, 1
        case Ftrl():
            return 2, 0


def slots_of(settings: AnyOptimizer, dim: int) -> int:
    """K, the floats of state that the optimizer keeps for a row of `dim` weights."""
    of_weight, of_row = state_of(settings)
    return of_weight * dim + of_row


def statistics_of(settings: AnyOptimizer, dim: int) -> int:
    """How many of the K floats, from the first on, are statistics that may decay: all but Adam's number of updates."""
    return slots_of(settings, dim) - isinstance(settings, Adam)


def row_optimizer(settings: AnyOptimizer, dim: int) -> RowOptimizer:
    """The optimizer that `settings` describe, for rows of `dim` weights."""
    slots = slots_of(settings, dim)
    f = np.float32
    match settings:
        case Sgd(learning_rate=rate, l2=l2):
            return RowOptimizer(slots, start_constant, (slots, ZERO), sgd, (f(rate), f(l2)))
        case Adagrad(learning_rate=rate, initial_accumulator=start, epsilon=epsilon, l2=l2):
            return RowOptimizer(
                slots, start_constant, (slots, f(start)), adagrad, (f(rate), f(epsilon), f(l2))
            )
        case RowwiseAdagrad(learning_rate=rate, initial_accumulator=start, epsilon=epsilon, l2=l2):
            return RowOptimizer(
                slots, start_constant, (slots, f(start)), rowwise_adagrad, (f(rate), f(epsilon), f(l2))
            )
        case Adam(learning_rate=rate, beta1=beta1, beta2=beta2, epsilon=epsilon, l2=l2):
            decays = (float(beta1), float(beta2))
            return RowOptimizer(
                slots, start_constant, (slots, ZERO), adam, (f(rate), *decays, f(epsilon), f(l2))
            )
        case Ftrl(alpha=alpha, beta=beta, l1=l1, l2=l2):
            parameters = (f(alpha), f(beta), f(l1), f(l2))
            return RowOptimizer(slots, start_ftrl, parameters, ftrl, parameters)


@kernel
def start_constant(words: Words, dim: int, rows: Rows, fresh: Fresh, slots: int, value: np.float32) -> None:
    """Writes `value` to the optimizer slots of the fresh rows."""
    for i in range(rows.size):
        if fresh[i]:
            for k in range(slots):
                words[rows[i], dim + k] = value


@kernel
def start_ftrl(
    words: Words,
    dim: int,
    rows: Rows,
    fresh: Fresh,
    alpha: np.float32,
    beta: np.float32,
    l1: np.float32,
    l2: np.float32,
) -> None:
    """Writes n = 0 and the z that gives the initial weight back: solving `ftrl`'s formula for z at n = 0.

    z = -w (beta / alpha + l2) - sign(w) l1, which is 0 for w = 0.
    """
    for i in range(rows.size):
        if fresh[i]:
            for d in range(dim):
                w = words[rows[i], d]
                z = -w * (beta / alpha + l2)
                if w > ZERO:
                    z -= l1
                elif w < ZERO:
                    z += l1
                words[rows[i], dim + d] = z
                words[rows[i], 2 * dim + d] = ZERO


@kernel
def stamp(bits: Bits, row: np.int32, occurrences: np.uint32, step: np.uint32) -> None:
    """Adds to the row's count, which stays at 2^32 - 1 once it is there, and sets its last step."""
    tail = bits.shape[1] - 2
    count = bits[row, tail]
    bits[row, tail] = count + occurrences if occurrences <= COUNT_MAX - count else COUNT_MAX
    bits[row, tail + 1] = step


@kernel
def keep(bits: Bits, row: np.int32, before: Bits, at: int) -> None:
    """Copies a row to `before[at]`."""
    now, then = bits[row], before[at]
    for w in range(then.size):
        then[w] = now[w]


@kernel
def largest(bits: Bits, row: np.int32) -> np.uint32:
    """The largest magnitude among the row's weights and slots, as bits: numbers lie below those of infinity, NaN above.

    Integers, because a maximum of integers may be taken in any order, so that LLVM makes vector instructions of it.
    """
    found = np.uint32(0)
    now = bits[row, : bits.shape[1] - 2]
    for w in range(now.size):
        found = max(found, np.uint32(now[w] & MAGNITUDE))
    return found


@kernel
def restore(bits: Bits, rows: Rows, before: Bits) -> None:
    """Gives the rows the bits back that a kernel kept; those below 0 are passed over."""
    for u in range(rows.size):
        if rows[u] < 0:
            continue
        now, then = bits[rows[u]], before[u]
        for w in range(then.size):
            now[w] = then[w]


@kernel
def sgd(
    words: Words,
    bits: Bits,
    rows: Rows,
    gradients: NDArray[np.float32],
    occurrences: NDArray[np.uint32],
    step: np.uint32,
    before: Bits,
    learning_rate: np.float32,
    l2: np.float32,
) -> bool:
    """w -= learning_rate * (g + l2 * w). No slots."""
    dim = gradients.shape[1]
    worst = np.uint32(0)
    for u in range(rows.size):
        prefetch_row(words, rows, u + AHEAD, words.strides[0])
        if rows[u] < 0:
            continue
        keep(bits, rows[u], before, u)
        weights, gradient = words[rows[u], :dim], gradients[u]
        for d in range(dim):
            w = weights[d]
            weights[d] = w - learning_rate * (gradient[d] + l2 * w)
        stamp(bits, rows[u], occurrences[u], step)
        worst = max(worst, largest(bits, rows[u]))
    return bool(worst < INFINITY)


@kernel
def adagrad(
    words: Words,
    bits: Bits,
    rows: Rows,
    gradients: NDArray[np.float32],
    occurrences: NDArray[np.uint32],
    step: np.uint32,
    before: Bits,
    learning_rate: np.float32,
    epsilon: np.float32,
    l2: np.float32,
) -> bool:
    """n += g^2; w -= learning_rate * g / (sqrt(n) + epsilon), with g = gradient + l2 * w. Slots: [n D].

    Source: Duchi, Hazan and Singer, JMLR 2011.
    """
    dim = gradients.shape[1]
    worst = np.uint32(0)
    for u in range(rows.size):
        prefetch_row(words, rows, u + AHEAD, words.strides[0])
        if rows[u] < 0:
            continue
        keep(bits, rows[u], before, u)
        weights, squares = words[rows[u], :dim], words[rows[u], dim : 2 * dim]
        gradient = gradients[u]
        for d in range(dim):
            w = weights[d]
            g = gradient[d] + l2 * w
            n = squares[d] + g * g
            squares[d] = n
            weights[d] = w - learning_rate * g / (math.sqrt(n) + epsilon)
        stamp(bits, rows[u], occurrences[u], step)
        worst = max(worst, largest(bits, rows[u]))
    return bool(worst < INFINITY)


@kernel
def rowwise_adagrad(
    words: Words,
    bits: Bits,
    rows: Rows,
    gradients: NDArray[np.float32],
    occurrences: NDArray[np.uint32],
    step: np.uint32,
    before: Bits,
    learning_rate: np.float32,
    epsilon: np.float32,
    l2: np.float32,
) -> bool:
    """n += mean(g^2); w -= learning_rate / (sqrt(n) + epsilon) * g, with g = gradient + l2 * w. Slots: [n 1].

    Source: Mudigere et al., "Software-hardware co-design for fast and scalable training of deep learning
    recommendation models", ISCA 2022 (FBGEMM's EXACT_ROWWISE_ADAGRAD).
    """
    dim = gradients.shape[1]
    worst = np.uint32(0)
    for u in range(rows.size):
        prefetch_row(words, rows, u + AHEAD, words.strides[0])
        if rows[u] < 0:
            continue
        keep(bits, rows[u], before, u)
        weights, gradient = words[rows[u], :dim], gradients[u]
        total = ZERO
        for d in range(dim):
            g = gradient[d] + l2 * weights[d]
            total += g * g
        n = words[rows[u], dim] + total / np.float32(dim)
        words[rows[u], dim] = n
        rate = learning_rate / (math.sqrt(n) + epsilon)
        for d in range(dim):
            w = weights[d]
            weights[d] = w - rate * (gradient[d] + l2 * w)
        stamp(bits, rows[u], occurrences[u], step)
        worst = max(worst, largest(bits, rows[u]))
    return bool(worst < INFINITY)


@kernel
def adam(
    words: Words,
    bits: Bits,
    rows: Rows,
    gradients: NDArray[np.float32],
    occurrences: NDArray[np.uint32],
    step: np.uint32,
    before: Bits,
    learning_rate: np.float32,
    beta1: float,
    beta2: float,
    epsilon: np.float32,
    l2: np.float32,
) -> bool:
    """Adam, bias-corrected by the row's own number of updates t. Slots: [m D | v D | t 1].

    m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;
    w -= learning_rate * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon), with g = gradient + l2 * w.

    t is kept as float32, exact up to 2^24 and staying there, where both corrections are 1. The corrections are
    products in float64, by squaring, so that no mathematics library has a say in the bits.

    Source: Kingma and Ba, ICLR 2015, algorithm 1.
    """
    dim = gradients.shape[1]
    keep1, keep2 = np.float32(beta1), np.float32(beta2)
    new1, new2 = np.float32(1.0 - beta1), np.float32(1.0 - beta2)
    worst = np.uint32(0)
    for u in range(rows.size):
        prefetch_row(words, rows, u + AHEAD, words.strides[0])
        if rows[u] < 0:
            continue
        keep(bits, rows[u], before, u)
        weights, gradient = words[rows[u], :dim], gradients[u]
        means, squares = words[rows[u], dim : 2 * dim], words[rows[u], 2 * dim : 3 * dim]
        t = words[rows[u], 3 * dim] + ONE
        words[rows[u], 3 * dim] = t
        correct1 = np.float32(1.0 - power(beta1, int(t)))
        correct2 = np.float32(1.0 - power(beta2, int(t)))
        for d in range(dim):
            w = weights[d]
            g = gradient[d] + l2 * w
            m = keep1 * means[d] + new1 * g
            v = keep2 * squares[d] + new2 * g * g
            means[d] = m
            squares[d] = v
            weights[d] = w - learning_rate * (m / correct1) / (math.sqrt(v / correct2) + epsilon)
        stamp(bits, rows[u], occurrences[u], step)
        worst = max(worst, largest(bits, rows[u]))
    return bool(worst < INFINITY)


@kernel
def power(base: float, exponent: int) -> float:
    """`base ** exponent` in float64 for an exponent >= 0, by repeated squaring."""
    result = 1.0
    while exponent > 0:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


@kernel
def ftrl(
    words: Words,
    bits: Bits,
    rows: Rows,
    gradients: NDArray[np.float32],
    occurrences: NDArray[np.uint32],
    step: np.uint32,
    before: Bits,
    alpha: np.float32,
    beta: np.float32,
    l1: np.float32,
    l2: np.float32,
) -> bool:
    """FTRL-proximal. Slots: [z D | n D]; the weights are derived from them.

    sigma = (sqrt(n + g^2) - sqrt(n)) / alpha; z += g - sigma w; n += g^2;
    w = 0 where |z| <= l1, else -(z - sign(z) l1) / ((beta + sqrt(n)) / alpha + l2).

    Where that denominator is 0 (beta = l2 = 0 before the first gradient) the weight stays as it is.

    Source: McMahan et al., "Ad click prediction: a view from the trenches", KDD 2013, algorithm 1.
    """
    dim = gradients.shape[1]
    worst = np.uint32(0)
    for u in range(rows.size):
        prefetch_row(words, rows, u + AHEAD, words.strides[0])
        if rows[u] < 0:
            continue
        keep(bits, rows[u], before, u)
        weights, gradient = words[rows[u], :dim], gradients[u]
        zs, squares = words[rows[u], dim : 2 * dim], words[rows[u], 2 * dim : 3 * dim]
        for d in range(dim):
            g, w, n = gradient[d], weights[d], squares[d]
            n_new = n + g * g
            root = math.sqrt(n_new)
            z = zs[d] + (g - (root - math.sqrt(n)) / alpha * w)
            zs[d] = z
            squares[d] = n_new
            scale = (beta + root) / alpha + l2
            if abs(z) <= l1:
                weights[d] = ZERO
            elif scale > ZERO:
                weights[d] = -(z - math.copysign(l1, z)) / scale
        stamp(bits, rows[u], occurrences[u], step)
        worst = max(worst, largest(bits, rows[u]))
    return bool(worst < INFINITY)
