"""Decides when bad samples are a flood, and when quarantined minibatches are. Plain objects; others count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from streamtrain.errors import BadSample, TooManyBadSamples, TooManyQuarantined
from streamtrain.sources import Span
from streamtrain.training.settings import BadSampleSettings

__all__ = ["BadSampleGuard", "QuarantineGuard"]


class BadSampleGuard:
    """Watches the share of bad samples over windows of a fixed number of them; a record refused as a whole counts as one.

    A window is judged when it is full, and also as soon as the bad ones alone pass the bound for a full window, so
    a stream that is bad from its first record stops at once and not after a thousand.
    """

    def __init__(self, settings: BadSampleSettings) -> None:
        self.settings = settings
        self._records = 0
        self._good = 0
        self._reasons: Counter[str] = Counter()
        self._example: BadSample | None = None

    def see(self, records: int, bad: Sequence[BadSample]) -> None:
        """Takes note of decoded records, `bad` of them among `records`.

        Raises:
          TooManyBadSamples: names the share, the reasons and one record.
        """
        self._records += records
        self._good += records - len(bad)
        for sample in bad:
            self._reasons[
                sample.reason if sample.field is None else f"{sample.reason} in {sample.field}"
            ] += 1
            self._example = sample
        count = self._reasons.total()
        if count > self.settings.share_max * max(self._records, self.settings.window):
            raise self._too_many(
                f"more than the allowed {self.settings.share_max:.1%} of {self.settings.window}"
            )
        if self._records >= self.settings.window:
            self._records = 0
            self._reasons.clear()

    def end(self) -> None:
        """Judges a source that has ended before a window was full: not one good record is not a stream of samples.

        Raises:
          TooManyBadSamples: as `see`.
        """
        if self._reasons and not self._good and self.settings.share_max < 1:
            raise self._too_many("and there was no good one")

    def _too_many(self, why: str) -> TooManyBadSamples:
        reasons = ", ".join(f"{n} x {reason}" for reason, n in self._reasons.most_common(3))
        return TooManyBadSamples(
            f"{self._reasons.total()} of the last {self._records} records are bad, {why} ({reasons}). One of them: "
            f"{self._example}. Nothing of them was learned and nothing is lost: correct [schema] or the producer and "
            "start again; to go on past them, raise training.bad_samples.share_max (1 never stops)"
        )


class QuarantineGuard:
    """Watches for minibatches that are quarantined one after the other.

    Args:
      in_a_row_max: how many may be.
    """

    def __init__(self, in_a_row_max: int) -> None:
        self._max, self._in_a_row = in_a_row_max, 0

    def see(self, spans: Sequence[Span], *, quarantined: bool) -> None:
        """Takes note of a minibatch of samples.

        Raises:
          TooManyQuarantined: it is one too many.
        """
        self._in_a_row = self._in_a_row + 1 if quarantined else 0
        if self._in_a_row > self._max:
            raise TooManyQuarantined(
                f"{self._in_a_row} minibatches in a row would have left NaN or infinities in the model, the last one "
                f"{describe(spans)}; training.quarantine_max allows {self._max}. The model stays as the newest epoch "
                "has it, without any of them. Look at these records: a huge value in a dense slot or a weight is the "
                "usual cause; another is a learning rate too high. Correct it and start again; if the model went "
                "astray before, `streamtrain inspect` shows its epochs and `streamtrain rollback` returns to one"
            )


def describe(spans: Sequence[Span]) -> str:
    """Where the records of a minibatch stand, in words."""
    return ", ".join(_words(span) for span in spans)


def _words(span: Span) -> str:
    begin = f"{span.first} leaf {span.first_leaf}" if span.first_leaf else f"{span.first}"
    end = f"{span.next} leaf {span.next_leaf - 1}" if span.next_leaf else f"{span.next - 1}"
    return f"{span.partition} offsets {begin} to {end}"
