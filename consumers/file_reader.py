"""Reads files one after the other, in a thread, into a bounded buffer; follows the last one where asked."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from consumers.file_list import list_files
from consumers.handover import Handover
from streamtrain.errors import (
    PartitionMissing,
    SourceError,
    SourceRecreated,
    SourceUnavailable,
    StreamtrainError,
)
from streamtrain.samples.codec import FileCodec, FileRows, file_codec_of
from streamtrain.sources import TIME_UNKNOWN, Chunk, DataLoss, Gap

__all__ = ["FileReader", "Place", "chunk_of", "reading"]

logger = logging.getLogger(__name__)

_ROOM_POLL_S = 0.5
_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where reading stands.

    Attributes:
      path: the file, as its partition is called.
      row: the next row to read.
      byte: where that row begins; None where the format cannot tell, or it is not known yet.
      inode: which file it was, (device, inode); None before it was read from.
      whole: whether a file that cannot grow was read to its end.
    """

    path: str
    row: int
    byte: int | None = None
    inode: tuple[int, int] | None = None
    whole: bool = False


class FileReader:
    """The thread's work. It decides nothing by time, except how often to look for more.

    Args:
      patterns: the files.
      rows_max: bound on the rows of a chunk.
      handover: where chunks and errors go.
      follow: go on at the end of the last file, until `stop`.
      until_end: stop at what the files hold when `run` begins.
      poll_interval_s: how often to look for more while following.
      skip_lost: read a file that was truncated or replaced from its beginning, and say so, instead of raising.
    """

    def __init__(
        self,
        patterns: Sequence[str],
        rows_max: int,
        handover: Handover,
        *,
        follow: bool,
        until_end: bool,
        poll_interval_s: float,
        skip_lost: bool = False,
    ) -> None:
        self._skip_lost = skip_lost
        self._patterns, self._rows_max, self._handover = patterns, rows_max, handover
        self._follow, self._until_end, self._poll_interval_s = follow, until_end, poll_interval_s
        self._place: Place | None = None
        self._columns: Sequence[str] = ()
        self._known: list[str] = []
        self._sizes: dict[str, int] = {}
        self._room = threading.Event()
        self._stopping = threading.Event()

    def on_room(self) -> None:
        """Is told that the handover has room again."""
        self._room.set()

    def stop(self) -> None:
        """Ends `run` soon; from any thread."""
        self._stopping.set()
        self._room.set()

    def use_columns(self, columns: Sequence[str]) -> None:
        """Reads no other columns of columnar files."""
        self._columns = list(columns)

    def begin(self, position: tuple[str, int] | None) -> Place | None:
        """Where to read from; None where there is no file yet and following means to wait for one.

        Raises:
          PartitionMissing: a file that is named does not exist.
          SourceRecreated: the file has fewer rows than were learned.
          ConfigError: no codec reads such a file.
        """
        files, unmatched = list_files(self._patterns)
        self._known = files
        if self._until_end:
            self._sizes = {name: Path(name).stat().st_size for name in files}
        for name in files:
            file_codec_of(Path(name))
        if position is not None:
            if position[0] not in files:
                raise PartitionMissing(
                    f"the log goes on in {position[0]!r} at row {position[1]}, which source.paths {list(self._patterns)} "
                    f"does not find (from {Path.cwd()}): put it back, set source.paths back, or start a new model with "
                    "another log.path"
                )
            return self._resume(*position)
        if unmatched and not self._follow:
            raise PartitionMissing(
                f"source.paths: {unmatched[0]!r} is not there (looked for from {Path.cwd()})"
            )
        return Place(files[0], 0) if files else None

    def run(self, place: Place | None) -> None:
        """Reads from `place` until the end, a final error, or `stop`. Errors go to the handover."""
        self._place = place
        try:
            while not self._stopping.is_set():
                try:
                    if self._advance():
                        self._handover.end()
                        return
                except OSError as error:
                    name = "source.paths" if self._place is None else self._place.path
                    unavailable = SourceUnavailable(f"{name} cannot be read: {error}")
                    logger.warning("%s; trying on", unavailable)
                    self._handover.fail(unavailable, final=False)
                    self._stopping.wait(max(self._poll_interval_s, _RETRY_S))
        except StreamtrainError as error:
            self._handover.fail(error, final=True)
        except Exception as error:
            # Whatever it is, the one who reads must hear of it: a dead reader looks like a quiet file.
            logger.exception("reading files failed")
            self._handover.fail(error, final=True)

    def _advance(self) -> bool:
        """Reads what the current file has and moves to the next file, if any; says whether that was all."""
        # Looked for before reading: once a newer file is there, this one is taken to be finished.
        newer = self._newer(self._place)
        following = self._follow and not self._until_end
        if self._place is not None:
            self._read(self._place, finished=newer is not None or not self._follow)
        if self._stopping.is_set():
            return False
        if newer is not None:
            self._place = Place(newer, 0)
            return False
        if following:
            self._stopping.wait(self._poll_interval_s)
        return not following

    def _newer(self, place: Place | None) -> str | None:
        if self._follow and not self._until_end:
            files, _ = list_files(self._patterns)
            for name in sorted(set(files) - set(self._known)):
                if place is not None and files.index(name) < _index(files, place.path):
                    logger.warning(
                        "%s sorts before %s, which is being read: it will not be read", name, place.path
                    )
            self._known = files
        if place is None:
            return self._known[0] if self._known else None
        behind = _index(self._known, place.path) + 1
        return self._known[behind] if behind < len(self._known) else None

    def _read(self, place: Place, *, finished: bool) -> None:
        """Hands over the rows from `place` to the file's end as it is now, and moves the place with each."""
        path = Path(place.path)
        place, status = self._check(place)
        codec = file_codec_of(path)
        growing = _is_growing(codec, path)
        if place.whole or (place.inode is not None and place.byte == status.st_size):
            return
        place = self._place = replace(place, inode=(status.st_dev, status.st_ino))
        complete_only = growing and not finished
        with reading(codec, place, self._columns, self._rows_max, complete_only=complete_only) as runs:
            for run in runs:
                if not self._wait_for_room():
                    return
                self._handover.put(chunk_of(place.path, run))
                place = self._place = replace(place, row=run.next_row, byte=run.next_byte)
                if self._until_end and run.next_byte is not None and run.next_byte >= self._sizes[place.path]:
                    return
        self._place = replace(place, whole=not growing)

    def _resume(self, path: str, row: int) -> Place:
        if row == 0:
            return Place(path, 0)
        # The row before is read to see that it is there: a shorter file is not the one that was learned from.
        with reading(file_codec_of(Path(path)), Place(path, row - 1), self._columns, 1) as runs:
            last = next(runs, None)
        if last is None:
            if self._skip_lost:
                return self._begin_again(Place(path, row), "shrunk")
            raise SourceRecreated(
                f"{path} has fewer than the {row} rows that were learned from it: it was truncated or replaced; put the "
                'old file back, start a new model with another log.path, or set source.on_data_loss = "skip" to read '
                "what it holds now from its beginning"
            )
        return Place(path, row, last.next_byte)

    def _begin_again(self, place: Place, reason: str) -> Place:
        """Says that the rows from `place` on are lost; returns where reading goes on."""
        logger.error(
            "records are lost (%s): %s stood at row %d and goes on at row 0", reason, place.path, place.row
        )
        gap = Gap(place.path, place.row, 0, reason)
        self._handover.put_loss(DataLoss((gap,), "", time.time_ns() // 1_000_000))
        return Place(place.path, 0)

    def _check(self, place: Place) -> tuple[Place, os.stat_result]:
        """The place, or the file's beginning where it is another one and the settings say to go on; and its status."""
        try:
            status = Path(place.path).stat()
        except FileNotFoundError as error:
            raise PartitionMissing(
                f"{place.path} was removed while it was read: put it back and start again"
            ) from error
        replaced = place.inode is not None and place.inode != (status.st_dev, status.st_ino)
        if replaced or (place.byte is not None and status.st_size < place.byte):
            if self._skip_lost:
                place = self._place = self._begin_again(place, "recreated" if replaced else "shrunk")
                return place, status
            raise SourceRecreated(
                f"{place.path} was {'replaced' if replaced else 'truncated'} while it was followed, at row {place.row}: "
                "append to files, and write new ones under names that sort after the old; or set source.on_data_loss = "
                '"skip" to read what it holds now from its beginning'
            )
        return place, status

    def _wait_for_room(self) -> bool:
        """Waits until the handover has room; False where `stop` came first."""
        while not self._stopping.is_set():
            self._room.clear()
            if self._handover.has_room():
                return True
            self._room.wait(_ROOM_POLL_S)
        return False


def chunk_of(partition: str, run: FileRows) -> Chunk:
    """A run as a chunk. Rows have no time of their own, and a file's changes with each append: a replay would differ."""
    times_ms = np.full(len(run.rows), TIME_UNKNOWN, np.int64)
    return Chunk(partition, run.first_row, run.next_row, run.rows, times_ms, run.records)


def _is_growing(codec: FileCodec, path: Path) -> bool:
    """Whether the format can be read while another process appends to the file."""
    return path.name.lower().endswith(tuple(codec.growing))


@contextmanager
def reading(
    codec: FileCodec, place: Place, columns: Sequence[str], rows_max: int, *, complete_only: bool = False
) -> Iterator[Iterator[FileRows]]:
    """The runs of a file from a place on. Closes the file also where the caller stops early."""
    runs = codec.rows(
        Path(place.path), place.row, columns, rows_max, complete_only=complete_only, start_byte=place.byte
    )
    try:
        yield runs
    finally:
        if close := getattr(runs, "close", None):
            close()


def _index(files: list[str], path: str) -> int:
    try:
        return files.index(path)
    except ValueError:
        raise SourceError(f"{path} was removed while it was read: put it back and start again") from None
