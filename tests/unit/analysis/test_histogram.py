from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.analysis.histogram import Bar, Histogram
from tests.reference_analysis import octaves

Numbers = st.lists(st.floats(0, 2.0**63) | st.integers(0, 2**32 - 1), max_size=60)


def histogram(values: list[float]) -> Histogram:
    made = Histogram()
    made.add(np.array(values, np.float64))
    return made


@given(Numbers)
def test_bars_count_what_lies_between_powers_of_two(values: list[float]) -> None:
    bars = {bar.low: bar.count for bar in histogram(values).bars() if bar.count}
    # What is smaller than the smallest octave counts as in it.
    assert bars == octaves([max(value, 2.0**-64) if value else 0.0 for value in values])


@given(Numbers.filter(bool), st.floats(0, 1))
def test_a_quantile_is_at_most_a_sixteenth_too_low(values: list[float], share: float) -> None:
    exact = sorted(values)[max(math.ceil(share * len(values)), 1) - 1]
    found = histogram(values).quantile(share)
    assert found <= max(exact, 2.0**-64)
    assert found >= exact * (1 - 1 / 16) or exact < 2.0**-63


@given(st.lists(st.integers(0, 31), min_size=1, max_size=60), st.floats(0, 1))
def test_a_quantile_of_small_integers_is_exact(values: list[int], share: float) -> None:
    assert (
        histogram(list(map(float, values))).quantile(share)
        == sorted(values)[max(math.ceil(share * len(values)), 1) - 1]
    )


@given(Numbers, st.integers(0, 60))
def test_adding_in_pieces_is_adding_at_once(values: list[float], cut: int) -> None:
    pieces, whole = Histogram(), histogram(values)
    for piece in (values[:cut], values[cut:]):
        pieces.add(np.array(piece, np.float64))
    assert pieces.bars() == whole.bars()
    assert (pieces.count, pieces.minimum, pieces.maximum) == (whole.count, whole.minimum, whole.maximum)
    assert math.isclose(pieces.total, whole.total)


def test_empty_bars_between_are_there_and_none_outside() -> None:
    assert histogram([0, 0, 1, 5]).bars() == [Bar(0, 0, 2), Bar(1, 2, 1), Bar(2, 4, 0), Bar(4, 8, 1)]
    assert histogram([]).bars() == []


def test_numbers_beyond_the_range_stay_in_the_last_bars() -> None:
    found = histogram([2.0**-300, 2.0**300])
    assert [(bar.low, bar.count) for bar in found.bars() if bar.count] == [(2.0**-64, 1), (2.0**63, 1)]
    assert found.maximum == 2.0**300


def test_the_counts_of_a_table_keep_their_32_bits() -> None:
    made = Histogram()
    made.add(np.array([2**32 - 1], np.uint32))
    assert made.bars() == [Bar(2.0**31, 2.0**32, 1)] and made.maximum == 2**32 - 1
