"""Kernels that this checkout has compiled already, for a cache elsewhere: a test of files is not one of compilers."""

from __future__ import annotations

import shutil
from pathlib import Path

from numba.core.caching import _CacheLocator

from tests.servers import ROOT

__all__ = ["copy_kernels"]


def copy_kernels(cache: Path, root: Path = ROOT) -> None:
    """Fills a folder that NUMBA_CACHE_DIR names with the kernels beside the sources, which a process finds under `root`."""
    for compiled in ROOT.glob("streamtrain/**/__pycache__/*.nb[ic]"):
        package = root / compiled.parent.parent.relative_to(ROOT)
        target = cache / _CacheLocator.get_suitable_cache_subpath(str(package / "any.py"))
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy2(compiled, target)
