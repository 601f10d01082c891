"""docs/metrics.md, from the registries of the daemon and of a follower."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from streamtrain.metrics import Definition, Metrics

__all__ = ["follower_definitions", "write_metrics"]

_HEAD = """\
# Metrics

*Generated from the code by `make docs`; CI fails when it is out of date.*

Base units (seconds, bytes), counters end in `_total`, and a histogram `NAME` is `NAME_bucket`, `NAME_sum` and `NAME_count`. Beside
these each process shows `process_*` and `python_info`. What to look at, and the alerts: [operations.md](operations.md#alerts).

The labels are bounded: `partition`, `table`, `label`, `exporter` and `follower` by the job, `reader` by the 16 furthest behind, the
others by fixed words.
"""
_DAEMON = "## The daemon\n\n`http.port` of `streamtrain run`.\n"
_FOLLOWER = """\
## A follower

`streamtrain follow DIR --listen HOST:PORT`, or in a service of your own
`prometheus_client.REGISTRY.register(streamtrain.serving.metrics.FollowerCollector(follower))`.
"""


def write_metrics() -> str:
    """The whole page as Markdown."""
    parts = [_HEAD, _DAEMON, _table(Metrics().definitions), _FOLLOWER, _table(follower_definitions())]
    return "\n".join(parts).rstrip() + "\n"


def follower_definitions() -> Iterator[Definition]:
    """What a follower shows."""
    # Only where the page is written: a follower brings JAX along.
    from streamtrain.serving import Follower
    from streamtrain.serving.metrics import FollowerCollector

    for family in FollowerCollector(Follower("nowhere")).describe():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = tuple(getattr(family, "_labelnames", ()))
        yield Definition(name, family.type, family.documentation, labels)


def _table(definitions: Iterable[Definition]) -> str:
    rows = ["| metric | kind | labels | meaning |", "| --- | --- | --- | --- |"]
    for one in definitions:
        labels = ", ".join(f"`{label}`" for label in one.labels)
        rows.append(f"| `{one.name}` | {one.kind} | {labels} | {one.text} |")
    return "\n".join(rows) + "\n"
