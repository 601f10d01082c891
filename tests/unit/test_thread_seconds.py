"""Processor time by thread: kinds are few, ended threads stay counted."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from streamtrain.thread_seconds import ThreadSeconds


def seconds(collector: ThreadSeconds) -> dict[str, float]:
    (family,) = collector.collect()
    return {sample.labels["thread"]: sample.value for sample in family.samples}


def stat(folder: Path, number: int, command: str, user: int, system: int) -> None:
    """A task as proc(5) shows it: user and system ticks are fields 14 and 15."""
    (folder / str(number)).mkdir(exist_ok=True)
    fields = ["S", *["0"] * 10, str(user), str(system), *["0"] * 30]
    (folder / str(number) / "stat").write_text(f"{number} ({command}) {' '.join(fields)}\n")


def test_threads_are_counted_by_kind_and_what_python_does_not_know_by_the_systems_name(
    tmp_path: Path,
) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    stat(tmp_path, os.getpid(), "python", 3 * ticks, ticks)
    stat(tmp_path, 1, "tf_XLAEigen) 7 (", 2 * ticks, 0)
    stat(tmp_path, 2, "anything", ticks, 0)
    assert seconds(ThreadSeconds("t", "text", tmp_path)) == {"loop": 4.0, "xla": 2.0, "other": 1.0}


def test_a_thread_that_ended_stays_counted_and_its_number_may_come_again(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    collector = ThreadSeconds("t", "text", tmp_path)
    for user, expected in ((5, 5.0), (7, 7.0), (1, 8.0), (2, 9.0)):
        stat(tmp_path, 1, "any", user * ticks, 0)
        assert seconds(collector) == {"other": expected}
    (tmp_path / "1" / "stat").unlink()
    assert seconds(collector) == {"other": 9.0}


def test_a_thread_of_this_process_is_found_by_its_name() -> None:
    stop, working = threading.Event(), threading.Event()

    def work() -> None:
        begin = time.thread_time()
        while time.thread_time() - begin < 0.05:
            pass
        working.set()
        stop.wait(30)

    thread = threading.Thread(target=work, name="trainer_0")
    thread.start()
    assert working.wait(30)
    found = seconds(ThreadSeconds("t", "text"))
    stop.set()
    thread.join()
    assert found["trainer"] >= 0.03
    assert set(found) <= {"loop", "trainer", "other", "xla", "asyncio", "kernels"}
