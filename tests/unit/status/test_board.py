"""The page's data."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import orjson

from streamtrain.health import Health
from streamtrain.metrics import Metrics
from streamtrain.status import StatusBoard
from streamtrain.training.prequential import Quality


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def made(metrics: Metrics, health: Health | None = None, clock: Clock | None = None) -> StatusBoard:
    clock = clock or Clock()
    return StatusBoard(
        "clicks", {"seed": 7}, metrics, health or Health(), 120.0, clock, lambda: 1_700_000_000.0
    )


def as_sent(board: StatusBoard) -> dict[str, Any]:
    sent: dict[str, Any] = orjson.loads(orjson.dumps(board.describe()))
    return sent


def test_a_daemon_that_has_just_started_has_a_page() -> None:
    board = made(Metrics())
    unseen = as_sent(board)
    board.look()
    for state in (unseen, as_sent(board)):
        assert (state["model"], state["phase"], state["ready"]) == ("clicks", "starting", False)
        assert (state["path"], state["quality"], state["notices"]) == ([], [], [])
        assert state["figures"]["samples_per_s"] is None and state["figures"]["committed_at_ms"] is None
        assert state["configuration"] == {"seed": 7}


def test_stages_come_in_the_order_of_the_data_with_their_shares() -> None:
    metrics, clock = Metrics(), Clock()
    board = made(metrics, clock=clock)
    stage = metrics.stages
    for name in ("view store", "commit", "cut", "train", "decode", "read"):
        with stage.busy(name):
            pass
    for name in ("train", "prefetch"):
        with stage.waits(name, "input"):
            pass
    board.look()
    stage._counters["busy"].labels("train").inc(1.0)
    stage._counters["busy"].labels("cut").inc(0.5)
    metrics.samples.inc(300)
    clock.now_s += 2.0
    board.look()
    state = as_sent(board)
    assert [part["stage"] for part in state["path"]] == ["read", "decode", "prefetch", "train", "commit"]
    prefetch, train = state["path"][2:4]
    assert (prefetch["busy"], prefetch["input"]) == (0.0, 0.0)
    assert (round(train["busy"], 9), train["input"], train["room"]) == (0.75, 0.0, None)
    assert state["figures"]["samples_per_s"] == 150.0


def test_measures_that_are_not_defined_are_null() -> None:
    metrics = Metrics()
    nan = float("nan")
    metrics.show_quality("window", {"click": Quality(5, nan, 0.5, nan, 1.25, 0.1)})
    metrics.show_quality("total", {"click": Quality(5, 0.75, 0.5, 0.9, 1.25, 0.1)})
    board = made(metrics)
    board.look()
    state = as_sent(board)
    window, total = state["quality"]
    assert (window["over"], window["auc"], window["calibration"]) == ("window", None, 1.25)
    assert (total["over"], total["auc"]) == ("total", 0.75)
    assert state["history"]["auc"] == {"click": [None]}
    assert state["history"]["calibration"] == {"click": [1.25]}


def test_of_many_partitions_and_tables_the_first_are_shown_and_all_are_counted() -> None:
    metrics = Metrics()
    for i in range(2000):
        metrics.lag_records.labels(f"clicks:{i}").set(i)
    for i in range(40):
        metrics.table_rows.labels(f"table{i}").set(i)
    metrics.feature_events.labels("table39", "admitted").inc(3)
    metrics.tier_evicted.labels("table39").inc(8)
    board = made(metrics)
    board.look()
    state = as_sent(board)
    assert state["partitions"]["known"] == 2000 and len(state["partitions"]["shown"]) == 32
    assert state["partitions"]["shown"][0] == {"partition": "clicks:1999", "lag_records": 1999}
    assert state["figures"]["lag_records"] == sum(range(2000))
    assert state["tables"]["known"] == 40 and len(state["tables"]["shown"]) == 32
    largest = state["tables"]["shown"][0]
    assert (largest["table"], largest["rows"]) == ("table39", 39)
    assert largest["events"] == {"admitted": 3, "evicted": 8}


async def test_it_looks_and_listens_while_it_is_open() -> None:
    board = made(Metrics())
    async with board.watching():
        logging.getLogger("consumers.kafka").error("broker is away")
        await asyncio.sleep(0)  # The task's turn.
        assert len(board.describe()["history"]["at_ms"]) == 1
    logging.getLogger("consumers.kafka").error("nobody listens")
    assert [problem["message"] for problem in board.describe()["problems"]] == ["broker is away"]
