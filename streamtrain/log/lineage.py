"""What a model never saw: the gaps that its source skipped, carried from record to record in their notes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["LOSSES_MAX", "losses_note", "losses_of"]

LOSSES_MAX = 100
"""So many of the newest gaps are carried on; older ones stand in the log file of the daemon alone."""

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
    return {_NOTE: json.dumps(list(losses[-LOSSES_MAX:]))} if losses else {}
