"""What `inspect_table` found, as lines of text."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["lines"]

_BAR_CHARACTERS = 40
_VECTOR_COLUMNS = 8


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The lines of a report."""
    if found["about"] == "movers":
        yield f"{found['model']}, table {found['table']}, from epoch {found['from']} to epoch {found['to']}"
        yield from _movers(found)
        return
    yield f"{found['model']}, table {found['table']}, epoch {found['epoch']} ({found['step_next']:,} steps)"
    match found["about"]:
        case "summary":
            yield from _summary(found)
        case "row":
            yield from _row(found)
        case "top":
            yield from _rows(found["rows"])
        case "file":
            yield from (f"wrote {rows:,} rows to {path}" for path, rows in found["files"].items())


def _summary(found: dict[str, Any]) -> Iterator[str]:
    floats = f"dim {found['dim']} and {found['optimizer_floats']} optimizer floats"
    yield f"rows       {found['rows']:,} of {floats}, {found['bytes'] / 1e6:,.1f} MB; {found['samples']:,} samples learned"
    yield f"collisions {_collisions(found)}"
    if found["admission"] is not None:
        yield from _admission(found["admission"])
    yield from _histogram("frequency: occurrences learned from", found["frequency"], whole=True)
    yield from _histogram("age: steps since the last update", found["age"], whole=True)
    yield from _histogram("norm: L2 of the weights", found["norm"], whole=False)
    yield from _epochs(found["epochs"])
    if found["png"]:
        yield f"wrote {found['png']}"


def _admission(about: dict[str, Any]) -> Iterator[str]:
    rule = f"admission  {about['kind']}, a row from {about['threshold']:,} occurrences on"
    if about["counts"] is None:
        yield (
            f"{rule}; about {about['ids']:,.0f} ids wait, {about['fill']:.1%} of the filter's counters are in use: "
            f"{about['mistaken']:.2g} of new ids are taken for one of them"
        )
    else:
        yield f"{rule}; {about['ids']:,.0f} ids wait"
        yield from _histogram("waiting: occurrences so far", about["counts"], whole=True)


def _collisions(found: dict[str, Any]) -> str:
    about = found["collisions"]
    if about["kind"] == "hash64":
        probability = about["probability"]
        return f"each id has its own row; two values share one 64-bit id with probability {probability:.2g}"
    parts = ", ".join(
        f"{used:,} of {size:,} rows in use"
        for used, size in zip(about["occupied"], about["sizes"], strict=True)
    )
    text = (
        f"{parts}; about {about['ids']:,.0f} ids, {about['collided']:.2%} of them share all rows with another"
    )
    if "known_ids" in about:
        text += f"; of {about['known_ids']:,} ids whose values are known {about['known_collided']:.2%} do"
    return text


def _histogram(title: str, histogram: dict[str, Any], *, whole: bool) -> Iterator[str]:
    quantiles = histogram["quantiles"]
    yield (
        f"{title}; mean {histogram['mean']:,.4g}, median {quantiles['0.5']:,.4g}, "
        f"99 % {quantiles['0.99']:,.4g}, max {histogram['max']:,.4g}"
    )
    bars = histogram["bars"]
    most = max((count for *_, count in bars), default=0)
    names = [_range(low, high, whole) for low, high, _ in bars]
    width = max(map(len, names), default=0)
    for name, (_, _, count) in zip(names, bars, strict=True):
        bar = "█" * max(round(_BAR_CHARACTERS * count / most), 1 if count else 0)
        yield f"  {name:>{width}}  {bar:<{_BAR_CHARACTERS}} {count:,}"


def _range(low: float, high: float, whole: bool) -> str:
    if not high:
        return "0"
    if not whole:
        return f"{low:.3g} to {high:.3g}"
    return f"{low:,.0f}" if high - low <= 1 else f"{low:,.0f} to {high - 1:,.0f}"


def _epochs(epochs: Sequence[dict[str, Any]]) -> Iterator[str]:
    if not epochs:
        return
    yield "newest epochs: rows that are new, changed, removed"
    yield from _columns(
        ["epoch", "committed", "steps", "samples", "new", "changed", "removed"],
        [
            [
                str(one["epoch"]),
                time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(one["committed_at_ms"] / 1000)),
                *(f"{one[name]:,}" for name in ("steps", "samples", "new", "changed", "removed")),
            ]
            for one in epochs
        ],
    )


def _shared_row(found: dict[str, Any]) -> Iterator[str]:
    yield f"id {found['id']:#018x} is made of"
    yield from _rows(found["rows"])
    if found["vector"] is None:
        yield f"and of {len(found['row_ids']) - len(found['rows'])} more that no sample has changed yet"
    else:
        yield from _numbers("vector", found["vector"])


def _row(found: dict[str, Any]) -> Iterator[str]:
    if "row" not in found:
        yield from _shared_row(found)
        return
    row = found["row"]
    yield from _rows([row])
    for name in ("vector", "optimizer"):
        yield from _numbers(name, row[name])
    if "nearest" in found:
        yield f"nearest by {found['by']}"
        yield from _rows(found["nearest"], "cosine", "dot")


def _numbers(name: str, numbers: Sequence[float]) -> Iterator[str]:
    for first in range(0, len(numbers), _VECTOR_COLUMNS):
        part = " ".join(f"{number:>12.6g}" for number in numbers[first : first + _VECTOR_COLUMNS])
        yield f"{name if not first else '':<9} {part}"


def _movers(found: dict[str, Any]) -> Iterator[str]:
    yield f"{found['moved']:,} moved, {found['new']:,} new, {found['removed']:,} removed, {found['unchanged']:,} unchanged"
    yield from _histogram(
        "distance of those that moved: L2 of the difference", found["distance"], whole=False
    )
    if found["farthest"]:
        yield "moved farthest"
        yield from _rows(found["farthest"], "distance")
    for name in ("new", "removed"):
        if found[f"largest_{name}"]:
            yield f"{name}, the largest norms"
            yield from _rows(found[f"largest_{name}"])


def _rows(rows: Sequence[dict[str, Any]], *scores: str) -> Iterator[str]:
    heading = ["id", *scores, "count", "last step", "age", "norm"]
    named = any("value" in row for row in rows)
    yield from _columns(
        heading + ["slot", "value"] * named,
        [
            [
                f"{row['id']:#018x}",
                *(f"{row[score]:.6g}" for score in scores),
                *(f"{row[name]:,}" for name in ("count", "last_step", "age")),
                f"{row['norm']:.6g}",
                *([row["slot"] or "-", _shown(row["value"])] if named else []),
            ]
            for row in rows
        ],
    )


def _shown(value: str | None) -> str:
    """A value as one line: it came from outside, and a terminal obeys control characters."""
    return (
        "-"
        if value is None
        else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in value)
    )


def _columns(heading: list[str], cells: Sequence[list[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(heading, *cells, strict=True)]
    for line in (heading, *cells):
        yield "  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True))
