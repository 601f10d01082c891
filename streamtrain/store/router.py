"""Which server holds a key: one server for all, or a Redis Cluster; and the bounded retries of every call.

A Cluster is followed by its own rules (https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/):
CLUSTER SLOTS maps slots to primaries, MOVED corrects the map, ASK redirects one call while a slot is moving.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from redis.crc import key_slot
from redis.exceptions import AskError, MovedError

from streamtrain.errors import StoreRefused, StoreUnavailable
from streamtrain.store.address import Address
from streamtrain.store.node import Argument, Node, connector, no_redis
from streamtrain.store.settings import StoreSettings

__all__ = ["Router"]

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_REDIRECTS_MAX = 5
_SLOT_LAST = 16_383
_PAUSE_FIRST_S, _PAUSE_MAX_S = 0.05, 1.0


class Router:
    """Sends commands to the servers that hold their keys.

    Args:
      settings: the store's.

    Raises:
      ConfigError: the password cannot be read.
    """

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._connect = connector(settings)
        self._nodes: dict[Address, Node] = {}
        # By hash slot of a Cluster, who holds it.
        self._owners: dict[int, Address] = {}
        self._cluster = False
        self._refreshing = asyncio.Lock()
        self._refreshes = 0

    async def connect(self) -> None:
        """Finds out whether the servers form a Cluster and, if so, who holds what.

        Raises:
          StoreUnavailable: none of the servers named answers.
          StoreRefused: the URL asks for what the servers are not.
        """
        endpoint = self._settings.endpoint
        self._cluster = (await self._retry(self._ask_for_info)).get("cluster_enabled") == "1"
        if self._cluster:
            if endpoint.database:
                raise StoreRefused(
                    f"store.url names database {endpoint.database}, but a Redis Cluster has database 0 only"
                )
            await self._retry(self._refresh)
        elif len(endpoint.addresses) > 1:
            raise StoreRefused(
                f"store.url names {len(endpoint.addresses)} servers, but {endpoint.addresses[0]} is not "
                "in cluster mode (cluster-enabled yes); name one server, or the nodes of one Cluster"
            )

    async def call(self, key: str, *command: Argument) -> Any:
        """Runs a command on the server that holds `key`. It may run more than once: it must be idempotent.

        Raises:
          StoreUnavailable: no answer after all retries.
          StoreRefused: an answer that will not change.
          NoScriptError: EVALSHA of a script that the server does not have.
        """
        slot = key_slot(key.encode())

        async def once() -> Any:
            return await self._follow(slot, command)

        return await self._retry(once)

    async def info(self) -> dict[Address, dict[str, str]]:
        """INFO of every server that holds keys.

        Raises: as `call`.
        """

        async def once() -> dict[Address, dict[str, str]]:
            addresses = set(self._owners.values()) or {self._settings.endpoint.addresses[0]}
            return {a: _fields(await self._node(a).call("INFO"), a) for a in addresses}

        return await self._retry(once)

    async def close(self) -> None:
        """Closes all connections. Safe to call twice."""
        for node in self._nodes.values():
            await node.close()

    async def _retry(self, once: Callable[[], Awaitable[Result]]) -> Result:
        """Calls `once` until it answers, refreshing the map of a Cluster in between: its failed node may be replaced."""
        pause_s = _PAUSE_FIRST_S
        for attempt in range(self._settings.retries + 1):
            seen = self._refreshes
            try:
                return await once()
            except StoreUnavailable as error:
                if attempt == self._settings.retries:
                    raise
                logger.debug("attempt %d on the store failed, trying again: %s", attempt + 1, error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)
            if self._cluster:
                await self._refresh_after(seen)
        raise AssertionError("the last attempt returns or raises")

    async def _follow(self, slot: int, command: tuple[Argument, ...]) -> Any:
        address, asking = self._owner(slot), False
        for _ in range(_REDIRECTS_MAX):
            try:
                return await self._node(address).call(*command, asking=asking)
            except MovedError as moved:
                # An empty host means the one that answered.
                address, asking = Address(moved.host or address.host, moved.port), False
                self._owners[slot] = address
            except AskError as ask:
                address, asking = Address(ask.host or address.host, ask.port), True
        raise StoreUnavailable(
            f"the Redis Cluster sends slot {slot} from node to node, last to {address}; see CLUSTER SLOTS on its nodes"
        )

    def _owner(self, slot: int) -> Address:
        if not self._cluster:
            return self._settings.endpoint.addresses[0]
        if slot not in self._owners:
            raise StoreUnavailable(f"no node of the Redis Cluster holds slot {slot}; see CLUSTER INFO")
        return self._owners[slot]

    def _node(self, address: Address) -> Node:
        if address not in self._nodes:
            settings = self._settings
            self._nodes[address] = Node(address, self._connect, settings.connections_max, settings.timeout_s)
        return self._nodes[address]

    async def _ask_for_info(self) -> dict[str, str]:
        return _fields(*await self._ask_anyone("INFO"))

    async def _ask_anyone(self, *command: Argument) -> tuple[Any, Address]:
        """Asks the servers known and those named by the URL, one after the other: the first answer, and whose it is."""
        failed: StoreUnavailable | None = None
        for address in dict.fromkeys([*self._owners.values(), *self._settings.endpoint.addresses]):
            try:
                return await self._node(address).call(*command), address
            except StoreUnavailable as error:
                failed = error
        assert failed is not None, "a URL names at least one server"
        raise failed

    async def _refresh_after(self, seen: int) -> None:
        """Refreshes the map unless someone did since `seen`; a failure leaves the old one."""
        async with self._refreshing:
            if self._refreshes == seen:
                try:
                    await self._refresh()
                except StoreUnavailable as error:
                    logger.debug("the map of the Redis Cluster could not be refreshed: %s", error)

    async def _refresh(self) -> None:
        slots, asked = await self._ask_anyone("CLUSTER", "SLOTS")
        owners: dict[int, Address] = {}
        try:
            for first, last, primary, *_ in slots:
                host, port = (primary[0] or b"").decode() or asked.host, int(primary[1])
                owners.update(dict.fromkeys(range(first, min(last, _SLOT_LAST) + 1), Address(host, port)))
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise no_redis(asked, error) from error
        # Related fields change together, with no await in between.
        self._owners = owners
        self._refreshes += 1
        kept = {*owners.values(), *self._settings.endpoint.addresses}
        gone = [self._nodes.pop(address) for address in [*self._nodes] if address not in kept]
        for node in gone:
            await node.close()


def _fields(info: Any, address: Address) -> dict[str, str]:
    """The `name:value` lines of an INFO answer."""
    if not isinstance(info, bytes):
        raise no_redis(address, f"INFO answers {type(info).__name__}")
    lines = info.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))
