"""Feeds nasty records to the decoder, the minibatcher and the dead letters; every one must be accounted for.

python -m tests.fuzz --records 1000000 --seed 7
python -m tests.fuzz --records 1000000 --seed 7 --json

Exits 1 where a record was neither learned nor refused, was both, was learned though it is none, was refused though it
is one, has no letter, or where memory grew without bound. The seed decides every byte.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys

from tests.fuzz.run import fuzz


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--records", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32), metavar="S")
    parser.add_argument("--bomb-mb", type=int, default=1024, metavar="MB", help="what one line unpacks to")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    arguments = parser.parse_args()
    account = asyncio.run(fuzz(arguments.records, arguments.seed, bomb_bytes=arguments.bomb_mb << 20))
    found = {"records": arguments.records, "seed": arguments.seed, **account.as_dict()}
    if arguments.json:
        print(json.dumps(found))
    else:
        print("\n".join(f"{name:>11}  {value}" for name, value in found.items()))
    return 0 if account.holds else 1


if __name__ == "__main__":
    sys.exit(main())
