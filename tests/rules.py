"""Rules that a user might write, for jobs of tests that name them as `tests.rules:NAME`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["EveryOther", "weak_and_rare"]


class EveryOther:
    """An admission rule: every other id that comes without a row gets one, so that all of its past decides."""

    def __init__(self, table: str, seed: int, *, first: bool) -> None:
        self._turn = int(first)

    def admit(self, ids: NDArray[np.uint64], occurrences: NDArray[np.uint32], step: int) -> NDArray[np.bool_]:
        admitted: NDArray[np.bool_] = (np.arange(len(ids)) + self._turn) % 2 == 1
        self._turn = (self._turn + len(ids)) % 2
        return admitted

    def state(self) -> dict[str, np.ndarray]:
        return {"turn": np.array([self._turn])}

    def load(self, state: dict[str, np.ndarray]) -> None:
        self._turn = int(state["turn"][0])


def weak_and_rare(
    weights: NDArray[np.float32],
    slots: NDArray[np.float32],
    counts: NDArray[np.uint32],
    last_steps: NDArray[np.uint32],
    step: int,
) -> NDArray[np.bool_]:
    """An expiry rule that looks at everything it may: rows that learned little, moved little, and not lately."""
    age = np.uint32(step) - last_steps
    weak: NDArray[np.bool_] = (np.abs(weights).max(axis=1) < 0.05) & (slots.sum(axis=1) < 10.0)
    return weak & (counts <= 2) & (age > 20)
