"""A table's histograms and rates as one PNG. Needs matplotlib, which the daemon does not: `streamtrain[analysis]`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streamtrain.analysis.files import whole_file
from streamtrain.analysis.histogram import Histogram
from streamtrain.analysis.rates import EpochRates
from streamtrain.analysis.summary import Summary
from streamtrain.errors import ConfigError

__all__ = ["draw"]

_BAR, _NEW, _CHANGED, _REMOVED = "#4477aa", "#228833", "#bbbbbb", "#cc3311"


def draw(title: str, summary: Summary, history: Sequence[EpochRates], path: Path) -> None:
    """Draws the three histograms and the rates to `path`.

    Args:
      title: stands above.
      history: oldest first; may be empty.

    Raises:
      ConfigError: matplotlib is not installed.
      StreamtrainError: the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "--png needs matplotlib, which is not installed: pip install 'streamtrain[analysis]'"
        ) from error
    # No pyplot: it would look for a display and keep the figure for the life of the process.
    figure = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    (frequency, age), (norm, rate) = figure.subplots(2, 2)
    _bars(frequency, summary.frequency, "frequency", "occurrences learned from")
    _bars(age, summary.age, "age", "steps since the last update")
    _bars(norm, summary.norm, "L2 norm", "norm of the weights", ".2g")
    _rates(rate, history)
    with whole_file(path) as aside:
        figure.savefig(aside, format="png", dpi=120)


def _bars(axes: Any, histogram: Histogram, title: str, label: str, form: str = "g") -> None:
    bars = histogram.bars()
    axes.bar(range(len(bars)), [bar.count for bar in bars], width=0.9, color=_BAR)
    shown = range(0, len(bars), max(1, len(bars) // 10))
    axes.set_xticks(list(shown), [f"{bars[place].low:{form}}" for place in shown])
    middle = f"median {histogram.quantile(0.5):.4g}, 99 % below {histogram.quantile(0.99):.4g}"
    axes.set(title=f"{title}: {middle}", xlabel=f"{label}, from", ylabel="rows")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def _rates(axes: Any, history: Sequence[EpochRates]) -> None:
    epochs = [one.epoch for one in history]
    for name, colour in (("changed", _CHANGED), ("new", _NEW), ("removed", _REMOVED)):
        axes.plot(epochs, [getattr(one, name) for one in history], label=name, color=colour, marker=".")
    axes.set(title="rows per epoch", xlabel="epoch", ylabel="rows")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    if history:
        axes.legend()
