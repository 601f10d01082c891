"""Dense parameters and optimizer state, carried over to another schema, other dims or other layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from streamtrain.config import Job
from streamtrain.dense.model import Column, Inputs, build_model
from streamtrain.dense.net import DenseNet

__all__ = ["DenseMove", "moved"]

_PARAMS, _OPTIMIZER = "params/", "optimizer/"


@dataclass(slots=True)
class DenseMove:
    """Dense state for the new job, and what became of each parameter.

    Attributes:
      arrays: as `DenseNet.load` takes them.
      kept: parameters that are as they were.
      mapped: those that moved along with their columns; columns that are new are as they start.
      begun: those that begin anew, because their shape is another or nobody knows what their columns were.
      dropped: those that there are no more.
      optimizer_begun: whether the optimizer's state begins anew.
    """

    arrays: dict[str, np.ndarray]
    kept: list[str] = field(default_factory=list)
    mapped: list[str] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    optimizer_begun: bool = False


def moved(arrays: Mapping[str, np.ndarray], before: Job, after: Job) -> DenseMove:
    """Carries what `arrays` hold over from the model of `before` to that of `after`.

    A parameter that the model says the columns of (`Model.columns`) is moved column by column; another stays where its
    shape is the same. Optimizer state goes with its parameter.

    Args:
      arrays: the dense state of `before`, by name.
    """
    fresh = DenseNet(
        after.layout, after.model, after.optimizer, seed=after.seed, batch_size=after.training.batch_size
    ).state()
    carry = _Carry.between(before, after)
    move = DenseMove(dict(fresh))
    for name in (name for name in fresh if name.startswith(_PARAMS)):
        path = name.removeprefix(_PARAMS)
        found = carry.array(path, arrays.get(name), fresh[name])
        if found is None:
            move.begun.append(path)
            continue
        move.arrays[name] = found
        (move.mapped if path in carry.changed else move.kept).append(path)
    move.dropped = [n.removeprefix(_PARAMS) for n in arrays if n.startswith(_PARAMS) and n not in fresh]
    move.optimizer_begun = before.optimizer.kind != after.optimizer.kind
    if not move.optimizer_begun:
        _move_optimizer(arrays, fresh, carry, move)
    return move


def _move_optimizer(
    arrays: Mapping[str, np.ndarray], fresh: Mapping[str, np.ndarray], carry: _Carry, move: DenseMove
) -> None:
    paths = sorted(move.kept + move.mapped + move.begun, key=len, reverse=True)
    for name in (name for name in fresh if name.startswith(_OPTIMIZER)):
        path = next((p for p in paths if name.endswith(f"/{p}")), None)
        if path in move.begun:
            continue
        found = carry.array(path or "", arrays.get(name), fresh[name])
        if found is not None:
            move.arrays[name] = found


@dataclass(frozen=True, slots=True)
class _Carry:
    """Which parameters may be carried over, and which of their indices became which.

    Attributes:
      anything: False where nothing may.
      changed: by parameter, (old, new) places of the columns that there were and are.
    """

    anything: bool
    changed: Mapping[str, tuple[list[int], list[int]]]

    @staticmethod
    def between(before: Job, after: Job) -> _Carry:
        if before.model.kind != after.model.kind:
            return _Carry(False, {})
        old, new = build_model(before.layout, before.model), build_model(after.layout, after.model)
        was, now = old.columns(), new.columns()
        if was is None or now is None:
            return _Carry(_same(old.inputs, new.inputs), {})
        both = {path for path in was if path in now and list(was[path]) != list(now[path])}
        return _Carry(True, {path: _places(was[path], now[path]) for path in both})

    def array(self, path: str, found: np.ndarray | None, fresh: np.ndarray) -> np.ndarray | None:
        """What the parameter, or state of its shape, becomes; None where it begins anew."""
        if not self.anything or found is None or found.dtype != fresh.dtype:
            return None
        if path not in self.changed:
            return np.array(found) if found.shape == fresh.shape else None
        if found.ndim == 0 or found.shape[1:] != fresh.shape[1:]:
            return None
        old, new = self.changed[path]
        out = fresh.copy()
        out[new] = found[old]
        return out


def _same(before: Inputs, after: Inputs) -> bool:
    """Whether the inputs are alike in every place: the order of slots is the order of columns."""
    ordered = [list(getattr(i, part).items()) for i in (before, after) for part in ("pooled", "dense")]
    return before == after and ordered[:2] == ordered[2:]


def _places(was: Sequence[Column], now: Sequence[Column]) -> tuple[list[int], list[int]]:
    place = {column: at for at, column in enumerate(was)}
    new = [at for at, column in enumerate(now) if column in place]
    return [place[now[at]] for at in new], new
