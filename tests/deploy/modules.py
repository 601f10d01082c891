"""Files and programs of public Go modules, at pinned versions: the tools that deploy/ is written for publish them there."""

from __future__ import annotations

import functools
import json
import subprocess
from pathlib import Path

from tests.conftest import require

__all__ = ["module"]


@functools.cache
def module(path_at_version: str) -> Path:
    """The folder of a module, downloaded once into Go's cache, which checks its hash against Go's public log."""
    require("Go modules", "go")
    run = subprocess.run(
        ["go", "mod", "download", "-json", path_at_version],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd="/",
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return Path(json.loads(run.stdout)["Dir"])
