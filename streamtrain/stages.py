"""How the stages of a run spend their time: at work, waiting for what comes before them, waiting for room behind them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol

from streamtrain.trace import Trace

__all__ = ["CHAIN", "Seconds", "Stages", "Timer", "Times", "report"]

CHAIN = ("read", "decode", "prefetch", "train", "commit")
"""What a sample goes through: each stage works beside the others, so that the slowest one bounds the run."""

_BOUND_SHARE = 0.8
"""A stage that is at work for less than this share of the time does not bound the run."""

On = Literal["input", "room"]


class _Adds(Protocol):
    def inc(self, amount: float) -> None: ...


class Seconds(Protocol):
    """A counter of seconds by labels: Prometheus' `Counter` has this shape."""

    def labels(self, *values: str) -> _Adds: ...


class Timer:
    """Measures what goes on inside of it, also where that raises.

    Attributes:
      seconds: how long that took.
    """

    __slots__ = ("_begin", "_ended", "seconds")

    def __init__(self, ended: Callable[[float, float], None]) -> None:
        self._ended = ended
        self.seconds = 0.0

    def __enter__(self) -> Timer:
        self._begin = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        end = time.perf_counter()
        self.seconds = end - self._begin
        self._ended(self._begin, end)


@dataclass(slots=True)
class Times:
    """Seconds of one stage so far. What has not ended yet is not in them."""

    busy: float = 0.0
    input: float = 0.0
    room: float = 0.0


class Stages:
    """Tells metrics, a summary and a trace how long each stage is at what. Each stage belongs to one thread at a time.

    Args:
      busy: seconds at work, by stage.
      waits: seconds waiting, by stage and by `input` (for what comes before it) or `room` (for what comes behind it).

    Attributes:
      trace: is given every span; None where nobody wants them.
      times: by stage, what was counted so far.
    """

    def __init__(self, busy: Seconds, waits: Seconds) -> None:
        self._counters = {"busy": busy, "waits": waits}
        self._ended: dict[tuple[str, str, str], Callable[[float, float], None]] = {}
        self.trace: Trace | None = None
        self.times: dict[str, Times] = {}

    def busy(self, stage: str, track: str | None = None) -> Timer:
        """What goes on inside is work of `stage`; a trace shows it on `track`, the stage's own unless another is named."""
        return self._timer(stage, "busy", track or stage)

    def waits(self, stage: str, on: On) -> Timer:
        """What goes on inside is waiting."""
        return self._timer(stage, on, stage)

    def _timer(self, stage: str, doing: str, track: str) -> Timer:
        key = stage, doing, track
        if (ended := self._ended.get(key)) is None:
            ended = self._ended[key] = self._counting(stage, doing, track)
        return Timer(ended)

    def _counting(self, stage: str, doing: str, track: str) -> Callable[[float, float], None]:
        times = self.times.setdefault(stage, Times())
        busy = doing == "busy"
        counter = (
            self._counters["busy"].labels(stage) if busy else self._counters["waits"].labels(stage, doing)
        )
        name = stage if busy else f"waits for {doing}"

        def ended(begin: float, end: float) -> None:
            counter.inc(end - begin)
            setattr(times, doing, getattr(times, doing) + end - begin)
            if self.trace is not None:
                self.trace.add(track, name, begin, end)

        return ended


def bound(times: Mapping[str, Times], seconds: float) -> str | None:
    """The stage of the chain that bounds a run of so many seconds: the busiest; None where each had time to spare."""
    at_work = {stage: times[stage].busy for stage in CHAIN if stage in times}
    if "cut" in times and "train" in at_work:
        at_work["train"] += times["cut"].busy  # The same thread does both.
    busiest = max(at_work, key=lambda stage: at_work[stage], default=None)
    return busiest if busiest is not None and at_work[busiest] >= _BOUND_SHARE * seconds else None


def report(times: Mapping[str, Times], seconds: float) -> Iterator[str]:
    """Lines for people: what share of `seconds` each stage was at what, and which one bounds the run."""
    if seconds <= 0 or not times:
        return
    yield f"{'stage':<16} {'busy':>6} {'waits for input':>16} {'waits for room':>15}"
    order = {stage: number for number, stage in enumerate(CHAIN)}
    for stage in sorted(times, key=lambda name: (order.get(name, len(order)), name)):
        at = times[stage]
        yield f"{stage:<16} {at.busy / seconds:6.1%} {at.input / seconds:16.1%} {at.room / seconds:15.1%}"
    slowest = bound(times, seconds)
    if slowest is None:
        yield "no stage bounds this run: each had time to spare, or the machine has too few cores for all of them"
    else:
        yield f"{slowest} bounds this run: {_WHY[slowest]}"


_WHY = {
    "read": "the other stages wait for the source",
    "decode": "decoding records takes longer than what follows",
    "prefetch": "rows that are not in memory are waited for (the store, or tables.*.memory_bytes_max)",
    "train": "the trainer thread is at work all the time",
    "commit": "epochs take longer to write than log.epoch_interval_s",
}
