"""Lines of a kind: so many a window, the others counted; nothing is lost from the count, and nothing grows."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.config import LoggingSettings
from streamtrain.logs import configure_logging, correlate
from streamtrain.repeats import _KINDS_MAX, Repeats


@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(-5, 40)), max_size=200),
    st.integers(1, 5),
)
def test_each_line_is_written_or_counted_and_no_window_holds_more_than_its_share(
    events: list[tuple[int, float]], lines_max: int
) -> None:
    repeats, now_s = Repeats(lines_max, 60.0), 0.0
    written: Counter[int] = Counter()
    told: Counter[int] = Counter()
    in_window: Counter[int] = Counter()
    for kind, step_s in events:
        now_s += step_s
        before = set(repeats._windows)
        for withheld in repeats.ended(now_s):
            told[withheld.kind] += withheld.count  # type: ignore[index]
        for closed in before - set(repeats._windows):
            in_window.pop(closed, None)  # type: ignore[call-overload]
        if repeats.admits(kind, "text", now_s):
            written[kind] += 1
            in_window[kind] += 1
            assert in_window[kind] <= lines_max
    for withheld in repeats.ended(float("inf")):
        told[withheld.kind] += withheld.count  # type: ignore[index]
    assert written + told == Counter(kind for kind, _ in events)


def test_a_window_ends_by_itself_and_when_the_clock_is_set_back() -> None:
    repeats = Repeats(1, 60.0)
    for now_s in (1000.0, 1059.0, 1060.0, 500.0):
        assert [w.count for w in repeats.ended(now_s)] == ([1] if now_s in (1060.0,) else [])
        assert repeats.admits("kind", "text", now_s) is (now_s != 1059.0)


def test_of_too_many_kinds_the_oldest_are_told_and_forgotten() -> None:
    repeats = Repeats(1, 60.0)
    for number in range(3 * _KINDS_MAX):
        for withheld in repeats.ended(1.0):
            assert (withheld.count, withheld.last) == (1, f"second {withheld.kind}")
        assert repeats.admits(number, "first", 1.0) and not repeats.admits(number, f"second {number}", 1.0)
        assert len(repeats._windows) <= _KINDS_MAX


@contextmanager
def configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Logging as a daemon has it; gives the lines since it was last asked. pytest's own handlers come back after."""
    root, written = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers, root.level
    root.handlers = []
    monkeypatch.setattr(sys, "stderr", written)

    def lines() -> list[dict[str, Any]]:
        text = written.getvalue()
        written.seek(0)
        written.truncate()
        return [json.loads(line) for line in text.splitlines()]

    configure_logging(LoggingSettings(format="json", repeats_max=2), "clicks")
    try:
        yield lines
    finally:
        correlate(None)
        for handler in root.handlers:
            handler.close()
        root.handlers = handlers
        root.setLevel(level)


def test_a_line_is_one_object_that_tells_model_epoch_and_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with configured(monkeypatch) as lines:
        logger = logging.getLogger("streamtrain.tests")
        logger.warning("before\nanything was learned")
        correlate(lambda: {"epoch": 7, "step": 90})
        try:
            raise ValueError("two\nlines")
        except ValueError:
            logger.exception("failed")
        before, after = lines()
        assert before["message"] == "before\nanything was learned" and "epoch" not in before
        assert (after["model"], after["epoch"], after["step"], after["level"]) == ("clicks", 7, 90, "error")
        assert "ValueError: two\nlines" in after["exception"]


def test_repeated_warnings_are_counted_and_other_lines_are_all_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with configured(monkeypatch) as lines:
        logger = logging.getLogger("streamtrain.tests")
        for number in range(5):
            logger.warning("store is away, attempt %d", number)
            logger.info("folded at %d", number)
        logger.warning("something else")
        assert [line["message"] for line in lines() if line["level"] == "warning"] == [
            "store is away, attempt 0",
            "store is away, attempt 1",
            "something else",
        ]
        # Settings that are read again change the handler: what it withheld is told first.
        configure_logging(LoggingSettings(format="json", level="warning"), "clicks")
        (told,) = lines()
        assert told["message"] == "3 more lines like this within 60 s, the last: store is away, attempt 4"
        assert (told["level"], told["logger"]) == ("warning", "streamtrain.tests")
        logger.info("not any more")
        assert not lines()
