"""Drives nasty records through the real parts and keeps account of each."""

from __future__ import annotations

import gzip
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from streamtrain.dead_letters.file_sink import FileSink
from streamtrain.dead_letters.letter import letters_of
from streamtrain.dead_letters.settings import DeadLetterFile
from streamtrain.errors import SourceError
from streamtrain.samples.codec import file_codec_of
from streamtrain.samples.decoder import Decoder
from streamtrain.samples.minibatch import Minibatch, Minibatcher
from streamtrain.samples.positions import PositionTracker
from streamtrain.samples.schema import Schema
from streamtrain.sources import TIME_UNKNOWN, Chunk
from tests.fuzz.nasty import KINDS, SCHEMA, good, mutated

__all__ = ["Account", "fuzz"]

_PARTITIONS = 3
_LARGE_BYTES = 100_000_000
_GROWTH_MB_MAX = 1500
_LETTER_BYTES_MAX = 4096
# What takes long to make or to decode comes now and then; the rest come alike.
_RARE = {"too_large", "long_string", "long_list", "deep_100000", "deep_open"}


@dataclass
class Account:
    """What became of the records: every one of them is learned or dead, or something is wrong."""

    read: int = 0
    learned: int = 0
    dead: int = 0
    letters: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    unexpected: Counter[str] = field(default_factory=Counter)
    large: int = 0
    bombs: int = 0
    seconds: float = 0.0
    peak_mb: float = 0.0
    grown_mb: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether everything that a run promises is true of it."""
        return (
            self.learned + self.dead == self.read
            and self.letters == self.dead
            and not self.unexpected
            and self.grown_mb < _GROWTH_MB_MAX
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        names = ("read", "learned", "dead", "letters", "large", "bombs")
        rounded = {name: round(getattr(self, name), 1) for name in ("seconds", "peak_mb", "grown_mb")}
        counts = {"reasons": dict(self.reasons.most_common()), "unexpected": dict(self.unexpected)}
        return {name: getattr(self, name) for name in names} | rounded | counts | {"holds": self.holds}


async def fuzz(records: int, seed: int, *, bomb_bytes: int, large_bytes: int = _LARGE_BYTES) -> Account:
    """Reads `records` nasty records and a few compressed files that are bombs.

    Args:
      records: how many, besides those of the files.
      seed: decides every byte.
      bomb_bytes: what one line of each compressed file unpacks to.
      large_bytes: the size of the records that are far too large.
    """
    account, begin = Account(), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="streamtrain-fuzz-") as folder:
        line = _Line(account, Path(folder) / "dead.jsonl")
        rng = random.Random(seed)
        # Compiled and imported before memory is measured.
        await line.put(_chunk("warm", 0, [good(rng)] * 200), [True] * 200)
        before_mb = _peak_mb()
        for chunk, expected in _chunks(records, rng, account, large_bytes):
            await line.put(chunk, expected)
        for path in _bombs(Path(folder), rng, bomb_bytes):
            account.bombs += 1
            await _read_bomb(line, path)
        line.flush()
        await line.close()
    account.seconds = time.perf_counter() - begin
    account.peak_mb = _peak_mb()
    account.grown_mb = account.peak_mb - before_mb
    return account


class _Line:
    """Decoder, dead letters, minibatcher and positions, one behind the other as in the daemon."""

    def __init__(self, account: Account, dead: Path) -> None:
        self._account = account
        self._decoder = Decoder(Schema.model_validate(SCHEMA))
        self.columns = self._decoder.columns.arrow_schema.names
        self._minibatcher = Minibatcher(64, float("inf"))
        self._tracker = PositionTracker({}, sequential=False)
        settings = {"kind": "file", "path": str(dead), "value_bytes_max": _LETTER_BYTES_MAX}
        self._sink = FileSink(DeadLetterFile.model_validate(settings))

    async def put(self, chunk: Chunk, expected: list[bool | None]) -> None:
        """Takes a chunk; of each record `expected` says whether it must be learned (None: either)."""
        decoded = self._decoder.decode(chunk)
        account = self._account
        account.read += len(chunk.offsets)
        account.reasons.update(sample.reason for sample in decoded.bad)
        learned = set(decoded.offsets.tolist())
        refused = {sample.offset: sample for sample in decoded.bad}
        for offset, must in zip(chunk.offsets.tolist(), expected, strict=True):
            if (offset in learned) == (offset in refused):
                account.unexpected["neither or both"] += 1
            elif must is not None and must != (offset in learned):
                reason = f"refused: {refused[offset]}" if offset in refused else "learned"
                account.unexpected[f"{reason[:200]}: {chunk.records[offset - chunk.first][:200]!r}"] += 1
        letters = list(letters_of(chunk, decoded.bad, self._sink.bytes_max))
        for letter in letters:
            original = chunk.records[letter.offset - chunk.first]
            if letter.value != (original if original is None else original[:_LETTER_BYTES_MAX]):
                account.unexpected["a letter of another record"] += 1
        account.letters += await self._sink.write(letters)
        self._minibatcher.add(decoded, 0.0)
        while (minibatch := self._minibatcher.take(0.0)) is not None:
            self._count(minibatch)

    def flush(self) -> None:
        """What waits for a full minibatch."""
        while (minibatch := self._minibatcher.flush()) is not None:
            self._count(minibatch)

    async def close(self) -> None:
        await self._sink.close()

    def _count(self, minibatch: Minibatch) -> None:
        self._tracker.advance(minibatch.spans)
        if not np.isfinite(minibatch.batch.dense).all() or not np.isfinite(minibatch.batch.labels).all():
            self._account.unexpected["a batch that is not finite"] += 1
        self._account.learned += minibatch.batch.size
        self._account.dead += len(minibatch.bad)


def _chunks(
    records: int, rng: random.Random, account: Account, large_bytes: int
) -> Iterator[tuple[Chunk, list[bool | None]]]:
    """Chunks of several partitions: some of good records only, some with a few bad ones, some of nothing else."""
    pool = [good(rng) for _ in range(5000)]
    common = sorted(KINDS.keys() - _RARE)
    ends = [0] * _PARTITIONS
    large_every = max(records // 5, 1)
    next_large, made = large_every // 2, 0
    while made < records:
        share = rng.choice([0.0, 0.01, 0.3, 1.0])
        values: list[bytes | None] = []
        expected: list[bool | None] = []
        for _ in range(min(rng.choice([1, 7, 100, 1000]), records - made)):
            if rng.random() >= share:
                values.append(rng.choice(pool))
                expected.append(True)
            elif rng.random() < 0.1:
                values.append(mutated(rng))
                expected.append(None)
            else:
                name = rng.choice(sorted(_RARE)) if rng.random() < 0.002 else rng.choice(common)
                must, make = KINDS[name]
                values.append(make(rng))
                expected.append(must)
        made += len(values)
        if made >= next_large:
            next_large += large_every
            account.large += 1
            values[-1], expected[-1] = b'{"click": 1, "item": "' + b"x" * large_bytes + b'"}', False
        number = rng.randrange(_PARTITIONS)
        yield _chunk(f"fuzz:{number}", ends[number], values), expected
        ends[number] += len(values)


def _chunk(partition: str, first: int, values: list[bytes | None]) -> Chunk:
    offsets = np.arange(first, first + len(values), dtype=np.int64)
    times = np.full(len(values), TIME_UNKNOWN, np.int64)
    return Chunk(partition, first, first + len(values), offsets, times, values)


def _bombs(folder: Path, rng: random.Random, size: int) -> Iterator[Path]:
    """Compressed files of a few kilobytes with a line that unpacks to `size` bytes, between two samples."""
    piece = bytes(1 << 20)
    for name, opened in (("bomb.jsonl.gz", _gzip), ("bomb.jsonl.zst", _zstd)):
        path = folder / name
        with opened(path) as file:
            file.write(good(rng) + b"\n")
            for _ in range(size // len(piece)):
                file.write(piece)
            file.write(b"\n" + good(rng) + b"\n")
        yield path


def _gzip(path: Path) -> Any:
    return gzip.open(path, "wb", compresslevel=1)


def _zstd(path: Path) -> Any:
    return zstandard.open(path, "wb")


async def _read_bomb(line: _Line, path: Path) -> None:
    """Reads the file as the source would, then a truncated copy of it, which must be named and nothing else."""
    expected: list[bool | None] = [True, False, True]
    for run in file_codec_of(path).rows(path, 0, line.columns, 1000):
        assert isinstance(run.records, list)
        chunk = _chunk(path.name, run.first_row, [*run.records])
        await line.put(chunk, [expected[row] for row in run.rows.tolist()])
    _refuses_truncated(path, line.columns)


def _refuses_truncated(path: Path, columns: list[str]) -> None:
    short = path.with_name(f"short-{path.name}")
    short.write_bytes(path.read_bytes()[:-20])
    try:
        for _ in file_codec_of(short).rows(short, 0, columns, 1000):
            pass
    except SourceError:
        return
    raise AssertionError(f"{short} was read as if it were whole")


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
