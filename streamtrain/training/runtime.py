"""What decides the bits of a step beside the job and the samples: the libraries, and the processor that they compile for."""

from __future__ import annotations

import functools
import json
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version

import llvmlite.binding as llvm

__all__ = ["NOTE", "differences", "runtime", "runtime_note"]

NOTE = "runtime"
"""The note of a record that holds it, as JSON."""

_LIBRARIES = ("streamtrain", "jax", "jaxlib", "optax", "numba", "llvmlite", "numpy", "pyarrow")
# Instruction sets that change how sums are grouped and rounded; the hundreds of others do not.
_VECTORS = re.compile(r"avx\d*.*|amx.*|fma\d*|neon|sve\d*")


@functools.cache
def runtime() -> Mapping[str, str]:
    """By name, what is installed and what it runs on; the same for the life of the process."""
    features = llvm.get_host_cpu_features()
    vectors = sorted(name for name, has in features.items() if has and _VECTORS.fullmatch(name))
    return {
        **{name: version(name) for name in _LIBRARIES},
        "processor": f"{platform.machine()} {llvm.get_host_cpu_name()}",
        "vectors": " ".join(vectors),
    }


@functools.cache
def runtime_note() -> str:
    """The note. Each record has it, so that it is there whatever was collected around it."""
    return json.dumps(runtime())


def differences(notes: Mapping[str, str]) -> list[str]:
    """What differs between a record's notes and this process, in words; empty where they tell of nothing."""
    then: Mapping[str, str] = json.loads(notes.get(NOTE, "{}"))
    now = runtime()
    return [
        f"{name} was {then.get(name, 'not told')}, is {now.get(name, 'not told')}"
        for name in (sorted(now) if then else ())
        if then.get(name) != now.get(name)
    ]
