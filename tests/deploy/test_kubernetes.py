"""deploy/kubernetes, rendered by kustomize and held against the schemas of Kubernetes, the Prometheus operator and KEDA."""

from __future__ import annotations

import copy
import functools
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from streamtrain.config import load_job
from tests.conftest import require
from tests.deploy.modules import module
from tests.integration.test_supervised import PROBES
from tests.servers import missing_programs

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("single", "standby", "redis-cluster")
# The oldest that is still patched, about, and the newest that the schemas know.
VERSIONS = ("1.33", "1.37")
OPERATOR = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
KEDA = "github.com/kedacore/keda/v2@v2.17.2"

Manifest = dict[str, Any]


@functools.cache
def _rendered(folder: Path) -> tuple[Manifest, ...]:
    command = ["kustomize", "build"] if missing_programs("kubectl") else ["kubectl", "kustomize"]
    require("kustomize", command[0])
    run = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    # Nothing is deprecated, and no patch misses.
    assert run.stderr == ""
    return tuple(yaml.safe_load_all(run.stdout))


def rendered(overlay: str) -> dict[str, Manifest]:
    """By kind, what an overlay makes; there is one of each, but for claims."""
    return {m["kind"]: copy.deepcopy(m) for m in _rendered(KUBERNETES / "overlays" / overlay)}


def container(manifests: dict[str, Manifest]) -> Manifest:
    (only,) = manifests["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    return only


@functools.cache
def custom_schema(file: Path) -> Manifest:
    """The schema of a custom resource, closed: a field that it does not know would be dropped without a word."""
    (version,) = [v for v in yaml.safe_load(file.read_text())["spec"]["versions"] if v["storage"]]
    return _closed(version["schema"]["openAPIV3Schema"], top=True)


def _closed(schema: Manifest, top: bool = False) -> Manifest:
    closed = {k: v for k, v in schema.items() if k not in ("format", "description")}
    if "pattern" in schema:
        # Go's expressions may turn case off behind the anchor, Python's may not.
        closed["pattern"] = schema["pattern"].replace("^(?i)", "(?i)^")
    if "properties" in schema and not top and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed["additionalProperties"] = False
    if "properties" in schema:
        closed["properties"] = {
            k: ({} if k == "metadata" else _closed(v)) for k, v in schema["properties"].items()
        }
    if isinstance(schema.get("items"), dict):
        closed["items"] = _closed(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        closed["additionalProperties"] = _closed(schema["additionalProperties"])
    return closed


def check(manifest: Manifest) -> None:
    """Raises where a schema does not allow a manifest."""
    crds = {
        "ServiceMonitor": (
            OPERATOR,
            "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml",
        ),
        "PrometheusRule": (
            OPERATOR,
            "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
        ),
        "ScaledObject": (KEDA, "config/crd/bases/keda.sh_scaledobjects.yaml"),
    }
    if manifest["kind"] in crds:
        source, file = crds[manifest["kind"]]
        jsonschema.validate(manifest, custom_schema(module(source) / file))
        return
    for version in VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_manifest_keeps_to_its_schema(overlay: str) -> None:
    manifests = _rendered(KUBERNETES / "overlays" / overlay)
    kinds = {m["kind"] for m in manifests}
    assert {
        "StatefulSet",
        "Service",
        "PodDisruptionBudget",
        "NetworkPolicy",
        "ServiceMonitor",
        "PrometheusRule",
    } < kinds
    for manifest in manifests:
        check(manifest)


def test_the_example_for_keda_keeps_to_its_schema_and_scales_what_is_there(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    # kustomize wants relative paths, and components within reach of no other root.
    (overlay / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
        "resources: [../deploy/base]\ncomponents: [../deploy/components/keda]\n"
    )
    (tmp_path / "deploy").symlink_to(KUBERNETES)
    manifests = {m["kind"]: m for m in _rendered(overlay)}
    scaled = manifests["ScaledObject"]
    check(scaled)
    assert scaled["spec"]["scaleTargetRef"]["name"] == manifests["StatefulSet"]["metadata"]["name"]
    source = tomllib.loads(manifests["ConfigMap"]["data"]["job.toml"])["source"]
    trigger = scaled["spec"]["triggers"][0]["metadata"]
    assert (trigger["topic"], trigger["consumerGroup"]) == (source["topic"], source["group_id"])
    assert trigger["bootstrapServers"] == source["bootstrap_servers"]


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("StatefulSet", ("spec", "template", "spec", "terminationGracePeriodSecond"), 45),
        ("NetworkPolicy", ("spec", "ingress"), "everyone"),
        ("ServiceMonitor", ("spec", "endpoint"), []),
        ("PrometheusRule", ("spec", "groups"), {}),
    ],
)
def test_what_a_schema_does_not_allow_is_found(kind: str, path: tuple[str, ...], value: object) -> None:
    manifest = rendered("single")[kind]
    place = manifest
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(manifest)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_daemon_takes_the_job_and_the_environment_of_the_pod(overlay: str, tmp_path: Path) -> None:
    manifests = rendered(overlay)
    path = tmp_path / "job.toml"
    path.write_text(manifests["ConfigMap"]["data"]["job.toml"])
    job = load_job(path, {e["name"]: e["value"] for e in container(manifests)["env"]})
    assert (job.failover is not None) == (manifests["StatefulSet"]["spec"]["replicas"] > 1)
    assert job.store.url.startswith("redis://") == (overlay == "redis-cluster")
    assert job.http.host == "0.0.0.0"
    assert container(manifests)["ports"][0]["containerPort"] == job.http.port
    pod = manifests["StatefulSet"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > job.training.stop_timeout_s
    mounts = [mount["mountPath"] for mount in container(manifests)["volumeMounts"]]
    for written in (job.log.path, job.exports[0].path):
        assert any(Path(written).is_relative_to(mount) for mount in mounts)


def test_probes_and_scrapes_ask_for_what_the_daemon_answers() -> None:
    """tests/integration/test_supervised.py asks a daemon for each of them."""
    manifests = rendered("single")
    asked = [container(manifests)[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")]
    assert asked == [{"path": path, "port": "http"} for path in PROBES]
    (endpoint,) = manifests["ServiceMonitor"]["spec"]["endpoints"]
    assert (endpoint["path"], endpoint["port"]) == ("/metrics", "http")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_find_the_pods_and_volumes_their_claims(overlay: str) -> None:
    manifests = rendered(overlay)
    spec = manifests["StatefulSet"]["spec"]
    labels = spec["template"]["metadata"]["labels"].items()
    for selector in (
        spec["selector"]["matchLabels"],
        manifests["Service"]["spec"]["selector"],
        manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        manifests["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector and selector.items() <= labels
    service = manifests["Service"]
    assert (
        manifests["ServiceMonitor"]["spec"]["selector"]["matchLabels"].items()
        <= service["metadata"]["labels"].items()
    )
    assert service["spec"]["clusterIP"] == "None" and service["metadata"]["name"] == spec["serviceName"]
    volumes = {v["name"] for v in spec["template"]["spec"]["volumes"]}
    volumes |= {claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]}
    assert {m["name"] for m in container(manifests)["volumeMounts"]} == volumes
    # A volume of one node cannot be that of daemons on two.
    shared = {c["metadata"]["name"] for c in spec["volumeClaimTemplates"]}
    assert ("model" in shared) == (spec["replicas"] == 1)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_keep_to_the_restricted_standard(overlay: str) -> None:
    """What the namespace's label makes Kubernetes enforce: https://kubernetes.io/docs/concepts/security/pod-security-standards/"""
    manifests = rendered(overlay)
    pod = manifests["StatefulSet"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not pod.get("hostNetwork") and not pod.get("hostPID") and not pod["automountServiceAccountToken"]
    own = container(manifests)["securityContext"]
    assert own["readOnlyRootFilesystem"] and own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    allowed = {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}
    assert all(set(volume) - {"name"} <= allowed for volume in pod["volumes"])


def test_the_operators_rules_are_those_of_prometheus() -> None:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())
    assert rendered("single")["PrometheusRule"]["spec"] == rules, "run `make docs`"
