"""The last minutes as numbers: what the rates are computed from, and what the charts show."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streamtrain.status.readings import Readings

__all__ = ["History"]

POINTS_MAX = 450
"""At a look every two seconds a quarter of an hour."""
# Rates are over so many looks, so that one long step or cut does not make them jump.
_RATE_LOOKS = 5


@dataclass(frozen=True, slots=True)
class _Point:
    """One look. `quality` is by label: AUC and calibration of the window."""

    at_ms: int
    samples_per_s: float | None
    lag_records: float | None
    quality: Mapping[str, tuple[float | None, float | None]]


class History:
    """Fed with readings in the order of their times; bounded."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, Readings]] = deque(maxlen=_RATE_LOOKS + 1)
        self._points: deque[_Point] = deque(maxlen=POINTS_MAX)

    def add(self, readings: Readings, at_s: float, at_ms: int) -> None:
        """Takes a look.

        Args:
          readings: the values now.
          at_s: monotonic time, later than that of the look before.
          at_ms: wall clock, for people.
        """
        self._looks.append((at_s, readings))
        loss, auc, calibration = (
            readings.by("streamtrain_prequential", "label", measure=measure, over="window")
            for measure in ("log_loss", "auc", "calibration")
        )
        self._points.append(
            _Point(
                at_ms,
                self.rate("streamtrain_samples_total"),
                readings.total("streamtrain_lag_records"),
                # A window of one class has a loss, but no AUC.
                {label: (auc.get(label), calibration.get(label)) for label in loss},
            )
        )

    @property
    def span_s(self) -> float:
        """Seconds that the rates are over; 0 before the second look."""
        return self._looks[-1][0] - self._looks[0][0] if self._looks else 0.0

    def rate(self, name: str, **labels: str) -> float | None:
        """Growth of a counter a second; None while there is nothing to compare with."""
        if self.span_s <= 0:
            return None
        # A counter with labels is not there before it counts something.
        now = self._looks[-1][1].value(name, **labels)
        return None if now is None else (now - (self._looks[0][1].value(name, **labels) or 0.0)) / self.span_s

    def describe(self) -> dict[str, Any]:
        """Columns of equal length: `at_ms`, `samples_per_s`, `lag_records`, and by label `auc` and `calibration`."""
        labels = sorted({label for point in self._points for label in point.quality})
        absent = (None, None)
        return {
            "at_ms": [point.at_ms for point in self._points],
            "samples_per_s": [point.samples_per_s for point in self._points],
            "lag_records": [point.lag_records for point in self._points],
            "auc": {n: [point.quality.get(n, absent)[0] for point in self._points] for n in labels},
            "calibration": {n: [point.quality.get(n, absent)[1] for point in self._points] for n in labels},
        }
