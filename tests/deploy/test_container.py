"""deploy/container: locks, the list of parts, and the wheel that an image installs, which writes nothing beside its caches."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from tests.deploy.containerfile import stages
from tests.servers import ROOT

CONTAINER = ROOT / "deploy" / "container"
BUILD, IMAGE = stages(CONTAINER / "Containerfile")


def pins(file: Path) -> set[str]:
    """`name==version` of every line that pins one; each has hashes."""
    text = file.read_text()
    found = {line.split()[0] for line in text.splitlines() if "==" in line}
    assert text.count("--hash=sha256:") >= len(found) > 0
    return found


def test_the_image_has_what_was_tested() -> None:
    tested = pins(ROOT / "requirements.lock")
    assert pins(CONTAINER / "requirements.lock") <= tested
    assert pins(CONTAINER / "build.lock") <= tested
    names = {pin.split("==")[0] for pin in pins(CONTAINER / "requirements.lock")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {requirement.split(">=")[0] for requirement in project["dependencies"]} <= names


def test_nothing_is_installed_without_a_hash_and_nothing_runs_as_root() -> None:
    installs = [arguments for name, arguments in BUILD.steps if name == "RUN" and "pip install" in arguments]
    assert all("--require-hashes" in step or "--no-index" in step for step in installs) and installs
    order = [name for name, _ in IMAGE.steps]
    assert IMAGE.user == "10001:10001" and order.index("USER") < order.index("ENTRYPOINT")
    assert IMAGE.base == BUILD.base == "${PYTHON}"
    assert IMAGE.healthcheck and IMAGE.entrypoint == ["streamtrain"]


def test_every_file_that_is_copied_reaches_the_build() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    sent = [line[1:] for line in ignored if line.startswith("!")]
    for stage in (BUILD, IMAGE):
        for name, arguments in stage.steps:
            if name == "COPY" and not arguments.startswith("--from"):
                for source in arguments.split()[:-1]:
                    assert (ROOT / source).exists()
                    assert any(Path(source).is_relative_to(prefix) for prefix in sent), source


def test_the_list_of_parts_names_every_pin(tmp_path: Path) -> None:
    parts = tmp_path / "sbom.json"
    tool = [sys.executable, "-W", "ignore", "-m", "cyclonedx_py", "requirements"]
    options = ["--pyproject", "pyproject.toml", "--output-reproducible", "-o", str(parts)]
    lock = CONTAINER / "requirements.lock"
    subprocess.run([*tool, str(lock), *options], check=True, cwd=ROOT, timeout=60, capture_output=True)
    bom = json.loads(parts.read_text())
    assert bom["bomFormat"] == "CycloneDX" and bom["metadata"]["component"]["name"] == "streamtrain"
    listed = {f"{component['name']}=={component['version']}" for component in bom["components"]}
    assert listed == pins(lock)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that the build stage makes, by its own command, installed into a tree that nobody may write to."""
    scratch = tmp_path_factory.mktemp("image")
    source = scratch / "src"
    source.mkdir()
    for name, arguments in BUILD.steps:
        if name == "COPY":
            *files, target = arguments.split()
            for file in files:
                place = source / target / (Path(file).name if target == "./" else "")
                if (ROOT / file).is_dir():
                    # As .dockerignore says; other tests may be writing there.
                    shutil.copytree(ROOT / file, place, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy2(ROOT / file, place)
    (step,) = [arguments for name, arguments in BUILD.steps if name == "RUN" and "pip wheel" in arguments]
    site = scratch / "site"
    pip = f"{sys.executable} -m pip --disable-pip-version-check --quiet"
    for old, new in (
        ("/opt/build/bin/pip", pip),
        ("/opt/streamtrain/bin/pip install", f"{pip} install --target {site}"),
        ("/opt/wheels", str(scratch / "wheels")),
    ):
        assert old in step
        step = step.replace(old, new)
    subprocess.run(["sh", "-c", step], check=True, cwd=source, timeout=300)
    (step,) = [arguments for name, arguments in BUILD.steps if name == "RUN" and "touch" in arguments]
    step = step.replace("/opt/streamtrain/lib/python*/site-packages", str(site))
    subprocess.run(["sh", "-c", step], check=True, cwd=source, timeout=120)
    subprocess.run(["chmod", "-R", "a-w,a+rX", str(site)], check=True)
    scratch.chmod(0o755)
    return site


def test_a_layer_that_keeps_whole_seconds_keeps_what_kernels_are_known_by(image: Path) -> None:
    times = [file.stat().st_mtime_ns for file in (image / "streamtrain").rglob("*.py")]
    assert len(times) > 100 and all(time % 1_000_000_000 == 0 for time in times)


def test_the_wheel_learns_and_serves_and_writes_nothing_to_its_tree(image: Path, tmp_path: Path) -> None:
    """The image's last step, which also fills its cache, without the repository on the path."""
    (step,) = [arguments for name, arguments in IMAGE.steps if name == "RUN" and "warm.toml" in arguments]
    program = tmp_path / "bin" / "streamtrain"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m streamtrain "$@"\n')
    program.chmod(0o755)
    warm, cache = tmp_path / "warm.toml", tmp_path / "cache"
    warm.write_text((CONTAINER / "warm.toml").read_text().replace("/tmp/warm", str(tmp_path / "warm")))
    step = step.replace("/opt/streamtrain/share/warm.toml", str(warm)).replace(
        "/tmp/warm", str(tmp_path / "warm")
    )
    # The wheel comes before what it needs, and before the checkout, which is behind both.
    path = f"{image}:{sysconfig.get_path('purelib')}"
    environment = IMAGE.environment | {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": path,
        "XDG_CACHE_HOME": str(cache),
        "NUMBA_CACHE_DIR": str(cache / "streamtrain/numba"),
    }
    where = [sys.executable, "-P", "-c", "import streamtrain; print(streamtrain.__file__)"]
    found = subprocess.run(where, env=environment, capture_output=True, text=True, check=True, cwd="/")
    assert Path(found.stdout.strip()).is_relative_to(image)
    before = sorted(image.rglob("*"))
    learn, _, _ = step.rpartition(" && rm ")
    run = subprocess.run(
        ["sh", "-c", learn],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd="/",
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "2000 samples learned in all" in run.stderr
    assert list((cache / "streamtrain").glob("jax-*/*-cache")) and list(cache.rglob("*.nbi"))
    assert sorted(image.rglob("*")) == before
    follow = ["follow", str(tmp_path / "warm/exports"), "--until", "1", "--json"]
    served = subprocess.run(
        [program, *follow], env=environment, capture_output=True, text=True, timeout=120, check=False, cwd="/"
    )
    assert json.loads(served.stdout.splitlines()[-1])["samples_total"] == 2000, served.stderr
