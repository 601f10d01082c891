"""Faults put into the product's code, each of which the simulation must find. A net that catches nothing proves nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from exporters.delta_directory import _Replacing
from exporters.deltas import DeltaExporter
from streamtrain.errors import DeltaGap, EpochMissing, StoreBehind
from streamtrain.exports import ExportRunner
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.files import Aside, typed_errors
from streamtrain.log.reader import LogReader
from streamtrain.log.readers import Readers
from streamtrain.log.record import EpochRecord
from streamtrain.restorer import Restorer
from streamtrain.samples import minibatch as minibatches
from streamtrain.samples.decoded import DecodedChunk
from streamtrain.samples.minibatch import Minibatch, Minibatcher
from streamtrain.samples.positions import LeavesLearned, PositionTracker
from streamtrain.serving.manifest import Entry, Manifest, Position
from streamtrain.sources import Span
from streamtrain.store.applier import StoreApplier
from streamtrain.store.patience import Patience
from streamtrain.training.committer import Committer
from streamtrain.training.epochs import EpochBuilder
from tests.simulation.ledger import as_rows, as_table
from tests.simulation.store import Shard

__all__ = ["MUTATIONS", "mutated"]

Mutation = tuple[Any, str, Callable[..., Any]]


@contextlib.contextmanager
def mutated(name: str | None) -> Iterator[None]:
    """The product's code has the fault `name` inside; None: it is as it is."""
    with contextlib.ExitStack() as stack:
        for target, attribute, fake in () if name is None else MUTATIONS[name]:
            stack.enter_context(mock.patch.object(target, attribute, fake))
        yield


def _link_unsynced(self: Any, target: Path) -> None:
    self._files.link(self.path, target)


def _settle_unsynced(self: Any, target: Path, epoch: int, digest: str) -> None:
    self._head = epoch


def _head_unsynced(self: Any) -> int | None:
    with self._guard, typed_errors("read", self.path):
        self._head = self._probe()
        head: int | None = self._head
        return head


def _link_over(self: Any, aside: Any, target: Path, digest: str) -> None:
    with suppress(FileNotFoundError):
        self._files.unlink(target)
    aside.link(target)


def _follows_anything(self: Any, record: EpochRecord) -> None:
    return None


def _announces_early(self: Any, record: EpochRecord) -> None:
    self._on_committed(record, self._previous)
    _WRITE(self, record)


def _advance_skipping(self: Any, spans: Iterable[Span]) -> None:
    """Takes the record behind each span for done as well."""
    for span in spans:
        self._places[span.partition] = (span.next + 1, 0)


def _leave_nothing_out(self: Any, chunk: DecodedChunk) -> DecodedChunk:
    """Begins a record anew that was learned in part, and says that it goes on in it."""
    return replace(chunk, first_leaf=self._left.pop(chunk.partition, 0))


def _behind_losing_a_leaf(self: DecodedChunk, leaves: int) -> DecodedChunk:
    """Leaves out one leaf too many."""
    return replace(_BEHIND(self, leaves + 1), first_leaf=leaves)


def _advance_forgetting_leaves(self: Any, spans: Iterable[Span]) -> None:
    """Takes a record that a span ends in for one that comes next, whole."""
    _ADVANCE(self, spans)
    self._places = {name: (offset, 0) for name, (offset, _) in self._places.items()}


def _span_without_leaves(chunk: DecodedChunk, sample: int) -> tuple[int, int]:
    """Takes a record that a minibatch ends in for done."""
    return int(chunk.offsets[sample]) + 1, 0


def _advance_late(self: Any, spans: Iterable[Span]) -> None:
    """Takes note of all but the last span."""
    _ADVANCE(self, list(spans)[:-1])


def _take_losing(self: Any, now_ms: float) -> Minibatch | None:
    """Forgets the rest of a chunk that a minibatch ended in."""
    minibatch = _TAKE(self, now_ms)
    if self._pieces and self._pieces[0].start:
        piece = self._pieces.popleft()
        self._pending -= piece.chunk.batch.size - piece.start
    return minibatch


def _cut_without_tombstones(self: Any, tables: Any, dense: Any, metrics: Any, notes: Any) -> EpochRecord:
    bare = {
        name: rows.__class__(rows.ids, rows.weights, rows.slots, rows.counts, rows.last_steps)
        for name, rows in tables.items()
    }
    return _CUT(self, bare, dense, metrics, notes)


async def _apply_one_short(self: Any, first: int, last: int) -> None:
    await _APPLY(self, first, last - 1)


async def _apply_skipping_gap(self: Any, to_epoch: int, applied: int | None) -> int:
    """Takes a shard that is behind for one that is not."""
    with suppress(StoreBehind, EpochMissing):
        await self._apply((applied or 0) + 1, to_epoch)
    return to_epoch


def _apply_any_epoch(
    self: Shard, mode: str, epoch: int, part: int, last: bool, token: int, table: str, rows: Any
) -> str:
    """A store that does not compare epochs: what comes late overwrites what is newer."""
    if mode == "apply" and self.epoch is not None and epoch <= self.epoch:
        self.rows[table].update(as_rows(rows))
        return "ok"
    return _SHARD_APPLY(self, mode, epoch, part, last, token, table, rows)


async def _insist_on_nothing(self: Any, attempt: Callable[..., Any]) -> Any:
    """Reads a store that fails as one that has no such row."""
    try:
        return await attempt(self._progress.epoch)
    except Exception:
        return None, as_table({}, [])


def _collect_everything(self: Any, keep_epochs: int, protect: Iterable[int] = ()) -> int:
    """Counts from the log's head where it should count from the newest base."""
    for epoch in self._numbers(self._epochs):
        with suppress(FileNotFoundError):
            self._files.unlink(self.epoch_path(epoch))
    return 0


def _add_base_unsynced(self: Any, record: EpochRecord, rows: Any) -> None:
    sync, self._files.sync_directory = self._files.sync_directory, lambda directory: None
    try:
        _ADD_BASE(self, record, rows)
    finally:
        self._files.sync_directory = sync


def _export_skipping(self: Any) -> bool:
    """Leaves out an epoch where two are waiting."""
    head, position = self._log.head(), self._exporter.position()
    if head is None or position is None or head < position.epoch + 2:
        return bool(_EXPORT_NEXT(self))
    record = self._log.read(position.epoch + 2)
    try:
        self._count(self._exporter.export(record, self._log.digest(record.epoch)))
    except DeltaGap:
        return bool(_EXPORT_NEXT(self))
    return True


def _follows_whatever(self: Any, record: EpochRecord) -> Manifest:
    manifest: Manifest | None = self._manifest
    if manifest is None:
        raise DeltaGap("nothing is exported")
    return manifest


def _entry_that_fits(self: Any, record: EpochRecord, version: str, previous: str) -> Entry:
    """Says of a delta that it follows what is exported, whatever it follows."""
    entry: Entry = _ENTRY(self, record, version, previous)
    manifest: Manifest | None = self._manifest
    if not previous or manifest is None:
        return entry
    return replace(entry, epoch=manifest.head.epoch + 1, previous=manifest.head.digest)


def _replace_unsynced(self: Any, target: Path) -> None:
    self._replacing.replace(self.path, target)
    self._replacing.sync_directory(target.parent)


def _publish_removing_first(self: Any, manifest: Manifest) -> None:
    before, self._manifest = self._manifest, manifest
    if before is not None:
        self._directory.remove(set(before.names) - set(manifest.names))
    self._directory.publish(manifest)


def _next_without_chain(self: Manifest, held: Position | None, refused: Any = ()) -> Entry | None:
    """Takes the newest delta, whatever it follows."""
    if held is None or not self.deltas:
        return _NEXT_FILE(self, held, refused)
    return self.deltas[-1]


def _follow_newest(self: Any, last: EpochRecord, head: int) -> bool:
    """Takes of the epochs that it lacks only the newest."""
    if head > last.epoch:
        records = [self._log.read(head)]
        self._note(self._learner.advance(records, sequential=self._sequential, rows=self._rows))
    return True


def _follow_short(self: Any, last: EpochRecord, head: int) -> bool:
    """Leaves the newest epoch for the next look, always."""
    return bool(_FOLLOW(self, last, max(head - 1, last.epoch)))


def _add_as_learned(self: Any, minibatch: Minibatch, *, quarantined: bool = False) -> None:
    _ADD(self, minibatch)


_BEHIND = DecodedChunk.behind
_ADD, _ADD_BASE, _ADVANCE, _APPLY, _CUT, _ENTRY = (
    EpochBuilder.add,
    EpochLog.add_base,
    PositionTracker.advance,
    StoreApplier._apply,
    EpochBuilder.cut,
    DeltaExporter._entry,
)
_EXPORT_NEXT, _NEXT_FILE, _SHARD_APPLY = ExportRunner._export_next, Manifest.next_file, Shard.apply
_FOLLOW, _TAKE, _WRITE = Restorer._follow, Minibatcher.take, Committer._write

MUTATIONS: dict[str, list[Mutation]] = {
    "a record is linked before its content is synced": [(Aside, "link", _link_unsynced)],
    "an append does not sync the directory": [(EpochLog, "_settle", _settle_unsynced)],
    "a reader reports a head that is not durable": [(LogReader, "head", _head_unsynced)],
    "a second writer replaces an epoch": [
        (EpochLog, "_link", _link_over),
        (EpochLog, "_check_follows", _follows_anything),
    ],
    "a writer that was overtaken is not refused": [
        (EpochLog, "_refuse_if_overtaken", lambda self, epoch: None)
    ],
    "an epoch is announced before it is durable": [(Committer, "_write", _announces_early)],
    "the tracker skips a record": [(PositionTracker, "advance", _advance_skipping)],
    "a restart forgets the leaves that were learned": [(LeavesLearned, "leave_out", _leave_nothing_out)],
    "a restart leaves out a leaf too many": [(DecodedChunk, "behind", _behind_losing_a_leaf)],
    "the tracker forgets the leaf": [(PositionTracker, "advance", _advance_forgetting_leaves)],
    "the minibatcher forgets the rest of a record": [(minibatches, "_behind", _span_without_leaves)],
    "the tracker forgets a span": [(PositionTracker, "advance", _advance_late)],
    "the minibatcher loses the rest of a chunk": [(Minibatcher, "take", _take_losing)],
    "a cut leaves out tombstones": [(EpochBuilder, "cut", _cut_without_tombstones)],
    "the applier is one epoch late": [(StoreApplier, "_apply", _apply_one_short)],
    "the applier passes over a gap": [(StoreApplier, "_catch_up", _apply_skipping_gap)],
    "the store applies what comes late": [(Shard, "apply", _apply_any_epoch)],
    "a failing store is read as empty": [(Patience, "insist", _insist_on_nothing)],
    "epochs are collected that no base holds": [(EpochLog, "collect", _collect_everything)],
    "a base is not durable when its epochs go": [(EpochLog, "add_base", _add_base_unsynced)],
    "the exporter leaves out an epoch": [
        (ExportRunner, "_export_next", _export_skipping),
        (DeltaExporter, "_follows", _follows_whatever),
        (DeltaExporter, "_entry", _entry_that_fits),
    ],
    "an exported file is not synced": [(_Replacing, "replace", _replace_unsynced)],
    "files are removed before the manifest that names them": [
        (DeltaExporter, "_publish", _publish_removing_first)
    ],
    "collection takes what a registered reader needs": [(Readers, "held", lambda self, newest, holding: [])],
    "a standby leaves out epochs": [(Restorer, "_follow", _follow_newest)],
    "a standby stays an epoch behind": [(Restorer, "_follow", _follow_short)],
    "a quarantined minibatch counts as learned": [(EpochBuilder, "add", _add_as_learned)],
    "the follower takes any delta": [(Manifest, "next_file", _next_without_chain)],
}
"""By what is wrong, what makes it so."""
