"""TensorFlow Recommenders Addons' side of train_step: one dynamic embedding for all slots, in a tf.function.

    python -m benchmarks.peers.tfra_step FOLDER

Rows get the gradient of the summed loss, as ours do; Adam's step does not change with the gradient's scale.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# TensorFlow 2.16 has Keras 3, which these addons cannot use.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from tensorflow_recommenders_addons import dynamic_embedding as de

from benchmarks.peers.rounds import serve
from benchmarks.step_data import (
    ADAGRAD_EPSILON,
    ADAM_LEARNING_RATE,
    HIDDEN,
    INITIAL_ACCUMULATOR,
    INITIAL_STD,
    ROW_LEARNING_RATE,
    StepData,
    Work,
    feature_ids,
)

_FILL_ROWS = 1 << 19
Step = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def keys_of(rows: np.ndarray) -> np.ndarray:
    """The hashed ids of rows, as the table takes them."""
    return feature_ids(rows).view(np.int64)


def tower() -> tf.keras.Sequential:
    """The fully connected layers, initialised as ours."""
    layers = [tf.keras.layers.Dense(w, activation="relu", kernel_initializer="he_normal") for w in HIDDEN]
    return tf.keras.Sequential([*layers, tf.keras.layers.Dense(1)])


def fill(embedding: Any, work: Work) -> None:
    """Gives every row its initial weights, in bulk."""
    random = np.random.default_rng(1)
    count = work.share * work.slots
    for first in range(0, count, _FILL_ROWS):
        keys = keys_of(np.arange(first, min(first + _FILL_ROWS, count)))
        weights = random.standard_normal((len(keys), work.dim), np.float32) * np.float32(INITIAL_STD)
        embedding.upsert(tf.constant(keys), tf.constant(weights))


class TfraSteps:
    """Learns rounds."""

    def __init__(self, data: StepData) -> None:
        self._work = data.work
        self._keys = [tf.constant(keys_of(np.array(rows))) for rows in data.rows]
        self._labels = [tf.constant(np.array(labels)) for labels in data.labels]
        self._embedding = de.keras.layers.Embedding(
            self._work.dim,
            devices=["/CPU:0"],
            initializer=tf.keras.initializers.RandomNormal(stddev=INITIAL_STD),
            init_capacity=2 * self._work.rows,
        )
        fill(self._embedding.params, self._work)
        self._step = self._make_step()

    def learn(self, first: int, end: int) -> dict[str, Any]:
        """Takes steps; see `serve`."""
        losses = [self._step(self._keys[i], self._labels[i]) for i in range(first, end)]
        return {"loss": float(tf.reduce_mean(losses)) / self._work.batch}

    def _make_step(self) -> Step:
        embedding, width = self._embedding, self._work.slots * self._work.dim
        dense = tower()
        dense.build((None, width))
        adam = tf.keras.optimizers.legacy.Adam(ADAM_LEARNING_RATE)
        adagrad = de.DynamicEmbeddingOptimizer(
            tf.keras.optimizers.legacy.Adagrad(
                ROW_LEARNING_RATE, initial_accumulator_value=INITIAL_ACCUMULATOR, epsilon=ADAGRAD_EPSILON
            )
        )

        @tf.function
        def step(keys: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                logits = dense(tf.reshape(embedding(keys), [-1, width]))[:, 0]
                loss = tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(labels, logits))
            of_rows, *of_dense = tape.gradient(loss, [embedding.shadow, *dense.trainable_variables])
            adagrad.apply_gradients([(of_rows, embedding.shadow)])
            adam.apply_gradients(zip(of_dense, dense.trainable_variables))
            return loss

        return step


def main() -> None:
    data = StepData(Path(sys.argv[1]))
    tf.config.threading.set_intra_op_parallelism_threads(data.work.threads)
    tf.config.threading.set_inter_op_parallelism_threads(data.work.threads)
    steps = TfraSteps(data)
    serve(steps.learn, {"version": tf.__version__, "threads": data.work.threads})


if __name__ == "__main__":
    main()
