"""Between formats, and from flat samples to trees: neighbours that agree in the fields of a level share a node of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from streamtrain.errors import BadSample, ConfigError
from streamtrain.samples.codec import file_codec_of
from streamtrain.samples.fields import arrow_schema_of, fields_of
from streamtrain.samples.schema import LEAF, Schema
from streamtrain.samples.values import TreeChecker, check_values, table_of

__all__ = ["Converted", "Grouping", "convert"]

_ROWS_MAX = 4096


@dataclass(frozen=True, slots=True)
class Converted:
    """What a conversion did.

    Attributes:
      samples: how many, in and out.
      records: of the output: trees, or samples.
      bytes_in, bytes_out: of the files.
    """

    samples: int
    records: int
    bytes_in: int
    bytes_out: int

    @property
    def repetition(self) -> float:
        """How many samples share a tree."""
        return self.samples / self.records if self.records else 0.0


class Grouping:
    """Makes trees of flat samples.

    Args:
      schema: with levels.
      sort_by: fields to sort by, within windows of `window` samples; none: neighbours are grouped as they come.
      window: samples that are held to be sorted; a group never goes over the end of a window where `sort_by` is given.
      leaves_max: a tree ends with so many samples.
    """

    def __init__(self, schema: Schema, sort_by: Sequence[str], window: int, leaves_max: int) -> None:
        if not schema.levels:
            raise ConfigError("schema.levels: there are none, so there is nothing to group samples by")
        fields = fields_of(schema)
        if unknown := [name for name in sort_by if name not in fields]:
            raise ConfigError(f"--group-by {unknown[0]}: the schema reads no such field")
        self._levels = [
            ([name for name, f in fields.items() if f.level == level.name], level.children)
            for level in schema.levels
        ]
        self._leaf = [name for name, f in fields.items() if f.level == LEAF]
        self._sort_by, self._window, self._leaves_max = sort_by, window, leaves_max

    def trees(self, samples: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """The samples in trees, in order; sorted by `sort_by` within their windows."""
        key = _key_of(self._levels[0][0])
        for window in self._windows(samples):
            run: list[Mapping[str, Any]] = []
            for sample in window:
                if run and (len(run) >= self._leaves_max or key(sample) != key(run[0])):
                    yield self._node(run, 0)
                    run = []
                run.append(sample)
            if run:
                yield self._node(run, 0)

    def _windows(self, samples: Iterable[Mapping[str, Any]]) -> Iterator[Iterable[Mapping[str, Any]]]:
        if not self._sort_by:
            yield samples
            return
        held: list[Mapping[str, Any]] = []
        for sample in samples:
            held.append(sample)
            if len(held) >= self._window:
                yield sorted(held, key=self._order)
                held = []
        yield sorted(held, key=self._order)

    def _order(self, sample: Mapping[str, Any]) -> list[tuple[bool, Any]]:
        # Missing values come first: they do not compare with others.
        return [(sample.get(name) is not None, sample.get(name)) for name in self._sort_by]

    def _node(self, samples: Sequence[Mapping[str, Any]], depth: int) -> dict[str, Any]:
        """One node of a level, with all of `samples` under it, which agree in its fields."""
        own, children = self._levels[depth]
        if depth + 1 < len(self._levels):
            groups = groupby(samples, key=_key_of(self._levels[depth + 1][0]))
            below = [self._node(list(group), depth + 1) for _, group in groups]
        else:
            below = [_picked(sample, self._leaf) for sample in samples]
        return _picked(samples[0], own) | {children: below}


def convert(
    source: Sequence[Path],
    target: Path,
    schema: Schema,
    grouping: Grouping | None = None,
    progress: Any = lambda records: None,
) -> Converted:
    """Writes the records of files as another file, which takes its name when it is whole.

    Args:
      source: JSON lines, Parquet or Arrow, one after the other.
      target: its ending says the format. It must not exist.
      schema: the samples: only the fields that it reads are kept, as their types.
      grouping: makes trees of flat samples; None: records stay what they are, samples or the schema's trees.
      progress: called with the number of records so far.

    Raises:
      ConfigError: the target exists, or its ending is none that can be written.
      BadSample: a record is none of the schema's; `offset` is its row, the text names it and its file.
      SourceError: a file is damaged.
    """
    if target.exists():
        raise ConfigError(f"{target} exists: remove it, or write to another name")
    fields = fields_of(schema)
    trees = grouping is not None or bool(schema.levels)
    columns = (
        arrow_schema_of(schema, fields)
        if trees
        else pa.schema([(name, field.arrow_type) for name, field in fields.items()])
    )
    flat = None if grouping is None and schema.levels else fields
    checker = TreeChecker(schema, fields)

    def checked(record: Mapping[str, Any]) -> dict[str, Any]:
        if flat is not None:
            return check_values(record, flat)
        values, faults = checker.check(record)
        if faults:
            raise faults[0][2]
        return values

    records: Iterable[Mapping[str, Any]] = _records(
        source, columns.names if flat is None else [*fields], checked
    )
    if grouping is not None:
        records = grouping.trees(records)
    aside = target.with_name(f"{target.name}.aside")
    samples = count = 0
    try:
        with aside.open("xb") as file, _writer(target, file, columns) as write:
            for batch in _batches(records):
                write(batch)
                count += len(batch)
                samples += sum(_leaves(record, schema.levels if trees else ()) for record in batch)
                progress(count)
            file.flush()
            os.fsync(file.fileno())
        aside.rename(target)
    finally:
        aside.unlink(missing_ok=True)
    return Converted(samples, count, sum(path.stat().st_size for path in source), target.stat().st_size)


def _records(paths: Sequence[Path], columns: Sequence[str], checked: Any) -> Iterator[dict[str, Any]]:
    for path in paths:
        for run in file_codec_of(path).rows(path, 0, columns, _ROWS_MAX):
            rows = run.records.to_pylist() if isinstance(run.records, pa.Table) else run.records
            for number, row in zip(run.rows.tolist(), rows):
                try:
                    yield checked(_parsed(row) if isinstance(row, bytes) else row)
                except BadSample as error:
                    place = f"{path} row {number}: {error.detail}"
                    raise BadSample(error.reason, place, field=error.field, offset=number) from error


def _parsed(line: bytes) -> Mapping[str, Any]:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise BadSample("json", f"it is not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise BadSample("json", "it is no JSON object")
    return record


class _Write(Protocol):
    def __call__(self, records: Sequence[Mapping[str, Any]], /) -> None: ...


@contextlib.contextmanager
def _writer(target: Path, file: BinaryIO, schema: pa.Schema) -> Iterator[_Write]:
    """What writes records in the format that a name's ending says.

    Raises:
      ConfigError: there is none.
    """
    name = target.name.lower()
    if name.endswith((".jsonl", ".ndjson", ".json")):
        yield lambda records: _discard(file.write(b"".join(orjson.dumps(_bare(r)) + b"\n" for r in records)))
    elif name.endswith((".parquet", ".pq")):
        with pq.ParquetWriter(file, schema, compression="zstd") as parquet:
            yield lambda records: parquet.write_table(table_of(records, schema))
    elif name.endswith((".arrow", ".ipc", ".feather")):
        with pa.ipc.new_file(file, schema) as arrow:
            yield lambda records: arrow.write_table(table_of(records, schema))
    else:
        raise ConfigError(f"{target}: its name must end with .jsonl, .parquet or .arrow")


def _discard(_: int) -> None:
    return None


def _bare(value: Any) -> Any:
    """JSON without what is missing."""
    if isinstance(value, dict):
        return {name: _bare(inner) for name, inner in value.items() if inner is not None}
    return [_bare(inner) for inner in value] if isinstance(value, list) else value


def _batches(records: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    batch: list[Mapping[str, Any]] = []
    for record in records:
        batch.append(record)
        if len(batch) >= _ROWS_MAX:
            yield batch
            batch = []
    if batch:
        yield batch


def _leaves(record: Mapping[str, Any], levels: Sequence[Any]) -> int:
    if not levels:
        return 1
    return sum(_leaves(child, levels[1:]) for child in record[levels[0].children])


def _picked(sample: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: sample[name] for name in names if sample.get(name) is not None}


def _key_of(names: Sequence[str]) -> Any:
    if not names:
        return lambda sample: None
    return itemgetter(*names)
