"""Starts streamtrain's commands without paying for their imports each time: a process that has imported them, and forks.

A thousand faults need hundreds of starts, and most of a start's processor time is Python's imports. The nursery imports
the modules once, loads the sparse kernels of the job, and starts no thread; each child then runs `streamtrain.cli.main`, which is what `python -m
streamtrain` runs, in a process of its own with its own descriptors, threads, compiled programs and exit code.

Requests are JSON lines on standard input, `{"argv": [...], "environment": {...}, "output": PATH}`; answers are lines on
standard output, `started PID` (in the order of the requests) and `ended PID CODE`. At the end of its input it kills what
still runs.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

__all__ = ["Child", "Nursery"]

_START_TIMEOUT_S = 120.0
_MODULES = (
    "consumers.kafka",
    "exporters.deltas",
    "streamtrain.commands.follow",
    "streamtrain.commands.run",
    "streamtrain.dense.models",
    "streamtrain.logs",
    "streamtrain.service",
    "streamtrain.serving",
)


class Child:
    """A command that runs, or ran. A child that was killed has a negative code, as in `subprocess`."""

    def __init__(self, pid: int, output: Path) -> None:
        self.pid, self.output = pid, output
        self.code: int | None = None
        self._ended = threading.Event()

    @property
    def running(self) -> bool:
        return self.code is None

    @property
    def text(self) -> str:
        """What it has printed."""
        try:
            return self.output.read_text(errors="replace")
        except FileNotFoundError:
            return ""  # it was asked for, and the nursery has not come to it yet

    def signal(self, number: int) -> None:
        """Sends a signal; nothing where it has ended."""
        if self.running:
            os.kill(self.pid, number)

    def wait(self, timeout_s: float) -> int:
        """Waits for its end; the exit code.

        Raises:
          TimeoutError: naming it.
        """
        if not self._ended.wait(timeout_s):
            raise TimeoutError(f"process {self.pid} ({self.output}) did not end in {timeout_s:.0f} s")
        assert self.code is not None
        return self.code

    def end(self, code: int) -> None:
        """Notes its end."""
        self.code = code
        self._ended.set()


class Nursery:
    """The harness's side. A context manager; leaving it kills all children.

    Args:
      config: the job that children run.
    """

    def __init__(self, config: Path) -> None:
        self._config = config

    def __enter__(self) -> Nursery:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.nursery", str(self._config)],
            stdin=subprocess.PIPE,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
        )
        self._children: dict[int, Child] = {}
        self._ended_early: dict[int, int] = {}
        self._guard = threading.Lock()
        self._started = threading.Condition(self._guard)
        self._pids: list[int] = []
        threading.Thread(target=self._listen, daemon=True, name="nursery").start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(_START_TIMEOUT_S)

    def start(self, argv: list[str], output: Path, environment: dict[str, str] | None = None) -> Child:
        """Starts `streamtrain ARGV...` with its output in a file."""
        request = {"argv": argv, "environment": environment or {}, "output": str(output)}
        assert self._process.stdin is not None
        with self._started:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            if (
                not self._started.wait_for(
                    lambda: self._pids or self._process.poll() is not None, _START_TIMEOUT_S
                )
                or not self._pids
            ):
                raise TimeoutError("the nursery does not answer")
            child = Child(self._pids.pop(), output)
            self._children[child.pid] = child
            if child.pid in self._ended_early:
                child.end(self._ended_early.pop(child.pid))
        return child

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            word, *numbers = line.split()
            with self._started:
                if word == b"started":
                    self._pids.append(int(numbers[0]))
                    self._started.notify_all()
                else:
                    pid, code = map(int, numbers)
                    if pid in self._children:
                        self._children.pop(pid).end(code)
                    else:
                        self._ended_early[pid] = code
        with self._started:
            self._process.wait()
            self._started.notify_all()


def main(config: str) -> int:
    """The nursery's own process. Returns the exit code of the command, in a child; 0 in the parent, at its end."""
    warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called")
    for module in _MODULES:
        importlib.import_module(module)
    from streamtrain.config import load_job
    from streamtrain.sparse.net import SparseNet

    job = load_job(config)
    SparseNet(job.layout, job.tables, job.seed).warm_up()
    threads = sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))
    # The allocator's own thread knows of forks.
    assert len([name for name in threads if name != "jemalloc_bg_thd"]) == 1, f"it must not fork: {threads}"
    wake, poke = os.pipe()
    os.set_blocking(poke, False)
    signal.set_wakeup_fd(poke)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    living: set[int] = set()
    pending = b""
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
        _reap(living)
        if 0 not in ready:
            continue
        data = os.read(0, 65_536)
        if not data:
            for pid in living:
                os.kill(pid, signal.SIGKILL)
            return 0
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            pid = os.fork()
            if pid == 0:
                os.close(wake)
                os.close(poke)
                return _child(json.loads(line))
            living.add(pid)
            _say(f"started {pid}")


def _reap(living: set[int]) -> None:
    while living:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        living.discard(pid)
        _say(f"ended {pid} {os.waitstatus_to_exitcode(status)}")


def _say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


def _child(request: dict[str, Any]) -> int:
    from streamtrain.cli import main as command

    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.environ.update(request["environment"])
    return command(request["argv"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
