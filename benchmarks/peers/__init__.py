"""Peers: other programs that do the same work, measured in the same run. Each has a virtual environment of its own.

`make bench-peers` makes them, under `build/peers/NAME`. What a peer runs there is a module of this package, so these
modules import nothing but the standard library, numpy and the peer: streamtrain is not installed there.

`NAME.txt` holds the pinned requirements; those of `NAME.alone.txt` are installed without their dependencies, because
what they ask for does not fit what the others pin.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["FOLDER", "PEERS", "Peer", "peer"]

FOLDER = Path("build/peers")
HERE = Path(__file__).parent
STATE = "installed.json"


@dataclass(frozen=True, slots=True)
class Peer:
    """Attributes: name; python: the version that it needs, "3.11", or None where any will do."""

    name: str
    python: str | None = None

    @property
    def home(self) -> Path:
        """The virtual environment."""
        return FOLDER.absolute() / self.name

    @property
    def interpreter(self) -> Path:
        """What runs it."""
        return self.home / "bin" / "python"

    @property
    def requirements(self) -> dict[str, str]:
        """By file, what is pinned: those with dependencies, then those without."""
        files = [HERE / f"{self.name}.txt", HERE / f"{self.name}.alone.txt"]
        return {file.name: file.read_text(encoding="utf-8") for file in files if file.exists()}

    def missing(self) -> str | None:
        """Why it cannot be measured here; None where it can."""
        try:
            state: dict[str, Any] = json.loads((self.home / STATE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return "not installed: make bench-peers"
        if reason := state.get("failed"):
            return f"could not be installed: {reason}"
        if state["requirements"] != self.requirements:
            return "installed with other versions than benchmarks/peers pins now: make bench-peers"
        return None


PEERS = {p.name: p for p in (Peer("torch"), Peer("tfra", python="3.11"), Peer("vowpalwabbit"), Peer("river"))}


def peer(name: str) -> Peer:
    """One of `PEERS`."""
    return PEERS[name]
