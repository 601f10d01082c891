"""Small stand-ins with the shapes of the daemon's contracts: a source, a log to append to, and a job that uses them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from streamtrain.config import Job, parse_job
from streamtrain.log.record import EpochRecord
from streamtrain.samples.decoded import DecodedChunk
from streamtrain.samples.decoder import Decoder
from streamtrain.samples.schema import Schema
from streamtrain.sources import Chunk, DataLoss, Positions, SourceSettings

SCHEMA: dict[str, Any] = {"labels": ["click"], "slots": {"user": {}}}


def job(folder: Path, **sections: Any) -> Job:
    """A job of one slot, one table and a linear model, which reads from a `ScriptedSource`."""
    data: dict[str, Any] = {
        "name": "small",
        "seed": 3,
        "source": {"kind": "tests.fakes:ScriptedSource"},
        "schema": SCHEMA,
        "tables": {"main": {"dim": 1}},
        "model": {"kind": "linear"},
        "training": {"batch_size": 8, "linger_ms": 1},
        "log": {"path": str(folder / "model"), "epoch_interval_s": 0.05},
        "http": {"enabled": False},
    }
    return parse_job(data | sections, "test")


def chunk(first: int, records: Sequence[bytes | None] | int, *, partition: str = "p", gap: int = 0) -> Chunk:
    """A chunk of so many good samples, or of these records; `gap` offsets without a record follow."""
    if isinstance(records, int):
        records = [sample(offset) for offset in range(first, first + records)]
    offsets = np.arange(first, first + len(records), dtype=np.int64)
    return Chunk(partition, first, first + len(records) + gap, offsets, offsets + 1000, records)


def sample(number: int) -> bytes:
    """A good record."""
    return json.dumps({"user": number % 7, "click": number % 2}).encode()


def decoded(*arguments: Any, **options: Any) -> DecodedChunk:
    """`chunk`, decoded."""
    return Decoder(Schema.model_validate(SCHEMA)).decode(chunk(*arguments, **options))


class ScriptedSettings(SourceSettings):
    """None of its own."""

    kind: Literal["tests.fakes:ScriptedSource"]


class ScriptedSource:
    """Gives the chunks of `script`, raises its errors, awaits its events; then ends, or waits for ever.

    Attributes:
      script, on_start: of the class, because the daemon makes the source; the script is taken by the next one made.
      made: the last one that was made.
    """

    Settings = ScriptedSettings
    sequential = False
    script: Iterable[Chunk | DataLoss | BaseException | asyncio.Event] = ()
    on_start: Callable[[], Awaitable[object]] | None = None
    made: ScriptedSource

    def __init__(self, settings: ScriptedSettings, *, until_end: bool = False) -> None:
        self._script, self._until_end = deque(type(self).script), until_end
        self.identity = ""
        self.started_at: tuple[dict[str, int] | None, str] | None = None
        self.mirrored: list[dict[str, int]] = []
        self.closed = False
        ScriptedSource.made = self

    def use_columns(self, columns: Sequence[str]) -> None:
        pass

    async def start(self, positions: Positions | None, identity: str = "") -> dict[str, int]:
        self.started_at = (None if positions is None else dict(positions), identity)
        if (on_start := type(self).on_start) is not None:
            await on_start()
        self.identity = "topic-1"
        return {"p": 0} if positions is None else dict(positions)

    async def read(self) -> Chunk | DataLoss | None:
        while self._script:
            step = self._script.popleft()
            if isinstance(step, BaseException):
                raise step
            if isinstance(step, Chunk | DataLoss):
                return step
            await step.wait()
        if self._until_end:
            return None
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def read_span(self, partition: str, first: int, next: int) -> list[Chunk]:
        return [chunk(first, next - first, partition=partition)]

    async def committed(self, positions: Positions) -> None:
        self.mirrored.append(dict(positions))

    def lag_records(self) -> dict[str, int]:
        return {"p": len(self._script)}

    async def close(self) -> None:
        self.closed = True


class ListLog:
    """What a committer appends to. Waits for `gate`; before each append it raises what `errors` holds, in order."""

    def __init__(self, errors: Iterable[BaseException] = ()) -> None:
        self.records: list[EpochRecord] = []
        self.errors = deque(errors)
        self.gate = threading.Event()
        self.gate.set()
        self.attempts = 0
        self.on_attempt: Callable[[], None] = lambda: None

    def append(self, record: EpochRecord) -> str:
        self.attempts += 1
        self.on_attempt()
        assert self.gate.wait(30), "the test never opened the gate"
        if self.errors:
            raise self.errors.popleft()
        self.records.append(record)
        return f"digest {record.epoch}"

    def epochs_bytes(self, epochs: Iterable[int]) -> int:
        return 1000 * len(list(epochs))
