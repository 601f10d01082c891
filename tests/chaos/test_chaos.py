"""A short run of the chaos suite; `python -m tests.chaos --faults 1000` is the long one (docs/guarantees.md)."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.chaos.watch import Watch
from tests.servers import missing_programs

pytestmark = [pytest.mark.kafka, pytest.mark.redis]


def test_nothing_is_lost_doubled_or_different_over_a_dozen_faults(tmp_path: Path) -> None:
    if (missing := missing_programs("java", "mvn", "redis-server", "redis-cli")) and not os.environ.get("CI"):
        pytest.skip(f"NOT TESTED: {' and '.join(missing)} not found on PATH")
    command = [sys.executable, "-m", "tests.chaos", "--faults", "12", "--seed", "5", "--json"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-6000:] + done.stdout[-3000:]
    found = json.loads(done.stdout)
    assert found["faults"] == 12 and found["samples"] > 1000 and found["compaction_gaps"] > 0
    assert (found["lost"], found["doubled"], found["bit_equal"], found["violations"]) == (0, 0, True, [])
    # Every rule about the life of a row was at work meanwhile.
    assert found["expired"].keys() >= {"counted", "bloom", "chance", "own", "tiered"}
    assert found["waiting"].keys() == {"counted", "bloom", "waiting"}
    assert found["left_memory"]["tiered"] > 0 and (found["rows"]["hashed"], found["rows"]["multi"]) == (
        400,
        90,
    )


def test_a_point_is_acted_upon_once_when_it_is_passed(tmp_path: Path) -> None:
    watch, seen, done = Watch(tmp_path), list[str](), threading.Event()
    assert not watch.at("append: linked", seen.append, 0.01)

    def link_epochs() -> None:
        for epoch in itertools.takewhile(lambda _: not done.is_set(), itertools.count()):
            (tmp_path / "model" / "epochs" / f"{epoch:020d}.safetensors").touch()

    linking = threading.Thread(target=link_epochs)
    linking.start()
    try:
        assert watch.at("append: linked", seen.append, 30)
    finally:
        done.set()
        linking.join()
    assert len(seen) == 1 and seen[0].endswith(".safetensors")
