"""A newer version takes over from an older one under load, writes what the older cannot read, and nothing is lost or learned twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from streamtrain.serving import Follower
from tests.daemon import streamtrain, until
from tests.installed import ROOT, Environment, InstalledDaemon, built
from tests.integration.test_failover import World, joined, metric, phase, stands_by, world
from tests.servers import KafkaServer

__all__ = ["world"]  # The fixture.

pytestmark = pytest.mark.kafka

# What a version with a new format of records would have: it writes that, and reads the one before as well.
CHANGES = (
    ("FORMAT = 1\n", "FORMAT = 2\n"),
    (
        'if (found := document.get("format")) != FORMAT:',
        'if (found := document.get("format")) not in (1, FORMAT):',
    ),
)
COUNT = (
    "import sys; from streamtrain.log.epoch_log import EpochLog; from streamtrain.log.recovery import recover\n"
    "counts = {}\n"
    "for record in recover(EpochLog.open(sys.argv[1])):\n"
    "    counts |= dict(zip(record.tables['main'].ids.tolist(), record.tables['main'].counts.tolist()))\n"
    "print(len(counts), set(counts.values()))"
)


@pytest.fixture(scope="module")
def newer(kafka: KafkaServer, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A version of tomorrow: this one as a wheel, with another format of records."""
    folder = tmp_path_factory.mktemp("newer")
    environment = Environment(folder / "venv", built(ROOT, folder))
    source = environment.packages / "streamtrain" / "log" / "format.py"
    text = source.read_text()
    for old, new in CHANGES:
        assert text.count(old) == 1
        text = text.replace(old, new)
    source.write_text(text)
    return environment


def test_standbys_are_upgraded_first_then_the_owner(world: World, newer: Environment, tmp_path: Path) -> None:
    def learned(count: int) -> None:
        def found() -> int:
            run = newer.run("inspect", world.log, "--json", cwd=tmp_path)
            assert run.returncode == 0, run.stderr
            return int(json.loads(run.stdout)["samples"])

        until(lambda: found() == count, f"{count} samples in the log")

    world.produce(500)
    owner = world.daemon()
    world.learned(500)
    old_standby = stands_by(world.daemon())
    config = tmp_path / "newer.toml"
    config.write_text((tmp_path / "job-0.toml").read_text())
    with InstalledDaemon(newer, config) as upgraded, Follower(tmp_path / "exports") as follower:
        stands_by(upgraded)
        joined(world, 3)
        follower.wait_for(epoch=0, timeout_s=60)
        # The older standby is stopped, then the owner: the newer one is all that is left to take over.
        assert old_standby.stop() == 0, old_standby.text
        world.produce(300)
        assert owner.stop() == 0, owner.text
        world.produce(200)
        learned(1000)
        assert phase(upgraded) == "learning" and metric(upgraded, "owner") == 1
        assert "took over at epoch" in upgraded.text
        until(
            lambda: follower.version is not None and follower.version.lineage.samples_total == 1000,
            "the older follower to go on by deltas",
        )
        assert follower.status.bases_loaded == 1

        # Whoever goes back is told so at once, and takes nothing over.
        late = world.daemon()
        assert late.wait() == 1, late.text
        for said in (late.text, streamtrain("verify", world.log).stdout):
            assert "its format is 2, this version of streamtrain reads 1: a newer version" in said, said
            assert "move nothing away" in said
        assert upgraded.stop() == 0, upgraded.text
    counted = newer.run("-c", COUNT, world.log, cwd=tmp_path, command=newer.python)
    assert counted.stdout == "1000 {1}\n", counted.stderr
    assert newer.run("verify", world.log, cwd=tmp_path).returncode == 0
