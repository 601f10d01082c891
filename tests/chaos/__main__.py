"""`python -m tests.chaos --faults N --seed S [--json]`: faults on real Kafka and Redis, and the proof that nothing was lost."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import sys
import tempfile
import traceback
from pathlib import Path

from tests.chaos.session import clean, run
from tests.chaos.world import say


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=50, metavar="N", help="how many faults (default 50)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="chooses them (default 1)")
    parser.add_argument(
        "--rate", type=float, default=250.0, metavar="HZ", help="samples a second (default 250)"
    )
    parser.add_argument(
        "--minutes", type=float, default=math.inf, metavar="M", help="no more faults after this time"
    )
    parser.add_argument(
        "--standbys", type=int, metavar="N", help="daemons beside the trainer (default 0; 1 with --only)"
    )
    parser.add_argument("--only", choices=["takeover"], help="faults of one group alone")
    parser.add_argument("--json", action="store_true", help="the verdict as JSON on standard output")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    standbys = options.standbys if options.standbys is not None else int(options.only == "takeover")
    if options.only == "takeover" and not standbys:
        parser.error("a takeover needs --standbys 1 or more")
    command = f"python -m tests.chaos --faults {options.faults} --seed {options.seed}"
    command += f" --standbys {standbys}" if standbys else ""
    command += f" --only {options.only}" if options.only else ""
    # A broker that is killed now and then is no news to the stream's clients.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    parent = Path(options.folder or tempfile.gettempdir())
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{options.seed}-", dir=parent))
    try:
        verdict = run(
            folder,
            options.faults,
            options.seed,
            command,
            options.rate,
            options.minutes,
            standbys,
            options.only,
        )
    except Exception:
        traceback.print_exc()
        say(f"FAILED: {command}; everything is kept in {folder}")
        return 1
    found = dataclasses.asdict(verdict) | {"holds": verdict.holds}
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name:22} {value}")
    if not verdict.holds:
        say(f"FAILED: {command}; everything is kept in {folder}")
        return 1
    clean(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
