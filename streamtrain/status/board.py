"""What the status page shows, as plain data."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from streamtrain.health import Health
from streamtrain.metrics import Metrics
from streamtrain.stages import CHAIN
from streamtrain.status.history import History
from streamtrain.status.notices import notices
from streamtrain.status.readings import Readings
from streamtrain.status.recent import RecentProblems

__all__ = ["StatusBoard"]

_LOOK_S = 2.0
# A topic may have thousands of partitions; the page names those that are furthest behind, as it does tables.
_ROWS_MAX = 32
_MEASURES = ("auc", "log_loss", "normalized_entropy", "calibration")


class StatusBoard:
    """Looks at the metrics every two seconds and remembers a quarter of an hour. Belongs to the loop.

    Args:
      name: the model's.
      configuration: the job as plain data, without secrets.
      metrics: read, never changed.
      health: what the probes answer.
      silent_max_s: `http.trainer_silent_max_s`.
      clock: seconds, never going back.
      wall: seconds since 1970.
    """

    def __init__(
        self,
        name: str,
        configuration: Mapping[str, Any],
        metrics: Metrics,
        health: Health,
        silent_max_s: float,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._name, self.configuration, self._silent_max_s = name, configuration, silent_max_s
        self._metrics, self._health = metrics, health
        self._clock, self._wall = clock, wall
        self._history, self._problems = History(), RecentProblems()
        self._now = Readings(())

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Looks, and takes down what is logged, while the context is open."""

        async def watch() -> None:
            while True:
                self.look()
                await asyncio.sleep(_LOOK_S)

        with self._problems.listening():
            task = asyncio.create_task(watch(), name="status")
            try:
                yield
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    def look(self) -> None:
        """Reads the metrics once."""
        self._now = Readings(self._metrics.registry.collect())
        self._history.add(self._now, self._clock(), int(self._wall() * 1000))

    def describe(self) -> dict[str, Any]:
        """What the page shows, as of the last look: see `page.js`, its only reader. NaN stands for what is not defined."""
        now, health = self._now, self._health
        return {
            "model": self._name,
            "version": _version(),
            "phase": health.phase,
            "ready": health.ready,
            "notices": list(notices(now, health.silent_s, self._silent_max_s)),
            "now_ms": int(self._wall() * 1000),
            "started_at_ms": _ms(now.value("process_start_time_seconds")),
            "figures": self._figures(),
            "path": self._path(),
            "views": self._views(),
            "partitions": self._partitions(),
            "quality": self._quality(),
            "tables": self._tables(),
            "bad_samples": now.by("streamtrain_bad_samples_total", "reason"),
            "history": self._history.describe(),
            "problems": self._problems.describe(),
            "configuration": self.configuration,
        }

    def _figures(self) -> dict[str, float | None]:
        """Single numbers, by name; None where this daemon has none."""
        now, rate = self._now, self._history.rate
        return {
            "epoch": now.value("streamtrain_epoch"),
            "committed_at_ms": _ms(now.value("streamtrain_epoch_committed_timestamp_seconds")),
            "watermark_ms": _ms(now.value("streamtrain_watermark_timestamp_seconds")),
            "samples": now.value("streamtrain_samples_total"),
            "samples_per_s": rate("streamtrain_samples_total"),
            "steps_per_s": rate("streamtrain_steps_total"),
            "epochs_per_s": rate("streamtrain_epoch_rows_count"),
            "rows_per_s": rate("streamtrain_epoch_rows_sum"),
            "log_bytes_per_s": rate("streamtrain_epoch_bytes_sum"),
            "lag_records": now.total("streamtrain_lag_records"),
            "lag_s": now.value("streamtrain_lag_seconds"),
            "owner": now.value("streamtrain_owner"),
            "standby_lag_epochs": now.value("streamtrain_standby_lag_epochs"),
            "memory_bytes": now.value("process_resident_memory_bytes"),
            "cpu_cores": rate("process_cpu_seconds_total"),
            "disk_free_bytes": now.value("streamtrain_log_disk_free_bytes"),
            "dead_letters": now.value("streamtrain_dead_letters_total"),
        }

    def _path(self) -> list[dict[str, Any]]:
        """The stages in the order of the data: what share of the last seconds each was at what."""
        busy, waits = "streamtrain_stage_busy_seconds_total", "streamtrain_stage_wait_seconds_total"
        rate, known = self._history.rate, self._now.by(busy, "stage")
        path = []
        for stage in CHAIN:
            at_work = rate(busy, stage=stage)
            if stage == "train" and at_work is not None:
                at_work += rate(busy, stage="cut") or 0.0  # The same thread does both.
            shares = {on: rate(waits, stage=stage, on=on) for on in ("input", "room")}
            if at_work is None and any(share is not None for share in shares.values()):
                at_work = 0.0  # It has done nothing but wait so far.
            if stage in known or at_work is not None:
                path.append({"stage": stage, "busy": at_work, **shares})
        return path

    def _views(self) -> list[dict[str, Any]]:
        epochs = self._now.by("streamtrain_view_lag_epochs", "view")
        seconds = self._now.by("streamtrain_view_lag_seconds", "view")
        return [{"view": n, "lag_epochs": epochs[n], "lag_s": seconds.get(n)} for n in sorted(epochs)]

    def _partitions(self) -> dict[str, Any]:
        lags = self._now.by("streamtrain_lag_records", "partition")
        worst = sorted(lags, key=lambda name: (-lags[name], name))[:_ROWS_MAX]
        return {
            "shown": [{"partition": name, "lag_records": lags[name]} for name in worst],
            "known": len(lags),
        }

    def _quality(self) -> list[dict[str, Any]]:
        now, name = self._now, "streamtrain_prequential"
        return [
            {"label": label, "over": over}
            | {measure: now.value(name, label=label, measure=measure, over=over) for measure in _MEASURES}
            for label in sorted(now.by(name, "label", measure="log_loss", over="total"))
            for over in ("window", "total")
        ]

    def _tables(self) -> dict[str, Any]:
        now = self._now
        rows, size = (now.by(f"streamtrain_table_{what}", "table") for what in ("rows", "bytes"))
        largest = sorted(rows, key=lambda name: (-rows[name], name))[:_ROWS_MAX]
        shown = []
        for name in largest:
            events = now.by("streamtrain_feature_events_total", "event", table=name)
            if (evicted := now.value("streamtrain_tier_evicted_rows_total", table=name)) is not None:
                events["evicted"] = evicted
            shown.append({"table": name, "rows": rows[name], "bytes": size.get(name), "events": events})
        return {"shown": shown, "known": len(rows)}


def _ms(seconds: float | None) -> float | None:
    """Milliseconds since 1970; a gauge that nothing was written to has 0, which is no time."""
    return None if not seconds else seconds * 1000


def _version() -> str:
    try:
        return version("streamtrain")
    except PackageNotFoundError:
        return "unknown"  # Run from a source tree that is not installed.
