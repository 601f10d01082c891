"""The daemon's Prometheus metrics, in one place. Base units, few labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from streamtrain.stages import Stages
from streamtrain.thread_seconds import ThreadSeconds
from streamtrain.training.prequential import Quality

__all__ = ["Definition", "Metrics"]


@dataclass(frozen=True, slots=True)
class Definition:
    """What docs/metrics.md says of a metric.

    Attributes:
      name: as Prometheus has it; of a histogram without `_bucket`, `_sum` and `_count`.
      kind: `counter`, `gauge` or `histogram`.
      text: its help.
      labels: their names.
    """

    name: str
    kind: str
    text: str
    labels: tuple[str, ...] = ()


class Metrics:
    """All of them, in a registry of their own.

    Attributes:
      registry: what `/metrics` shows.
      definitions: of ours, in the order of the docs.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.definitions: list[Definition] = []
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self.samples = self._counter("samples", "Samples learned from by this process.")
        self.bad_samples = self._counter("bad_samples", "Records refused, by reason.", "reason")
        self.dead_letters = self._counter(
            "dead_letters", "Refused records kept in the file or topic for them."
        )
        self.dead_letters_unavailable = self._gauge(
            "dead_letters_unavailable", "1 while dead letters cannot be kept and training is paused."
        )
        self.lost_offsets = self._counter(
            "lost_offsets", "Offsets skipped that were never learned, by partition.", "partition"
        )
        self.data_losses = self._counter(
            "data_losses", "Gaps skipped, by reason: retention, recreated, shrunk, removed.", "reason"
        )
        self.quarantined_minibatches = self._counter(
            "quarantined_minibatches", "Minibatches that were not learned from, to keep NaN out of the model."
        )
        self.quarantined_samples = self._counter("quarantined_samples", "Samples in quarantined minibatches.")
        self.steps = self._counter("steps", "Optimizer steps taken by this process.")
        self.first_step = self._gauge(
            "first_step_timestamp_seconds",
            "When this process took its first step; less process_start_time_seconds, what a start took.",
        )
        self.step_seconds = self._histogram("step_seconds", "Duration of one step.", 0.0002, 14)
        self.stages = Stages(
            self._counter("stage_busy_seconds", "Time that a stage was at work.", "stage"),
            self._counter(
                "stage_wait_seconds",
                "Time that a stage waited: for input, or for room behind it.",
                "stage",
                "on",
            ),
        )
        self._show_threads()
        self.epoch = self._gauge("epoch", "Number of the newest durable epoch.")
        self.committed = self._gauge(
            "epoch_committed_timestamp_seconds", "When the newest epoch became durable."
        )
        self.commit_seconds = self._histogram(
            "commit_seconds", "From the cut of an epoch to its durability.", 0.001, 14
        )
        self.epoch_seconds = self._histogram(
            "epoch_seconds", "From the cut before an epoch to its own: what it spans.", 0.05, 14
        )
        self.epoch_rows = self._histogram("epoch_rows", "Changed rows in an epoch.", 1, 24)
        self.epoch_bytes = self._histogram("epoch_bytes", "Size of an epoch's file in the log.", 1024, 24)
        self.owner = self._gauge("owner", "1 while this daemon learns, 0 while it stands by.")
        self.standby_epoch = self._gauge("standby_epoch", "Newest epoch that this standby has.")
        self.standby_lag_epochs = self._gauge(
            "standby_lag_epochs", "Epochs in the log that this standby lacks."
        )
        self.takeover_seconds = self._gauge(
            "takeover_seconds", "From being the owner to learning, of the last takeover."
        )
        self.log_full = self._gauge("log_full", "1 while the log has no room and training is paused.")
        self.disk_free = self._gauge("log_disk_free_bytes", "Room on the file system of the log.")
        self.disk_size = self._gauge("log_disk_size_bytes", "Size of the file system of the log.")
        self.log_readers = self._gauge("log_readers", "Readers registered in the log, whose leases last.")
        self.log_reader_epoch = self._gauge(
            "log_reader_epoch",
            "Epoch that a registered reader has, of the 16 furthest behind; -1: it has yet to choose a base.",
            "reader",
        )
        self.watermark = self._gauge("watermark_timestamp_seconds", "Largest event time in a durable epoch.")
        self.lag_records = self._gauge(
            "lag_records", "Records behind the newest known, by partition.", "partition"
        )
        self.lag_seconds = self._gauge(
            "lag_seconds",
            "Age of the newest record in a durable epoch while there are newer ones; 0 where none is known.",
        )
        self.view_lag_epochs = self._gauge(
            "view_lag_epochs",
            "Durable epochs that what follows the log lacks: store, exporters, source (its mirror of positions).",
            "view",
        )
        self.view_lag_seconds = self._gauge(
            "view_lag_seconds", "For how long it has lacked the oldest of them.", "view"
        )
        self.table_rows = self._gauge("table_rows", "Rows in memory, by table.", "table")
        self.table_bytes = self._gauge("table_bytes", "Memory of the table, by table.", "table")
        self.table_collided = self._gauge(
            "table_collided_ratio",
            "Share of ids that share all rows with another, estimated from the rows in memory, by hashed table.",
            "table",
        )
        self.feature_events = self._counter(
            "feature_events",
            "Ids admitted, lookups of ids without a row (refused), rows expired by reason, by table.",
            "table",
            "event",
        )
        self.admission = self._gauge(
            "admission",
            "Of the admission filter: fill and saturated (shares), candidates, halvings.",
            "table",
            "figure",
        )
        self.store_epoch = self._gauge(
            "store_applied_epoch", "Epoch that every shard of the store has applied."
        )
        self.store_pulled = self._counter("store_pulled_rows", "Rows brought from the store on demand.")
        self.store_errors = self._counter(
            "store_errors", "Calls to the store that failed after their retries."
        )
        self.tier_hits = self._counter(
            "tier_hits", "Ids of a chunk whose rows were in memory, of tables with memory_bytes_max.", "table"
        )
        self.tier_misses = self._counter(
            "tier_misses",
            "Ids of a chunk whose rows were not in memory, and were asked of the store.",
            "table",
        )
        self.tier_evicted = self._counter("tier_evicted_rows", "Rows that left memory for others.", "table")
        self.tier_swept = self._counter(
            "tier_swept_rows", "Rows that were read from the store because expiry looks at them.", "table"
        )
        self.tier_bytes = self._gauge(
            "tier_bytes", "Memory of the set of ids whose rows are in memory, beside table_bytes.", "table"
        )
        self.tier_stalls = self._counter(
            "tier_stalls", "How often samples waited for rows of the store, or for room for them.", "reason"
        )
        self.tier_stall_seconds = self._counter(
            "tier_stall_seconds",
            "How long samples waited for rows of the store, or for room for them.",
            "reason",
        )
        self.export_epoch = self._gauge("export_epoch", "Newest exported epoch, by exporter.", "exporter")
        self.export_bytes = self._gauge("export_bytes", "Size of the newest export, by exporter.", "exporter")
        self.export_written = self._counter(
            "export_written_bytes", "Bytes written by exports, by exporter.", "exporter"
        )
        self.export_errors = self._counter(
            "export_errors", "Exports that failed and will be retried.", "exporter"
        )
        self.compilations = self._counter(
            "compilations_after_warm_up", "Compilations that samples had to wait for; 0 is right."
        )
        self.quality = self._gauge(
            "prequential",
            "Quality before learning: auc, log_loss, normalized_entropy, calibration, over the last full window or in total.",
            "label",
            "measure",
            "over",
        )

    def _show_threads(self) -> None:
        name, text = "thread_cpu_seconds", "Processor time by kind of thread; a pool's threads are one kind."
        self._define(f"{name}_total", "counter", text, ("thread",))
        self.registry.register(ThreadSeconds(f"streamtrain_{name}", text))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        self._define(f"{name}_total", "counter", text, labels)
        return Counter(f"streamtrain_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        self._define(name, "gauge", text, labels)
        return Gauge(f"streamtrain_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, first: float, count: int) -> Histogram:
        self._define(name, "histogram", text, ())
        buckets = [first * 2**i for i in range(count)]
        return Histogram(f"streamtrain_{name}", text, buckets=buckets, registry=self.registry)

    def _define(self, name: str, kind: str, text: str, labels: Sequence[str]) -> None:
        self.definitions.append(Definition(f"streamtrain_{name}", kind, text, tuple(labels)))

    def show_features(self, table: str, events: Mapping[str, int], figures: Mapping[str, float]) -> None:
        """Adds what happened to a table's ids since it was told last, and sets its filter's gauges."""
        for event, count in events.items():
            self.feature_events.labels(table, event).inc(count)
        for figure, value in figures.items():
            self.admission.labels(table, figure).set(value)

    def show_quality(self, over: str, qualities: Mapping[str, Quality]) -> None:
        """Sets the gauges of every label for `over` = `total` or `window`. What is not defined has no series.

        A NaN would poison every average over time that has it in its range.
        """
        for label, quality in qualities.items():
            for measure in ("auc", "log_loss", "normalized_entropy", "calibration"):
                value = getattr(quality, measure)
                # Made before it is removed: removing what is not there is an error.
                self.quality.labels(label, measure, over).set(value)
                if math.isnan(value):
                    self.quality.remove(label, measure, over)
