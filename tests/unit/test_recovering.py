"""The beginning of a log by a daemon that was paused in the middle of it."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from streamtrain.errors import Fenced
from streamtrain.log.epoch_log import EpochLog
from streamtrain.recovering import Recovering
from tests.reference_log import append_epochs, epoch_record


class _Source:
    identity = ""

    async def start(self, positions: Any, identity: str = "") -> dict[str, int]:
        return {"p": 0}


async def test_who_began_the_log_and_was_paused_until_another_went_on_is_fenced(tmp_path: Path) -> None:
    log = EpochLog.create(tmp_path / "log", "m", {})
    heads = deque([lambda: None, lambda: append_epochs(EpochLog.open(log.path), 2) and log.read(2)])
    recovering = Recovering(
        log,
        SimpleNamespace(genesis=lambda positions, identity: epoch_record(0, "")),  # type: ignore[arg-type]
        SimpleNamespace(catch_up=lambda: heads.popleft()()),  # type: ignore[arg-type]
        _Source(),  # type: ignore[arg-type]
        "files",
        None,
    )
    with pytest.raises(
        Fenced, match=r"has gone on to epoch 2 of .* while this one, which began the log, was paused"
    ):
        await recovering.finish(SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]
