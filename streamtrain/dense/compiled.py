"""Compiled programs kept on disk, so that a restart loads them instead of compiling them again.

JAX keeps them under a key of program, options and its own versions. What it leaves to us: a folder that nobody else may
write to, since what lies there is executed; one folder for each kind of processor, since the code uses all of its
instructions; and a bound.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import stat
from contextlib import suppress
from pathlib import Path

import jax

__all__ = ["keep_compiled", "prune", "usable_folder"]

logger = logging.getLogger(__name__)

BYTES_MAX = 256 << 20
"""A job has about 100 kB of programs; they change with its model, its batch size and the version of JAX."""


def keep_compiled(folder: str) -> Path | None:
    """From now on, this process takes compiled programs from a folder and puts new ones there.

    Without a usable folder everything compiles as ever: it is a matter of seconds, never a fault.

    Args:
      folder: where; "auto" is `streamtrain/` in the user's cache directory, "off" keeps nothing.

    Returns:
      The folder of this machine's kind, or None.
    """
    if folder == "off":
        return None
    try:
        place = usable_folder(folder)
        prune(place.parent, BYTES_MAX)
    except OSError as error:
        logger.info("compiled programs are not kept: %s", error)
        return None
    jax.config.update("jax_compilation_cache_dir", str(place))
    # By default JAX keeps only what took more than a second; here a few of half a second each are what a start waits for.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return place


def usable_folder(folder: str) -> Path:
    """The folder of this machine's kind, made where it is missing; `folder` as of `keep_compiled`, and not "off".

    Raises:
      OSError: it cannot be made, or others may write to it.
    """
    root = _user_cache() / "streamtrain" if folder == "auto" else Path(folder)
    place = root / f"jax-{_processor()}"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_private(place)
    return place


def prune(root: Path, bytes_max: int) -> None:
    """Removes the programs written longest ago until at most `bytes_max` are left, and files that a crash left empty.

    Raises:
      OSError: the folder cannot be read.
    """
    found: list[tuple[float, int, Path]] = []
    for path in root.glob("jax-*/*-cache"):
        with suppress(FileNotFoundError):  # Another daemon prunes too.
            about = path.stat()
            found.append((about.st_mtime, about.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total > bytes_max or not size:
            path.unlink(missing_ok=True)
            total -= size


def _user_cache() -> Path:
    given = os.environ.get("XDG_CACHE_HOME", "")
    # RuntimeError where a user has no home; then the path below cannot be made, which is told.
    with suppress(RuntimeError):
        return Path(given) if Path(given).is_absolute() else Path.home() / ".cache"
    return Path(os.devnull)


def _check_private(place: Path) -> None:
    about = place.stat()
    if about.st_uid != os.getuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{place} can be written to by others than this user ({os.getuid()})")


def _processor() -> str:
    """16 hex digits that differ where the instructions of the processors do."""
    kind = [platform.machine(), platform.processor()]
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        told = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
        kind += [told.get(name, "") for name in ("model name\t", "flags\t\t", "Features\t")]
    return hashlib.sha256("\n".join(kind).encode()).hexdigest()[:16]
