"""The world of the demo: requests that are scored by what is being served, and then become samples of the stream.

Each request is scored before its sample is written, so no model can have learned from what it is judged by. Two
followers of the same deltas score it: one goes on following, the other stops at a version early in the stream.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from streamtrain.produce import SyntheticStream, messages_of
from streamtrain.serving import Follower
from streamtrain.training.prequential import Accumulator

__all__ = ["Measured", "OnlineFollower", "World"]

_AT_ONCE = 100


@dataclass(slots=True)
class OnlineFollower:
    """A follower in a thread of its own, and how old each version's events were when it became visible."""

    follower: Follower
    events: list[tuple[int, float]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            if not self.follower.poll():
                continue
            version = self.follower.version
            if version is not None and version.lineage.samples and version.lineage.event_time_ms:
                oldest_ms = version.lineage.event_time_ms[0]
                self.events.append((version.lineage.samples, (version.visible_at_ms - oldest_ms) / 1000))

    def freshness(self, percent: float) -> float | None:
        """Seconds from a sample's event to its being visible; each delta counts with its oldest sample."""
        if not self.events:
            return None
        samples, seconds = (np.array(column) for column in zip(*self.events, strict=True))
        order = np.argsort(seconds)
        cumulative = np.cumsum(samples[order])
        return float(seconds[order][np.searchsorted(cumulative, cumulative[-1] * percent / 100)])


@dataclass(slots=True)
class Measured:
    """AUC of one window of requests: the follower that goes on, the frozen one, and the best that is possible."""

    samples: int
    online: float
    frozen: float | None
    possible: float


class World:
    """Makes requests, has them scored, and appends them to the stream.

    Args:
      stream: the samples to come.
      path: the growing file that the trainer reads.
      online: scores, and goes on following.
      window: requests a window.
    """

    def __init__(self, stream: SyntheticStream, path: Path, online: Follower, window: int) -> None:
        self._stream, self._path, self._online, self._window = stream, path, online, window
        self.frozen: Follower | None = None
        self.sent = 0
        self.windows: list[Measured] = []
        self._totals = {name: Accumulator(1) for name in ("online", "frozen", "possible")}
        self._begin_window()

    def _begin_window(self) -> None:
        self._parts = {name: Accumulator(1) for name in ("online", "frozen", "possible")}

    def freeze(self, exports: Path) -> int:
        """From now on a second follower scores too, with the version of this moment for good. Returns its epoch."""
        self.frozen = Follower(exports)
        self._begin_window()
        return self.frozen.wait_for(0, 10.0).epoch

    def play(self, rate: float) -> None:
        """Sends a block of requests, `rate` of them a second, a few at a time."""
        begin = time.monotonic()
        block = self._stream.next_block()
        for at in range(0, len(block.table), _AT_ONCE):
            table = block.table.slice(at, _AT_ONCE)
            now = np.full(len(table), time.time_ns() // 1_000_000)
            table = table.set_column(0, "event_time_ms", pa.array(now))
            self._score(table, block.probabilities[at : at + len(table)])
            with self._path.open("ab") as file:
                file.write(b"".join(message.value + b"\n" for message in messages_of(table)))
            self.sent += len(table)
            time.sleep(max(0.0, begin + (at + len(table)) / rate - time.monotonic()))

    def _score(self, table: pa.Table, possible: np.ndarray) -> None:
        clicks = table["click"].to_numpy().astype(np.float32)
        scores: dict[str, np.ndarray] = {"possible": possible}
        if self._online.version is not None:
            scores["online"] = self._online.predict(table)[:, 0]
        if self.frozen is not None:
            scores["frozen"] = self.frozen.predict(table)[:, 0]
        for name, probabilities in scores.items():
            p = np.clip(probabilities.astype(np.float64), 1e-7, 1 - 1e-7)
            logits = np.log(p / (1 - p)).astype(np.float32)[:, None]
            self._parts[name].add(logits, clicks[:, None], np.ones(len(clicks), np.float32))
            if self.frozen is not None:
                self._totals[name].add(logits, clicks[:, None], np.ones(len(clicks), np.float32))
        if self._parts["possible"].samples >= self._window:
            self.windows.append(
                Measured(
                    self.sent,
                    self._parts["online"].quality(0).auc,
                    self._parts["frozen"].quality(0).auc if self._parts["frozen"].samples else None,
                    self._parts["possible"].quality(0).auc,
                )
            )
            self._begin_window()

    def totals(self) -> dict[str, Any]:
        """AUC since the freeze, of all three."""
        return {name: part.quality(0).auc for name, part in self._totals.items()}
