"""What the demo shows while it runs and leaves behind: lines on the terminal, summary.json, a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
from rich.console import Group
from rich.table import Table
from rich.text import Text

from examples.demo.world import Measured, OnlineFollower, World
from streamtrain.log.reader import LogReader

__all__ = ["screen", "summarise", "write_plot"]

_BARS = " ▁▂▃▄▅▆▇█"


def screen(world: World, online: OnlineFollower, log: LogReader, exports: Path, progress: float) -> Group:
    """The state of the moment: trainer, deltas, follower, and the two curves."""
    head = log.head() or 0
    record = log.describe(head)
    version = online.follower.version
    p50, p99 = online.freshness(50), online.freshness(99)
    table = Table(
        title=f"streamtrain: learning a stream that drifts ({progress:4.0%})",
        title_justify="left",
        expand=False,
    )
    for column in ("stream", "trainer", "deltas", "follower, another process"):
        table.add_column(column)
    table.add_row(
        f"{world.sent:,} samples",
        f"epoch {head}\n{record.samples_total:,} samples learned",
        f"newest {_newest_delta(exports) / 1e3:,.0f} kB",
        f"epoch {version.epoch if version else '-'}\nevent to visible p50 {_s(p50)}, p99 {_s(p99)}",
    )
    lines = [Text("")]
    for name, style in (("possible", "dim"), ("online", "bold green"), ("frozen", "red")):
        values = [getattr(window, name) for window in world.windows]
        known = [v for v in values if v is not None]
        if known:
            lines.append(Text(f"AUC {name:9s} {_spark(values[-60:])} {known[-1]:.3f}", style=style))
    return Group(table, *lines)


def line(world: World, online: OnlineFollower, log: LogReader) -> str:
    """The same in one line, for a pipe."""
    window = world.windows[-1] if world.windows else None
    auc = "" if window is None else f", AUC online {window.online:.3f}"
    if window is not None and window.frozen is not None:
        auc += f", frozen {window.frozen:.3f}"
    return f"{world.sent:,} samples sent, epoch {log.head()}, freshness p99 {_s(online.freshness(99))}{auc}"


def summarise(
    world: World,
    online: OnlineFollower,
    log: LogReader,
    exports: Path,
    frozen_epoch: int,
    frozen_at: int,
    seconds: float,
    store: str,
) -> dict[str, Any]:
    """What a person wants to know at the end, as JSON values."""
    head = log.head() or 0
    deltas = sorted(path.stat().st_size for path in (exports / "deltas").glob("*.safetensors"))
    auc = world.totals()
    return {
        "samples": world.sent,
        "samples_learned": log.describe(head).samples_total,
        "epochs": head,
        "seconds": round(seconds, 1),
        "store": store.split(":")[0],
        "auc_online": round(auc["online"], 4),
        "auc_frozen": round(auc["frozen"], 4),
        "auc_possible": round(auc["possible"], 4),
        "auc_gain": round(auc["online"] - auc["frozen"], 4),
        "frozen_at_epoch": frozen_epoch,
        "frozen_at_sample": frozen_at,
        "freshness_p50_s": _rounded(online.freshness(50)),
        "freshness_p99_s": _rounded(online.freshness(99)),
        "delta_bytes_median": deltas[len(deltas) // 2] if deltas else 0,
        "delta_bytes_max": deltas[-1] if deltas else 0,
        "base_bytes": max((p.stat().st_size for p in (exports / "bases").glob("*.safetensors")), default=0),
        "windows": [
            {
                "samples": w.samples,
                "online": _rounded(w.online),
                "frozen": _rounded(w.frozen),
                "possible": _rounded(w.possible),
            }
            for w in world.windows
        ],
    }


def write_plot(path: Path, windows: list[Measured], frozen_at: int) -> None:
    """AUC over the stream: online, frozen, and what is possible."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4.5))
    x = [window.samples for window in windows]
    axes.plot(
        x, [w.possible for w in windows], color="0.7", label="possible (the stream's own probabilities)"
    )
    axes.plot(x, [w.online for w in windows], color="tab:green", label="online: follows every delta")
    frozen = [(w.samples, w.frozen) for w in windows if w.frozen is not None]
    axes.plot(
        *zip(*frozen, strict=True), color="tab:red", label="frozen early: the same model, no more deltas"
    )
    axes.axvline(frozen_at, color="0.5", linestyle=":", linewidth=1)
    axes.set(
        xlabel="samples",
        ylabel="AUC of requests, scored before they are learned",
        title="A stream that drifts",
    )
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncol=3, frameon=False, fontsize="small")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    path.write_bytes(orjson.dumps(summary, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def _newest_delta(exports: Path) -> int:
    newest = max((exports / "deltas").glob("*.safetensors"), default=None)
    try:
        return 0 if newest is None else newest.stat().st_size
    except FileNotFoundError:
        return 0


def _spark(values: list[float | None]) -> str:
    known = [v for v in values if v is not None]
    low, high = min(0.5, *known), max(0.8, *known)
    return "".join(" " if v is None else _BARS[1 + int((v - low) / (high - low) * 7)] for v in values)


def _s(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f} s"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
