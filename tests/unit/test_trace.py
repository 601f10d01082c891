"""The trace: readable at any instant, bounded, never in the way of the run."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from streamtrain.errors import ConfigError
from streamtrain.trace import SILENT, Trace


def events(path: Path) -> list[dict[str, Any]]:
    """As Perfetto reads it: the array may lack its end."""
    text = path.read_text().rstrip()
    return json.loads(text if text.endswith("]") else text.rstrip(",") + "]")  # type: ignore[no-any-return]


def test_spans_stand_on_named_tracks_and_nest(tmp_path: Path) -> None:
    with Trace(tmp_path / "t.json") as trace:
        with trace.span("train", "train"), trace.span("train", 'a "dense" step'):
            pass
        trace.add("read", "read", trace._began + 1, trace._began + 1.5)
    found = json.loads((tmp_path / "t.json").read_text())
    tracks = {e["tid"]: e["args"]["name"] for e in found if e["name"] == "thread_name"}
    spans = {e["name"]: e for e in found if e["ph"] == "X"}
    assert {name: tracks[e["tid"]] for name, e in spans.items()} == {
        'a "dense" step': "train",
        "train": "train",
        "read": "read",
    }
    inner, outer = spans['a "dense" step'], spans["train"]
    assert outer["ts"] <= inner["ts"] and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"] + 0.1
    assert (spans["read"]["ts"], spans["read"]["dur"]) == (1e6, 0.5e6)


def test_what_was_flushed_is_readable_though_the_writer_never_ended_the_file(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "t.json")
    for number in range(5000):
        trace.add("train", "step", number, number + 0.4)
    spans = [e for e in events(tmp_path / "t.json") if e["ph"] == "X"]
    assert 4000 < len(spans) <= 5000
    trace.__exit__()
    assert len([e for e in events(tmp_path / "t.json") if e["ph"] == "X"]) == 5000


def test_a_full_trace_ends_with_a_warning_and_stays_below_its_bound(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), Trace(tmp_path / "t.json", bytes_max=200_000) as trace:
        for number in range(20_000):
            trace.add("train", "step", number, number + 0.4)
    assert caplog.messages == [f"the profile {tmp_path / 't.json'} ends here: it holds 0 MiB"]
    assert 200_000 <= (tmp_path / "t.json").stat().st_size < 200_000 + (64 << 10)
    assert events(tmp_path / "t.json")


def test_a_disk_without_room_ends_the_trace_and_not_the_run(caplog: pytest.LogCaptureFixture) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    with caplog.at_level(logging.WARNING), Trace(full) as trace:
        for number in range(5000):
            trace.add("train", "step", number, number + 0.4)
    assert caplog.messages == ["the profile /dev/full ends here: No space left on device"]


def test_a_file_that_cannot_be_made_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"cannot write the profile .*: No such file or directory; name a file in"
    ):
        Trace(tmp_path / "nowhere" / "t.json")


def test_threads_may_write_at_the_same_time(tmp_path: Path) -> None:
    with Trace(tmp_path / "t.json") as trace:
        threads = [
            threading.Thread(target=lambda n=n: [trace.add(f"t{n}", "x", i, i + 1) for i in range(500)])
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    spans = [e["tid"] for e in json.loads((tmp_path / "t.json").read_text()) if e["ph"] == "X"]
    assert sorted(spans) == [n for n in (1, 2, 3, 4) for _ in range(500)]


def test_silence_keeps_nothing() -> None:
    with SILENT.span("train", "step"):
        pass
