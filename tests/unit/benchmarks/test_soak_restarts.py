"""The account, the arithmetic and the command line of the soak with restarts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.soak_ledger import Ledger, longest_pause_s
from benchmarks.soak_picture import draw, read
from benchmarks.soak_restarts import Restart, cost, growth, options_of, restart_times
from benchmarks.soak_world import RESTARTS
from streamtrain.log.record import EpochRecord, SpanTable


def epoch(number: int, total: int, *spans: tuple[int, int, int]) -> EpochRecord:
    """With spans of (partition, first, next), all of whose records are good."""
    rows = [[step, index, first, next_, next_ - first] for step, (index, first, next_) in enumerate(spans)]
    table = SpanTable(("t:0", "t:1"), np.array(rows, np.int64).reshape(-1, 5))
    samples = sum(next_ - first for _, first, next_ in spans)
    return EpochRecord(
        number, "", 0, len(rows), samples, total, {}, {}, {}, {}, spans=table, committed_at_ms=number * 1000
    )


def test_a_ledger_of_spans_that_follow_each_other_is_whole() -> None:
    ledger = Ledger()
    for record in (epoch(0, 0), epoch(1, 7, (0, 0, 5), (1, 0, 2)), epoch(2, 7), epoch(3, 9, (0, 5, 7))):
        ledger.add(record)
    assert (ledger.samples, ledger.next_epoch, ledger.faults) == (9, 4, [])
    assert ledger.commits_ms == [1000, 3000]


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        (epoch(1, 8, (0, 5, 8)), "epoch 1: t:0 goes on at 5, not at 4"),
        (epoch(1, 9, (0, 3, 8)), "epoch 1: t:0 goes on at 3, not at 4"),
        (epoch(1, 9, (0, 4, 8)), "epoch 1 counts 9 samples, spans hold 8"),
        (epoch(2, 8, (0, 4, 8)), "epoch 2 follows 0"),
    ],
)
def test_what_is_lost_doubled_or_missing_is_a_fault(record: EpochRecord, fault: str) -> None:
    ledger = Ledger()
    ledger.add(epoch(0, 4, (0, 0, 4)))
    ledger.add(record)
    assert fault in ledger.faults


def test_the_longest_pause_may_begin_before_and_end_after() -> None:
    at_ms = [0, 1000, 9000, 10_000, 13_000]
    assert longest_pause_s(at_ms, 2000, 3000) == 8.0
    assert longest_pause_s(at_ms, 9000, 10_000) == 1.0
    assert longest_pause_s(at_ms, 9500, 20_000) == 3.0
    assert longest_pause_s([], 0, 1) == 0.0


def test_growth_is_told_of_the_looks_that_have_the_figure() -> None:
    looks = [{"at_s": 900.0 * n, "log_mb": 10.0 * min(n, 4)} for n in range(8)] + [{"at_s": 9000.0}]
    found = growth(looks, "log_mb", 1800.0, 3600.0)
    assert found is not None
    assert found.pop("figure") == "log_mb"
    assert (found.pop("per_hour"), found.pop("alone_per_hour")) == (14.9, 0.0)
    assert found == {"minutes": 75.0, "first_third": 25.0, "last_third": 40.0, "max": 40.0}
    assert growth(looks, "log_mb", 1800.0, 4500.0) is None


def test_a_restart_costs_what_came_late_until_the_next_one() -> None:
    looks = [{"at_s": 9.0, "lag_records": 99.0}, {"at_s": 12.0}, {"at_s": 15.0, "lag_records": 40.0}]
    found = cost(Restart("Redis", 10.0, 5000, 2.0), 20.0, [4000, 9000, 10_000], [4500, 11_000], looks)
    assert found == {
        "restart": "Redis",
        "at_min": 0.2,
        "back_s": 2.0,
        "without_epoch_s": 5.0,
        "without_version_s": 6.5,
        "lag_records_max": 40,
        "store_behind_max": 0,
    }


def test_restarts_lie_evenly_in_two_thirds_of_the_run() -> None:
    assert restart_times(9.0) == [60.0 * (n + 1) for n in range(len(RESTARTS))]


def test_the_command_line_is_checked() -> None:
    assert options_of(["--rate", "2000"]).rate == 2000.0
    for refused in (["--minutes", "1"], ["--rate", "0"], ["--every", "0"], ["--base-every", "5"]):
        with pytest.raises(SystemExit):
            options_of(refused)


def test_what_was_seen_is_drawn_again_from_its_file(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [
        {"at_s": 0.0, "lag_records": 3.0},
        {"restart": "Redis", "at_s": 30.0},
        {"at_s": 60.0, "log_mb": 5.0},
    ]
    (tmp_path / "looks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    looks, restarts = read(tmp_path / "looks.jsonl")
    assert (looks, restarts) == ([rows[0], rows[2]], [rows[1]])
    draw("a soak", looks, restarts, tmp_path / "soak.png")
    picture = (tmp_path / "soak.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) < 150_000
