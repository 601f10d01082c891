"""Rounds: a process for each competitor, which learn in turn, so that what disturbs the machine disturbs them alike.

A competitor's module calls `serve`; the benchmark talks to it with `Competitor`. One JSON object a line, both ways.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Competitor", "Failed", "serve"]


class Failed(RuntimeError):
    """A competitor ended before its time."""


def serve(learn: Callable[[int, int], Mapping[str, Any]], about: Mapping[str, Any]) -> None:
    """Says that it is ready, then learns what it is told to until standard input ends.

    Args:
      learn: told the first step and the one behind the last; returns what it has to say, `loss` among it.
      about: versions and choices, told once.
    """
    # What a library prints must not stand between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    answers.write(json.dumps(dict(about)) + "\n")
    for line in sys.stdin:
        first, end = json.loads(line)
        processor, begin = time.process_time(), time.perf_counter()
        said = learn(first, end)
        seconds = time.perf_counter() - begin
        answers.write(
            json.dumps({"seconds": seconds, "processor_s": time.process_time() - processor, **said}) + "\n"
        )


class Competitor:
    """A process that learns when it is told to.

    Attributes:
      about: what it said when it was ready.
    """

    def __init__(
        self, name: str, command: Sequence[str | Path], environment: Mapping[str, str], log: Path
    ) -> None:
        """Starts the process and waits until it is ready. Raises Failed where it ends instead."""
        self._name, self._log = name, log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | dict(environment),
            )
        self.about = self._answer()

    def __enter__(self) -> Competitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def learn(self, first: int, end: int) -> dict[str, Any]:
        """Lets it take the steps from `first` to before `end`; what it said, with `seconds` and `processor_s`.

        Raises:
          Failed: it ended.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([first, end]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        # Libraries print before `serve` can keep them from it.
        line = next((line for line in self._process.stdout if line.startswith("{")), "")
        if not line:
            code = self._process.wait()
            said = self._log.read_text(errors="replace")[-2000:]
            raise Failed(f"{self._name} ended with {code}:\n{said}")
        answer: dict[str, Any] = json.loads(line)
        return answer
