"""Runs all benchmarks, or those named, one after the other: what `make bench` does.

    python -m benchmarks [--json] [NAME ...]

Writes build/benchmarks.json: by name, what `python -m benchmarks.NAME --json` prints; and build/benchmarks.txt, the same
as tables, which are also printed as they come. A benchmark that cannot run here says so as `skipped`; one that fails
stands there as `failed`, and makes the exit code 1; one that takes more than 20 minutes is ended and counts as failed.
Those whose full size takes hours run smaller here: their `arguments` stand beside the figures. What is compared with is
installed by `make bench-peers`, and said on standard error where it is not.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import machine, tell, text_of

__all__ = ["ARGUMENTS", "NAMES", "options_of"]

ARGUMENTS: dict[str, tuple[str, ...]] = {
    "sparse": (),
    "growth": (),
    "store": (),
    "quality": (),
    "hashing": (),
    "decode": (),
    "lifecycle": ("--ids", "1000000"),
    "tiers": ("--ids", "1000000"),
    "fold": ("--rows", "1000000"),
    "train_step": (),
    "compute_dtype": (),
    "grouped": (),
    "linear": (),
    "scaling": ("--rows", "1", "10"),
    "throughput": (),
    "cut": (),
    "end_to_end": (),
    "soak": ("--minutes", "10"),
    "soak_restarts": ("--minutes", "5"),
    "recovery": (),
    "failover": (),
    "freshness": (),
}
"""By name, what makes it short enough to run with all others."""
NAMES = tuple(ARGUMENTS)
RESULTS = Path("build/benchmarks.json")
_FAILURE_CHARACTERS = 2000
_TIMEOUT_S = 1200.0


def measure(name: str) -> dict[str, Any]:
    """Runs one benchmark in a process of its own, so that none inherits another's memory or threads."""
    begin = time.monotonic()
    command = [sys.executable, "-m", f"benchmarks.{name}", *ARGUMENTS[name], "--json"]
    # A session of its own, so that what it has started ends with it.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, errors = "", f"ended after {_TIMEOUT_S:.0f} s\n{process.communicate()[1]}"
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    try:
        result: dict[str, Any] = json.loads(output)
    except json.JSONDecodeError:
        result = {"failed": f"exit code {process.returncode}: {errors[-_FAILURE_CHARACTERS:]}"}
    # A peer that is missing is said by the benchmark that would have used it.
    sys.stderr.writelines(f"{line}\n" for line in errors.splitlines() if line.startswith("WITHOUT "))
    about = {"seconds": round(time.monotonic() - begin, 1)}
    return about | ({"arguments": " ".join(ARGUMENTS[name])} if ARGUMENTS[name] else {}) | result


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)} (default: all)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.name if name not in NAMES]:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are: {', '.join(NAMES)}")
    options.name = options.name or list(NAMES)
    return options


def main() -> int:
    options = options_of()
    results: dict[str, Any] = {"machine": machine()}
    tables: list[str] = []
    for name in options.name:
        sys.stderr.write(f"{name} ...\n")
        results[name] = measure(name)
        tables.append("\n".join((f"\n== {name} ==", *text_of(results[name]))))
        if not options.json:
            print(tables[-1], flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".txt").write_text(
        "\n".join([*text_of(results["machine"]), *tables, ""]), encoding="utf-8"
    )
    if options.json:
        tell(results, as_json=True)
    sys.stderr.write(f"written: {RESULTS}\n")
    return int(any("failed" in results[name] for name in options.name))


if __name__ == "__main__":
    sys.exit(main())
