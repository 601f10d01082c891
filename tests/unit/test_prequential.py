"""Prequential evaluation against plain formulas."""

import math

import numpy as np
import pytest

from streamtrain.training.prequential import Prequential, measure


def exact_auc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Sums over all pairs: the definition."""
    won = total = 0.0
    for i in np.flatnonzero(labels == 1):
        for j in np.flatnonzero(labels == 0):
            total += weights[i] * weights[j]
            won += (
                weights[i]
                * weights[j]
                * (1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0)
            )
    return won / total


def samples(seed: int, n: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 2)).astype(np.float32)
    labels = (rng.random((n, 2)) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    return logits, labels, rng.uniform(0.5, 2, n).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_measures_equal_their_definitions(seed: int) -> None:
    logits, labels, weights = samples(seed)
    measured = Prequential(["a", "b"], 10_000)
    for start in range(0, 300, 32):
        part = slice(start, start + 32)
        measured.count(measure(logits[part], labels[part], weights[part]))
    for i, name in enumerate(["a", "b"]):
        quality = measured.total()[name]
        p = 1 / (1 + np.exp(-logits[:, i].astype(np.float64)))
        y, w = labels[:, i], weights.astype(np.float64)
        loss = -(w * (y * np.log(p) + (1 - y) * np.log(1 - p))).sum() / w.sum()
        mean = (w * y).sum() / w.sum()
        entropy = -(mean * math.log(mean) + (1 - mean) * math.log(1 - mean))
        assert quality.samples == 300
        assert quality.auc == pytest.approx(
            exact_auc(logits[:, i], y, w), abs=2e-3
        )  # 300 samples: few pairs, some of them tied by the bins
        assert quality.log_loss == pytest.approx(loss, rel=1e-6)
        assert quality.normalized_entropy == pytest.approx(loss / entropy, rel=1e-6)
        assert quality.calibration == pytest.approx((w * p).sum() / (w * y).sum(), rel=1e-6)
        assert quality.label_mean == pytest.approx(mean, rel=1e-6)


def test_measures_are_none_in_json_when_only_one_class_was_seen() -> None:
    measured = Prequential(["a"], 100)
    measured.count(measure(np.zeros((3, 1), np.float32), np.ones((3, 1), np.float32), np.ones(3, np.float32)))
    assert measured.total()["a"].as_dict()["auc"] is None
    assert measured.total()["a"].as_dict()["calibration"] == pytest.approx(0.5)


def test_window_holds_the_last_full_window_only() -> None:
    measured = Prequential(["a"], 100)
    good = np.where(np.arange(100) % 2, 5.0, -5.0).astype(np.float32)[:, None]
    labels = (np.arange(100) % 2).astype(np.float32)[:, None]
    weights = np.ones(100, np.float32)
    measured.count(measure(-good, labels, weights))
    assert measured.window()["a"].auc == 0.0
    measured.count(measure(good, labels, weights))
    measured.count(measure(-good[:10], labels[:10], weights[:10]))
    assert measured.window()["a"].auc == 1.0
    assert measured.total()["a"].samples == 210


def test_state_continues_bit_for_bit() -> None:
    logits, labels, weights = samples(9)
    whole, first, second = (Prequential(["a", "b"], 70) for _ in range(3))
    whole.count(measure(logits[:100], labels[:100], weights[:100]))
    first.count(measure(logits[:100], labels[:100], weights[:100]))
    second.load(first.state())
    for measured in (whole, second):
        measured.count(measure(logits[100:], labels[100:], weights[100:]))
    assert all(np.array_equal(a, second.state()[name]) for name, a in whole.state().items())
    assert whole.window() == second.window()


def test_extreme_logits_stay_finite() -> None:
    measured = Prequential(["a"], 100)
    measured.count(
        measure(
            np.array([[1e30], [-1e30]], np.float32), np.array([[1], [0]], np.float32), np.ones(2, np.float32)
        )
    )
    assert measured.total()["a"].auc == 1.0
    assert measured.total()["a"].log_loss == pytest.approx(0.0)


def test_auc_of_many_samples_is_exact_to_four_digits() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(200_000, 1)).astype(np.float32)
    labels = (rng.random((200_000, 1)) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    measured = Prequential(["a"], 1_000_000)
    measured.count(measure(logits, labels, np.ones(200_000, np.float32)))
    order = np.argsort(logits[:, 0], kind="stable")
    ranks = np.empty(len(order))
    ranks[order] = np.arange(1, len(order) + 1)
    positives = labels[:, 0].sum(dtype=np.float64)
    exact = (ranks[labels[:, 0] == 1].sum() - positives * (positives + 1) / 2) / (
        positives * (len(order) - positives)
    )
    assert measured.total()["a"].auc == pytest.approx(exact, abs=5e-5)
