"""The built wheel works without the repository, and a third party's package extends it."""

from __future__ import annotations

import json
import sqlite3
import tomllib
import zipfile
from contextlib import closing
from pathlib import Path

import pytest

from tests.daemon import until
from tests.installed import ROOT, Environment, InstalledDaemon, built

PACKAGES = ("streamtrain", "consumers", "exporters")
PLUGINS = ROOT / "examples" / "plugins"

JOB = """
name = "shop"
[source]
kind = "sqlite"
codec = "query"
path = "{folder}/shop.db"
table = "outbox"
[schema]
labels = ["click"]
event_time = "at"
[schema.slots]
user = {{}}
item = {{ many = true }}
[tables.main]
dim = 4
[model]
kind = "crossnet"
depth = 2
[training]
batch_size = 64
[log]
path = "{folder}/model"
epoch_interval_s = 0.2
[[exports]]
kind = "journal"
path = "{folder}/epochs.jsonl"
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("installed")
    return Environment(folder / "venv", wheel, built(PLUGINS, folder / "plugins"))


def test_the_wheel_holds_the_packages_with_their_data_and_nothing_else(wheel: Path) -> None:
    there = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == there
    assert any(name.endswith(".lua") for name in names) and any(name.endswith("py.typed") for name in names)


def test_every_entry_point_loads_from_the_wheels_alone(environment: Environment, tmp_path: Path) -> None:
    script = (
        "import json, sys\n"
        "from importlib.metadata import distribution\n"
        "points = [p for d in ('streamtrain', 'streamtrain-outbox') for p in distribution(d).entry_points]\n"
        "loaded = {p.group + ':' + p.name: p.load() for p in points}\n"
        "ours = [k for k in sys.modules if k.split('.')[0] in sys.argv[1:]]\n"
        "print(json.dumps([sorted(loaded), sorted({sys.modules[k].__file__ for k in ours})]))"
    )
    run = environment.run("-c", script, *PACKAGES, cwd=tmp_path, command=environment.python)
    assert run.returncode == 0, run.stderr
    loaded, files = json.loads(run.stdout)
    assert all(Path(file).is_relative_to(environment.packages) for file in files)
    assert {"streamtrain.consumers:sqlite", "streamtrain.consumers:kafka"} <= set(loaded)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {f"{group}:{name}" for group, points in project["entry-points"].items() for name in points}
    assert declared | {"console_scripts:streamtrain"} <= set(loaded)
    version = environment.run("--version", cwd=tmp_path)
    assert version.stdout == f"streamtrain {project['version']}\n"


def test_a_job_of_third_party_plugins_learns_is_killed_goes_on_and_is_replayed(
    environment: Environment, tmp_path: Path
) -> None:
    config = tmp_path / "job.toml"
    config.write_text(JOB.format(folder=tmp_path))
    _append(tmp_path, 0, 1000)
    with InstalledDaemon(environment, config) as daemon:
        until(lambda: _exported(tmp_path) == 1000 or not daemon.running, "1,000 samples in the journal")
        assert daemon.running, daemon.text
        daemon.kill()
    _append(tmp_path, 1000, 1500)
    # A line that the kill left half is what the exporter must cut off.
    with (tmp_path / "epochs.jsonl").open("ab") as journal:
        journal.write(b'{"kind": "epo')
    run = environment.run("run", config, "--until-end", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "refused a record: outbox offset 1501: field 'user'" in run.stderr

    log = tmp_path / "model"
    lines = [json.loads(line) for line in (tmp_path / "epochs.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(len(lines)))
    assert lines[-1]["samples_total"] == 1500 and [line["kind"] for line in lines].count("base") == 1
    inspected = json.loads(environment.run("inspect", log, "--json", cwd=tmp_path).stdout)
    assert inspected["epoch"] == lines[-1]["epoch"]
    for command in (("verify", log), ("replay", log, lines[-2]["epoch"])):
        done = environment.run(*map(str, command), cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_setting_of_a_plugin_is_checked_and_its_absence_told(
    environment: Environment, tmp_path: Path
) -> None:
    config = tmp_path / "job.toml"
    for old, new, said in (
        ('"outbox"', '"out box"', "source.table"),
        ('kind = "sqlite"', 'kind = "oracle"', "there are: files, kafka, sqlite"),
        ("depth = 2", "depth = 20", "model.depth"),
    ):
        config.write_text(JOB.format(folder=tmp_path).replace(old, new))
        run = environment.run("run", config, cwd=tmp_path)
        assert run.returncode == 2 and said in run.stderr, run.stderr


def _append(folder: Path, first: int, stop: int) -> None:
    """An application's transaction: good rows, and behind them one without its user."""
    rows = [
        (f"click={n % 2}&user={n % 50}&item={n % 7}&item={n % 11}&at={1_700_000_000_000 + n}", None)
        for n in range(first, stop)
    ]
    with closing(sqlite3.connect(folder / "shop.db")) as database, database:
        database.execute(
            "CREATE TABLE IF NOT EXISTS outbox (id INTEGER PRIMARY KEY AUTOINCREMENT, record, time_ms)"
        )
        database.executemany("INSERT INTO outbox (record, time_ms) VALUES (?, ?)", rows)
        if stop == 1500:
            database.execute("INSERT INTO outbox (record) VALUES ('click=1&user=me&item=3')")


def _exported(folder: Path) -> int:
    path = folder / "epochs.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["samples_total"] if lines else 0
