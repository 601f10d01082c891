"""A serving process loads no part of the trainer, and none of its clients."""

from __future__ import annotations

import subprocess
import sys

LOADED = """
import sys
import streamtrain.serving
heavy = {"jax", "numba", "pyarrow"} & set(sys.modules)
assert not heavy, f"importing the package alone loads {heavy}"
from streamtrain.serving import Follower
Follower("nowhere").poll()
forbidden = ("aiokafka", "redis", "optax", "aiohttp", "uvloop", "consumers", "exporters", "streamtrain.training",
             "streamtrain.store", "streamtrain.service", "streamtrain.config", "streamtrain.dense.net")
print([name for name in sys.modules if any(name == f or name.startswith(f + ".") for f in forbidden)])
"""


def test_following_loads_neither_trainer_nor_kafka_nor_redis():
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
