"""The shipped rules and dashboard as files: what Prometheus' own tool says of them, and that what they name is there."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

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


def lost(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Paths of `before` that `after` lacks, or has otherwise."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            yield from lost(value, after[key], f"{path}/{key}") if key in after else [f"{path}/{key}"]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for one, other in zip(before, after, strict=True):
            yield from lost(one, other, path)
    elif before != after:
        yield path


def test_grafanas_own_library_reads_the_dashboard_and_writes_it_again_without_a_loss() -> None:
    """There is no Grafana to be had as a package, but its types are: made from the schemas of the version that they name."""
    register_default_plugins()
    dashboard = json.loads((GRAFANA / "dashboards" / "streamtrain.json").read_text())
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))
    # What belongs to the kind of variable and of data source, not to every dashboard, no schema has.
    own = {"/templating/list/definition", "/annotations/list/titleFormat", "/annotations/list/textFormat"}
    assert set(lost(dashboard, again)) == own
    panel = next(p for p in dashboard["panels"] if p["type"] == "timeseries")
    panel["fieldConfig"]["defaults"]["unitt"] = "s"
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))
    assert "/panels/fieldConfig/defaults/unitt" in set(lost(dashboard, again))


def test_what_grafana_is_provisioned_with_is_where_the_compose_file_puts_it() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    mounts = {to: ROOT / at for at, to, *_ in (v.split(":") for v in compose["grafana"]["volumes"])}
    provisioning = mounts["/etc/grafana/provisioning"]
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "streamtrain.yml").read_text())["providers"]
    assert [p.name for p in mounts[provider["options"]["path"]].glob("*.json")] == ["streamtrain.json"]
    command = " ".join(compose["prometheus"].get("command", []))
    port = re.search(r"--web.listen-address=\S*:(\d+)", command)
    assert source["url"] == f"http://prometheus:{port.group(1) if port else 9090}"
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    scraped = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scraped
    (chosen,) = [
        v
        for v in json.loads((GRAFANA / "dashboards" / "streamtrain.json").read_text())["templating"]["list"]
        if v["type"] == "datasource"
    ]
    assert chosen["query"] == source["type"]
