"""Which files a source reads, and in which order."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

__all__ = ["list_files", "natural_key"]


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sorts `part-9` before `part-10`; names that differ only in leading zeros by their text."""
    # Splitting by a group alternates text and digits, beginning with text: equal places hold equal types.
    parts: list[str | int] = [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]
    return parts, name


def list_files(patterns: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files that patterns name, each once.

    Args:
      patterns: paths and globs (`**` for folders within folders), relative to the working directory.

    Returns:
      The files: by pattern in the order given, within a pattern in natural order; and the patterns without a file.
    """
    files: dict[str, None] = {}
    unmatched = []
    for pattern in patterns:
        expanded = str(Path(pattern).expanduser())
        # A name that exists is that file, even with a bracket in it.
        # Path.glob takes no absolute patterns.
        found = [expanded] if Path(expanded).is_file() else glob.glob(expanded, recursive=True)  # noqa: PTH207
        found = sorted((name for name in found if Path(name).is_file()), key=natural_key)
        if not found:
            unmatched.append(pattern)
        files.update(dict.fromkeys(found))
    return list(files), unmatched
