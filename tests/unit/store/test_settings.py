"""What `store.url` and its neighbours accept, and what they say when they do not."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from streamtrain.errors import ConfigError, StoreRefused
from streamtrain.store import StoreInfo, StoreSettings, open_store
from streamtrain.store.address import Address, StoreUrl
from streamtrain.store.checks import check_servers, memory


@pytest.mark.parametrize(
    ("url", "parsed"),
    [
        ("memory://", StoreUrl(())),
        ("lmdb:///var/lib/rows", StoreUrl((), path="/var/lib/rows")),
        ("redis://cache", StoreUrl((Address("cache", 6379),))),
        ("redis://cache:7000/3", StoreUrl((Address("cache", 7000),), database=3)),
        ("redis://a:1,b,[::1]:3", StoreUrl((Address("a", 1), Address("b"), Address("::1", 3)))),
        ("rediss://me@cache", StoreUrl((Address("cache"),), tls=True, username="me")),
        ("unix:///run/redis.sock?db=2", StoreUrl((Address("/run/redis.sock", 0),), database=2)),
    ],
)
def test_urls_of_every_form_are_read(url: str, parsed: StoreUrl) -> None:
    assert StoreSettings(url=url).endpoint == parsed


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("redis://:secret@cache", "password_env"),
        ("redis://me:secret@cache", "password_env"),
        ("redis://", "must be one of"),
        ("redis://a,,b", "not HOST:PORT"),
        ("redis://a:99999", "not HOST:PORT"),
        ("redis://a/one", "number of a database"),
        ("redis://a?timeout=3", "must be one of"),
        ("memory://x", "must be one of"),
        ("unix://", "must be one of"),
        ("lmdb://", "must be one of"),
        ("lmdb:///", "must be one of"),
        ("lmdb://rows", "must be one of"),
        ("http://a", "must be one of"),
        ("cache:6379", "must be one of"),
    ],
)
def test_other_urls_are_refused_without_repeating_a_password(url: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        StoreUrl.parse(url)
    assert "secret" not in str(caught.value)
    with pytest.raises(ValidationError):
        StoreSettings(url=url)


@pytest.mark.parametrize(
    "contradiction",
    [
        {"url": "redis://a", "password_env": "A", "password_file": "b"},
        {"url": "lmdb:///a", "password_env": "A"},
        {"url": "redis://a", "tls_ca_file": "ca.pem"},
        {"url": "rediss://a", "tls_cert_file": "cert.pem"},
        {"shards": 0},
        {"retries": -1},
        {"connections_max": 0},
    ],
)
def test_contradictions_and_values_out_of_range_are_refused(contradiction: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        StoreSettings(**contradiction)  # type: ignore[arg-type]


def test_memory_is_no_store_at_all() -> None:
    assert open_store(StoreSettings()) is None


def test_a_password_that_is_nowhere_is_named_before_anything_connects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(ConfigError, match=r"store\.password_env: the environment has no NOT_SET"):
        open_store(StoreSettings(url="redis://a", password_env="NOT_SET"))
    with pytest.raises(ConfigError, match=r"store\.password_file: cannot read"):
        open_store(StoreSettings(url="redis://a", password_file=str(tmp_path / "missing")))


def test_a_password_file_loses_its_line_end_only(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(" pass word \n")
    assert StoreSettings(url="redis://a", password_file=str(tmp_path / "secret")).password() == " pass word "


def server(**fields: str) -> dict[str, str]:
    return {
        "redis_version": "7.2.4",
        "maxmemory_policy": "noeviction",
        "used_memory": "10",
        "maxmemory": "0",
    } | fields


@pytest.mark.parametrize("version", ["6.0.16", "5.0.7", "unknown", ""])
def test_servers_older_than_needed_are_refused_by_address(version: str) -> None:
    with pytest.raises(StoreRefused, match="at old:1 has version"):
        check_servers({Address("new", 2): server(), Address("old", 1): server(redis_version=version)})


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl", "allkeys-random"])
def test_servers_that_may_evict_are_refused_with_the_remedy(policy: str) -> None:
    with pytest.raises(StoreRefused, match=f"{policy}.*\n.*-s /s CONFIG SET maxmemory-policy noeviction"):
        check_servers({Address("/s", 0): server(maxmemory_policy=policy)})


def test_servers_that_do_not_tell_their_policy_are_refused() -> None:
    with pytest.raises(StoreRefused, match="maxmemory-policy unknown"):
        check_servers({Address("a"): {"redis_version": "7.0.0"}})


def test_memory_is_bounded_only_where_every_server_is() -> None:
    first, second = server(maxmemory="100", redis_version="6.2.10"), server(maxmemory="50", used_memory="7")
    assert memory({Address("a"): first, Address("b"): second}) == StoreInfo("6.2.10", 2, 17, 150)
    assert memory({Address("a"): first, Address("b"): server()}) == StoreInfo("6.2.10", 2, 20, 0)
