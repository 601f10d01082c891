"""The shipped rules and dashboard as files: what Prometheus' own tool says of them, and that what they name is there."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from streamtrain.metrics import Definition, Metrics
from streamtrain.metrics_page import follower_definitions
from tests.conftest import require
from tests.prometheus import SHIPPED, faster
from tests.servers import ROOT

RULES = (SHIPPED / "rules.yml").read_text()
ALERTS = re.findall(r"- alert: (\w+)", RULES)
TESTS = sorted((SHIPPED / "tests").glob("*.yml"))
GRAFANA = ROOT / "deploy" / "grafana"


def promtool(*arguments: str | Path, cwd: Path = SHIPPED) -> None:
    """Runs it; fails with what it says."""
    require("promtool", "promtool")
    done = subprocess.run(
        ["promtool", *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_configuration_and_the_rules() -> None:
    promtool("check", "config", "prometheus.yml")
    promtool("check", "rules", "--lint-fatal", "rules.yml")


def test_the_rules_pass_their_tests() -> None:
    promtool("test", "rules", *TESTS)


def test_a_rule_that_is_changed_fails_its_tests(tmp_path: Path) -> None:
    require("promtool", "promtool")
    changed = RULES.replace("[5m]) == 0", "[5m]) < 0")
    assert changed != RULES
    (tmp_path / "rules.yml").write_text(changed)
    (tmp_path / "tests").mkdir()
    for test in TESTS:
        (tmp_path / "tests" / test.name).write_text(test.read_text())
    with pytest.raises(AssertionError, match="StreamtrainNotLearning"):
        promtool("test", "rules", *(tmp_path / "tests").glob("*.yml"), cwd=tmp_path)


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_is_tested_and_links_a_section_that_says_what_to_do(alert: str) -> None:
    rule = RULES.split(f"- alert: {alert}\n", 1)[1].split("- alert: ", 1)[0]
    assert re.search(r"severity: (page|ticket)\n", rule)
    (page, anchor), *others = re.findall(r"runbook_url: (\S+)#(\S+)", rule)
    assert not others and anchor == alert.lower()
    section = (ROOT / page).read_text().split(f"### {alert}\n", 1)[1].split("\n#", 1)[0]
    assert all(f"**{word}:**" in section for word in ("Means", "Look", "Do"))
    assert any(f"alertname: {alert}\n" in test.read_text() for test in TESTS)


def test_durations_alone_are_made_faster() -> None:
    assert faster("for: 5m\nrate(x[1h] offset 10m) > 15 # ratio_rate5m") == (
        "for: 3000ms\nrate(x[36000ms] offset 6000ms) > 15 # ratio_rate5m"
    )


def series(definition: Definition) -> set[str]:
    """The names under which Prometheus has it."""
    if definition.kind != "histogram":
        return {definition.name}
    return {f"{definition.name}_{part}" for part in ("bucket", "sum", "count")}


def test_rules_and_dashboard_ask_for_metrics_that_there_are() -> None:
    known = set().union(*map(series, [*Metrics().definitions, *follower_definitions()]))
    asked = re.findall(r"\bstreamtrain_[a-z_]+\b(?!:)", RULES + dashboard_expressions())
    # What is recorded by the rules themselves has colons in its name.
    assert {name for name in asked if name not in known} <= {"streamtrain_follower"}
    bounds = re.findall(r'le="([^"]+)"', RULES)
    assert set(bounds) == {"5.0"}


def dashboard_expressions() -> str:
    panels = json.loads((GRAFANA / "dashboards" / "streamtrain.json").read_text())["panels"]
    return "\n".join(target["expr"] for panel in panels for target in panel.get("targets", ()))


def test_the_dashboard_uses_the_data_source_that_is_chosen_and_no_panel_covers_another() -> None:
    dashboard = json.loads((GRAFANA / "dashboards" / "streamtrain.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (panel["gridPos"]["x"] + dx, panel["gridPos"]["y"] + dy)
        for panel in panels
        for dx in range(panel["gridPos"]["w"])
        for dy in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24
    assert {p["datasource"]["uid"] for p in panels if p["type"] != "row"} == {"${datasource}"}
    assert [v["name"] for v in dashboard["templating"]["list"]] == ["datasource", "job", "instance"]
