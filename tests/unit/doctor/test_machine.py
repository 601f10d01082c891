"""What is said of a processor and a clock, whichever machine runs this."""

from __future__ import annotations

import pytest

from streamtrain.doctor.machine import (
    cores_granted,
    examine_machine,
    judge_clock,
    judge_cores,
    judge_processor,
)
from streamtrain.findings import Level


@pytest.mark.parametrize(
    ("kind", "cpuinfo", "level", "says"),
    [
        ("x86_64", "model name\t: x\nflags\t\t: sse2 avx avx2 fma\n", Level.OK, "AVX2"),
        ("x86_64", "flags\t\t: sse2 avx fma\n", Level.WARNING, "without AVX2"),
        ("x86_64", "flags\t\t: sse2\n", Level.FAULT, "without AVX"),
        ("x86_64", "", Level.OK, "nobody tells"),
        ("aarch64", "Features\t: fp asimd\n", Level.OK, "aarch64"),
    ],
)
def test_a_processor_is_judged_by_what_jax_and_the_kernels_need(
    kind: str, cpuinfo: str, level: Level, says: str
) -> None:
    found = judge_processor(kind, cpuinfo)
    assert found.level is level and says in found.text
    assert bool(found.remedy) is (level is not Level.OK)


@pytest.mark.parametrize(
    ("flags", "dtype", "level"),
    [
        ("avx avx2 fma", "bfloat16", Level.WARNING),
        ("avx avx2 fma avx512_bf16", "bfloat16", Level.OK),
        ("avx avx2 fma amx_bf16", "bfloat16", Level.OK),
        ("avx avx2 fma", "float32", Level.OK),
    ],
)
def test_short_products_need_a_processor_that_has_them(flags: str, dtype: str, level: Level) -> None:
    found = judge_processor("x86_64", f"flags\t\t: {flags}\n", dtype)
    assert found.level is level and ("compute_dtype" in found.remedy) is (level is Level.WARNING)


@pytest.mark.parametrize(
    ("allowed", "quota", "granted"),
    [(8, "", 8), (8, "max 100000\n", 8), (8, "150000 100000\n", 1.5), (2, "400000 100000", 2)],
)
def test_a_container_gets_the_cores_of_its_quota(allowed: int, quota: str, granted: float) -> None:
    assert cores_granted(allowed, quota) == granted


@pytest.mark.parametrize(
    ("cores", "threads", "level"),
    [
        (2, 2, Level.OK),
        (1.5, 2, Level.WARNING),
        (1, 1, Level.WARNING),
        (0.5, 1, Level.WARNING),
        (4, 2, Level.OK),
    ],
)
def test_more_threads_than_cores_are_told(cores: float, threads: int, level: Level) -> None:
    assert judge_cores(cores, threads).level is level


def test_a_clock_before_the_newest_epoch_is_a_fault_and_one_that_nothing_keeps_right_a_warning() -> None:
    assert judge_clock(True, 1000.0, 999.0).level is Level.OK
    assert judge_clock(None, 1000.0, None).level is Level.OK
    assert judge_clock(False, 1000.0, None).level is Level.WARNING
    behind = judge_clock(True, 1000.0, 4600.0)
    assert behind.level is Level.FAULT and "3,600 s behind" in behind.text


def test_this_machine_can_be_looked_at() -> None:
    assert [found.area for found in examine_machine(1, None)] == ["processor", "processor", "clock"]
