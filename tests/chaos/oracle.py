"""What must hold at the end: the ledger, the bits, and every view of the log."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from streamtrain.config import Job
from streamtrain.dictionary.reader import Dictionary
from streamtrain.fetching import swept
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.format import content_digest
from streamtrain.log.record import EpochRecord, TableRows
from streamtrain.log.recovery import recover
from streamtrain.samples.batch import SampleBatch
from streamtrain.samples.decoded import DecodedChunk
from streamtrain.samples.decoder import Decoder
from streamtrain.samples.minibatch import Minibatch
from streamtrain.serving import Follower
from streamtrain.serving.files import read_export
from streamtrain.serving.manifest import MANIFEST, MODEL, Manifest
from streamtrain.serving.model import ServedModel
from streamtrain.sources import Span
from streamtrain.sparse.optimizers import slots_of
from streamtrain.store import StoreDescription, open_store
from streamtrain.store.settings import StoreSettings
from streamtrain.training.learner import Learner
from streamtrain.training.prequential import sigmoid
from tests.chaos.job import unbounded
from tests.chaos.stream import Truth

__all__ = [
    "Ledger",
    "Rows",
    "compare_with_truth",
    "decode",
    "different_bits",
    "exported",
    "folded",
    "folded_filters",
    "removed",
    "served_differently",
    "store_differs",
    "values_differ",
]

Rows = dict[int, tuple[bytes, ...]]
"""A table: by id, the bytes of its weights and whatever else is compared."""


def decode(job: Job, truth: Mapping[str, Truth]) -> dict[str, list[DecodedChunk]]:
    """By partition, the topic's records as samples."""
    decoder = Decoder(job.sample_schema)
    return {name: [decoder.decode(chunk) for chunk in part.chunks()] for name, part in truth.items()}


@dataclass(frozen=True, slots=True)
class Ledger:
    """The account of samples.

    Attributes:
      samples: good records that a read_committed reader sees.
      bad: records that are no samples.
      lost: occurrences that the model did not learn.
      doubled: occurrences too many, whether of a sample learned twice or of one that must not be learned at all.
    """

    samples: int
    bad: int
    lost: int
    doubled: int


def compare_with_truth(
    chunks: Mapping[str, list[DecodedChunk]], counts: Mapping[int, int], slot: str
) -> Ledger:
    """Compares how often each id of a slot stands in the topic with the count of its row."""
    decoded = [chunk for part in chunks.values() for chunk in part]
    ids = np.concatenate([chunk.batch.ids[slot].values for chunk in decoded])
    expected = dict(zip(*(a.tolist() for a in np.unique(ids, return_counts=True)), strict=True))
    lost = sum(max(0, count - counts.get(i, 0)) for i, count in expected.items())
    doubled = sum(max(0, count - expected.get(i, 0)) for i, count in counts.items())
    return Ledger(len(ids), sum(len(chunk.bad) for chunk in decoded), lost, doubled)


def folded(records: Iterable[EpochRecord], table: str) -> tuple[Rows, dict[int, int]]:
    """The rows of a table after the records, and their counts: last write wins."""
    rows: Rows = {}
    counts: dict[int, int] = {}
    for record in records:
        part = record.tables.get(table)
        if part is None:
            continue
        for i, row, count in _each(part):
            rows[i], counts[i] = row, count
        for removed in part.tombstones.tolist():
            rows.pop(removed, None)
            counts.pop(removed, None)
    return rows, counts


def _each(part: TableRows) -> Iterator[tuple[int, tuple[bytes, ...], int]]:
    columns = (part.weights, part.slots, part.counts, part.last_steps)
    for index, number in enumerate(part.ids.tolist()):
        yield number, tuple(column[index].tobytes() for column in columns), int(part.counts[index])


def folded_filters(records: Iterable[EpochRecord]) -> dict[tuple[str, int], bytes]:
    """By table and entry, what the admission filters hold after the records."""
    held: dict[tuple[str, int], bytes] = {}
    for record in records:
        for table, changed in record.filters.items():
            for entry in changed.tombstones.tolist():
                held.pop((table, entry), None)
            for entry, value in zip(changed.ids.tolist(), changed.values, strict=True):
                held[table, entry] = value.tobytes()
    return held


def removed(records: Iterable[EpochRecord], table: str) -> set[int]:
    """The ids whose rows any of the records removed."""
    return {
        i for record in records if table in record.tables for i in record.tables[table].tombstones.tolist()
    }


# The bits


def different_bits(job: Job, archive: EpochLog, chunks: Mapping[str, list[DecodedChunk]]) -> list[int]:
    """Learns every recorded span again, with all rows in memory and undisturbed, from the genesis on: what differs.

    The chain of digests is checked on the way: `archive` holds every epoch that there was.
    """
    head = archive.head()
    assert head is not None
    learner = Learner.warm(unbounded(job))
    learner.restore([archive.read(0)], sequential=False)
    different = []
    for epoch in range(1, head + 1):
        expected = archive.read(epoch)
        for minibatch in _minibatches(expected, chunks):
            learner.learn(minibatch)
        if content_digest(learner.cut()) != content_digest(expected):
            different.append(epoch)
    return different


def _minibatches(record: EpochRecord, chunks: Mapping[str, list[DecodedChunk]]) -> Iterator[Minibatch]:
    for _, rows in groupby(record.spans, key=itemgetter(0)):
        yield _minibatch(tuple(Span.of(*row[1:]) for row in rows), chunks)


def _minibatch(spans: tuple[Span, ...], chunks: Mapping[str, list[DecodedChunk]]) -> Minibatch:
    parts: list[SampleBatch] = []
    bad = []
    for span in spans:
        for chunk in chunks[span.partition]:
            if span.first < chunk.next and chunk.first < span.next_record:
                batch, refused = chunk.within(span)
                parts.append(batch)
                bad += refused
    if not parts:
        parts = [next(iter(chunks.values()))[0].batch.slice(0, 0)]
    return Minibatch(SampleBatch.concat(parts), spans, tuple(bad), 0.0)


# The views


async def _stored(job: Job, model_id: str, url: str, table: str, ids: np.ndarray, epoch: int) -> Rows:
    """The rows of a table in the store, which must have `epoch`."""
    settings = StoreSettings(url=url, shards=job.store.shards)
    store = open_store(settings)
    assert store is not None
    try:
        dims = {name: (t.row_dim, slots_of(t.optimizer, t.row_dim)) for name, t in job.tables.items()}
        # As the daemon's, or the store would be claimed anew, and be empty.
        scanned = frozenset(swept(job.tables))
        await store.open(StoreDescription(model_id, dims, settings.shards, scanned))
        _, rows = await store.pull(table, ids, epoch)
    finally:
        await store.close()
    return {number: row for number, row, _ in _each(rows)}


def exported(directory: Path, table: str) -> tuple[int, dict[int, bytes]]:
    """The newest epoch of an export directory, and the weights of a table there: the newest base and its deltas."""
    manifest, model = Manifest.read(directory / MANIFEST), ServedModel.read(directory / MODEL)
    base = manifest.bases[-1]
    rows: dict[int, bytes] = {}
    for entry in (base, *(delta for delta in manifest.deltas if delta.epoch > base.epoch)):
        part = read_export(directory, entry, model).tables[table]
        rows |= {number: part.weights[i].tobytes() for i, number in enumerate(part.ids.tolist())}
        for removed in part.tombstones.tolist():
            rows.pop(removed, None)
    return manifest.head.epoch, rows


def served_differently(job: Job, log: EpochLog, exports: Path) -> str:
    """What a follower scores otherwise than the trainer's own halves do; empty where nothing."""
    learner = Learner.warm(unbounded(job))
    last = learner.restore(recover(log), sequential=False)
    follower = Follower(exports)
    version = follower.wait_for(last.epoch, 30)
    rows = {name: learner.sparse.rows(name) for name in job.tables}
    if (version.epoch, follower.rows) != (last.epoch, rows):
        return f"the follower has {follower.rows} at epoch {version.epoch}, the log {rows} at {last.epoch}"
    samples = [{"id": n * 7, "user": n, "seen": [n * 31, 8000 + n, 8000 + n % 9]} for n in range(200)]
    batch = Decoder(job.sample_schema).decode_samples(samples)
    scores = []
    for start in range(0, batch.size, job.training.batch_size):
        part = batch.slice(start, min(start + job.training.batch_size, batch.size))
        padded = learner.dense.bucket(part.size)
        activations = learner.sparse.score(part, padded)
        dense = np.zeros((padded, 0), np.float32)
        scores.append(learner.dense.predict(activations.pooled, activations.sequences, dense)[: part.size])
    worst = float(np.abs(follower.predict(samples) - sigmoid(np.concatenate(scores))).max())
    return "" if worst < 1e-6 else f"scores differ by up to {worst}"


def store_differs(
    job: Job, model_id: str, url: str, table: str, rows: Rows, gone: Iterable[int], epoch: int
) -> int:
    """How many rows of the store are not, bit for bit, those of the log: the ids in `gone` have none."""
    ids = np.array(sorted({*rows, *gone}), np.uint64)
    held = asyncio.run(_stored(job, model_id, url, table, ids, epoch))
    return sum(held.get(number) != rows.get(number) for number in ids.tolist())


def values_differ(job: Job, log: Path, chunks: Mapping[str, list[DecodedChunk]], slot: str) -> str:
    """What is wrong with the reverse dictionary of an integer slot; empty where nothing is.

    It is best effort, so that some values may be missing, but none may be wrong, and what it has must be of use.
    """
    known = Dictionary(log, [slot])
    _, texts = known.find(known.ids)
    samples = [{"seen": [int(text)]} for text in texts.to_pylist()]
    ids = Decoder(job.sample_schema).decode_samples(samples).ids[slot].values
    came = {i for part in chunks.values() for chunk in part for i in chunk.batch.ids[slot].values.tolist()}
    if not np.array_equal(ids, known.ids):
        return f"the reverse dictionary of {slot} gives ids values that are not theirs"
    if len(known) < len(came) / 2 or not came.issuperset(known.ids.tolist()):
        return f"the reverse dictionary of {slot} knows {len(known)} ids, the stream has {len(came)}"
    return ""
