"""From samples to probabilities, given rows and parameters: the part of serving that holds no version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streamtrain.dense.model import Params, parse_settings
from streamtrain.dense.predictor import DensePredictor
from streamtrain.samples.batch import SampleBatch
from streamtrain.samples.decoder import Decoder
from streamtrain.serving.model import ServedModel
from streamtrain.sparse.activations import SparseActivations
from streamtrain.sparse.reader import SparseReader

__all__ = ["Gathered", "Samples", "Scorer"]

Samples: TypeAlias = Sequence[Mapping[str, Any]] | pa.Table | SampleBatch
"""What `predict` takes: Python values, an Arrow table, or samples that are decoded already."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """A piece of a request with the rows that it needs, copied out of the tables.

    Attributes:
      size: B, its samples.
      sparse: padded to P >= B rows.
      dense: `[P, F]` float32.
    """

    size: int
    sparse: SparseActivations
    dense: NDArray[np.float32]


class Scorer:
    """Decodes samples, gathers their rows and computes the dense half. Any number of threads may use it at once.

    Args:
      model: what is served.
      piece_samples: a larger request is computed in pieces of this size.
    """

    def __init__(self, model: ServedModel, piece_samples: int) -> None:
        self.model, self.layout = model, model.layout
        self._piece_samples = piece_samples
        self._decoder = Decoder(model.sample_schema)
        self._predictor = DensePredictor(self.layout, parse_settings(model.model), batch_size=piece_samples)
        self._predictor.warm_up()

    @property
    def compilations(self) -> int:
        """Compilations that a request had to wait for; more than 0 is a bug."""
        return self._predictor.compilations

    def params(self, arrays: Mapping[str, np.ndarray]) -> Params:
        """Dense parameters, by name, as `predict` takes them.

        Raises:
          ConfigError: they are not this model's.
        """
        return self._predictor.params(arrays)

    def decode(self, samples: Samples) -> SampleBatch:
        """The samples as arrays; labels and weights may be missing.

        Raises:
          BadSample: naming the sample and the field.
        """
        if isinstance(samples, SampleBatch):
            return samples
        if not isinstance(samples, pa.Table):
            return self._decoder.decode_samples(samples)
        return self._decoder.decode_table(samples)

    def gather(self, reader: SparseReader, batch: SampleBatch) -> list[Gathered]:
        """Copies what the samples need of the tables; nothing may change these meanwhile."""
        pieces = []
        for start in range(0, batch.size, self._piece_samples):
            piece = batch.slice(start, min(start + self._piece_samples, batch.size))
            padded = self._predictor.bucket(piece.size)
            nodes = self._predictor.nodes(padded, [piece.rows(level) for level in self.layout.levels])
            dense = np.zeros((padded, piece.dense.shape[1]), np.float32)
            dense[: piece.size] = piece.dense
            pieces.append(Gathered(piece.size, reader.score(piece, padded, nodes), dense))
        return pieces

    def predict(self, params: Params, pieces: Sequence[Gathered]) -> NDArray[np.float32]:
        """The probabilities of gathered samples: `[B, L]` float32."""
        logits = [
            self._predictor.predict(
                params, piece.sparse.pooled, piece.sparse.sequences, piece.dense, piece.sparse.shared
            )[: piece.size]
            for piece in pieces
        ]
        empty = np.empty((0, len(self.layout.labels)), np.float32)
        return _sigmoid(np.concatenate([empty, *logits]))


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / (1 + exp(-logit)), computed in float64 from the side that cannot overflow."""
    small = np.exp(-np.abs(logits.astype(np.float64)))
    return (np.where(logits >= 0, 1.0, small) / (1.0 + small)).astype(np.float32)
