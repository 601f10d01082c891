"""What a model never saw: the gaps that its source skipped, carried from record to record in their notes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["LOSSES_MAX", "losses_note", "losses_of", "with_losses"]

LOSSES_MAX = 100
"""So many gaps are carried on beside those of the newest loss; older ones stand in the daemon's own log alone."""

_NOTE = "lost"


def losses_of(notes: Mapping[str, str]) -> list[dict[str, Any]]:
    """The gaps that a record's notes tell of, oldest first.

    Each has `epoch` (the gap stands before its first span), `partition`, `from` (where reading stood), `to` (where it
    went on; None where the partition is gone), `reason` and `at_ms`.
    """
    found: list[dict[str, Any]] = json.loads(notes.get(_NOTE, "[]"))
    return found


def losses_note(losses: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The notes that carry `losses` on; none where there are none."""
    return {_NOTE: json.dumps(list(losses))} if losses else {}


def with_losses(
    losses: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """What to carry on when more is lost: all that is new, because its epoch is replayed by it, and the newest before."""
    return [*losses[-LOSSES_MAX:], *found]
