"""Laws of collection with registered readers, against a slow, obvious oracle."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.readers import Holding, Readers

LEASE_S, EPOCHS_MAX = 600.0, 12
readers = st.dictionaries(
    st.text(max_size=5)
    .filter(bool)
    .filter(lambda name: len(name.encode("utf-8", "replace")) < 20 and name.isprintable()),
    st.tuples(st.none() | st.integers(0, 25), st.sampled_from([0.0, 599.0, 601.0, 1e6, -601.0])),
    max_size=4,
)


def emptied(path: Path, epochs: range, bases: set[int]) -> EpochLog:
    """A log of files without content: collection goes by names."""
    log = EpochLog.create(path, "m", {})
    for epoch in epochs:
        log.epoch_path(epoch).touch()
    for base in bases:
        log.base_path(base).touch()
    return log


@given(
    st.integers(0, 10),
    st.integers(1, 15),
    st.sets(st.integers(0, 24), max_size=4),
    st.integers(1, 8),
    readers,
)
@settings(max_examples=100, deadline=None)
def test_collection_leaves_what_live_readers_need_and_takes_all_else(
    first: int, count: int, bases: set[int], keep: int, registered: dict[str, tuple[int | None, float]]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        epochs = range(first, first + count)
        log = emptied(Path(directory) / "log", epochs, bases)
        for name, (epoch, age_s) in registered.items():
            Readers(log.path, clock=lambda age_s=age_s: 1e9 - age_s).register(name, epoch)  # type: ignore[misc]
        log.readers = Readers(log.path, clock=lambda: 1e9)
        log.collect(keep, (), Holding(LEASE_S, EPOCHS_MAX))

        live = [epoch for epoch, age_s in registered.values() if abs(age_s) <= LEASE_S]
        newest = max(bases, default=None)
        held = [epoch for epoch in live if epoch is None or newest is None or newest - epoch <= EPOCHS_MAX]
        if newest is None or None in held:
            wanted, wanted_bases = set(epochs), bases
        else:
            needed = {epoch for at in held if at is not None for epoch in epochs if epoch > at}
            wanted = needed | {epoch for epoch in epochs if epoch > newest - keep}
            wanted_bases = set(sorted(bases)[-2:])
        assert {int(path.stem) for path in (log.path / "epochs").iterdir()} == wanted
        assert {int(path.stem) for path in (log.path / "bases").iterdir()} == wanted_bases
        left = {reader.name for reader in log.readers.found()}
        if newest is not None:
            assert left == {name for name, (_, age_s) in registered.items() if abs(age_s) <= LEASE_S}


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_who_registers_first_and_then_chooses_a_base_never_loses_its_way(data: st.DataObject) -> None:
    """A collection and a reader, step by step, in any order. The reader: register, list bases, open one, say so, read on."""
    with tempfile.TemporaryDirectory() as directory:
        log = emptied(Path(directory) / "log", range(10), {2, 5, 8})
        reader = _Reader(log)
        steps = data.draw(st.lists(st.sampled_from(["reader", "collect", "grow"]), min_size=1, max_size=14))

        class Interleaved(type(log.readers)):  # type: ignore[misc]
            """Between what a collection lists and what it removes, the reader takes steps."""

            def held(self, newest: int, holding: Holding) -> list[int | None]:
                found = super().held(newest, holding)
                for _ in range(data.draw(st.integers(0, 5))):
                    reader.step()
                return found

        log.readers = Interleaved(log.path)
        head = 9
        for step in steps:
            if step == "reader":
                reader.step()
            elif step == "collect":
                log.collect(1)
            else:
                head += 3
                for epoch in range(head - 2, head + 1):
                    log.epoch_path(epoch).touch()
                log.base_path(head - 1).touch()
        while reader.at != head:
            reader.step()


class _Reader:
    """Finds everything that it needs, or the assertion fails."""

    def __init__(self, log: EpochLog) -> None:
        self._path, self._log = log.path, EpochLog.open(log.path)
        self._steps = [self._register, self._choose, self._open]
        self.at: int | None = None

    def step(self) -> None:
        (self._steps.pop(0) if self._steps else self._read)()

    def _register(self) -> None:
        self._registration = self._log.register("r")

    def _choose(self) -> None:
        self._base = self._log.bases()[-1]

    def _open(self) -> None:
        assert self._log.base_path(self._base).exists()
        self.at = self._base
        self._say()

    def _read(self) -> None:
        assert self.at is not None
        if self._log.epoch_path(self.at + 1).exists():
            self.at += 1
            self._say()
        else:
            newest = max(int(path.stem) for path in (self._path / "epochs").iterdir())
            assert self.at == newest, "an epoch that it needs was collected"

    def _say(self) -> None:
        """As `advance`, without waiting for its second to pass."""
        self._log.readers.write(replace(self._registration.reader, epoch=self.at))
