"""A real Prometheus with the shipped files of deploy/prometheus, made a hundred times faster."""

from __future__ import annotations

import json
import re
import shutil
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.servers import ROOT, Server, accepts

__all__ = ["PrometheusServer", "faster"]

SHIPPED = ROOT / "deploy" / "prometheus"
FASTER = 100
"""Every range, offset and `for` of the rules is divided by it: five minutes become three seconds. Thresholds stay."""
INTERVAL = "500ms"
_DURATION = re.compile(r"(\[|offset |for: )(\d+)([smhd])\b")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def faster(rules: str) -> str:
    """The text of rules with every duration in milliseconds, divided by FASTER."""

    def divided(found: re.Match[str]) -> str:
        before, number, unit = found.groups()
        return f"{before}{int(number) * _SECONDS[unit] * 1000 // FASTER}ms"

    return _DURATION.sub(divided, rules)


class PrometheusServer(Server):
    """Scrapes and evaluates twice a second.

    Attributes:
      targets: by job of the shipped prometheus.yml, the address to scrape in place of the one there.
    """

    name = "prometheus"

    def __init__(self, targets: Mapping[str, str], folder: Path | None = None) -> None:
        super().__init__(folder)
        self.targets = targets

    def alerts(self, state: str = "firing") -> set[str]:
        """Names of the alerts that are `firing` or `pending`."""
        found = self._get("alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in found if alert["state"] == state}

    def rules(self) -> list[dict[str, Any]]:
        """All rules as Prometheus has understood them."""
        groups: list[dict[str, Any]] = self._get("rules")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def query(self, expression: str) -> list[float]:
        """The values of an instant query; a vector."""
        found = self._get("query?" + urllib.parse.urlencode({"query": expression}))["result"]
        return [float(series["value"][1]) for series in found]

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}", timeout=10) as answer:
            return json.load(answer)["data"]

    def _prepare(self) -> None:
        super()._prepare()
        config = (SHIPPED / "prometheus.yml").read_text()
        for job, address in self.targets.items():
            config, count = re.subn(
                rf"(job_name: {job}\n.*?targets: )\[.*?\]", rf'\1["{address}"]', config, flags=re.S
            )
            assert count == 1, f"prometheus.yml has no job {job}"
        config, count = re.subn(r"(_interval|_timeout): \d+s", rf"\1: {INTERVAL}", config)
        assert count == 3, "prometheus.yml sets two intervals and a timeout"
        (self.folder / "prometheus.yml").write_text(config)
        (self.folder / "rules.yml").write_text(faster((SHIPPED / "rules.yml").read_text()))
        shutil.rmtree(self.folder / "data", ignore_errors=True)

    def _command(self) -> list[str]:
        return [
            "prometheus",
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=data",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--query.lookback-delta=5s",
            "--log.level=warn",
        ]

    def _ready(self) -> bool:
        if not accepts(self.port):
            return False
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
