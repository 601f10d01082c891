"""Slow, obvious oracle of one table whose rows are admitted, expire and decay: dicts, Python integers, one id at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash

from streamtrain.sparse.bloom import bloom_size
from streamtrain.sparse.lifecycle_settings import (
    CountAdmission,
    CountingBloomAdmission,
    ProbabilityAdmission,
)
from streamtrain.sparse.settings import Adam, TableSettings
from tests.reference_index import ticket
from tests.reference_sparse import GAMMA, Row, initial_weights, learn, mix, new_row

f32 = np.float32


def table_key(seed: int, table: str) -> int:
    return mix(mix(seed + GAMMA) ^ xxhash.xxh64_intdigest(table.encode()))


def shared_vector(settings: TableSettings, seed: int, table: str) -> np.ndarray:
    """What unadmitted ids look like: the vector of id 0 under another key of the table."""
    if settings.unadmitted == "zero":
        return np.zeros(settings.dim, f32)
    other = mix(table_key(seed, table) + GAMMA)
    return initial_weights(settings.init, seed, table, 0, settings.dim, key_of_table=other)


def in_turn(number: int, size: int, step: int, every: int) -> bool:
    turn = step % every
    return turn * size // every <= number < (turn + 1) * size // every


def power(base: float, exponent: int) -> float:
    result = 1.0
    while exponent:
        if exponent % 2:
            result *= base
        base, exponent = base * base, exponent // 2
    return result


@dataclass
class Counts:
    """Exact counts: a dict."""

    settings: CountAdmission
    held: dict[int, int] = field(default_factory=dict)

    def admit(self, occurrences: Mapping[int, int], step: int) -> set[int]:
        s = self.settings
        shares = halved = 0
        while True:
            totals = {id: self.held.get(id, 0) + o for id, o in occurrences.items()}
            admitted = {id for id, total in totals.items() if total >= s.threshold}
            room = s.ids_max - len(self.held) + len(admitted & self.held.keys())
            new = [id for id in totals if id not in admitted and id not in self.held]
            if len(new) <= room or not self.held:
                break
            shares = shares or max(1, min(32, len(self.held) // (2 * (len(new) - room))))
            first = (2654435769 * step % 2**32) * shares // 2**32
            for share in range(halved, max(1, 2 * halved)):
                self.halve([id for id in self.held if in_turn(ticket(id), 2**32, first + share, shares)])
            halved = max(1, 2 * halved)
        for id in admitted:
            self.held.pop(id, None)
        for id, total in totals.items():
            if id not in admitted and (id in self.held or len(self.held) < s.ids_max):
                self.held[id] = min(total, 2**32 - 1)
        return admitted

    def halve(self, ids: Sequence[int]) -> None:
        for id in ids:
            self.held[id] //= 2
            if not self.held[id]:
                del self.held[id]

    def end(self, step: int) -> None:
        if every := self.settings.halve_every_steps:
            self.halve([id for id in self.held if in_turn(ticket(id), 2**32, step, every)])

    def state(self) -> dict[int, bytes]:
        return {id: count.to_bytes(4, "little") for id, count in self.held.items()}


@dataclass
class Blooms:
    """Blocks of 64 counters: the text of streamtrain/sparse/bloom.py, read aloud."""

    settings: CountingBloomAdmission
    key: int
    held: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.size = bloom_size(self.settings.expected_ids, self.settings.error)

    def admit(self, occurrences: Mapping[int, int], step: int) -> set[int]:
        admitted = set()
        for id, o in occurrences.items():
            h = mix(self.key ^ mix(id + GAMMA))
            word = mix(h + GAMMA)
            places = {word >> 6 * j & 63 for j in range(self.size.hashes)}
            block = self.held.setdefault((h >> 32) * self.size.blocks >> 32, [0] * 64)
            estimate = min(block[place] for place in places)
            if estimate + o >= self.settings.threshold:
                admitted.add(id)
            for place in places:
                if id not in admitted:
                    block[place] = min(block[place] + o, 255)
                elif block[place] < 255:
                    block[place] -= estimate
        return admitted

    def end(self, step: int) -> None:
        if every := self.settings.halve_every_steps:
            for number, block in self.held.items():
                if in_turn(number, self.size.blocks, step, every):
                    block[:] = [count // 2 for count in block]

    def state(self) -> dict[int, bytes]:
        return {number: bytes(block) for number, block in self.held.items() if any(block)}


@dataclass
class Chance:
    settings: ProbabilityAdmission
    key: int

    def admit(self, occurrences: Mapping[int, int], step: int) -> set[int]:
        admitted = set()
        for id, o in occurrences.items():
            word = mix(mix(self.key ^ mix(id + GAMMA)) ^ mix(step + GAMMA))
            if (word >> 11) / 2**53 < 1 - power(1 - self.settings.p, o):
                admitted.add(id)
        return admitted

    def end(self, step: int) -> None: ...

    def state(self) -> dict[int, bytes]:
        return {}


@dataclass
class ReferenceTable:
    """A dynamic table as a dict of rows, and its admission as one of counts."""

    settings: TableSettings
    seed: int
    name: str = "t"
    rows: dict[int, Row] = field(default_factory=dict)
    dirty: dict[int, None] = field(default_factory=dict)
    removed: dict[int, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        key = mix(table_key(self.seed, self.name) + 2 * GAMMA)
        self.rule: Counts | Blooms | Chance | None = None
        match self.settings.admission:
            case CountAdmission() as a:
                self.rule = Counts(a)
            case CountingBloomAdmission() as a:
                self.rule = Blooms(a, key)
            case ProbabilityAdmission() as a:
                self.rule = Chance(a, key)

    def faded(self, row: Row, step: int) -> Row:
        """The row as it is at `step`."""
        decay = self.settings.decay
        if decay is None:
            return row
        age = (step - row.last_step) % 2**32
        periods = step // decay.every_steps - (step - age) // decay.every_steps
        of_weights, of_slots = (f32(power(f, periods)) for f in (decay.weights, decay.slots))
        state = {
            name: values
            if name == "t" and isinstance(self.settings.optimizer, Adam)
            else [v * of_slots for v in values]
            for name, values in row.state.items()
        }
        return Row([w * of_weights for w in row.weights], state, row.count, row.last_step)

    def look(self, ids: Sequence[int], step: int) -> list[list[np.float32]]:
        shared = None if self.rule is None else list(shared_vector(self.settings, self.seed, self.name))
        return [self._seen(id, shared, step) for id in ids]

    def _seen(self, id: int, shared: list[np.float32] | None, step: int) -> list[np.float32]:
        if id in self.rows:
            return self.faded(self.rows[id], step).weights
        return new_row(self.settings, self.seed, self.name, id).weights if shared is None else shared

    def step(
        self, occurrences: Mapping[int, int], gradients: Mapping[int, Sequence[np.float32]], step: int
    ) -> dict[int, list[np.float32]]:
        """A step that is learned from; `occurrences` in the order in which ids first occur. Returns what was seen."""
        absent = {id: o for id, o in occurrences.items() if id not in self.rows}
        for id in absent if self.rule is None else self.rule.admit(absent, step):
            self.rows[id] = new_row(self.settings, self.seed, self.name, id)
            self.rows[id].last_step = step % 2**32
        seen = {id: list(vector) for id, vector in zip(occurrences, self.look(list(occurrences), step))}
        for id, o in occurrences.items():
            if id in self.rows:
                row = self.faded(self.rows[id], step)
                learn(row, self.settings.optimizer, list(gradients[id]), o, step)
                self.rows[id] = row
                self.dirty.setdefault(id)
        return seen

    def end(self, step: int) -> None:
        """What follows any step, one that was taken back too."""
        if self.rule is not None:
            self.rule.end(step)
        expiry = self.settings.expiry
        if expiry is None:
            return
        turn = [id for id in self.rows if in_turn(ticket(id), 2**32, step, expiry.sweep_steps)]
        for id in sorted(turn, key=lambda id: (ticket(id), id)):
            row = self.rows[id]
            age = (step - row.last_step) % 2**32
            norm = sum(float(w) ** 2 for w in self.faded(row, step).weights)
            old = expiry.after_steps is not None and age > expiry.after_steps
            small = (
                expiry.norm_min is not None
                and norm < expiry.norm_min**2
                and row.count >= expiry.norm_after_count
            )
            if age and (old or small):
                del self.rows[id]
                self.dirty.pop(id, None)
                self.removed.setdefault(id)

    def cut(self) -> tuple[list[int], list[int]]:
        """Ids of changed rows in order, and tombstones in order; clears both."""
        rows, tombstones = list(self.dirty), [id for id in self.removed if id not in self.dirty]
        self.dirty, self.removed = {}, {}
        return rows, tombstones
