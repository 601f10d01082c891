"""The daemon as its users run it: a process of its own, driven by a TOML file, ended by signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from streamtrain.log.epoch_log import EpochLog

__all__ = ["Daemon", "inspected", "learned", "streamtrain", "until"]

TIMEOUT_S = 120.0


def streamtrain(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "streamtrain", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env=os.environ | environment,
        check=False,
    )


def inspected(log: Path) -> dict[str, Any]:
    """What `streamtrain inspect --json` says."""
    run = streamtrain("inspect", log, "--json", "--epochs", "100000")
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def learned(log: Path) -> int:
    """Samples committed so far, read as any other process would; for `until`, which would start one `inspected` after the other."""
    opened = EpochLog.open(log) if (log / "model.json").exists() else None
    head = None if opened is None else opened.head()
    return 0 if opened is None or head is None else opened.describe(head).samples_total


def until(condition: Callable[[], Any], what: str, timeout_s: float = TIMEOUT_S) -> Any:
    """Polls until `condition()` is true and returns it; fails by name after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:.0f} s in vain for {what}")
        time.sleep(0.02)
    return value


class Daemon:
    """`streamtrain run CONFIG`, started by `with` and killed at its end where it still runs."""

    def __init__(self, config: Path, *arguments: str, **environment: str) -> None:
        self._command = [sys.executable, "-m", "streamtrain", "run", str(config), *arguments]
        self._environment = (
            os.environ
            | {"STREAMTRAIN__HTTP__PORT": "0", "STREAMTRAIN__LOGGING__FORMAT": "json"}
            | environment
        )
        self.output = config.with_suffix(f".{time.monotonic_ns()}.out")
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                self._command, stdout=output, stderr=subprocess.STDOUT, env=self._environment
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        if error is not None:
            sys.stderr.write(f"--- {self.output.name}\n{self.text[-6000:]}\n")

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.output.read_text(errors="replace")

    @property
    def running(self) -> bool:
        assert self.process is not None
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        if self.running:
            self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Waits for its end; the exit code."""
        assert self.process is not None
        return self.process.wait(TIMEOUT_S)

    def until_says(self, text: str) -> None:
        """Waits until its output holds `text`; fails where it ends first."""
        until(lambda: text in self.text or not self.running, f"the daemon to say {text!r}")
        assert text in self.text, f"the daemon ended without saying {text!r}:\n{self.text[-6000:]}"

    def get(self, path: str, token: str | None = None) -> tuple[int, str]:
        """Status and body of its HTTP side, asked with a token or without."""
        self.until_says("metrics and probes at ")
        address = self.text.split("metrics and probes at ", 1)[1].split("/metrics", 1)[0]
        try:
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            request = urllib.request.Request(address + path, headers=headers)
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
