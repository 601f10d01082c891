"""How many ids share what they should have for themselves."""

from __future__ import annotations

import math

__all__ = ["collision_probability"]


def collision_probability(ids: int) -> float:
    """The probability that any two of so many values have one 64-bit id, were the hash random: the birthday bound.

    1 - exp(-n (n - 1) / 2^65). Source: Feller, An Introduction to Probability Theory and Its Applications, vol. 1, II.3.
    """
    return -math.expm1(-ids * (ids - 1) / 2.0**65)
