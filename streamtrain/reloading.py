"""What a running daemon may take over from settings that have changed, and what has to wait. Decides; does nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from streamtrain.config import Job
from streamtrain.identity import differences
from streamtrain.settings import Settings

__all__ = ["RELOADABLE", "Reload", "reload_of"]

RELOADABLE = frozenset(
    {
        "logging.format",
        "logging.level",
        "logging.repeats_max",
        "log.base_every_epochs",
        "log.base_share",
        "log.keep_epochs",
        "log.reader_lease_s",
        "log.hold_epochs_max",
        "training.bad_samples.share_max",
        "training.bad_samples.window",
    }
)
"""Settings that decide nothing of the model's bits, and whose users ask for them each time."""


@dataclass(frozen=True, slots=True)
class Reload:
    """What comes of settings that were read again.

    Attributes:
      job: what holds from now on: the job from before, with what may be taken over.
      taken: dotted keys that were.
      restart: those that wait for the next start.
      refused: those that the next start will refuse, because they make another model of it.
    """

    job: Job
    taken: tuple[str, ...]
    restart: tuple[str, ...]
    refused: tuple[str, ...]


def reload_of(before: Job, after: Job) -> Reload:
    """Sorts what differs between two jobs. No values are told: they may be secrets of plug-ins."""
    changed = sorted(_changed("", before.describe(), after.describe()))
    # A log at another place is another model's, or a new one's: the next start says what comes of it.
    deciding = (
        differences(after, before.describe(), before.log.path) if before.log.path == after.log.path else []
    )
    refused = tuple(path for path, *_ in deciding)
    taken = tuple(key for key in changed if key in RELOADABLE)
    restart = tuple(
        key
        for key in changed
        if key not in RELOADABLE and not any(key == path or key.startswith(f"{path}.") for path in refused)
    )
    return Reload(_adopted(before, after), taken, restart, refused)


def _adopted(before: Job, after: Job) -> Job:
    bad = _with("training.bad_samples", before.training.bad_samples, after.training.bad_samples)
    return before.model_copy(
        update={
            "logging": _with("logging", before.logging, after.logging),
            "log": _with("log", before.log, after.log),
            "training": before.training.model_copy(update={"bad_samples": bad}),
        }
    )


def _with(section: str, before: Settings, after: Settings) -> Settings:
    """The section from before, with what may be reloaded of it."""
    keys = (key.rpartition(".") for key in RELOADABLE)
    return before.model_copy(
        update={name: getattr(after, name) for place, _, name in keys if place == section}
    )


def _changed(path: str, before: Any, after: Any) -> Iterator[str]:
    """Dotted keys of what differs; a list is one thing."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in before.keys() | after.keys():
            yield from _changed(f"{path}.{key}".lstrip("."), before.get(key), after.get(key))
    elif before != after:
        yield path
