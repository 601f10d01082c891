"""The Lua scripts, and how to run one: by digest, with its text only where the server does not have it yet."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError

from streamtrain.errors import StoreUnavailable
from streamtrain.store.node import Argument
from streamtrain.store.router import Router

__all__ = ["APPLY", "BEGIN", "CLAIM", "PULL", "SCAN", "STATE", "Script"]


class Script:
    """One script of `streamtrain/store/lua`, with `shard.lua` in front of it."""

    def __init__(self, name: str) -> None:
        folder = files("streamtrain.store") / "lua"
        self._text = b"\n".join((folder / f"{part}.lua").read_bytes() for part in ("shard", name))
        # What EVALSHA calls a script by; no secret depends on it.
        self._digest = hashlib.sha1(self._text, usedforsecurity=False).hexdigest()

    async def run(self, router: Router, keys: list[str], *arguments: Argument) -> list[Any]:
        """Runs it on the server that holds `keys`, all of one hash tag. It may run more than once.

        Returns:
          The script's answer: its status as bytes, then what the script says.

        Raises: as `Router.call`.
        """
        tail = (len(keys), *keys, *arguments)
        try:
            answer = await router.call(keys[0], "EVALSHA", self._digest, *tail)
        except NoScriptError:
            # EVAL also keeps it for the next EVALSHA.
            answer = await router.call(keys[0], "EVAL", self._text, *tail)
        if not (isinstance(answer, list) and answer and isinstance(answer[0], bytes)):
            raise StoreUnavailable(
                "the store does not answer what a script of streamtrain's does; is something between this process and "
                "Redis that changes answers?"
            )
        return answer


CLAIM = Script("claim")
STATE = Script("state")
BEGIN = Script("begin")
APPLY = Script("apply")
PULL = Script("pull")
SCAN = Script("scan")
