"""Finds plug-ins by entry point, so that third parties add sources, codecs, exporters and models."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from streamtrain.errors import ConfigError

__all__ = ["load", "names"]


def names(group: str) -> list[str]:
    """The names registered under `streamtrain.<group>`, sorted."""
    return sorted({point.name for point in entry_points(group=f"streamtrain.{group}")})


def load(group: str, name: str) -> Any:
    """The object registered as `name` under `streamtrain.<group>`, or the one at `module:Object`.

    Raises:
      ConfigError: nothing of that name, or it cannot be imported.
    """
    if ":" in name:
        return _by_path(name)
    for point in entry_points(group=f"streamtrain.{group}"):
        if point.name == name:
            return _imported(point.load, f"{name} ({point.value})")
    raise ConfigError(
        f"no {group} plug-in is called {name!r}; there are: {', '.join(names(group))}, or 'module:Object'"
    )


def _by_path(path: str) -> Any:
    module_name, _, attribute = path.partition(":")
    # A user's own module usually lies beside the configuration, in the folder they start from.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    if not module_name or not attribute:
        raise ConfigError(f"{path!r} is not 'module:Object'")
    return _imported(lambda: getattr(importlib.import_module(module_name), attribute), path)


def _imported(load: Callable[[], Any], path: str) -> Any:
    """Loads a plug-in. Its module is code of its own, so that importing it may raise whatever there is."""
    try:
        return load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"cannot load {path!r}: {error}; it is looked for on PYTHONPATH and in {Path.cwd()}"
        ) from error
    except Exception as error:
        # A syntax error tells its place by itself.
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = "" if isinstance(error, SyntaxError) else f" (raised at {last.filename}:{last.lineno})"
        raise ConfigError(f"cannot load {path!r}: {type(error).__name__}: {error}{place}") from error
