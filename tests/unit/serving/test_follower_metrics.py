"""What a follower shows to Prometheus, and the address at which the command shows it."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from streamtrain.errors import ConfigError
from streamtrain.serving import Follower
from streamtrain.serving.metrics import FollowerCollector, serve_metrics


def test_ages_of_deltas_are_counted_in_buckets_since_the_beginning(tmp_path: Path) -> None:
    follower, registry = Follower(tmp_path), CollectorRegistry()
    registry.register(FollowerCollector(follower, "a"))
    for age_ms in (100, 101, 4_999, 5_000, 5_001, 10_000_000, -50):
        follower._freshness.add(samples=3, record_time_min_ms=0, committed_at_ms=age_ms, visible_at_ms=age_ms)

    def buckets(name: str, le: str) -> float | None:
        return registry.get_sample_value(
            f"streamtrain_follower_{name}_seconds_bucket", {"follower": "a", "le": le}
        )

    assert [buckets("event_to_visible", le) for le in ("0.1", "0.25", "5.0", "10.0", "1800.0", "+Inf")] == [
        2,
        3,
        5,
        6,
        6,
        7,
    ]
    assert buckets("commit_to_visible", "0.1") == 7
    total = registry.get_sample_value("streamtrain_follower_event_to_visible_seconds_sum", {"follower": "a"})
    assert total == pytest.approx(0.1 + 0.101 + 4.999 + 5 + 5.001 + 10_000)


def test_a_follower_without_a_version_is_failing_and_has_no_epoch(tmp_path: Path) -> None:
    follower = Follower(tmp_path)
    follower.poll()
    with serve_metrics(follower, "127.0.0.1:0", "a") as port:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        assert 'streamtrain_follower_failing{follower="a"} 1.0' in text
        assert "streamtrain_follower_epoch{" not in text
        assert "process_resident_memory_bytes" in text
        with (
            pytest.raises(ConfigError, match=r"cannot listen there: .*; choose another port"),
            serve_metrics(follower, f"127.0.0.1:{port}"),
        ):
            pass


@pytest.mark.parametrize("address", ["9465", "127.0.0.1:", ":9465", "127.0.0.1:70000"])
def test_an_address_that_is_none_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError, match="write HOST:PORT"), serve_metrics(Follower(tmp_path), address):
        pass
