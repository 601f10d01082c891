"""Names the arrays of a state, and puts named arrays back into one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from streamtrain.errors import ConfigError

__all__ = ["named_arrays", "placed"]


def named_arrays(tree: Any) -> dict[str, np.ndarray]:
    """Copies of the leaves of a pytree by their path, such as `params/layers/0/kernel`, in the tree's order.

    Raises:
      ConfigError: two leaves have the same path, because a key holds a `/`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    arrays = {_name(path): np.array(leaf) for path, leaf in leaves}
    if len(arrays) != len(leaves):
        raise ConfigError("two parameters of the model have the same path; use no '/' in their keys")
    return arrays


def placed(shapes: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """A tree of device arrays of its own, from arrays by name.

    Args:
      shapes: a pytree whose leaves have a shape and a dtype.
      arrays: by path, as `named_arrays` returned them; not aliased.

    Raises:
      ConfigError: a name, shape or dtype is not the model's.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(shapes)
    names = [_name(path) for path, _ in leaves]
    for name, (_, leaf) in zip(names, leaves, strict=True):
        if name not in arrays:
            raise _misfit(f"{name} is missing")
        found = arrays[name]
        if found.shape != leaf.shape or found.dtype != leaf.dtype:
            raise _misfit(f"{name} is {_text(found)}, the model's is {_text(leaf)}")
    if unknown := sorted(set(arrays) - set(names)):
        raise _misfit(f"the model has no {unknown[0]}")
    # On a CPU a device array may share memory with the host array that it is made from, also where asked not to, so
    # each is made from a copy that nobody else holds and can change.
    return jax.tree_util.tree_unflatten(treedef, [jax.device_put(np.array(arrays[name])) for name in names])


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _text(array: Any) -> str:
    return f"{np.dtype(array.dtype).name}{list(array.shape)}"


def _misfit(detail: str) -> ConfigError:
    return ConfigError(
        f"saved dense parameters do not fit the model: {detail}. The model's settings, its optimizer or the slots have "
        "changed since: put them back, or begin a new model"
    )
