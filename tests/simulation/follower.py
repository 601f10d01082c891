"""The follower with rows in dictionaries instead of tables, so that what it serves can be compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import streamtrain.serving.follower
from streamtrain.serving.files import ExportedFile
from streamtrain.serving.follower import Follower
from streamtrain.serving.model import ServedModel
from streamtrain.serving.version import Version
from tests.simulation.loom import running
from tests.simulation.oracle import Oracle

__all__ = ["PATCHES", "follow"]


class _Served:
    """Has the shape of `serving.served.Served`."""

    def __init__(self, model: ServedModel, _: object, base: ExportedFile, now_ms: Callable[[], int]) -> None:
        self.model, self._now_ms = model, now_ms
        self.weights: dict[str, dict[int, float]] = {name: {} for name in model.tables}
        self._write(base)
        running().point()

    def _write(self, file: ExportedFile) -> None:
        for name, rows in file.tables.items():
            for gone in rows.tombstones.tolist():
                self.weights[name].pop(gone, None)
            self.weights[name].update(zip(rows.ids.tolist(), rows.weights[:, 0].tolist()))
        self.dense = int(file.dense["params/hash"])
        self.version = Version(file.entry.position, file.lineage, file.entry.exported_at_ms, self._now_ms())

    def apply(self, delta: ExportedFile) -> Version:
        self._write(delta)
        running().point()
        return self.version

    def show(self) -> None:
        self.version = replace(self.version, visible_at_ms=self._now_ms())

    def rows(self) -> dict[str, int]:
        return {name: len(rows) for name, rows in self.weights.items()}


PATCHES: list[tuple[Any, str, Any]] = [
    (streamtrain.serving.follower, "Served", _Served),
    (streamtrain.serving.follower, "Scorer", lambda model, piece_samples: None),
]
"""What makes a `Follower` serve a ledger."""


def follow(directory: Path, oracle: Oracle) -> None:
    """Follows for ever; what is served after every look is a committed epoch, whole, and never an older one."""
    scheduler = running()
    follower, shown = Follower(directory, clock=lambda: scheduler.now), -1
    while True:
        follower.poll()
        served: Any = follower._served
        if served is not None:
            version = served.version
            assert version.epoch >= shown, f"the follower went back from epoch {shown} to {version.epoch}"
            if version.epoch > shown:
                scheduler.say(f"serves epoch {version.epoch}")
            shown = version.epoch
            oracle.served(version.epoch, version.position.digest, served.weights, served.dense)
        if scheduler.random.random() < 0.2:
            oracle.check_named(directory)
        scheduler.sleep(scheduler.random.random() * 0.3)
