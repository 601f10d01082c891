"""The values of a metrics registry at one instant, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["Readings"]

# Of a histogram only sum and count are read here.
_UNREAD = ("_bucket", "_created")


class Readings:
    """What `/metrics` would show now.

    Args:
      families: what a Prometheus registry's `collect` gives.
    """

    def __init__(self, families: Iterable[Any]) -> None:
        self._values: dict[str, list[tuple[Mapping[str, str], float]]] = {}
        for family in families:
            for sample in family.samples:
                if not sample.name.endswith(_UNREAD):
                    self._values.setdefault(sample.name, []).append((sample.labels, sample.value))

    def value(self, name: str, **labels: str) -> float | None:
        """The value with exactly these labels; None where there is none."""
        return next((value for found, value in self._values.get(name, ()) if found == labels), None)

    def total(self, name: str) -> float | None:
        """The sum over all labels; None where there is no value."""
        values = [value for _, value in self._values.get(name, ())]
        return sum(values) if values else None

    def by(self, name: str, label: str, **where: str) -> dict[str, float]:
        """By `label`, the values whose other labels are `where`."""
        return {
            labels[label]: value
            for labels, value in self._values.get(name, ())
            if {key: text for key, text in labels.items() if key != label} == where
        }
