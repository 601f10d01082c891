"""What a serving process imports: `Follower`, and the values that it reports.

The names load on first use: exporters share the file formats in this package, and need no JAX for that.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamtrain.serving.follower import Follower
    from streamtrain.serving.freshness import FreshnessReport
    from streamtrain.serving.manifest import Position
    from streamtrain.serving.version import FollowerStatus, Version

__all__ = ["Follower", "FollowerStatus", "FreshnessReport", "Position", "Version"]

_HOMES = {
    "Follower": "follower",
    "FollowerStatus": "version",
    "FreshnessReport": "freshness",
    "Position": "manifest",
    "Version": "version",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
