"""Weights that are shorter than float32: their error is bounded as said, and what was short once gets no worse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from streamtrain.serving.weights import Encoding, decode, encode

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
weights_drawn = st.integers(0, 5).flatmap(lambda dim: arrays(np.float32, (4, dim), elements=finite))


def back(weights: NDArray[np.float32], encoding: Encoding) -> NDArray[np.float32]:
    encoded = encode(weights, encoding)
    return decode(encoded["weights"], encoded.get("scales"))  # type: ignore[arg-type]


@given(weights_drawn)
@settings(max_examples=300, deadline=None)
def test_bfloat16_is_off_by_a_256th_of_each_weight_at_most(weights: NDArray[np.float32]) -> None:
    found = back(weights, "bfloat16")
    # Below the smallest normal number the step is fixed: 2^-133.
    bound = np.maximum(np.abs(weights).astype(np.float64) * 2.0**-7, 2.0**-133)
    cut = np.abs(weights) > 3.38e38  # What would round to infinity is cut, by twice the error.
    off = np.abs(found.astype(np.float64) - weights)
    assert np.isfinite(found).all() and (off <= np.where(cut, bound, bound / 2)).all()
    assert back(found, "bfloat16").tobytes() == found.tobytes()


@given(weights_drawn)
@settings(max_examples=300, deadline=None)
def test_int8_is_off_by_half_a_scale_at_most_which_is_the_largest_of_the_row_by_127(
    weights: NDArray[np.float32],
) -> None:
    found = back(weights, "int8").astype(np.float64)
    largest = np.abs(weights.astype(np.float64)).max(axis=1, initial=0.0, keepdims=True)
    assert np.isfinite(found).all()
    assert (np.abs(found - weights) <= largest / 254 * (1 + 1e-5) + 2.0**-142).all()
    assert encode(weights, "int8")["scales"].shape == (4,)


def test_bfloat16_rounds_to_nearest_and_ties_to_even() -> None:
    bits = np.array([[0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001, 0xBF808001, 0x80000000]], np.uint32)
    expected = [[0x3F80, 0x3F80, 0x3F82, 0x3F81, 0xBF81, 0x8000]]
    assert encode(bits.view(np.float32), "bfloat16")["weights"].tolist() == expected


def test_int8_keeps_the_largest_and_zeros_exactly() -> None:
    weights = np.array([[1.27, -0.635, 0.01], [0.0, 0.0, 0.0]], np.float32)
    encoded = encode(weights, "int8")
    assert encoded["weights"].tolist() == [[127, -64, 1], [0, 0, 0]]
    assert encoded["scales"].tolist() == pytest.approx([0.01, 0.0])


def test_float32_is_exact() -> None:
    weights = np.array([[1e-30, -3.4e38, 0.1]], np.float32)
    assert back(weights, "float32").tobytes() == weights.tobytes()
