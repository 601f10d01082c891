"""Runs all benchmarks, or those named, one after the other: what `make bench` does.

    python -m benchmarks [--json] [NAME ...]

Writes build/benchmarks.json: by name, what `python -m benchmarks.NAME --json` prints. A benchmark that cannot run here
says so as `skipped`; one that fails stands there as `failed`, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import machine, tell, text_of

__all__ = ["NAMES", "options_of"]

NAMES = ("sparse", "growth", "store", "quality", "hashing", "throughput", "recovery", "failover", "freshness")
RESULTS = Path("build/benchmarks.json")
_FAILURE_CHARACTERS = 2000


def measure(name: str) -> dict[str, Any]:
    """Runs one benchmark in a process of its own, so that none inherits another's memory or threads."""
    begin = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--json"], capture_output=True, text=True, check=False
    )
    try:
        result: dict[str, Any] = json.loads(run.stdout)
    except json.JSONDecodeError:
        result = {"failed": f"exit code {run.returncode}: {run.stderr[-_FAILURE_CHARACTERS:]}"}
    return {"seconds": round(time.monotonic() - begin, 1)} | result


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
    for name in options.name:
        sys.stderr.write(f"{name} ...\n")
        results[name] = measure(name)
        if not options.json:
            print("\n".join((f"\n== {name} ==", *text_of(results[name]))), flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if options.json:
        tell(results, as_json=True)
    sys.stderr.write(f"written: {RESULTS}\n")
    return int(any("failed" in results[name] for name in options.name))


if __name__ == "__main__":
    sys.exit(main())
