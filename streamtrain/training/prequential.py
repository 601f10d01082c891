"""Prequential evaluation: every sample is scored before it is learned from.

The accumulators are small arrays, so they are committed with each epoch and survive restarts exactly.
Source of the idea: Gama, Sebastiao and Rodrigues, "On evaluating stream learning algorithms", 2013.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Accumulator", "Measured", "Prequential", "Quality", "measure", "sigmoid"]

# Logits are counted in bins of 12 / 1024: two scores that differ by less count as a tie, which moves an AUC by
# less than 5e-5 over many samples (a test compares with the exact one).
_BINS = 2048
_LOGIT_MAX = 12.0


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of logits of any shape, without overflow."""
    return np.exp(-np.logaddexp(0.0, -logits.astype(np.float64)))


@dataclass(frozen=True, slots=True)
class Quality:
    """Measures of one label over some samples. NaN where they are not defined (no samples, or one class only).

    Attributes:
      samples: how many samples.
      auc: area under the ROC curve; ties count half.
      log_loss: mean negative log-likelihood, in nats.
      normalized_entropy: log_loss over the entropy of the label's own mean (He et al., ADKDD 2014); below 1 is
        better than knowing the mean.
      calibration: sum of predictions over sum of labels; 1 is calibrated.
      label_mean: weighted mean of the labels.
    """

    samples: int
    auc: float
    log_loss: float
    normalized_entropy: float
    calibration: float
    label_mean: float

    def as_dict(self) -> dict[str, float | int | None]:
        """The measures by name; None where not defined, so that JSON can hold them."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {k: (None if isinstance(v, float) and np.isnan(v) else v) for k, v in values.items()}


@dataclass(frozen=True, slots=True)
class Measured:
    """What some samples add to an accumulator: `[L, 4]` and `[L, 2, bins]` float64."""

    samples: int
    sums: NDArray[np.float64]
    histogram: NDArray[np.float64]


def measure(
    logits: NDArray[np.float32], labels: NDArray[np.float32], weights: NDArray[np.float32]
) -> Measured:
    """What B samples add: shapes as for `Accumulator.add`. Pure, for any thread."""
    z, y, w = logits.astype(np.float64), labels.astype(np.float64), weights.astype(np.float64)[:, None]
    softplus = np.logaddexp(0.0, z)
    # log(1 + exp(-z)) = log(1 + exp(z)) - z would lose digits, so it is computed anew.
    predicted = np.exp(-np.logaddexp(0.0, -z))
    parts = [np.broadcast_to(w, z.shape), w * (softplus - y * z), w * y, w * predicted]
    sums = np.stack(parts, axis=-1).sum(axis=0)
    bins = np.clip((z + _LOGIT_MAX) * (_BINS / (2 * _LOGIT_MAX)), 0, _BINS - 1).astype(np.int64)
    histogram = np.empty((z.shape[1], 2, _BINS))
    for label in range(z.shape[1]):
        for kind, share in enumerate((w[:, 0] * (1 - y[:, label]), w[:, 0] * y[:, label])):
            histogram[label, kind] = np.bincount(bins[:, label], share, _BINS)
    return Measured(len(z), sums, histogram)


class Accumulator:
    """Sums over samples that suffice for `Quality`, per label.

    Args:
      labels: number of labels L.
    """

    def __init__(self, labels: int) -> None:
        self._histogram = np.zeros((labels, 2, _BINS))
        self._sums = np.zeros((labels, 4))  # weight, loss, label, prediction
        self._samples = 0

    @property
    def samples(self) -> int:
        return self._samples

    def add(
        self, logits: NDArray[np.float32], labels: NDArray[np.float32], weights: NDArray[np.float32]
    ) -> None:
        """Counts B samples.

        Args:
          logits: `[B, L]` float32, from before the samples were learned.
          labels: `[B, L]` float32 in [0, 1].
          weights: `[B]` float32, >= 0.
        """
        self.count(measure(logits, labels, weights))

    def count(self, measured: Measured) -> None:
        """Counts samples that were measured already."""
        self._sums += measured.sums
        self._histogram += measured.histogram
        self._samples += measured.samples

    def quality(self, label: int) -> Quality:
        """The measures of label number `label`."""
        weight, loss, positive, predicted = self._sums[label]
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = positive / weight
            entropy = -(mean * np.log(mean) + (1 - mean) * np.log1p(-mean))
            negatives, positives = self._histogram[label]
            below = np.cumsum(negatives) - negatives
            auc = np.sum(positives * (below + negatives / 2)) / (positives.sum() * negatives.sum())
            values = (auc, loss / weight, loss / weight / entropy, predicted / positive, mean)
        return Quality(self._samples, *(float(v) if np.isfinite(v) else float("nan") for v in values))

    def state(self) -> dict[str, np.ndarray]:
        """Copies of the accumulators, by name."""
        return {
            "histogram": self._histogram.copy(),
            "sums": self._sums.copy(),
            "samples": np.array([self._samples], np.int64),
        }

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues from what `state` gave."""
        self._histogram = np.array(state["histogram"], np.float64)
        self._sums = np.array(state["sums"], np.float64)
        self._samples = int(state["samples"][0])


class Prequential:
    """Quality in total and over windows of a fixed number of samples.

    Args:
      labels: the labels' names.
      window_samples: a window is closed by the minibatch that brings it to this many samples.
    """

    def __init__(self, labels: Sequence[str], window_samples: int) -> None:
        self.labels = tuple(labels)
        self._window_samples = window_samples
        self._parts = {name: Accumulator(len(self.labels)) for name in ("total", "window", "last_window")}

    def count(self, measured: Measured) -> None:
        """Counts samples that were measured already."""
        self._parts["total"].count(measured)
        self._parts["window"].count(measured)
        if self._parts["window"].samples >= self._window_samples:
            self._parts["last_window"] = self._parts["window"]
            self._parts["window"] = Accumulator(len(self.labels))

    def total(self) -> dict[str, Quality]:
        """By label, over everything since the model's birth."""
        return self._qualities("total")

    def window(self) -> dict[str, Quality]:
        """By label, over the last full window; over the open one until there is a full one."""
        return self._qualities("last_window" if self._parts["last_window"].samples else "window")

    def _qualities(self, part: str) -> dict[str, Quality]:
        return {name: self._parts[part].quality(i) for i, name in enumerate(self.labels)}

    def state(self) -> dict[str, np.ndarray]:
        """Copies of all accumulators, by name, for the epoch record."""
        return {
            f"{part}/{name}": array
            for part, acc in self._parts.items()
            for name, array in acc.state().items()
        }

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues from what `state` gave."""
        for part, accumulator in self._parts.items():
            accumulator.load(
                {n.removeprefix(f"{part}/"): a for n, a in state.items() if n.startswith(f"{part}/")}
            )
