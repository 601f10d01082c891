"""Slow, obvious oracles of the dense models: float64 numpy, one sample and one pair at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]
"""Parameters by name, as `DenseNet.state` gives them, in float64."""


def layers(params: Arrays, prefix: str, x: np.ndarray) -> np.ndarray:
    """One vector `[in]` through the layers under `prefix`."""
    count = sum(name.startswith(prefix) and name.endswith("/kernel") for name in params)
    for index in range(count):
        x = x @ params[f"{prefix}{index}/kernel"] + params[f"{prefix}{index}/bias"]
        if index + 1 < count:
            x = np.where(x > 0, x, params.get(f"{prefix}{index}/slope", np.zeros(len(x))) * x)
    return x


def linear(params: Arrays, pooled: Mapping[str, np.ndarray], sequences: Any, dense: np.ndarray) -> np.ndarray:
    return sum(pooled.values()) + dense @ params["params/kernel"] + params["params/bias"]


def mlp(params: Arrays, pooled: Mapping[str, np.ndarray], sequences: Any, dense: np.ndarray) -> np.ndarray:
    return layers(params, "params/layers/", np.concatenate([*pooled.values(), dense]))


def deepfm(params: Arrays, pooled: Mapping[str, np.ndarray], sequences: Any, dense: np.ndarray) -> np.ndarray:
    labels = len(params[max(name for name in params if "params/layers/" in name and name.endswith("/bias"))])
    factors = [row[labels:] for row in pooled.values() if len(row) > labels]
    pairs = sum(float(a @ b) for i, a in enumerate(factors) for b in factors[:i])
    deep = layers(params, "params/layers/", np.concatenate([*factors, dense]))
    scale = params.get("params/pair_scale", np.ones(labels))
    return sum(row[:labels] for row in pooled.values()) + pairs * scale + deep


def din(targets: Mapping[str, str], softmax: bool) -> Callable[..., np.ndarray]:
    def apply(
        params: Arrays, pooled: Mapping[str, np.ndarray], sequences: Any, dense: np.ndarray
    ) -> np.ndarray:
        interests = []
        for slot, target in targets.items():
            vectors, mask = sequences[slot]
            query, keys = pooled[target], [v for v, m in zip(vectors, mask) if m > 0]
            units = [np.concatenate([query, key, query - key, query * key]) for key in keys]
            scores = [layers(params, f"params/attention/{slot}/", unit)[0] for unit in units]
            if softmax and scores:
                scores = list(np.exp(scores) / np.exp(scores).sum())
            interests.append(sum((s * k for s, k in zip(scores, keys)), np.zeros_like(query)))
        return layers(params, "params/layers/", np.concatenate([*pooled.values(), dense, *interests]))

    return apply


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """-y log p - (1 - y) log(1 - p), p the sigmoid of the logit."""
    p = 1 / (1 + np.exp(-logits))
    return -labels * np.log(p) - (1 - labels) * np.log(1 - p)


def gradient(function: Callable[[np.ndarray], float], x: np.ndarray, epsilon: float = 1e-6) -> np.ndarray:
    """Central finite differences of a scalar function at `x` (float64)."""
    result = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[index] += epsilon
        down[index] -= epsilon
        result[index] = (function(up) - function(down)) / (2 * epsilon)
    return result
