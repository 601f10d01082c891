"""Reserved memory, alignment, and inputs of one kind."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from streamtrain.errors import ConfigError
from streamtrain.sparse.activations import ActivationBuffers
from streamtrain.sparse.index import Index
from streamtrain.sparse.memory import aligned_empty, as_input, populate, reserve
from tests.unit.sparse.cases import LAYOUT


def test_reserving_far_more_than_the_machine_has_costs_only_what_is_touched() -> None:
    array = reserve((2_000_000_000, 40), np.float32, "test")
    array[1_999_999_999, 39] = 1
    assert array[:3].sum() == 0 and array[1_999_999_999, 39] == 1
    assert array.ctypes.data % 64 == 0


@pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is read from /proc")
def test_memory_that_is_expected_is_there_before_it_is_touched_and_nothing_in_it_changes() -> None:
    array = reserve((1 << 26,), np.float32, "test")
    array[:: 1 << 22] = 7
    before = _private_mb()
    populate(array, 0, 1 << 24)
    assert 40 <= _private_mb() - before <= 80, "64 MiB of the 256, some of which were there"
    assert (array[:: 1 << 22] == 7).all() and np.count_nonzero(array) == 16
    populate(array, 1 << 25, 1 << 40)


def _private_mb() -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) >> 10


def test_address_space_that_is_not_there_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"table 'item': cannot reserve .* lower rows_max"):
        Index("table 'item'", 2**60)


@pytest.mark.parametrize("shape", [(0, 0), (1, 3), (7, 5, 3), (100,)])
def test_arrays_for_the_dense_half_begin_on_a_cache_line(shape: tuple[int, ...]) -> None:
    array = aligned_empty(shape, np.float32)
    assert array.shape == shape and array.flags.c_contiguous
    assert array.size == 0 or array.ctypes.data % 64 == 0


def test_buffers_are_used_again_and_stay_aligned_when_fewer_rows_are_asked_for() -> None:
    buffers = ActivationBuffers(LAYOUT)
    large, small = buffers.take(100), buffers.take(32)
    assert np.shares_memory(large.pooled, small.pooled)
    for array in (small.pooled, *small.sequences["history"]):
        assert array.shape[0] == 32 and array.flags.c_contiguous and array.ctypes.data % 64 == 0


def test_inputs_are_copied_only_where_they_must_be() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.shares_memory(as_input(array, np.float32), array)
    assert array.flags.writeable and not as_input(array, np.float32).flags.writeable
    for odd in (array.T, array.astype(np.float64), np.frombuffer(b"." + array.tobytes(), np.float32, 6, 1)):
        found = as_input(odd, np.float32)
        assert found.flags.c_contiguous and found.flags.aligned and found.dtype == np.float32
        np.testing.assert_array_equal(found, odd)
