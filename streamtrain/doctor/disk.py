"""The disks that a daemon is to write to: room, how long a sync takes, and whether links mean what the log needs."""

from __future__ import annotations

import fcntl
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from streamtrain.findings import Finding
from streamtrain.log.files import Files

__all__ = [
    "Trial",
    "examine_log_disk",
    "examine_room",
    "file_system_of",
    "judge_trial",
    "nearest",
    "try_disk",
]

_ROUNDS = 15
_EPOCH_BYTES = 64 << 10
_ROOM_MIN_BYTES, _ROOM_WANTED_BYTES = 64 << 20, 1 << 30
# An epoch is synced, and so is its name's directory.
_SYNCS_OF_EPOCH = 2
_SYNC_SHARE_MAX = 0.5
# Of these, what is written is gone with the machine or the container.
_PASSING = {
    "tmpfs": "memory, which a restart of the machine empties",
    "ramfs": "memory, which a restart of the machine empties",
    "overlay": "the container's own layer, which goes with the container",
}


@dataclass(frozen=True, slots=True)
class Trial:
    """What a disk did.

    Attributes:
      kind: of file system; "" where it is not known.
      sync_s: seconds that one write and its sync took, the median of some.
      wrong: what links, locks or names did that they must not; "" where all is well.
    """

    kind: str
    sync_s: float
    wrong: str


def nearest(path: Path) -> Path:
    """The directory itself or, where it is not there yet, the one that it will be made in."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path if path.is_dir() else path.parent


def examine_log_disk(path: Path, base_bytes: int, epoch_interval_s: float) -> list[Finding]:
    """Tries what an epoch does, in a folder of its own that is removed.

    Args:
      path: `log.path`, which need not be there yet.
      base_bytes: of the newest base, 0 where there is none.
      epoch_interval_s: as the job says.
    """
    place = nearest(path)
    found = examine_room("log", path, 2 * base_bytes)
    if not os.access(place, os.W_OK | os.X_OK):
        return found
    try:
        trial = try_disk(Files(), place)
    except OSError as error:
        return [
            *found,
            Finding.fault(
                "disk",
                f"{place} cannot be written to: {error.strerror or error}",
                f"look at its mount and its room: findmnt -T {place}; df -hi {place}",
            ),
        ]
    return [*found, *judge_trial(place, trial, epoch_interval_s)]


def examine_room(what: str, path: Path, needed_bytes: int) -> list[Finding]:
    """Whether a directory may be written to, and has room.

    Args:
      what: whose directory, for people.
      path: which.
      needed_bytes: what will be written soon.
    """
    place = nearest(path)
    if not os.access(place, os.W_OK | os.X_OK):
        return [
            Finding.fault(
                "disk",
                f"this user ({os.getuid()}) may not write to {place}, where the {what} is to be",
                f"chown {os.getuid()} {place}   # or run the daemon as the user that owns it",
            )
        ]
    free = shutil.disk_usage(place).free
    text = f"{free / 1e9:,.1f} GB are free where the {what} is ({path})"
    if free < needed_bytes + _ROOM_MIN_BYTES:
        return [Finding.fault("disk", f"{text}: too little", f"make room: du -xh {place} | sort -h | tail")]
    if free < 2 * needed_bytes + _ROOM_WANTED_BYTES:
        return [
            Finding.warning(
                "disk", f"{text}: it will not last", f"make room, or lower log.keep_epochs: du -sh {place}/*"
            )
        ]
    return [Finding.ok("disk", text)]


def try_disk(files: Files, place: Path) -> Trial:
    """Writes, syncs, links and locks as the log does.

    Raises:
      OSError: the disk cannot be written to at all.
    """
    folder = Path(tempfile.mkdtemp(prefix=".streamtrain-doctor-", dir=place))
    try:
        taken = []
        for number in range(_ROUNDS):
            descriptor = files.create(folder / f"epoch-{number}")
            try:
                begin = time.perf_counter()
                files.write(descriptor, bytes(_EPOCH_BYTES))
                files.sync(descriptor)
                taken.append(time.perf_counter() - begin)
            finally:
                files.close(descriptor)
        return Trial(file_system_of(place), statistics.median(taken), _wrong(files, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def judge_trial(place: Path, trial: Trial, epoch_interval_s: float) -> list[Finding]:
    """What a trial means for a log whose epochs are so far apart."""
    if trial.wrong:
        return [
            Finding.fault(
                "disk",
                f"{place} ({trial.kind or 'unknown file system'}) cannot hold the log: {trial.wrong}",
                "put log.path on ext4 or xfs, or on a shared file system with hard links and locks (NFS 4)",
            )
        ]
    found = []
    if trial.kind in _PASSING:
        found.append(
            Finding.warning(
                "disk",
                f"{place} is on {trial.kind}: {_PASSING[trial.kind]}, and the model with it",
                "put log.path on a disk; of a container, on a volume",
            )
        )
    epoch_s = _SYNCS_OF_EPOCH * trial.sync_s
    text = f"a sync takes {trial.sync_s * 1000:.1f} ms on {place} ({trial.kind or 'unknown file system'}); links and locks hold"
    if epoch_s > _SYNC_SHARE_MAX * epoch_interval_s:
        longer_s = max(epoch_interval_s, round(epoch_s / _SYNC_SHARE_MAX, 1))
        found.append(
            Finding.warning(
                "disk",
                f"{text}, but an epoch has {epoch_interval_s:g} s in all",
                f"log.epoch_interval_s = {longer_s:g}, or a faster disk",
            )
        )
        return found
    return [*found, Finding.ok("disk", text)]


def file_system_of(path: Path, mountinfo: str | None = None) -> str:
    """The kind of file system that a path is on; "" where it cannot be told.

    Source: proc(5), /proc/PID/mountinfo.
    """
    try:
        text = (
            Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
            if mountinfo is None
            else mountinfo
        )
    except OSError:
        return ""
    best, kind = -1, ""
    place = path.resolve()
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].replace("\\040", " "))
        # The last of several mounts on one place hides those before it.
        if after and place.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), after.split()[0]
    return kind


def _wrong(files: Files, folder: Path) -> str:
    """What the commit of an epoch rests on, tried: a link that refuses a name that is taken, and locks."""
    source, taken, free = folder / "epoch-0", folder / "epoch-1", folder / "linked"
    try:
        files.link(source, free)
    except OSError as error:
        return f"no hard links ({error.strerror or error})"
    try:
        files.link(source, taken)
    except FileExistsError:
        pass
    except OSError as error:
        return f"a link to a name that is taken fails with {error.strerror or error}"
    else:
        return "a link replaces a name that is taken, so that one writer would overwrite another's epoch"
    if source.stat().st_ino != free.stat().st_ino:
        return "a link is a copy"
    try:
        files.sync_directory(folder)
    except OSError as error:
        return f"a directory cannot be synced ({error.strerror or error})"
    return _lock_fault(files, folder)


def _lock_fault(files: Files, folder: Path) -> str:
    path = folder / "locked"
    try:
        descriptor = files.create(path)
    except OSError as error:
        return f"no locks ({error.strerror or error})"
    try:
        with files.open(path) as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return ""
    except OSError as error:
        return f"no locks ({error.strerror or error})"
    finally:
        files.close(descriptor)
    return "two may hold one lock"
