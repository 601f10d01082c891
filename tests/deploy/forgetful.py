"""`python -m tests.deploy.forgetful TRIGGER run CONFIG`: the daemon with a fault. Once TRIGGER exists it has lost its programs.

What is lost is compiled again while samples wait, which nothing else makes a sound daemon do.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

from streamtrain.cli import main
from streamtrain.dense.buckets import Program

_programs: list[Program] = []
_made = Program.__init__


def _remembered(program: Program, *arguments: Any) -> None:
    _made(program, *arguments)
    _programs.append(program)


def _forget(trigger: Path) -> None:
    while not trigger.exists():
        time.sleep(0.05)
    for program in _programs:
        program._executables.clear()


if __name__ == "__main__":
    Program.__init__ = _remembered  # type: ignore[method-assign,assignment]
    threading.Thread(target=_forget, args=(Path(sys.argv[1]),), daemon=True).start()
    sys.exit(main(sys.argv[2:]))
