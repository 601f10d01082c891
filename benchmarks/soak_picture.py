"""Draws what a soak with restarts has seen: figures over minutes, with the restarts as vertical lines.

    python -m benchmarks.soak_picture build/bench/soak_restarts.jsonl docs/soak.png

`soak_restarts --plot` does the same at its end. Every axis begins at 0, so that what looks flat is flat.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["draw", "read"]

_BLUE, _CYAN, _GREEN, _RED, _GREY = "#4477aa", "#66ccee", "#228833", "#cc3311", "#777777"
_PANELS: tuple[tuple[str, dict[str, tuple[str, str]]], ...] = (
    (
        "daemon, MB",
        {"daemon_rss_mb": ("RSS", _CYAN), "daemon_rss_anon_mb": ("RssAnon", _BLUE)},
    ),
    (
        "others, MB",
        {
            "follower_rss_anon_mb": ("follower RssAnon", _GREEN),
            "redis_rss_mb": ("Redis RSS", _RED),
            "redis_used_mb": ("Redis used_memory", _GREY),
        },
    ),
    (
        "descriptors, threads",
        {
            "daemon_threads": ("daemon threads", _CYAN),
            "daemon_fds": ("daemon descriptors", _BLUE),
            "follower_threads": ("follower threads", _GREY),
            "follower_fds": ("follower descriptors", _GREEN),
        },
    ),
    ("disk, MB", {"log_mb": ("log", _BLUE), "exports_mb": ("exports", _GREEN)}),
    ("lag, records", {"lag_records": ("lag", _RED)}),
)
"""By panel and figure: name and colour."""


def draw(
    title: str, looks: Sequence[Mapping[str, float]], restarts: Sequence[Mapping[str, Any]], path: Path
) -> None:
    """Draws a PNG.

    Args:
      title: stands above.
      looks: `at_s`, and figures; a figure that is missing leaves a hole in its line.
      restarts: `restart`, its name, and `at_s`.
      path: the file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 10), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels = figure.subplots(len(_PANELS), 1, sharex=True)
    minutes = [look["at_s"] / 60 for look in looks]
    for axes, (label, lines) in zip(panels, _PANELS):
        for name, (text, colour) in lines.items():
            axes.plot(
                minutes, [look.get(name, math.nan) for look in looks], label=text, color=colour, linewidth=1.2
            )
        for restart in restarts:
            axes.axvline(restart["at_s"] / 60, color="black", linewidth=0.8, linestyle=":")
        axes.set(ylabel=label, ylim=(0, axes.get_ylim()[1] * 1.15))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    for restart in restarts:
        words = restart["restart"].replace(", ", "\n")
        place = (restart["at_s"] / 60, 1.02)
        panels[0].annotate(
            words, place, xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=8
        )
    panels[-1].set(xlabel="minutes", xlim=(0, minutes[-1] if minutes else 1))
    figure.savefig(path, format="png", dpi=90)


def read(lines: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The looks and the restarts of a soak's file."""
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    return [row for row in rows if "restart" not in row], [row for row in rows if "restart" in row]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak_picture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("lines", type=Path, metavar="JSONL", help="what a soak has written")
    parser.add_argument("png", type=Path, metavar="PNG", help="the file to draw")
    options = parser.parse_args()
    looks, restarts = read(options.lines)
    draw(
        f"{looks[-1]['at_s'] / 60:.0f} minutes, {looks[-1]['samples']:,} samples",
        looks,
        restarts,
        options.png,
    )


if __name__ == "__main__":
    main()
