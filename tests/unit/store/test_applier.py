"""The applier against a store and a log that lose things, in every order."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtrain.errors import EpochMissing, StoreRefused, StoreUnavailable
from streamtrain.log.record import EpochRecord
from streamtrain.store.applier import StoreApplier
from tests.reference_store import DictRows, DictStore, ListLog, random_record


def log_of(epochs: int) -> ListLog:
    log = ListLog()
    for epoch in range(epochs + 1):
        log.append(random_record(epoch, rows=5, id_max=12))
    return log


def rows_at(epoch: int) -> DictRows:
    oracle = DictRows()
    for number in range(epoch + 1):
        oracle.write(random_record(number, rows=5, id_max=12))
    return oracle


def fold(log: ListLog, epoch: int) -> None:
    """Makes the base of all epochs from the generator, whatever the log has collected, and collects."""
    whole = log_of(epoch)
    whole.fold(epoch)
    log.base_records[epoch] = whole.base_records[epoch]
    log.records = {n: record for n, record in log.records.items() if n > epoch}


async def test_an_empty_store_is_filled_from_the_first_epoch_where_there_is_no_base() -> None:
    store = DictStore()
    assert await StoreApplier(log_of(3), store).catch_up(3) == 3
    assert store.calls == ["applied_epochs", "load_base 0", "applied_epochs", "apply 1", "apply 2", "apply 3"]
    assert store.whole.rows == rows_at(3).rows


async def test_an_empty_store_is_filled_from_the_newest_base() -> None:
    log, store = log_of(6), DictStore()
    fold(log, 2)
    fold(log, 4)
    await StoreApplier(log, store).catch_up(6)
    assert store.calls[1:] == ["load_base 4", "applied_epochs", "apply 5", "apply 6"]
    assert store.whole.rows == rows_at(6).rows


async def test_a_store_that_has_something_is_not_repaired() -> None:
    log, store = log_of(6), DictStore()
    await StoreApplier(log, store).catch_up(2)
    store.calls.clear()
    applier = StoreApplier(log, store)
    await applier.catch_up(4)
    await applier.catch_up(6)
    assert store.calls == ["applied_epochs", "apply 3", "apply 4", "apply 5", "apply 6"]
    assert applier.status.repairs == 0


async def test_epochs_that_were_collected_are_replaced_by_the_base() -> None:
    log, store = log_of(9), DictStore()
    applier = StoreApplier(log, store)
    await applier.catch_up(2)
    fold(log, 7)
    await applier.catch_up(9)
    assert store.epoch == 9 and store.whole.rows == rows_at(9).rows


async def test_a_store_flushed_between_two_epochs_is_repaired() -> None:
    log, store = log_of(5), DictStore()
    applier = StoreApplier(log, store)
    await applier.catch_up(4)
    store.forget()
    await applier.catch_up(5)
    assert store.whole.rows == rows_at(5).rows and applier.status.repairs == 2


async def test_a_reader_that_met_a_lost_shard_has_it_repaired_though_no_epoch_follows() -> None:
    log, store = log_of(5), DictStore()
    applier = StoreApplier(log, store)
    await applier.catch_up(5)
    store.forget()
    assert await applier.catch_up(5) == 5 and store.epoch is None
    assert await asyncio.gather(applier.repair(5), applier.repair(5), applier.catch_up(5)) == [5, 5, 5]
    assert store.whole.rows == rows_at(5).rows and applier.status.repairs == 2


async def test_a_store_that_keeps_nothing_ends_in_an_error_not_in_a_loop() -> None:
    class Forgetful(DictStore):
        async def load_base(self, base: object) -> None:
            self.calls.append("load_base")

    store = Forgetful()
    applier = StoreApplier(log_of(3), store)
    with pytest.raises(StoreUnavailable, match="does not keep what is written"):
        await applier.catch_up(3)
    assert store.calls.count("load_base") < 10


async def test_a_store_ahead_of_the_log_is_refused() -> None:
    store = DictStore()
    await StoreApplier(log_of(5), store).catch_up(5)
    applier = StoreApplier(log_of(3), store)
    with pytest.raises(StoreRefused, match=r"applied epoch 5, but the log ends at 3"):
        await applier.catch_up(3)
    assert applier.status.last_error is not None and store.epoch == 5


async def test_a_log_that_can_no_longer_fill_the_gap_is_an_error() -> None:
    log, store = log_of(9), DictStore()
    applier = StoreApplier(log, store)
    await applier.catch_up(4)
    fold(log, 2)
    del log.records[5]
    with pytest.raises(EpochMissing, match="epoch 5"):
        await applier.catch_up(9)


async def test_the_status_says_since_when_the_store_does_not_answer() -> None:
    log, store, now = log_of(4), DictStore(), [100.0]
    applier = StoreApplier(log, store, clock=lambda: now[0])
    await applier.catch_up(1)
    store.down = True
    for now[0] in (101.0, 102.0):
        with pytest.raises(StoreUnavailable):
            await applier.catch_up(4)
    status = applier.status
    assert (status.applied_epoch, status.last_error, status.since, status.errors) == (
        1,
        "the store is down",
        101.0,
        2,
    )
    store.down, now[0] = False, 103.0
    await applier.catch_up(4)
    status = applier.status
    assert (status.applied_epoch, status.last_error, status.since, status.errors) == (4, None, 103.0, 2)


events = st.lists(
    st.one_of(
        st.tuples(st.just("catch_up"), st.integers(1, 4)),
        st.tuples(st.sampled_from(["forget", "down", "up", "fold", "restart"]), st.just(0)),
    ),
    max_size=25,
)


@settings(deadline=None)
@given(events=events)
def test_whatever_is_lost_the_store_ends_as_the_log(events: list[tuple[str, int]]) -> None:
    async def scenario() -> None:
        log, store, last = ListLog(), DictStore(), 0
        log.append(random_record(0, rows=5, id_max=12))
        applier = StoreApplier(log, store)

        async def catch_up() -> None:
            assert await applier.catch_up(last) == last
            assert store.epoch == last and store.whole.rows == rows_at(last).rows

        for event, epochs in events:
            if event == "catch_up":
                for _ in range(epochs):
                    last += 1
                    log.append(random_record(last, rows=5, id_max=12))
                try:
                    await catch_up()
                except StoreUnavailable:
                    assert store.down
            elif event == "fold" and last not in log.base_records:
                fold(log, last)
            elif event == "restart":
                applier = StoreApplier(log, store)
            elif event == "forget":
                store.forget()
            elif event in ("down", "up"):
                store.down = event == "down"
        store.down = False
        last += 1
        log.append(random_record(last, rows=5, id_max=12))
        await catch_up()

    asyncio.run(scenario())


async def test_a_repair_goes_on_from_the_base_that_was_made_while_it_looked_for_one() -> None:
    class Folding(ListLog):
        def read(self, epoch: int) -> EpochRecord:
            if epoch == 0 and not self.base_records:
                fold(self, 2)
            return super().read(epoch)

    log, store = Folding(), DictStore()
    log.records, log.last = log_of(3).records, 3
    assert await StoreApplier(log, store).catch_up(3) == 3
    assert "load_base 2" in store.calls and store.whole.rows == rows_at(3).rows
