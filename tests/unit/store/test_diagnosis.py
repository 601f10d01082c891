"""What a Redis server's INFO tells a doctor."""

from __future__ import annotations

import pytest

from streamtrain.findings import Level
from streamtrain.store.address import Address
from streamtrain.store.diagnosis import judge_server

WELL = {
    "redis_version": "7.2.4",
    "maxmemory_policy": "noeviction",
    "maxmemory": "1000000000",
    "used_memory": "500000000",
    "aof_enabled": "1",
    "aof_last_write_status": "ok",
    "rdb_last_bgsave_status": "ok",
    "server_time_usec": "1000000000",
}


def test_a_server_that_is_well_has_nothing_to_be_mended() -> None:
    assert [found.level for found in judge_server(Address("h"), WELL, 1000.0)] == [Level.OK]


@pytest.mark.parametrize(
    ("change", "level", "says"),
    [
        ({"redis_version": "5.0.1"}, Level.FAULT, "6.2 or newer"),
        ({"maxmemory_policy": "allkeys-lru"}, Level.FAULT, "CONFIG SET maxmemory-policy noeviction"),
        ({"maxmemory": "0"}, Level.WARNING, "no maxmemory"),
        ({"used_memory": "900000000"}, Level.WARNING, "900 of 1,000 MB"),
        ({"aof_enabled": "0"}, Level.WARNING, "no append-only file"),
        ({"aof_last_write_status": "err"}, Level.WARNING, "aof_last_write_status"),
        ({"server_time_usec": "1060000000"}, Level.WARNING, "60 s ahead of"),
        ({"server_time_usec": "940000000"}, Level.WARNING, "60 s behind"),
    ],
)
def test_each_thing_that_is_wrong_is_told_with_what_mends_it(
    change: dict[str, str], level: Level, says: str
) -> None:
    found = judge_server(Address("h", 7000), WELL | change, 1000.0)[-1]
    assert found.level is level and says in found.text
    assert found.remedy or "redis-cli" in found.text or "is needed" in found.text
