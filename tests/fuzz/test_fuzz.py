"""A short run in pytest; `python -m tests.fuzz --records 1000000 --seed S` is the long one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.fuzz.nasty import KINDS
from tests.fuzz.run import fuzz


@pytest.mark.parametrize("seed", [1, 2])
async def test_every_nasty_record_is_learned_or_dead(seed: int) -> None:
    account = await fuzz(20_000, seed, bomb_bytes=64 << 20, large_bytes=20_000_000)
    assert account.holds, account.as_dict()
    assert account.read > 20_000 and account.large > 2 and account.bombs == 2
    assert account.dead > 1000 and account.learned > 5000
    assert {"json", "type", "missing", "non_finite", "label", "too_large"} <= set(account.reasons)


async def test_a_run_notices_a_record_that_should_have_been_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "truncated", (True, KINDS["truncated"][1]))
    account = await fuzz(3000, 3, bomb_bytes=1 << 20, large_bytes=2_000_000)
    assert not account.holds and any("not valid JSON" in what for what in account.unexpected)


def test_the_command_says_what_became_of_the_records() -> None:
    command = [
        sys.executable,
        "-m",
        "tests.fuzz",
        "--records",
        "2000",
        "--seed",
        "5",
        "--bomb-mb",
        "8",
        "--json",
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert (found["seed"], found["holds"]) == (5, True)
    assert found["learned"] + found["dead"] == found["read"] and found["letters"] == found["dead"]
