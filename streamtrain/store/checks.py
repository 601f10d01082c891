"""What a server must be before rows are trusted to it. Decides from INFO alone: CONFIG is often forbidden."""

from __future__ import annotations

from collections.abc import Mapping

from streamtrain.errors import StoreRefused
from streamtrain.store.address import Address
from streamtrain.store.store import StoreInfo

__all__ = ["check_servers", "memory"]

_VERSION_MIN = (6, 2)


def check_servers(servers: Mapping[Address, Mapping[str, str]]) -> None:
    """Looks at the INFO of each server.

    Raises:
      StoreRefused: one is older than Redis 6.2, or may evict keys.
    """
    for address, info in servers.items():
        version = info.get("redis_version", "unknown")
        if _version(version) < _VERSION_MIN:
            raise StoreRefused(
                f"the store's Redis at {address} has version {version}; Redis 6.2 or newer, or Valkey, is needed"
            )
        policy = info.get("maxmemory_policy", "unknown")
        if policy != "noeviction":
            raise StoreRefused(
                f"the store's Redis at {address} has maxmemory-policy {policy}, and would drop learned rows when full. Set\n"
                f"  redis-cli {_reach(address)} CONFIG SET maxmemory-policy noeviction\n"
                "and the same in redis.conf, or in the parameter group of a managed Redis"
            )


def memory(servers: Mapping[Address, Mapping[str, str]]) -> StoreInfo:
    """Sums up the INFO of all servers, one or more."""
    bounds = [int(info.get("maxmemory", 0)) for info in servers.values()]
    return StoreInfo(
        version=min((info["redis_version"] for info in servers.values()), key=_version),
        servers=len(servers),
        memory_bytes=sum(int(info["used_memory"]) for info in servers.values()),
        memory_bytes_max=sum(bounds) if all(bounds) else 0,
    )


def _version(text: str) -> tuple[int, ...]:
    parts = text.split(".")[:2]
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else (0,)


def _reach(address: Address) -> str:
    return f"-h {address.host} -p {address.port}" if address.port else f"-s {address.host}"
