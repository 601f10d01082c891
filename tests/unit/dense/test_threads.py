"""How many threads compute the dense half is decided once a process. That cores decide no bits: see test_net.py."""

from __future__ import annotations

import os

import pytest

from streamtrain.dense import threads
from streamtrain.errors import ConfigError


def test_a_process_keeps_its_first_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_decided", None)
    monkeypatch.setenv("PJRT_NPROC", "7")
    threads.use_threads(3)
    assert os.environ["PJRT_NPROC"] == "3"
    threads.use_threads(3)
    threads.use_threads()
    with pytest.raises(ConfigError, match=r"training.dense_threads = 2, but .* with 3 already"):
        threads.use_threads(2)
    assert os.environ["PJRT_NPROC"] == "3"


def test_without_a_wish_the_default_counts_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "_decided", None)
    monkeypatch.setenv("PJRT_NPROC", "7")
    threads.use_threads()
    assert os.environ["PJRT_NPROC"] == str(threads.DEFAULT)
