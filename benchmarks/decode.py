"""How fast records become samples, a core: by format, with and without bad records, against plain readers.

    python -m benchmarks.decode [--samples N] [--json]

Samples have 13 integer ids, 6 strings, a list of 4 ids and 3 floats: about 460 bytes as JSON. In trees, 20 samples share a user
(15 of the fields) and 4 of them an ad (5 more). Every chunk is decoded as the daemon does it, from the payloads of a source to arrays
of feature ids, in one thread; `samples_per_s` counts seconds of the processor, and is the median of `--rounds` passes that take
turns with those of the others. With bad records, 1 in 100 has a string in place of an integer, or (`bad_values`) a label of 2.

Peers decode the same payloads of flat JSON: `orjson_python` parses and collects each field in a list, `orjson_alone` parses only;
`pyarrow` reads joined lines with the explicit schema, without a check of anything and without hashing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.json as pa_json

from benchmarks.harness import machine, parser_of, tell
from streamtrain.samples.decoder import Decoder
from streamtrain.samples.schema import Schema
from streamtrain.sources import Chunk

__all__ = ["chunks_of", "payloads_of", "samples_of"]

_USER = [f"u{i}" for i in range(9)]
_USER_TEXTS = ["country", "device", "language", "plan"]
_AD = [f"a{i}" for i in range(3)]
_LEAVES_PER_AD, _ADS_PER_USER = 4, 5
_CHUNK_SAMPLES = 4000


def schema(levels: bool) -> Schema:
    """The samples, flat or as trees."""

    def at(level: str, **slot: Any) -> dict[str, Any]:
        return slot | ({"level": level} if levels else {})

    slots: dict[str, Any] = {name: at("user") for name in _USER}
    slots |= {name: at("user", type="string") for name in _USER_TEXTS}
    slots |= {"history": at("user", kind="sequence"), "age": at("user", kind="dense")}
    slots |= {name: at("ad") for name in _AD} | {"brand": at("ad", type="string")}
    slots |= {"bid": at("ad", kind="dense"), "item": {}, "title": {"type": "string"}}
    slots |= {"price": {"kind": "dense"}}
    shape = [{"name": "user", "children": "ads"}, {"name": "ad", "children": "items"}]
    return Schema.model_validate({"labels": ["click"], "slots": slots, "levels": shape if levels else []})


def samples_of(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Flat samples, of which those of one user, and of one ad, follow one another."""
    random = np.random.default_rng(seed)
    found = []
    user: dict[str, Any] = {}
    ad: dict[str, Any] = {}
    for i in range(count):
        if i % (_LEAVES_PER_AD * _ADS_PER_USER) == 0:
            user = {name: int(random.integers(1 << 40)) for name in _USER}
            user |= {name: f"{name}-{int(random.integers(1000))}" for name in _USER_TEXTS}
            user |= {"history": random.integers(1 << 30, size=4).tolist(), "age": float(random.integers(90))}
        if i % _LEAVES_PER_AD == 0:
            ad = {name: int(random.integers(1 << 30)) for name in _AD}
            ad |= {"brand": f"brand-{int(random.integers(500))}", "bid": round(float(random.random()), 4)}
        item = {"item": int(random.integers(1 << 30)), "title": f"title {int(random.integers(1 << 20))}"}
        item |= {"price": round(float(random.random()), 4), "click": int(random.random() < 0.1)}
        found.append(user | ad | item)
    return found


def trees_of(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same samples, each user's under one root."""
    user_fields = [*_USER, *_USER_TEXTS, "history", "age"]
    ad_fields = [*_AD, "brand", "bid"]
    per_user = _LEAVES_PER_AD * _ADS_PER_USER
    trees = []
    for start in range(0, len(samples), per_user):
        own = samples[start : start + per_user]
        ads = [own[at : at + _LEAVES_PER_AD] for at in range(0, len(own), _LEAVES_PER_AD)]
        trees.append(
            {name: own[0][name] for name in user_fields}
            | {
                "ads": [
                    {name: leaves[0][name] for name in ad_fields}
                    | {
                        "items": [
                            {n: leaf[n] for n in ("item", "title", "price", "click")} for leaf in leaves
                        ]
                    }
                    for leaves in ads
                ]
            }
        )
    return trees


def ipc_of(table: pa.Table, rows: int) -> list[bytes]:
    """Arrow records of `rows` rows each."""
    found = []
    for start in range(0, table.num_rows, rows):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.slice(start, rows).combine_chunks())
        found.append(sink.getvalue().to_pybytes())
    return found


def payloads_of(samples: Sequence[dict[str, Any]]) -> dict[str, tuple[str, bool, list[bytes] | pa.Table]]:
    """By name: codec, whether records are trees, and the records."""
    flat, trees = schema(False), schema(True)
    lines = [orjson.dumps(sample) for sample in samples]

    def spoilt(**wrong: Any) -> list[bytes]:
        return [
            orjson.dumps(s | wrong) if i % 100 == 37 else line
            for i, (s, line) in enumerate(zip(samples, lines))
        ]

    table = pa.Table.from_pylist(list(samples), Decoder(flat).columns.arrow_schema)
    nested_rows = trees_of(samples)
    nested = pa.Table.from_pylist(nested_rows, Decoder(trees).columns.arrow_schema)
    return {
        "json_flat": ("json", False, lines),
        "json_flat_bad_types": ("json", False, spoilt(u3="not a number")),
        "json_flat_bad_values": ("json", False, spoilt(click=2)),
        "json_trees": ("json", True, [orjson.dumps(tree) for tree in nested_rows]),
        "arrow_flat": ("arrow", False, ipc_of(table, 200)),
        "arrow_trees": ("arrow", True, ipc_of(nested, 10)),
        "parquet_flat": ("json", False, table),
        "parquet_trees": ("json", True, nested),
    }


def chunks_of(records: list[bytes] | pa.Table, per_chunk: int) -> list[Chunk]:
    """The records as a source gives them."""
    size = records.num_rows if isinstance(records, pa.Table) else len(records)
    found = []
    for first in range(0, size, per_chunk):
        part = (
            records.slice(first, per_chunk)
            if isinstance(records, pa.Table)
            else records[first : first + per_chunk]
        )
        offsets = np.arange(first, min(first + per_chunk, size), dtype=np.int64)
        found.append(Chunk("p", first, first + len(offsets), offsets, offsets + 1_700_000_000_000, part))
    return found


def _ours(codec: str, levels: bool, records: list[bytes] | pa.Table, samples: int) -> Callable[[], int]:
    decoder = Decoder(schema(levels), codec)
    size = records.num_rows if isinstance(records, pa.Table) else len(records)
    chunks = chunks_of(records, max(1, size * _CHUNK_SAMPLES // samples))
    return lambda: sum(decoder.decode(chunk).batch.size for chunk in chunks)


def _orjson_python(lines: Sequence[bytes], names: Sequence[str]) -> int:
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for line in lines:
        sample = orjson.loads(line)
        for name in names:
            columns[name].append(sample[name])
    return len(columns[names[0]])


def _pyarrow(lines: Sequence[bytes], options: pa_json.ParseOptions) -> int:
    rows = 0
    for start in range(0, len(lines), _CHUNK_SAMPLES):
        joined = b"\n".join(lines[start : start + _CHUNK_SAMPLES])
        read = pa_json.ReadOptions(use_threads=False, block_size=len(joined) + 1)
        rows += pa_json.read_json(pa.BufferReader(joined), read, options).num_rows
    return rows


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All formats and peers, taking turns; see the module."""
    samples = samples_of(options.samples)
    payloads = payloads_of(samples)
    lines = payloads["json_flat"][2]
    assert isinstance(lines, list)
    parse = pa_json.ParseOptions(
        explicit_schema=Decoder(schema(False)).columns.arrow_schema, unexpected_field_behavior="ignore"
    )
    names = list(samples[0])
    ways: dict[str, Callable[[], int]] = {n: _ours(*p, len(samples)) for n, p in payloads.items()}
    ways["peer_orjson_alone"] = lambda: sum(1 for line in lines if orjson.loads(line))
    ways["peer_orjson_python"] = lambda: _orjson_python(lines, names)
    ways["peer_pyarrow"] = lambda: _pyarrow(lines, parse)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    learned: dict[str, int] = {}
    for round_ in range(options.rounds + 1):
        for name, way in ways.items():
            begin = time.process_time()
            learned[name] = way()
            if round_:  # The first compiles.
                seconds[name].append(time.process_time() - begin)
    rates = {name: round(len(samples) / statistics.median(times)) for name, times in seconds.items()}
    rows = [
        {
            "way": name,
            "samples_per_s": rates[name],
            "of_json_flat": round(rates[name] / rates["json_flat"], 2),
            "bytes_per_sample": round(_bytes(payloads[name][2]) / len(samples)) if name in payloads else None,
            "good": learned[name],
        }
        for name in ways
    ]
    return {"samples": len(samples), "rates": rows, "machine": machine()}


def _bytes(records: list[bytes] | pa.Table) -> int:
    return int(records.nbytes) if isinstance(records, pa.Table) else sum(map(len, records))


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = parser_of("decode", __doc__)
    parser.add_argument("--samples", type=int, default=40_000, metavar="N", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: %(default)s")
    options = parser.parse_args(arguments)
    if options.samples < 1 or options.rounds < 1:
        parser.error("--samples and --rounds must be at least 1")
    return options


def main() -> None:
    options = options_of()
    tell(measure(options), options.json)


if __name__ == "__main__":
    main()
