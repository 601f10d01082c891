"""What is installed is what was locked: by hash, from no named index, under licences that Apache-2.0 may be used with."""

from __future__ import annotations

import re
import runpy
import tomllib
from importlib.metadata import Distribution, distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "requirements.lock").read_text()
PIN = re.compile(
    r"^([a-z0-9][a-z0-9._-]*)==([^ ;\\]+)[^\\]*((?:\\\n    --hash=sha256:[0-9a-f]{64} ?)+)$", re.M
)
# Permissive, or weak copyleft of libraries that are used unchanged.
LICENCES = re.compile(
    r"apache|\bbsd|\bmit\b|psf|python software|isc\b|mpl|mozilla|zlib|unlicense|cc0|0bsd|public domain|lgpl|lesser|ofl|oldap",
    re.I,
)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, version, _ in PIN.findall(LOCK):
        found.setdefault(normal(name), set()).add(version)
    return found


def test_every_line_of_the_lock_is_a_pin_by_sha_256() -> None:
    rest = PIN.sub("", LOCK)
    assert not [line for line in rest.splitlines() if line.strip() and not line.startswith("#")]
    assert "://" not in LOCK and "--index" not in LOCK and "--trusted-host" not in LOCK
    assert len(pins()) > 40


def test_every_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    missing = [
        name for line in named if (name := normal(re.split(r"[^A-Za-z0-9._-]", line)[0])) not in pins()
    ]
    assert not missing


def test_what_is_installed_is_what_was_locked() -> None:
    locked = pins()
    installed = {normal(d.metadata["Name"]): d.version for d in distributions()}
    other = {n: v for n, v in installed.items() if n in locked and v not in locked[n]}
    assert not other
    assert len(set(installed) & set(locked)) > 40


def licence(distribution: Distribution) -> str:
    metadata = distribution.metadata
    classifiers = [c for c in metadata.get_all("Classifier") or [] if c.startswith("License")]
    return " / ".join(
        [metadata.get("License-Expression") or "", *classifiers, (metadata.get("License") or "")[:80]]
    )


def test_every_locked_package_has_a_licence_that_may_be_used_with_this_one() -> None:
    locked = pins()
    told = {normal(d.metadata["Name"]): licence(d) for d in distributions()}
    assert not {n: text for n, text in told.items() if n in locked and not LICENCES.search(text)}


def test_an_audit_fails_on_what_is_known_and_says_so_where_nobody_can_be_asked() -> None:
    audit = runpy.run_path(str(ROOT / ".ci" / "audit.py"))
    judged, failed = audit["judged"], audit["failed"]
    sound = {"name": "a", "version": "1", "vulns": []}
    skipped = {"name": "b", "skip_reason": "Dependency not found on PyPI"}
    known = {"name": "c", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3", "2.1"]}]}
    assert judged({"dependencies": [sound]}) == (0, ["1 packages: no known vulnerability"])
    code, lines = judged({"dependencies": [skipped, skipped]})
    assert code == 3 and lines[0].startswith("NOT AUDITED")
    # One that is not in the database, among those that are, is not passed over.
    assert judged({"dependencies": [sound, skipped]})[0] == 1
    assert judged({"dependencies": [sound, known]}) == (1, ["c 2: PYSEC-1, mended in 3, 2.1"])
    assert failed(1, "ERROR:pip_audit._cli:Could not connect to PyPI's vulnerability feed")[0] == 3
    assert failed(2, "error: Failed to fetch: `pip-audit`")[0] == 3
    assert failed(2, "usage: pip-audit") == (1, ["pip-audit ended with 2: usage: pip-audit"])
