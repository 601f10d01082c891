"""Threads that share kernels' work: everything is done once, nobody is waited for in vain, and bits stay what they are."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from streamtrain.sparse import crew
from streamtrain.sparse.net import SparseNet
from streamtrain.sparse.settings import TableSettings
from streamtrain.sparse.tables import AnyTable, MultiHashTable
from tests.unit.sparse.cases import (
    LAYOUT,
    OPTIMIZERS,
    assert_same_bits,
    assert_same_rows,
    random_batch,
    random_gradients,
    table_settings,
)

THREADS = (1, 2, 3, 8)
LIFE = {
    "admission": {"kind": "counting_bloom", "threshold": 2, "expected_ids": 500},
    "decay": {"every_steps": 2, "weights": 0.9, "slots": 0.9},
}
TABLES: dict[str, dict[str, AnyTable]] = {
    **{kind: dict(table_settings(optimizer)) for kind, optimizer in OPTIMIZERS.items()},
    "life": {n: TableSettings.model_validate({"dim": d} | LIFE) for n, d in (("user", 3), ("item", 18))},
    "hashed": {
        n: MultiHashTable(kind="multi_hash", dim=d, rows=[90, 70]) for n, d in (("user", 3), ("item", 18))
    },
}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(crew, "LEAST", 3)
    yield
    crew.set_threads(1)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("size", [0, 1, 2, 17, 1000])
def test_every_piece_is_done_once_and_told_in_order(threads: int, size: int) -> None:
    crew.set_threads(threads)
    done = np.zeros(size, np.int64)

    def work(first: int, end: int) -> int:
        done[first:end] += 1
        return first

    bounds = crew.pieces(size)
    assert bounds[0] == 0 and bounds[-1] == size and bounds == sorted(bounds)
    assert crew.share(work, bounds) == bounds[:-1]
    assert (done == 1).all()


def test_few_rows_are_not_shared() -> None:
    crew.set_threads(8)
    assert crew.pieces(2) == [0, 2]
    assert len(crew.pieces(2, 1000)) == 3


def test_what_a_piece_raises_is_raised_when_all_have_ended_and_helpers_go_on() -> None:
    crew.set_threads(3)
    ended: list[int] = []

    def work(first: int, end: int) -> None:
        if first == 1:
            raise KeyError("piece 1")
        ended.append(first)

    with pytest.raises(KeyError, match="piece 1"):
        crew.share(work, range(7))
    assert sorted(ended) == [0, 2, 3, 4, 5]
    both = threading.Barrier(2, timeout=60)
    # Neither of the two could end alone.
    crew.share(lambda first, end: both.wait(), range(3))


def test_a_helper_that_is_kept_from_working_keeps_nobody_waiting() -> None:
    crew.set_threads(2)
    entered, release = threading.Barrier(3, timeout=60), threading.Event()

    def block(first: int, end: int) -> None:
        entered.wait()
        assert release.wait(60)

    # One piece for its caller, one for the only helper: until they are released, neither can do anything else.
    other = threading.Thread(target=crew.share, args=(block, range(3)))
    other.start()
    entered.wait()
    assert crew.share(lambda first, end: end, range(9)) == list(range(1, 9))
    release.set()
    other.join(60)
    assert not other.is_alive()


@pytest.mark.parametrize("threads", THREADS)
def test_what_is_done_beside_something_else_is_done_once_by_whoever_comes_first(threads: int) -> None:
    crew.set_threads(threads)
    done: list[str] = []

    def work() -> int:
        done.append(threading.current_thread().name)
        return len(done)

    result = crew.beside(work)
    # The helper may be at it, or be asked for something else before it came to it.
    assert crew.share(lambda first, end: end, range(5)) == [1, 2, 3, 4]
    assert result() == 1 and len(done) == 1
    if threads == 1:
        assert done == [threading.current_thread().name]


def test_a_helper_works_beside_its_caller_and_what_it_raises_is_raised_there() -> None:
    crew.set_threads(2)
    both = threading.Barrier(2, timeout=60)
    # Neither of the two could end alone.
    result = crew.beside(both.wait)
    both.wait()
    assert result() in (0, 1)

    def fail() -> None:
        raise KeyError("beside")

    with pytest.raises(KeyError, match="beside"):
        crew.beside(fail)()
    assert crew.worth_sharing(3) and not crew.worth_sharing(2)
    crew.set_threads(1)
    assert not crew.worth_sharing(1000)


@pytest.mark.parametrize("kind", TABLES)
def test_any_number_of_threads_learns_the_same_bits(kind: str) -> None:
    nets = {threads: SparseNet(LAYOUT, TABLES[kind], 5) for threads in THREADS}
    for step in range(6):
        batch = random_batch(np.random.default_rng(step), 40, ids=300)
        pooled, sequences = random_gradients(np.random.default_rng(step), 48)
        if step == 4:
            pooled[7] = np.nan
        seen = {}
        for threads, net in nets.items():
            crew.set_threads(threads)
            # Of some steps, the ids are united beforehand; of one, those of a minibatch that never comes.
            if step % 3:
                net.prepare(batch if step % 3 == 1 else random_batch(np.random.default_rng(99), 40, ids=300))
            out = net.forward(batch, step, 48)
            seen[threads] = [out.pooled.copy(), *(a.copy() for pair in out.sequences.values() for a in pair)]
            assert net.backward(pooled, sequences, step) == (step != 4)
        for threads in THREADS:
            for one, other in zip(seen[1], seen[threads], strict=True):
                assert_same_bits(one, other)
    cuts = {threads: net.cut() for threads, net in nets.items()}
    for threads in THREADS:
        for name, rows in cuts[1].items():
            assert_same_rows(cuts[threads][name], rows)
