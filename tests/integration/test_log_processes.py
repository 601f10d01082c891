"""The log under real processes: races, kill -9 and a real limit on file sizes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.fold import fold
from streamtrain.log.recovery import recover
from streamtrain.log.verify import verify
from tests.reference_log import append_epochs

ROOT = Path(__file__).parents[2]

RACER = """
import sys
from streamtrain.errors import Fenced
from streamtrain.log.epoch_log import EpochLog
from tests.reference_log import epoch_record
path, name, upto = sys.argv[1], sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
won = []
while True:
    log = EpochLog.open(path)
    head = log.head()
    if head == upto:
        break
    try:
        log.append(epoch_record(head + 1, log.digest(head), writer=name))
        won.append(head + 1)
    except Fenced:
        pass
print(*won)
"""

WRITER = """
import sys
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.fold import fold
from tests.reference_log import append_epochs
log = EpochLog.open(sys.argv[1])
with log.lock():
    while True:
        head = log.head()
        append_epochs(log, head + 1)
        print(head + 1, flush=True)
        if head % 5 == 0:
            fold(log.path)
            log.collect(8)
"""

SMALL_FILES = """
import resource, sys
from streamtrain.errors import LogFull
from streamtrain.log.epoch_log import EpochLog
from tests.reference_log import append_epochs, epoch_record, table_rows
log = EpochLog.create(sys.argv[1], "m", {})
digest = append_epochs(log, 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    log.append(epoch_record(2, digest, {"user": table_rows(range(1000))}))
except LogFull as error:
    print(error)
log.append(epoch_record(2, digest))
"""


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def test_of_two_racing_writers_exactly_one_wins_each_epoch(tmp_path: Path) -> None:
    log = EpochLog.create(tmp_path / "log", "m", {})
    append_epochs(log, 0)
    upto = 60
    racers = [python(RACER, log.path, name, upto) for name in ("a", "b")]
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    answers = [racer.communicate("\n", timeout=60)[0] for racer in racers]
    won = {name: set(map(int, answer.split())) for name, answer in zip("ab", answers)}
    assert not won["a"] & won["b"] and won["a"] | won["b"] == set(range(1, upto + 1))
    assert all(log.read(epoch).writer == name for name, epochs in won.items() for epoch in epochs)
    assert verify(log.path).ok


def test_kill_9_at_any_instant_leaves_a_sound_log(tmp_path: Path) -> None:
    log = EpochLog.create(tmp_path / "log", "m", {})
    append_epochs(log, 0)
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    for _ in range(6):
        writer = python(WRITER, log.path)
        assert writer.stdout is not None and writer.stdin is not None
        told = -1
        for _ in range(chance.randrange(3, 15)):
            told = int(writer.stdout.readline())
        # A spin of random length, so that death falls anywhere within the next append, fold or collection.
        for _ in range(chance.randrange(100_000)):
            pass
        writer.send_signal(signal.SIGKILL)
        writer.communicate(timeout=10)
        report = verify(log.path)
        assert report.ok, f"seed {seed}: {report.problems}"
        head = EpochLog.open(log.path).head()
        assert head is not None and head >= told, f"seed {seed}"
    *_, last = recover(log)
    assert last.epoch == head and fold(log.path) == head
    with log.lock():
        assert list((log.path / "tmp").iterdir()) == []


def test_a_limit_on_file_sizes_is_log_full_and_the_log_goes_on(tmp_path: Path) -> None:
    writer = python(SMALL_FILES, tmp_path / "log")
    answer, _ = writer.communicate(timeout=30)
    assert writer.returncode == 0
    assert "cannot append" in answer and "ulimit -f" in answer
    log = EpochLog.open(tmp_path / "log")
    assert log.head() == 2 and list((log.path / "tmp").iterdir()) == [] and verify(log.path).ok
