"""Compiled programs on disk: the same bits, a private folder, a bound."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from streamtrain.dense.compiled import keep_compiled, prune

STEP = """
import sys, hashlib
import jax
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None)
from streamtrain.dense.compiled import keep_compiled
assert (keep_compiled(sys.argv[1]) is None) == (sys.argv[1] == "off")
from tests.unit.dense.toy import layout_of, minibatch, net_of
layout = layout_of({"item": 4, "user": 3}, dense=2)
net = net_of(layout, "mlp", net_buckets=[16], hidden=[8])
net.warm_up()
for step in range(3):
    minibatch(layout, 8, 16, seed=step).step(net)
digest = hashlib.sha256(b"".join(array.tobytes() for array in net.state().values())).hexdigest()
print(len(hits), digest)
"""


@pytest.fixture(autouse=True)
def jax_config() -> Iterator[None]:
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def learned(folder: str) -> tuple[int, str]:
    """In a process of its own: how many programs came from the folder, and the bits after three steps."""
    run = subprocess.run(
        [sys.executable, "-c", STEP, folder], capture_output=True, text=True, check=True, timeout=120
    )
    hits, digest = run.stdout.split()
    return int(hits), digest


def test_programs_that_are_loaded_give_the_bits_of_those_that_are_compiled(tmp_path: Path) -> None:
    hits, compiled = learned("off")
    first, kept = learned(str(tmp_path))
    again, loaded = learned(str(tmp_path))
    assert (hits, first) == (0, 0) and again >= 2, "step and prediction"
    assert compiled == kept == loaded


@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache entry")
def test_programs_that_a_crash_cut_short_are_compiled_again(tmp_path: Path) -> None:
    _, compiled = learned(str(tmp_path))
    for number, path in enumerate(sorted(tmp_path.glob("jax-*/*-cache"))):
        os.truncate(path, path.stat().st_size // 2 if number % 2 else 0)
    assert learned(str(tmp_path))[1] == compiled


def test_a_folder_that_others_may_write_to_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = jax.config.values["jax_compilation_cache_dir"]
    place = keep_compiled(str(tmp_path))
    assert place is not None and place.stat().st_mode & 0o777 == 0o700
    jax.config.update("jax_compilation_cache_dir", before)
    place.chmod(0o770)
    with caplog.at_level("INFO"):
        assert keep_compiled(str(tmp_path)) is None
    assert jax.config.values["jax_compilation_cache_dir"] == before
    assert f"{place} can be written to by others" in caplog.text


def test_a_folder_that_cannot_be_made_is_no_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    with caplog.at_level("INFO"):
        assert keep_compiled(str(tmp_path / "file")) is None
    assert "compiled programs are not kept" in caplog.text


def test_the_users_cache_directory_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = keep_compiled("auto")
    assert place is not None and place.parent == tmp_path / "streamtrain"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    place = keep_compiled("auto")
    assert place is not None and place.parent == tmp_path / "home" / ".cache" / "streamtrain"


def test_the_oldest_programs_go_when_they_are_too_many_and_other_files_stay(tmp_path: Path) -> None:
    for age, folder in enumerate(("jax-a", "jax-a", "jax-b", "jax-b")):
        path = tmp_path / folder / f"{age}-cache"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * (0 if age == 3 else 10))
        os.utime(path, (age, age))
    other = tmp_path / "jax-a" / "notes"
    other.write_bytes(b"x" * 100)
    prune(tmp_path, 20)
    assert sorted(path.name for path in tmp_path.rglob("*-cache")) == ["1-cache", "2-cache"]
    assert other.exists()
