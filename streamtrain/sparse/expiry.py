"""Expiry: which rows are dropped. A share of the rows is looked at each step, in an order that is the ids' own."""

from __future__ import annotations

from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from streamtrain import plugins
from streamtrain.errors import ConfigError
from streamtrain.log.record import TableRows
from streamtrain.sparse.lifecycle_settings import Expiry

__all__ = ["ExpiryRule", "Reasons", "expired", "rule_of"]

Reasons = dict[str, int]
"""By reason (`age`, `norm`, `rule`), how many rows it dropped: the first that says so, in this order."""


class ExpiryRule(Protocol):
    """A user's own rule, `module:function`. It may depend on its arguments alone; it must not change them."""

    def __call__(
        self,
        weights: NDArray[np.float32],
        slots: NDArray[np.float32],
        counts: NDArray[np.uint32],
        last_steps: NDArray[np.uint32],
        step: int,
    ) -> NDArray[np.bool_]:
        """Which rows are dropped.

        Args:
          weights: `[N, D]` float32, as they are at `step` where the table decays.
          slots: `[N, K]` float32, the optimizer's.
          counts: `[N]` uint32, occurrences learned from.
          last_steps: `[N]` uint32, step of the last update modulo 2^32.
          step: the step that was just taken.

        Returns:
          `[N]` bool.
        """


def rule_of(settings: Expiry, table: str) -> ExpiryRule | None:
    """The user's rule. Raises ConfigError where it cannot be loaded."""
    if settings.rule is None:
        return None
    try:
        rule = plugins.load("expiry rules", settings.rule)
    except ConfigError as error:
        raise ConfigError(f"tables.{table}.expiry.rule: {error}") from error
    if not callable(rule):
        raise ConfigError(f"tables.{table}.expiry.rule: {settings.rule} is no function")

    def checked(*rows: Any) -> NDArray[np.bool_]:
        with plugins.blamed(ConfigError, f"tables.{table}.expiry.rule: {settings.rule}"):
            found = rule(*rows)
        if not isinstance(found, np.ndarray) or (found.dtype, found.shape) != (np.bool_, rows[0].shape[:1]):
            raise ConfigError(
                f"tables.{table}.expiry.rule: {settings.rule} has to return a bool array with one item for each row"
            )
        return found

    return cast(ExpiryRule, checked)


def expired(
    settings: Expiry, rule: ExpiryRule | None, rows: TableRows, step: int
) -> tuple[NDArray[np.bool_], Reasons]:
    """Which of `rows`, as they are at `step`, are dropped after it, and why. One that was updated in it is not."""
    ages = (np.uint64(step & 0xFFFFFFFF) - rows.last_steps.astype(np.uint64)) & np.uint64(0xFFFFFFFF)
    left = ages > 0
    gone = np.zeros(len(left), np.bool_)
    reasons: Reasons = {}
    if settings.after_steps is not None:
        gone |= left & (ages > settings.after_steps)
        reasons["age"] = int(np.count_nonzero(gone))
    if settings.norm_min is not None:
        # In float64, and in the order of the weights: no library's way to sum decides.
        squares = np.cumsum(rows.weights.astype(np.float64) ** 2, axis=1)[:, -1]
        small = left & (squares < settings.norm_min**2) & (rows.counts >= settings.norm_after_count)
        reasons["norm"] = int(np.count_nonzero(small & ~gone))
        gone |= small
    if rule is not None:
        found = left & rule(rows.weights, rows.slots, rows.counts, rows.last_steps, step)
        reasons["rule"] = int(np.count_nonzero(found & ~gone))
        gone |= found
    return gone, reasons
