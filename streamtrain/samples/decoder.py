"""From the chunks of a source to samples: columnar first, record by record where that fails."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from streamtrain import plugins
from streamtrain.errors import BadSample, ConfigError
from streamtrain.samples.batch import SampleBatch
from streamtrain.samples.codec import RECORD_BYTES_MAX, CodecError, RecordCodec
from streamtrain.samples.columns import SampleColumns
from streamtrain.samples.decoded import DecodedChunk
from streamtrain.samples.schema import DenseSlot, Schema
from streamtrain.samples.values import check_values, table_of
from streamtrain.sources import Chunk

__all__ = ["DecodedChunk", "Decoder"]

logger = logging.getLogger(__name__)


class Decoder:
    """Decodes chunks of one schema. Threads may share it; its kernels and Arrow's leave the GIL to the trainer.

    Args:
      schema: the samples.
      codec: a plug-in of the group `streamtrain.codecs`, for chunks whose records are bytes.
      record_bytes_max: a longer record is a bad sample.
    """

    def __init__(self, schema: Schema, codec: str = "json", record_bytes_max: int = RECORD_BYTES_MAX) -> None:
        self.columns = SampleColumns(schema)
        self._dense_slots = {n: slot for n, slot in schema.slots.items() if isinstance(slot, DenseSlot)}
        self._codec_name = f"codec {codec!r}"
        with plugins.blamed(ConfigError, f"{self._codec_name}: making it"):
            self._codec: RecordCodec = plugins.load("codecs", codec)(schema)
        self._record_bytes_max = record_bytes_max
        self._told = False

    def warm_up(self) -> None:
        """Compiles every kernel that decoding can need, so that the first chunk of a stream waits for none."""
        record = self._example()
        payloads = [orjson.dumps(record)] * 2
        nowhere = np.zeros(len(payloads), np.int64)
        self.decode(Chunk("warm-up", 0, len(payloads), np.arange(len(payloads)), nowhere, payloads))
        self.decode_samples([record])

    def _example(self) -> dict[str, Any]:
        """A sample with every field there is."""
        sizes = {slot.field or name: slot.size for name, slot in self._dense_slots.items()}
        values = {"int": 1, "time": 1, "number": 1.0, "string": "a"}
        return {
            field.name: [values[field.type]] * sizes.get(field.name, 1) if field.many else values[field.type]
            for field in self.columns.fields.values()
        }

    def decode(self, chunk: Chunk) -> DecodedChunk:
        """The samples of `chunk`. It may hold gaps and bad records, and no good one at all.

        Raises:
          ConfigError: a column of an Arrow chunk is of a type that does not fit the schema.
        """
        bad: list[BadSample] = []
        if isinstance(chunk.records, pa.Table):
            table, kept = chunk.records, np.arange(chunk.records.num_rows)
        else:
            table, kept = self._decode_records(chunk, chunk.records, bad)
        try:
            batch, good, refused = self.columns.extract(table, chunk.times_ms[kept])
        except ConfigError as error:
            raise ConfigError(f"{chunk.partition}: {error}") from error
        for row in refused:
            bad.append(_placed(BadSample(row.reason, row.detail, field=row.field), chunk, int(kept[row.row])))
        bad.sort(key=lambda sample: sample.offset or 0)
        whole = np.ones(batch.size, np.bool_)
        leaves = np.zeros(batch.size, np.int64)
        return DecodedChunk(
            chunk.partition,
            chunk.first,
            chunk.next,
            chunk.offsets[kept[good]],
            leaves,
            whole,
            batch,
            tuple(bad),
        )

    def decode_samples(self, samples: Sequence[Mapping[str, Any]]) -> SampleBatch:
        """Samples that are Python values already, for serving: labels may be missing (0 then).

        Raises:
          BadSample: the first one that is not a sample; `offset` is its index in `samples`, which the text names.
        """
        fields, rows = self.columns.fields, []
        for index, sample in enumerate(samples):
            try:
                rows.append(check_values(sample, fields))
            except BadSample as error:
                raise _indexed(error, index) from error
        nobody_knows = np.full(len(rows), -1, np.int64)
        batch, _, refused = self.columns.extract(table_of(rows, fields), nobody_knows, labels_required=False)
        for row in refused:
            raise _indexed(BadSample(row.reason, row.detail, field=row.field), row.row)
        return batch

    def _decode_records(
        self, chunk: Chunk, records: Sequence[bytes | None], bad: list[BadSample]
    ) -> tuple[pa.Table, NDArray[np.int64]]:
        """The records that are of the right form as a table, and their indices in the chunk; others go to `bad`."""
        payloads: list[bytes] = []
        kept: list[int] = []
        for index, record in enumerate(records):
            if record is not None and 0 < len(record) <= self._record_bytes_max:
                payloads.append(record)
                kept.append(index)
            else:
                bad.append(_placed(self._refusal(record), chunk, index))
        if not payloads:
            return self.columns.arrow_schema.empty_table(), np.empty(0, np.int64)
        try:
            table = self._codec.decode_columns(payloads)
        except CodecError:
            return self._decode_one_by_one(chunk, payloads, kept, bad)
        except Exception as error:
            # A third party's: the exact way says which record it is, or does without.
            if not self._told:
                logger.warning("%s: decode_columns failed, decoding is slow: %r", self._codec_name, error)
            self._told = True
            return self._decode_one_by_one(chunk, payloads, kept, bad)
        if table.num_rows != len(payloads):
            raise ConfigError(
                f"{self._codec_name}: decode_columns made {table.num_rows} rows of {len(payloads)} records; it must make "
                "one of each, in order"
            )
        return table, np.asarray(kept, np.int64)

    def _decode_one_by_one(
        self, chunk: Chunk, payloads: list[bytes], indices: list[int], bad: list[BadSample]
    ) -> tuple[pa.Table, NDArray[np.int64]]:
        rows: list[dict[str, Any]] = []
        kept: list[int] = []
        for payload, index in zip(payloads, indices, strict=True):
            try:
                rows.append(self._codec.decode_one(payload))
                kept.append(index)
            except BadSample as error:
                bad.append(_placed(error, chunk, index))
            except Exception as error:
                # A third party's codec that trips over one record is no reason to stop: the breaker tells of many.
                detail = f"{self._codec_name} failed: {type(error).__name__}: {error}"
                bad.append(_placed(BadSample("codec", detail), chunk, index))
        with plugins.blamed(ConfigError, f"{self._codec_name}: what decode_one gave"):
            return table_of(rows, self.columns.fields), np.asarray(kept, np.int64)

    def _refusal(self, record: bytes | None) -> BadSample:
        if not record:
            return BadSample("missing", "the record is null" if record is None else "the record is empty")
        limit = self._record_bytes_max
        return BadSample(
            "too_large", f"the record has {len(record)} bytes or more; record_bytes_max is {limit}"
        )


def _placed(error: BadSample, chunk: Chunk, index: int) -> BadSample:
    offset = int(chunk.offsets[index])
    return BadSample(error.reason, error.detail, field=error.field, partition=chunk.partition, offset=offset)


def _indexed(error: BadSample, index: int) -> BadSample:
    return BadSample(error.reason, f"sample {index}: {error.detail}", field=error.field, offset=index)
