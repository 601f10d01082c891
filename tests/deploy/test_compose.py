"""docker-compose.yml: what it may say, and that what it says runs."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from streamtrain.config import load_job
from tests.conftest import require
from tests.deploy.containerfile import stages
from tests.deploy.modules import module
from tests.servers import ROOT, KafkaServer

COMPOSE = "github.com/compose-spec/compose-go/v2@v2.9.0"
HERE = Path(__file__).parent


@pytest.fixture
def file() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return copy.deepcopy(loaded)


def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((module(COMPOSE) / "schema" / "compose-spec.json").read_text())
    return found


def test_the_file_keeps_to_the_compose_specification(file: dict[str, Any]) -> None:
    jsonschema.Draft7Validator(schema()).validate(file)


def test_a_key_that_compose_does_not_know_is_found(file: dict[str, Any]) -> None:
    file["services"]["redis"]["healthchecks"] = {}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(schema()).validate(file)


def test_every_service_is_bounded_watched_and_private(file: dict[str, Any]) -> None:
    for name, service in file["services"].items():
        assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}, name
        assert "no-new-privileges:true" in service["security_opt"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        # The image of the daemon has a check of its own; a producer answers nobody.
        watched = "test" in service.get("healthcheck", {}) or name in ("streamtrain", "topic", "producer")
        assert watched, name


def test_every_mount_is_a_volume_or_a_file_of_the_repository(file: dict[str, Any]) -> None:
    used = set()
    for service in file["services"].values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).exists() and mount.endswith(":ro")
            else:
                used.add(source)
    assert used == set(file["volumes"])


def test_a_container_has_longer_to_stop_than_the_daemon_takes(file: dict[str, Any]) -> None:
    job = load_job(ROOT / "deploy/compose/job.toml", {})
    grace = file["services"]["streamtrain"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > job.training.stop_timeout_s


def test_the_image_is_warmed_with_what_the_demo_compiles() -> None:
    warm, job = (load_job(ROOT / "deploy" / name, {}) for name in ("container/warm.toml", "compose/job.toml"))
    assert (warm.sample_schema, warm.tables, warm.model) == (job.sample_schema, job.tables, job.model)
    assert (warm.training, warm.optimizer) == (job.training, job.optimizer)
    image = stages(ROOT / "deploy/container/Containerfile")[-1]
    assert any("warm.toml" in arguments for name, arguments in image.steps if name == "RUN")


def test_all_services_run_as_the_file_says_the_model_learns_and_the_follower_serves(
    kafka: KafkaServer, tmp_path: Path
) -> None:
    """Kafka's fixture brings its jars; the broker here is one of its own."""
    require("machine of its own", "unshare", "redis-server", "prometheus", "wget", "ip")
    if os.geteuid() != 0:
        pytest.skip("needs root: services get users, hosts and paths of their own")
    command = [HERE / "copy_of_root.sh", tmp_path, sys.executable, "-m", "tests.deploy.composed", tmp_path]
    run = subprocess.run(
        ["bash", *map(str, command)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    outputs = "".join(
        f"--- {p.name}\n{p.read_text(errors='replace')[-1500:]}\n" for p in tmp_path.glob("*.out")
    )
    assert run.returncode == 0, f"{run.stdout}{run.stderr}\n{outputs}"
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["targets"] == {"streamtrain": "up", "streamtrain-follower": "up"}
    epochs = [version["epoch"] for version in result["versions"]]
    assert len(epochs) > 1 and epochs == sorted(set(epochs))
    assert (result["codes"]["streamtrain"], result["codes"]["follower"], result["codes"]["redis"]) == (
        0,
        0,
        0,
    )
    assert result["written"] == []
