"""What the metrics show and what they leave out, and that the page about them is whole."""

from __future__ import annotations

from math import nan

from prometheus_client import generate_latest

from streamtrain.metrics import Metrics
from streamtrain.metrics_page import write_metrics
from streamtrain.training.prequential import Quality


def test_a_measure_that_is_not_defined_has_no_series_and_comes_back() -> None:
    metrics = Metrics()

    def auc() -> float | None:
        labels = {"label": "click", "measure": "auc", "over": "window"}
        return metrics.registry.get_sample_value("streamtrain_prequential", labels)

    for value, shown in ((0.7, 0.7), (nan, None), (nan, None), (0.8, 0.8)):
        metrics.show_quality("window", {"click": Quality(5, value, 0.5, 0.9, 1.25, 0.1)})
        assert auc() == shown
    assert b" NaN\n" not in generate_latest(metrics.registry)


def test_every_metric_of_the_registry_stands_on_the_page_by_the_name_that_prometheus_gives_it() -> None:
    page, metrics = write_metrics(), Metrics()
    shown = {family.name for family in metrics.registry.collect() if family.name.startswith("streamtrain_")}
    assert {one.name.removesuffix("_total") for one in metrics.definitions} == shown
    assert all(f"\n| `{one.name}` | {one.kind} | " in page for one in metrics.definitions)
    assert "| `streamtrain_bad_samples_total` | counter | `reason` |" in page
    assert "| `streamtrain_follower_table_rows` | gauge | `follower`, `table` |" in page
