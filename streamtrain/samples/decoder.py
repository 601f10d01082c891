"""From the chunks of a source to samples: columnar, whatever is bad among them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from streamtrain import plugins
from streamtrain.errors import BadSample, ConfigError
from streamtrain.samples.batch import SampleBatch
from streamtrain.samples.codec import RECORD_BYTES_MAX, RecordCodec, RecordRows
from streamtrain.samples.columns import LEAVES_MAX, SampleColumns
from streamtrain.samples.decoded import DecodedChunk
from streamtrain.samples.schema import DenseSlot, Schema
from streamtrain.samples.values import check_values, table_of
from streamtrain.sources import Chunk

__all__ = ["Decoder"]

logger = logging.getLogger(__name__)


class Decoder:
    """Decodes chunks of one schema. Threads may share it; its kernels and Arrow's leave the GIL to the trainer.

    Args:
      schema: the samples.
      codec: a plug-in of the group `streamtrain.codecs`, for chunks whose records are bytes.
      record_bytes_max: a longer record is a bad sample.
      leaves_max: so is one with more samples.
    """

    def __init__(
        self,
        schema: Schema,
        codec: str = "json",
        record_bytes_max: int = RECORD_BYTES_MAX,
        leaves_max: int = LEAVES_MAX,
    ) -> None:
        self.columns = SampleColumns(schema, leaves_max)
        self._dense_slots = {n: slot for n, slot in schema.slots.items() if isinstance(slot, DenseSlot)}
        # A sample to be served has the fields of all levels side by side.
        self._flat_schema = pa.schema([(f.name, f.arrow_type) for f in self.columns.fields.values()])
        self._codec_name = f"codec {codec!r}"
        with plugins.blamed(ConfigError, f"{self._codec_name}: making it"):
            self._codec: RecordCodec = plugins.load("codecs", codec)(schema)
        self._record_bytes_max = record_bytes_max
        self._told = False

    def warm_up(self) -> None:
        """Compiles every kernel that decoding can need, so that the first chunk of a stream waits for none."""
        record = self._example()
        tree = record
        for level in reversed(self.columns.schema.levels):
            tree = {**record, level.children: [tree]}
        with suppress(Exception):
            # A codec of another form refuses it, and has shown its kernels by then.
            self._codec.decode([orjson.dumps(tree)] * 2)
        nowhere = np.zeros(1, np.int64)
        self.decode(Chunk("warm-up", 0, 1, nowhere, nowhere, table_of([tree], self.columns.arrow_schema)))
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
            parts = [self._extract(chunk, RecordRows(chunk.records), np.arange(chunk.records.num_rows))]
        else:
            parts = list(self._decode_records(chunk, chunk.records, bad))
        if not parts:
            nothing = RecordRows(self.columns.arrow_schema.empty_table())
            parts = [self._extract(chunk, nothing, np.empty(0, np.int64))]
        bad += [error for part in parts for error in part.bad]
        bad.sort(key=lambda sample: (sample.offset or 0, sample.leaf or 0))
        return DecodedChunk(
            chunk.partition,
            chunk.first,
            chunk.next,
            np.concatenate([part.offsets for part in parts]),
            np.concatenate([part.leaves for part in parts]),
            np.concatenate([part.last for part in parts]),
            SampleBatch.concat([part.batch for part in parts]),
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
        return self.decode_table(table_of(rows, self._flat_schema))

    def decode_table(self, samples: pa.Table) -> SampleBatch:
        """Samples that are the rows of a table, for serving, as `decode_samples`."""
        nobody_knows = np.full(samples.num_rows, -1, np.int64)
        found = self.columns.extract(samples, nobody_knows, flat=True, labels_required=False)
        for bad in found.bad:
            raise _indexed(bad.error, bad.record)
        return found.batch

    def _extract(self, chunk: Chunk, rows: RecordRows, kept: NDArray[np.int64]) -> DecodedChunk:
        """The samples of the records that stand at `kept` in the chunk."""
        try:
            found = self.columns.extract(rows.table, chunk.times_ms[kept], rows.counts, rows.faults)
        except ConfigError as error:
            raise ConfigError(f"{chunk.partition}: {error}") from error
        bad = [_placed(error, chunk, int(kept[index])) for index, error in rows.bad.items()]
        for refused in found.bad:
            # Where a record is one sample, the record is refused.
            leaf = None if found.leaf_counts[refused.record] == 1 else refused.leaf
            bad.append(_placed(refused.error, chunk, int(kept[refused.record]), leaf))
        return DecodedChunk(
            chunk.partition,
            chunk.first,
            chunk.next,
            chunk.offsets[kept[found.records]],
            found.leaves,
            found.last,
            found.batch,
            tuple(bad),
        )

    def _decode_records(
        self, chunk: Chunk, records: Sequence[bytes | None], bad: list[BadSample]
    ) -> Iterator[DecodedChunk]:
        """The chunk in one part, or several where the codec does not decode all of it together; no form at all: in `bad`."""
        payloads: list[bytes] = []
        kept: list[int] = []
        for index, record in enumerate(records):
            if record is not None and 0 < len(record) <= self._record_bytes_max:
                payloads.append(record)
                kept.append(index)
            else:
                bad.append(_placed(self._refusal(record), chunk, index))
        places = np.asarray(kept, np.int64)
        for start, rows in self._rows_of(payloads):
            stop = start + (rows.table.num_rows if rows.counts is None else len(rows.counts))
            with plugins.blamed(ConfigError, f"{self._codec_name}: what decode gave"):
                part = self._extract(chunk, rows, places[start:stop])
            yield part

    def _rows_of(self, payloads: list[bytes]) -> Iterator[tuple[int, RecordRows]]:
        """What the payloads hold: all of them, or halves of halves, each with the index of its first payload."""
        waiting = [(0, len(payloads))] if payloads else []
        while waiting:
            start, stop = waiting.pop()
            try:
                rows = self._codec.decode(payloads[start:stop])
            except Exception as error:
                if stop - start > 1:
                    middle = (start + stop) // 2
                    waiting += [(middle, stop), (start, middle)]
                    continue
                yield start, self._refused(error)
                continue
            count = rows.table.num_rows if rows.counts is None else len(rows.counts)
            held = rows.table.num_rows if rows.counts is None else int(rows.counts.sum())
            if count != stop - start or held != rows.table.num_rows:
                raise ConfigError(
                    f"{self._codec_name}: decode made {rows.table.num_rows} rows of {stop - start} records, of {count} of "
                    f"which it says that they have {held}; it must make those of each, in order"
                )
            yield start, rows

    def _refused(self, error: Exception) -> RecordRows:
        """No rows, of a record that the codec fails at even alone."""
        if not isinstance(error, BadSample):
            # A third party's codec that trips over one record is no reason to stop: the breaker tells of many.
            if not self._told:
                logger.warning("%s: decode failed, decoding is slow: %r", self._codec_name, error)
            self._told = True
            error = BadSample("codec", f"{self._codec_name} failed: {type(error).__name__}: {error}")
        return RecordRows(self.columns.arrow_schema.empty_table(), np.zeros(1, np.int64), {0: error})

    def _refusal(self, record: bytes | None) -> BadSample:
        if not record:
            return BadSample("missing", "the record is null" if record is None else "the record is empty")
        limit = self._record_bytes_max
        return BadSample(
            "too_large", f"the record has {len(record)} bytes or more; record_bytes_max is {limit}"
        )


def _placed(error: BadSample, chunk: Chunk, index: int, leaf: int | None = None) -> BadSample:
    offset = int(chunk.offsets[index])
    return BadSample(
        error.reason, error.detail, field=error.field, partition=chunk.partition, offset=offset, leaf=leaf
    )


def _indexed(error: BadSample, index: int) -> BadSample:
    return BadSample(error.reason, f"sample {index}: {error.detail}", field=error.field, offset=index)
