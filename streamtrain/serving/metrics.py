"""A follower's Prometheus metrics, for the registry of the process that serves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from streamtrain.errors import ConfigError
from streamtrain.serving.follower import Follower
from streamtrain.serving.freshness import BOUNDS_S, Ages

__all__ = ["FollowerCollector", "serve_metrics"]


class FollowerCollector(Collector):
    """Shows a follower as it is when it is asked: `REGISTRY.register(FollowerCollector(follower))`.

    Args:
      follower: followed by anyone; only read here.
      name: what the metrics' label `follower` says: a process may have several.
    """

    def __init__(self, follower: Follower, name: str = "") -> None:
        self._follower, self._name = follower, name

    def describe(self) -> list[Metric]:
        """So that a registry finds two of the same name without asking for values."""
        return list(self._families())

    def collect(self) -> Iterator[Metric]:
        """The families with their values."""
        yield from self._families()

    def _families(self) -> Iterator[Metric]:
        follower = self._follower
        status, version = follower.status, follower.version
        yield self._gauge(
            "failing", "1 while the newest version cannot be served.", status.last_error is not None
        )
        yield self._gauge("epoch", "Epoch that is served.", None if version is None else version.epoch)
        behind = None if version is None or status.head_epoch is None else status.head_epoch - version.epoch
        yield self._gauge("lag_epochs", "Exported epochs, of those known, that are not served yet.", behind)
        yield self._gauge(
            "committed_timestamp_seconds",
            "When the epoch that is served was committed.",
            None if version is None else version.lineage.committed_at_ms / 1000,
        )
        yield self._gauge(
            "visible_timestamp_seconds",
            "When predictions began to use it.",
            None if version is None else version.visible_at_ms / 1000,
        )
        rows = GaugeMetricFamily(
            "streamtrain_follower_table_rows", "Rows held, by table.", labels=("follower", "table")
        )
        for table, count in follower.rows.items():
            rows.add_metric((self._name, table), count)
        yield rows
        event, commit = follower.ages
        yield self._histogram(
            "event_to_visible_seconds",
            "Freshness by delta: from the arrival of its oldest sample in the source to its use by predictions.",
            event,
        )
        yield self._histogram(
            "commit_to_visible_seconds",
            "By delta, from the commit of its epoch to its use by predictions.",
            commit,
        )
        yield self._counter("deltas_applied", "Deltas applied.", status.deltas_applied)
        yield self._counter("bases_loaded", "Bases loaded.", status.bases_loaded)
        yield self._counter(
            "fallbacks",
            "Versions replaced by what grew from a base: no chain of deltas led on.",
            status.fallbacks,
        )
        yield self._counter(
            "refused_files", "Files refused because they were damaged or gone.", status.refused
        )

    def _gauge(self, name: str, text: str, value: float | None) -> Metric:
        family = GaugeMetricFamily(f"streamtrain_follower_{name}", text, labels=("follower",))
        if value is not None:
            family.add_metric((self._name,), value)
        return family

    def _counter(self, name: str, text: str, value: int) -> Metric:
        family = CounterMetricFamily(f"streamtrain_follower_{name}", text, labels=("follower",))
        family.add_metric((self._name,), value)
        return family

    def _histogram(self, name: str, text: str, ages: Ages) -> Metric:
        family = HistogramMetricFamily(f"streamtrain_follower_{name}", text, labels=("follower",))
        bounds = (*map(str, BOUNDS_S), "+Inf")
        buckets = list(zip(bounds, accumulate(ages.counts), strict=True))
        family.add_metric((self._name,), buckets, ages.sum_s)
        return family


@contextmanager
def serve_metrics(follower: Follower, address: str, name: str = "") -> Iterator[int]:
    """Serves `/metrics` of a process that does nothing but follow; yields the port.

    Args:
      follower: see `FollowerCollector`, also for `name`.
      address: `HOST:PORT`; port 0 takes a free one.

    Raises:
      ConfigError: the address is none, or cannot be bound.
    """
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    registry.register(FollowerCollector(follower, name))
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise ConfigError(f"--listen {address}: write HOST:PORT, as in 127.0.0.1:9465")
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), registry)
    except OSError as error:
        raise ConfigError(
            f"--listen {address}: cannot listen there: {error.strerror}; choose another port"
        ) from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
