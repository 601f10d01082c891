"""`compute_dtype = "bfloat16"`: what is rounded, what is not, and that a model learns all the same."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from streamtrain.dense.models.layers import product_of
from tests.unit.dense.test_models import CASES
from tests.unit.dense.toy import auc, layout_of, minibatch, net_of, prequential_logits, taste

FLOATS = np.random.default_rng(3)


def rounded(array: np.ndarray) -> np.ndarray:
    """To the 8 bits of bfloat16, ties to even: on the bits, without the library under test."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32).astype(np.uint64)
    return (((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) << 16).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("shape", [(7, 12), (3, 5, 12)])
def test_factors_are_rounded_forward_and_to_the_input_and_not_for_the_gradient_of_the_kernel(
    shape: tuple[int, ...],
) -> None:
    x, kernel = (FLOATS.normal(size=s).astype(np.float32) for s in (shape, (12, 4)))
    gradient = FLOATS.normal(size=(*shape[:-1], 4)).astype(np.float32)
    found, back = jax.jit(lambda: jax.vjp(product_of("bfloat16"), x, kernel))()
    of_x, of_kernel = back(gradient)
    assert found.dtype == of_x.dtype == of_kernel.dtype == jnp.float32
    wide = rounded(x).astype(np.float64) @ rounded(kernel)
    np.testing.assert_allclose(found, wide, rtol=1e-5, atol=1e-5)
    assert np.abs(found - x.astype(np.float64) @ kernel).max() > 1e-4
    np.testing.assert_allclose(of_x, rounded(gradient) @ rounded(kernel).T, rtol=1e-5, atol=1e-5)
    flat = x.reshape(-1, 12).T.astype(np.float64) @ gradient.reshape(-1, 4)
    np.testing.assert_allclose(of_kernel, flat, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["mlp", "deepfm, two labels", "din"])
def test_every_model_with_layers_rounds_a_little_and_is_float32_to_the_outside(case: str) -> None:
    kind, layout, options, _ = CASES[case]
    batch = minibatch(layout, 16, seed=1)
    exact, short = (
        net_of(layout, kind, net_seed=3, compute_dtype=dtype, **options) for dtype in ("float32", "bfloat16")
    )
    assert {n: a.tobytes() for n, a in exact.state().items()} == {
        n: a.tobytes() for n, a in short.state().items()
    }
    results = [batch.step(net) for net in (exact, short)]
    apart = np.abs(results[0].logits - results[1].logits).max()
    assert 0 < apart < 0.05 * max(1.0, np.abs(results[0].logits).max())
    for result in results:
        assert result.finite and result.grad_pooled.dtype == result.logits.dtype == np.float32
    assert all(array.dtype != jnp.bfloat16 for array in short.state().values())


def test_it_learns_what_float32_learns() -> None:
    layout, problem = layout_of({"user": 8, "item": 8}), taste(seed=5)
    options = {"hidden": [32, 16], "compute_dtype": "bfloat16"}
    net = net_of(layout, "mlp", net_batch_size=64, net_buckets=[64], **options)
    logits = prequential_logits(net, layout, problem)
    assert auc(logits[-3000:, 0], problem.labels[-3000:, 0]) > 0.85
