"""Admission: which ids get a row. What a rule is, the rules that need no memory, and users' own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from streamtrain import plugins
from streamtrain.errors import ConfigError
from streamtrain.log.record import FilterRows
from streamtrain.sparse.bloom_filter import BloomAdmission
from streamtrain.sparse.candidates import ExactAdmission
from streamtrain.sparse.init import admission_key
from streamtrain.sparse.jit import kernel
from streamtrain.sparse.lifecycle_settings import (
    AnyAdmission,
    CountAdmission,
    CountingBloomAdmission,
    NoAdmission,
    OwnAdmission,
    ProbabilityAdmission,
)

__all__ = ["Admission", "OwnRule", "make_admission", "throw"]

GAMMA = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)
S11, S27, S30, S31 = np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31)
TWO_53 = 9007199254740992.0


class Admission(Protocol):
    """A rule of one table. A step is `admit`, then `keep` or `undo`, then `end`. It is told of ids without a row alone."""

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory in use."""

    def admit(self, ids: NDArray[np.uint64], occurrences: NDArray[np.uint32], step: int) -> NDArray[np.bool_]:
        """Which ids (`[N]` bool) get a row now, and counts the others.

        Args:
          ids: `[N]` uint64, distinct, in the order of their first occurrence.
          occurrences: `[N]` uint32, how often each occurs in the minibatch.
          step: the step's number.
        """

    def keep(self) -> None:
        """What `admit` did is final: the next cut has it."""

    def undo(self) -> None:
        """What `admit` did has not been: everything that is ever cut is as if it had not."""

    def end(self, step: int) -> None:
        """The step is over, whether it was kept or undone: what is done on a schedule of steps."""

    def cut(self) -> FilterRows | None:
        """What changed of the filter since the last cut, ascending; None of a rule without one."""

    def load(self, values: FilterRows) -> None:
        """Overwrites parts of the filter; they are not changes. Raises ConfigError where they are of another filter."""

    def state(self) -> Mapping[str, np.ndarray]:
        """A copy of what else the rule remembers, whole."""

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Puts `state` back."""

    def gauges(self) -> Mapping[str, float]:
        """Figures for metrics, by name."""


class OwnRule(Protocol):
    """A user's own rule: `kind = "module:Class"`.

    It is made with the table's name, the model's seed, and every other key of the section as keyword arguments. What it
    decides may depend on these, its arguments and its state alone: no clock, no other randomness. So a replay decides
    the same.

    State is copied before each step and put back where the minibatch is quarantined, and is whole in every record: keep it
    small, a few thousand numbers. A rule that remembers nothing returns {}.
    """

    def admit(self, ids: NDArray[np.uint64], occurrences: NDArray[np.uint32], step: int) -> NDArray[np.bool_]:
        """As `Admission.admit`."""

    def state(self) -> Mapping[str, np.ndarray]:
        """By name (no `/`), copies of everything that it remembers."""

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Becomes what it was when `state` returned this; keeps no reference to the arrays."""


class _Stateless:
    """What a rule without a filter does not do."""

    memory_bytes = 0

    def keep(self) -> None: ...

    def undo(self) -> None: ...

    def end(self, step: int) -> None: ...

    def cut(self) -> FilterRows | None:
        return None

    def load(self, values: FilterRows) -> None:
        raise ConfigError(
            "the log holds an admission filter, and this table's rule has none: set admission back"
        )

    def state(self) -> Mapping[str, np.ndarray]:
        return {}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        assert not state

    def gauges(self) -> Mapping[str, float]:
        return {}


class _ByChance(_Stateless):
    def __init__(self, p: float, seed: int, table: str) -> None:
        self._p, self._key = float(p), np.uint64(admission_key(seed, table))

    def admit(self, ids: NDArray[np.uint64], occurrences: NDArray[np.uint32], step: int) -> NDArray[np.bool_]:
        admitted = np.empty(len(ids), np.bool_)
        throw(ids, occurrences, self._key, np.uint64(step), 1.0 - self._p, admitted)
        return admitted


class _Own(_Stateless):
    """Runs a user's rule, checks what it returns, and undoes it by its state."""

    def __init__(self, settings: OwnAdmission, seed: int, table: str) -> None:
        self._name = f"tables.{table}.admission: {settings.kind}"
        try:
            made = plugins.load("admissions", settings.kind)
        except ConfigError as error:
            raise ConfigError(f"tables.{table}.admission: {error}") from error
        with plugins.blamed(ConfigError, f"{self._name}: making it"):
            try:
                self._rule: OwnRule = made(table, seed, **(settings.model_extra or {}))
            except TypeError as error:
                raise ConfigError(
                    f"{self._name} cannot be made with the table's name, the seed and the other keys of the section: {error}"
                ) from error
        if missing := [name for name in ("admit", "state", "load") if not hasattr(self._rule, name)]:
            raise ConfigError(
                f"{self._name} has no method {missing[0]!r}; docs/features.md shows a whole rule"
            )
        self._before = self.state()

    def admit(self, ids: NDArray[np.uint64], occurrences: NDArray[np.uint32], step: int) -> NDArray[np.bool_]:
        self._before = self.state()
        with plugins.blamed(ConfigError, f"{self._name}.admit"):
            admitted: Any = self._rule.admit(ids, occurrences, step)
        if not isinstance(admitted, np.ndarray) or (admitted.dtype, admitted.shape) != (np.bool_, ids.shape):
            raise ConfigError(f"{self._name}.admit has to return a bool array with one item for each id")
        return admitted

    def undo(self) -> None:
        self._load(self._before)

    def state(self) -> Mapping[str, np.ndarray]:
        with plugins.blamed(ConfigError, f"{self._name}.state"):
            state = {name: np.array(array) for name, array in self._rule.state().items()}
        if wrong := [name for name in state if not name or "/" in name]:
            raise ConfigError(f"{self._name}.state names an array {wrong[0]!r}; names have no '/'")
        if wrong := [name for name in state if state[name].dtype.kind not in "biuf"]:
            raise ConfigError(
                f"{self._name}.state: {wrong[0]!r} is an array of {state[wrong[0]].dtype}; a record holds numbers and bools"
            )
        return state

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        self._load({name: np.array(array) for name, array in state.items()})

    def _load(self, state: Mapping[str, np.ndarray]) -> None:
        with plugins.blamed(ConfigError, f"{self._name}.load"):
            self._rule.load(state)


def make_admission(settings: AnyAdmission, seed: int, table: str) -> Admission | None:
    """The rule that `settings` describe; None where every id has a row.

    Raises:
      ConfigError: a rule of the user's cannot be loaded, or there is no address space for a filter.
    """
    match settings:
        case NoAdmission():
            return None
        case CountAdmission():
            return ExactAdmission(settings, table)
        case CountingBloomAdmission():
            return BloomAdmission(settings, seed, table)
        case ProbabilityAdmission(p=p):
            return _ByChance(p, seed, table)
        case OwnAdmission():
            return _Own(settings, seed, table)


@kernel
def mix(z: np.uint64) -> np.uint64:
    z = (z ^ (z >> S30)) * MIX_1
    z = (z ^ (z >> S27)) * MIX_2
    return z ^ (z >> S31)


@kernel
def throw(
    ids: NDArray[np.uint64],
    occurrences: NDArray[np.uint32],
    key: np.uint64,
    step: np.uint64,
    refused: float,
    admitted: NDArray[np.bool_],
) -> None:
    """Admits id x, which occurs o times, where u < 1 - refused^o.

    u = floor(w / 2^11) / 2^53 with w = mix(mix(key ^ mix(x + G)) ^ mix(step + G)), mix and G as in docs/initial-rows.md. The
    power is float64, by repeated squaring, so that no mathematics library has a say in it.

    Args:
      ids: `[N]` uint64; occurrences: `[N]` uint32.
      key: the table's, for admission; step: the step's number.
      refused: the chance that one occurrence is not enough.
      admitted: `[N]` bool; overwritten.
    """
    turn = mix(step + GAMMA)
    for n in range(ids.size):
        word = mix(mix(key ^ mix(ids[n] + GAMMA)) ^ turn)
        chance, base, exponent = 1.0, refused, np.int64(occurrences[n])
        while exponent > 0:
            if exponent & 1:
                chance *= base
            base *= base
            exponent >>= 1
        admitted[n] = np.float64(word >> S11) / TWO_53 < 1.0 - chance
