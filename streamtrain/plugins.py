"""Finds plug-ins by entry point, so that third parties add sources, codecs, exporters and models."""

from __future__ import annotations

import importlib
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from streamtrain.errors import ConfigError, StreamtrainError

__all__ = ["blamed", "load", "names"]

logger = logging.getLogger(__name__)


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
        raise ConfigError(f"cannot load {path!r}: {_told(error)}") from error


@contextmanager
def blamed(kind: type[StreamtrainError], what: str) -> Iterator[None]:
    """What a plug-in's code raises inside becomes one line that names it, with what was raised as its cause.

    Our own errors, and an operating system's, which say by themselves what is wrong, pass as they are.

    Args:
      kind: the error to raise, whose catcher does the right thing.
      what: the plug-in and what it was asked for, as in "{what} failed".

    Raises:
      kind: the plug-in has a fault.
    """
    try:
        yield
    except (StreamtrainError, OSError):
        raise
    except Exception as error:
        logger.debug("%s failed", what, exc_info=True)
        raise kind(f"{what} failed: {_told(error)}. This is a fault of the plug-in: correct it") from error


def _told(error: Exception) -> str:
    """An error in a line: its type, its text, and the last place outside of installed packages that it came from."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error}"  # which tells its place by itself
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    last = (own or frames)[-1]
    return f"{type(error).__name__}: {error} (raised at {last.filename}:{last.lineno})"
