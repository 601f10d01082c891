"""Who goes when on the read-write lock of a follower."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from streamtrain.serving.locks import PhaseFairLock

PATIENCE_S = 20.0


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "the other thread did not get there"
        time.sleep(0.001)


def spawn(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def join(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_readers_hold_it_together():
    lock = PhaseFairLock()
    together = threading.Barrier(3)

    def read() -> None:
        with lock.read():
            together.wait(PATIENCE_S)

    threads = [spawn(read) for _ in range(3)]
    join(*threads)
    assert not together.broken


def test_a_waiting_writer_goes_before_later_readers_and_after_earlier_ones():
    lock, order = PhaseFairLock(), []
    first_may_leave = threading.Event()

    def first() -> None:
        with lock.read():
            first_may_leave.wait(PATIENCE_S)
            order.append("first reader")

    def write() -> None:
        with lock.write():
            order.append("writer")

    def later() -> None:
        with lock.read():
            order.append("later reader")

    reader = spawn(first)
    until(lambda: lock._readers == 1)
    writer = spawn(write)
    until(lambda: lock._writers_waiting == 1)
    follower = spawn(later)
    until(lambda: lock._readers_waiting == 1)
    first_may_leave.set()
    join(reader, writer, follower)
    assert order == ["first reader", "writer", "later reader"]


def test_a_waiting_reader_goes_before_the_next_writer():
    lock, order = PhaseFairLock(), []
    first_may_leave = threading.Event()

    def first() -> None:
        with lock.write():
            first_may_leave.wait(PATIENCE_S)
            order.append("first writer")

    def read() -> None:
        with lock.read():
            order.append("reader")

    def second() -> None:
        with lock.write():
            order.append("second writer")

    writer = spawn(first)
    until(lambda: lock._writing)
    next_writer = spawn(second)
    until(lambda: lock._writers_waiting == 1)
    reader = spawn(read)
    until(lambda: lock._readers_waiting == 1)
    first_may_leave.set()
    join(writer, reader, next_writer)
    assert order == ["first writer", "reader", "second writer"]


def test_neither_side_starves_when_both_come_back_at_once():
    lock, turns = PhaseFairLock(), 300
    value, torn = [0, 0], []

    def write() -> None:
        for _ in range(turns):
            with lock.write():
                value[0] += 1
                value[1] += 1

    def read() -> None:
        for _ in range(turns):
            with lock.read():
                if value[0] != value[1]:
                    torn.append(tuple(value))

    join(*[spawn(work) for work in (write, write, read, read, read)])
    assert (value, torn) == ([2 * turns, 2 * turns], [])


def test_it_is_free_again_after_an_exception_inside():
    lock = PhaseFairLock()
    for side in (lock.read, lock.write):
        with pytest.raises(ZeroDivisionError), side():
            raise ZeroDivisionError
    with lock.write():
        pass
