"""What `streamtrain doctor` finds out about the servers of a row store. It leaves nothing in them."""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Mapping

from streamtrain.errors import StoreError, StoreRefused
from streamtrain.findings import Finding
from streamtrain.store.address import Address
from streamtrain.store.checks import check_servers
from streamtrain.store.router import Router
from streamtrain.store.settings import StoreSettings

__all__ = ["diagnose_servers", "judge_server"]

_ROUND_TRIPS = 9
_SLOW_S = 0.05
_MEMORY_SHARE_MAX = 0.8
_CLOCK_APART_S = 5.0
# What the daemon's scripts call, on a key of our own that ends as it began: not there. A right that lacks is told by the server.
_RIGHTS = b"""
local key, refused = KEYS[1], {}
for _, command in ipairs({
  {'HSET', key, 'f', '1'}, {'HGET', key, 'f'}, {'HMGET', key, 'f'}, {'HLEN', key}, {'HDEL', key, 'f'},
  {'ZADD', key, '0', 'm'}, {'ZCARD', key}, {'ZRANGEBYLEX', key, '-', '+'}, {'ZREM', key, 'm'},
  {'UNLINK', key}, {'DEL', key}}) do
  local answer = redis.pcall(unpack(command))
  if type(answer) == 'table' and answer.err then refused[#refused + 1] = command[1] end
end
return refused
"""


async def diagnose_servers(settings: StoreSettings) -> list[Finding]:
    """Looks at Redis, Valkey, or each primary of a Redis Cluster.

    Raises:
      ConfigError: a password or certificate cannot be read.
    """
    router = Router(settings)
    try:
        await router.connect()
        servers = await router.info()
        found = [
            finding
            for address, info in servers.items()
            for finding in judge_server(address, info, time.time())
        ]
        return [*found, *await _rights(router, len(servers)), await _round_trip(router)]
    except StoreRefused as error:
        return [
            Finding.fault(
                "store", str(error), "redis-cli ACL SETUSER with the rules of deploy/redis/users.acl"
            )
        ]
    except StoreError as error:
        return [
            Finding.fault(
                "store",
                str(error),
                "check store.url, the password and the certificates of the job; `redis-cli -u URL PING` shows whether it answers",
            )
        ]
    finally:
        await router.close()


def judge_server(address: Address, info: Mapping[str, str], now_s: float) -> list[Finding]:
    """What one server's INFO tells: version, policy, memory, persistence, clock."""
    try:
        check_servers({address: info})
    except StoreRefused as error:
        # Its text has the command.
        return [Finding.fault("store", str(error), "")]
    found = [Finding.ok("store", f"Redis {info['redis_version']} at {address} answers, and evicts nothing")]
    reach = (
        f"redis-cli -h {address.host} -p {address.port}" if address.port else f"redis-cli -s {address.host}"
    )
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not most:
        found.append(
            Finding.warning(
                "store",
                f"Redis at {address} has no maxmemory: when its machine is full, the kernel kills it",
                f"{reach} CONFIG SET maxmemory 4gb   # about two thirds of its machine, in redis.conf too",
            )
        )
    elif used > _MEMORY_SHARE_MAX * most:
        found.append(
            Finding.warning(
                "store",
                f"Redis at {address} uses {used / 1e6:,.0f} of {most / 1e6:,.0f} MB: when it is full, the store falls behind "
                "the log",
                f"{reach} CONFIG SET maxmemory {2 * most}   # or let rows expire",
            )
        )
    return [*found, *_persistence(address, info, reach), *_clock(address, info, now_s)]


def _persistence(address: Address, info: Mapping[str, str], reach: str) -> list[Finding]:
    failed = [
        name for name in ("rdb_last_bgsave_status", "aof_last_write_status") if info.get(name, "ok") != "ok"
    ]
    if failed:
        return [
            Finding.warning(
                "store",
                f"Redis at {address} could not write to its disk ({', '.join(failed)})",
                f"{reach} INFO persistence   # then look at its log, and the room on its disk",
            )
        ]
    if info.get("aof_enabled") == "0":
        return [
            Finding.warning(
                "store",
                f"Redis at {address} keeps no append-only file: after its restart all rows are loaded from the log again, which "
                "loses nothing and takes time",
                f"{reach} CONFIG SET appendonly yes   # in redis.conf too",
            )
        ]
    return []


def _clock(address: Address, info: Mapping[str, str], now_s: float) -> list[Finding]:
    apart_s = int(info.get("server_time_usec", now_s * 1e6)) / 1e6 - now_s
    if abs(apart_s) <= _CLOCK_APART_S:
        return []
    return [
        Finding.warning(
            "clock",
            f"the clock of Redis at {address} is {abs(apart_s):,.0f} s {'ahead of' if apart_s > 0 else 'behind'} this one",
            "timedatectl set-ntp true   # on both machines",
        )
    ]


async def _rights(router: Router, servers: int) -> list[Finding]:
    """Tries what the daemon does, on keys that nobody else has: one for a server, some for a Cluster's nodes."""
    refused: set[str] = set()
    for _ in range(1 if servers == 1 else 4 * servers):
        key = f"streamtrain:doctor:{secrets.token_hex(8)}"
        refused.update(word.decode() for word in await router.call(key, "EVAL", _RIGHTS, 1, key))
    if not refused:
        return [Finding.ok("store", "this user may do all that the daemon does")]
    return [
        Finding.fault(
            "store",
            f"this user may not use {', '.join(sorted(refused))} on keys that begin with streamtrain:",
            "give it the rules of deploy/redis/users.acl: redis-cli ACL SETUSER NAME ...",
        )
    ]


async def _round_trip(router: Router) -> Finding:
    taken = []
    for _ in range(_ROUND_TRIPS):
        begin = time.perf_counter()
        await router.call("streamtrain:doctor", "HLEN", "streamtrain:doctor")
        taken.append(time.perf_counter() - begin)
    median_s = statistics.median(taken)
    text = f"an answer of the store takes {median_s * 1000:.1f} ms"
    if median_s <= _SLOW_S:
        return Finding.ok("store", text)
    return Finding.warning(
        "store", f"{text}: rows come late", "move it nearer to the daemon, into the same zone"
    )
