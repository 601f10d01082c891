"""The machine that a daemon is to run on: its processor and its clock."""

from __future__ import annotations

import ctypes
import os
import platform
import time
from contextlib import suppress
from pathlib import Path

from streamtrain.findings import Finding

__all__ = [
    "cores_granted",
    "examine_machine",
    "has_short_products",
    "judge_clock",
    "judge_cores",
    "judge_processor",
]

# Of x86-64. jaxlib's wheels are compiled for the first; without the others kernels take twice the time.
_NEEDED, _WANTED = "avx", ("avx2", "fma")
_SHORT_PRODUCTS = {"avx512_bf16", "amx_bf16"}
_TIME_ERROR = 5
_BACK_S = 2.0


def examine_machine(threads: int, newest_s: float | None, compute_dtype: str = "float32") -> list[Finding]:
    """Looks at this machine.

    Args:
      threads: the larger of `training.threads` and `training.dense_threads`.
      newest_s: when the log's newest epoch was written, seconds since 1970; None where there is none.
      compute_dtype: of the model, where it has one.
    """
    cpuinfo = quota = ""
    with suppress(OSError):
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    with suppress(OSError):
        quota = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii")
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [
        judge_processor(platform.machine(), cpuinfo, compute_dtype),
        judge_cores(cores_granted(allowed, quota), threads),
        judge_clock(_synchronised(), time.time(), newest_s),
    ]


def judge_processor(kind: str, cpuinfo: str, compute_dtype: str = "float32") -> Finding:
    """Args: what `uname -m` says; the text of /proc/cpuinfo, "" where there is none; see `examine_machine`."""
    if kind not in ("x86_64", "AMD64"):
        return Finding.ok("processor", kind)
    features = _features(cpuinfo)
    if features is None:
        return Finding.ok("processor", f"{kind}, whose features nobody tells")
    if _NEEDED not in features:
        return Finding.fault(
            "processor",
            f"{kind} without AVX: JAX ends with an illegal instruction",
            "use a processor of 2013 or later; of a virtual machine, let it see its host's (`-cpu host`)",
        )
    if lacking := [feature for feature in _WANTED if feature not in features]:
        return Finding.warning(
            "processor",
            f"{kind} without {' and '.join(lacking).upper()}: learning takes about twice the time",
            "of a virtual machine, let it see its host's processor (`-cpu host`)",
        )
    if compute_dtype == "bfloat16" and not has_short_products(cpuinfo):
        return Finding.warning(
            "processor",
            f"{kind} without products of bfloat16 ({' or '.join(sorted(_SHORT_PRODUCTS))}): they are computed as float32, "
            "and rounding comes on top",
            'model.compute_dtype = "float32" for a new model; this one needs a processor that has them',
        )
    return Finding.ok("processor", f"{kind} with AVX2 and FMA")


def has_short_products(cpuinfo: str) -> bool:
    """Whether the processor multiplies bfloat16, going by the text of /proc/cpuinfo."""
    return bool((_features(cpuinfo) or set()) & _SHORT_PRODUCTS)


def _features(cpuinfo: str) -> set[str] | None:
    """None where nobody tells."""
    lines = (line.split(":", 1) for line in cpuinfo.splitlines() if ":" in line)
    return next((set(value.split()) for name, value in lines if name.strip() == "flags"), None)


def cores_granted(allowed: int, quota: str) -> float:
    """How many cores a process gets: of those that it may use, what cgroup v2's `cpu.max` leaves."""
    most, _, period = quota.strip().partition(" ")
    if not (most.isdecimal() and period.isdecimal()):
        return float(allowed)
    return min(float(allowed), int(most) / int(period))


def judge_cores(cores: float, threads: int) -> Finding:
    """Args: what `cores_granted` says, and `threads` of `examine_machine`."""
    if threads > max(1.0, cores):
        return Finding.warning(
            "processor",
            f"{threads} threads (training.threads, dense_threads) share {cores:g} cores: each waits for the other",
            f"training.threads and training.dense_threads of at most {max(1, int(cores))}, or more cores",
        )
    if cores < 2:
        return Finding.warning(
            "processor",
            f"{cores:g} cores: reading, decoding and learning take turns",
            "give the daemon two cores; of a container, raise its limit",
        )
    return Finding.ok("processor", f"{cores:g} cores")


def judge_clock(synchronised: bool | None, now_s: float, newest_s: float | None) -> Finding:
    """Args: what the kernel says, None where it does not; the time now; see `examine_machine`."""
    if newest_s is not None and newest_s > now_s + _BACK_S:
        return Finding.fault(
            "clock",
            f"the clock is {newest_s - now_s:,.0f} s behind the log's newest epoch: ages, leases and event times come out wrong",
            "timedatectl set-ntp true",
        )
    if synchronised is False:
        return Finding.warning(
            "clock",
            "the kernel says that nothing keeps this clock right: freshness, certificates and schema.event_time_ahead_max_s "
            "depend on it",
            "timedatectl set-ntp true   # in a container or virtual machine: on its host",
        )
    return Finding.ok(
        "clock",
        "is kept right" if synchronised else "not before the log; who keeps it right is not told here",
    )


def _synchronised() -> bool | None:
    """What adjtimex(2) says, which changes nothing here; None where there is none, or it is forbidden."""
    with suppress(OSError, AttributeError):
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(1024))
        return None if state < 0 else state != _TIME_ERROR
    return None
