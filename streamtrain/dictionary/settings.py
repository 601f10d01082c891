"""Settings of the reverse dictionary."""

from __future__ import annotations

from pydantic import Field

from streamtrain.settings import Settings

__all__ = ["ReverseDictionarySettings"]


class ReverseDictionarySettings(Settings):
    """Keeps the original values of one slot's ids in `log.path`, for `streamtrain inspect`. Best effort: see docs/analysis.md.

    Values stand there in plain text: do not ask for a slot that holds personal data without need.
    """

    values_max: int = Field(default=1_000_000, ge=1, le=10_000_000)
    """Bound on values. The first so many are kept; those that come later are not."""
    value_bytes_max: int = Field(default=256, ge=1, le=65_536)
    """A longer string is left out."""
