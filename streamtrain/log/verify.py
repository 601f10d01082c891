"""Checks a whole log: every byte, the chain, the counts, and each base against the fold that it claims to be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from streamtrain.errors import CorruptRecord, EpochMissing, LogError, Superseded
from streamtrain.log.fold import SOURCES_MAX, refold_digest
from streamtrain.log.format import Kind, content_digest
from streamtrain.log.lineage import losses_of
from streamtrain.log.reader import LogReader
from streamtrain.log.record import EpochRecord
from streamtrain.log.rollback import redone

__all__ = ["Problem", "Report", "verify"]

_ROOT = {"model.json", "epochs", "bases", "tmp", "readers", "values", "damaged", "LOCK"}
_NAME = re.compile(r"\d{20}\.safetensors")
_REPORT = "Report it: this is a fault in streamtrain"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: with which file, what, and what to do about it."""

    file: str
    what: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found.

    Attributes:
      path, name, model_id: which log.
      head: its newest epoch, or None.
      epochs, bases, files, bytes: how many were checked.
      bases_refolded: how many bases could be compared with the fold of what they were made from.
      problems: empty where all is well.
    """

    path: str
    name: str
    model_id: str
    head: int | None
    epochs: int
    bases: int
    files: int
    bytes: int
    bases_refolded: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(path: Path | str, progress: Callable[[int, int], None] | None = None) -> Report:
    """Checks a log; safe while a daemon writes it.

    Args:
      progress: called with (bytes read, bytes in all) after each file.

    Raises:
      LogError: there is no log, or it cannot be read at all.
    """
    return _Verification(LogReader.open(path), progress or (lambda done, total: None)).run()


class _Verification:
    def __init__(self, log: LogReader, progress: Callable[[int, int], None]) -> None:
        self._log, self._progress = log, progress
        self._head, self._bases = log.head(), log.bases()
        self._epochs = sorted(
            int(file.stem) for file in (log.path / "epochs").iterdir() if _NAME.fullmatch(file.name)
        )
        paths = [log.epoch_path(epoch) for epoch in self._epochs] + [
            log.base_path(base) for base in self._bases
        ]
        self._sizes = {path: size for path in paths if (size := _size(path)) is not None}
        self._done = 0
        self._refolded = 0
        self._problems: dict[Problem, None] = {}

    def run(self) -> Report:
        self._check_names()
        self._check_gaps()
        sound = self._check_epochs()
        for older, base in zip([-1, *self._bases], self._bases):
            self._check_base(older, base, sound)
        return Report(
            path=str(self._log.path),
            name=self._log.model.name,
            model_id=self._log.model.model_id,
            head=self._head,
            epochs=len(self._epochs),
            bases=len(self._bases),
            files=len(self._sizes) + 1,
            bytes=sum(self._sizes.values()) + (self._log.path / "model.json").stat().st_size,
            bases_refolded=self._refolded,
            problems=tuple(self._problems),
        )

    def _problem(self, file: Path, what: str, remedy: str) -> None:
        self._problems[Problem(str(file), what, remedy)] = None

    def _check_names(self) -> None:
        for directory in (self._log.path, self._log.path / "epochs", self._log.path / "bases"):
            for file in sorted(directory.glob("*")):  # A copy may lack a directory that was empty.
                known = file.name in _ROOT if directory == self._log.path else _NAME.fullmatch(file.name)
                if not known:
                    self._problem(file, "it is no file of the log", "Move it elsewhere")

    def _check_gaps(self) -> None:
        newest = self._bases[-1] if self._bases else -1
        for before, after in zip(self._epochs, self._epochs[1:]):
            # A collection that runs at the same time may show itself as a gap: then the older file is gone by now.
            if after != before + 1 and self._log.epoch_path(before).exists():
                remedy = (
                    f"Base {newest} holds what they learned: move the epochs up to {before} away"
                    if newest >= after - 1
                    else f"Restore them from a backup, or move the epochs from {after} on away to go back to {before}"
                )
                self._problem(
                    self._log.epoch_path(before + 1),
                    f"epochs {before + 1} to {after - 1} are missing",
                    remedy,
                )
        if self._epochs and self._epochs[-1] < newest:
            what = f"epochs {self._epochs[-1] + 1} to {newest} are missing"
            remedy = f"Base {newest} holds what they learned: move the epochs up to {self._epochs[-1]} away"
            self._problem(self._log.epoch_path(self._epochs[-1] + 1), what, remedy)
        if self._epochs and self._epochs[0] > newest + 1:
            what = f"epochs {newest + 1} to {self._epochs[0] - 1} are missing, so no model can be recovered"
            self._problem(self._log.epoch_path(newest + 1), what, "Restore them, or a base, from a backup")

    def _check_epochs(self) -> set[int]:
        """Checks every epoch's record; returns those that are sound."""
        sound: set[int] = set()
        before: EpochRecord | None = None
        for epoch in self._epochs:
            damaged_before = epoch - 1 in self._epochs and epoch - 1 not in sound
            record = self._read("epoch", epoch, chained=not damaged_before)
            if record is not None:
                sound.add(epoch)
                if before is not None and before.epoch == epoch - 1:
                    for what in _contradictions(before, record):
                        self._problem(self._log.epoch_path(epoch), what, _REPORT)
                if record.restores is not None:
                    self._check_rollback(record)
            before = record
        return sound

    def _check_rollback(self, record: EpochRecord) -> None:
        try:
            expected = content_digest(redone(self._log, record))
        except (EpochMissing, CorruptRecord):
            return  # collected meanwhile, or an epoch on the way is damaged and reported as such
        if content_digest(record) != expected:
            what = f"it is a rollback, but not to what epoch {record.restores} was"
            self._problem(self._log.epoch_path(record.epoch), what, _REPORT)

    def _check_base(self, older: int, base: int, sound: set[int]) -> None:
        if self._read("base", base) is None:
            return
        since = range(older + 1, base + 1)
        if len(since) > SOURCES_MAX or not sound.issuperset(since):
            return
        try:
            digest, expected = self._log.base_digest(base), refold_digest(self._log, older, base)
        except (EpochMissing, CorruptRecord):
            return  # collected meanwhile, or the older base is the damaged one and reported as such
        self._refolded += 1
        if digest != expected:
            what = (
                f"it is not the fold of {f'base {older}' if older >= 0 else 'epoch 0'} and the epochs since"
            )
            self._problem(self._log.base_path(base), what, self._log.remedy("base", base))

    def _read(self, kind: Kind, epoch: int, *, chained: bool = True) -> EpochRecord | None:
        path = self._log.epoch_path(epoch) if kind == "epoch" else self._log.base_path(epoch)
        try:
            return self._log.read(epoch, chained=chained) if kind == "epoch" else self._log.read_base(epoch)
        except CorruptRecord as error:
            if isinstance(error, Superseded) and epoch + 1 not in self._epochs:
                return None  # what is missing after it has been told of
            remedy = self._log.remedy(kind, epoch)
            self._problem(path, str(error).removeprefix(f"{path}: ").removesuffix(f". {remedy}"), remedy)
        except EpochMissing:
            return None  # collected since it was listed
        except LogError as error:
            self._problem(path, str(error), "Check the disk and the permissions")
        finally:
            self._done += self._sizes.get(path, 0)
            self._progress(self._done, sum(self._sizes.values()))
        return None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None  # collected since it was listed


def _contradictions(before: EpochRecord, record: EpochRecord) -> Iterator[str]:
    """What two neighbours say that cannot both be: samples lost, or learned twice."""
    if record.step_first != before.step_next:
        yield f"its first step is {record.step_first}, the epoch before ended at {before.step_next}"
    if record.samples_total != before.samples_total + record.samples - record.undone_samples:
        yield f"it counts {record.samples_total} samples in all, the epoch before {before.samples_total}, itself {record.samples}"
    if (read := int(record.spans.spans[:, 4].sum())) != record.samples + record.quarantined_samples:
        yield (
            f"its spans hold {read} samples, it counts {record.samples} learned and {record.quarantined_samples} "
            "quarantined"
        )
    if record.restores is not None:
        return
    at = {name: (offset, before.leaves.get(name, 0)) for name, offset in before.positions.items()}
    for loss in losses_of(record.notes):
        if loss["epoch"] == record.epoch:
            # The source skipped it when it was told to: the partition goes on there, be it before where it stood.
            at.pop(loss["partition"], None)
            if loss["to"] is not None:
                at[loss["partition"]] = (loss["to"], 0)
    for step, partition, begin, end, _ in record.spans:
        if begin < at.get(partition, begin):
            yield (
                f"step {step} learned {partition} from offset {_words(begin)}, which was learned up to "
                f"{_words(at[partition])} before"
            )
        at[partition] = end
    for partition, offset in record.positions.items():
        position = (offset, record.leaves.get(partition, 0))
        if position < at.get(partition, position):
            yield (
                f"it would resume {partition} at offset {_words(position)}, which was learned up to "
                f"{_words(at[partition])}"
            )
    if np.any(np.diff(record.spans.spans[:, 0]) < 0):
        yield "its spans are not in the order of their steps"


def _words(place: tuple[int, int]) -> str:
    offset, leaf = place
    return f"{offset} leaf {leaf}" if leaf else f"{offset}"
