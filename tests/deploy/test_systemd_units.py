"""The units of deploy/systemd, as systemd's own tools read them: installed below a root of their own."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from streamtrain.training.settings import TrainingSettings
from tests.conftest import require

UNITS = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
# What systemd-analyze finds at most, of 10 (unsafe); below 2 it says OK, below 1 SAFE.
EXPOSURE_MAX = {"streamtrain@clicks.service": 1.3, "streamtrain-follow@clicks.service": 0.5}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the units and the drop-in where docs/deploy.md puts them, and systemd's own units beside."""
    require("systemd", "systemd-analyze", "systemd-sysusers")
    root = tmp_path_factory.mktemp("root")
    system = root / "etc/systemd/system"
    (system / "streamtrain@.service.d").mkdir(parents=True)
    for unit in UNITS.glob("*.service"):
        shutil.copy(unit, system)
        (system / unit.name.replace("@", "@clicks")).symlink_to(unit.name)
    shutil.copy(UNITS / "failover.conf", system / "streamtrain@.service.d")
    for name in ("opt/streamtrain/bin/streamtrain", "bin/kill"):
        program = root / name
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    shutil.copytree("/usr/lib/systemd/system", root / "usr/lib/systemd/system", symlinks=True)
    return root


def analyze(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "--no-pager", f"--root={root}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("unit", EXPOSURE_MAX)
def test_systemd_takes_every_line_of_a_unit(root: Path, unit: str) -> None:
    run = analyze(root, "verify", "--man=no", "--recursive-errors=yes", unit)
    assert (run.returncode, run.stderr) == (0, "")


def test_systemd_refuses_a_line_that_it_does_not_know(root: Path) -> None:
    """The check above could fail."""
    broken = root / "etc/systemd/system/broken.service"
    broken.write_text(
        (UNITS / "streamtrain@.service").read_text().replace("WatchdogSec=60", "WatchdogSec=often")
    )
    assert (
        "Failed to parse sec value, ignoring: often"
        in analyze(root, "verify", "--man=no", "broken.service").stderr
    )


@pytest.mark.parametrize(("unit", "bound"), EXPOSURE_MAX.items())
def test_the_exposure_of_a_unit_stays_low(
    root: Path, unit: str, bound: float, capsys: pytest.CaptureFixture[str]
) -> None:
    run = analyze(root, "security", "--offline=yes", f"--threshold={int(bound * 10)}", unit)
    with capsys.disabled():
        print(f"\n{run.stdout.strip().splitlines()[-1]}")
    assert run.returncode == 0, run.stdout


def test_secrets_are_credentials_and_no_unit_denies_what_compilers_need() -> None:
    text = (UNITS / "streamtrain@.service").read_text()
    settings = [line.partition("=")[0] for line in text.splitlines() if not line.startswith("#")]
    assert settings.count("LoadCredential") == 2
    assert not {"MemoryDenyWriteExecute", "ProcSubset", "EnvironmentFile"} & set(settings)


def test_a_stop_may_take_longer_than_the_daemon_gives_itself() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None, comment_prefixes=("#",))
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNITS / "streamtrain@.service")
    assert int(unit["Service"]["TimeoutStopSec"]) > TrainingSettings().stop_timeout_s


def test_the_user_of_the_units_is_made(root: Path) -> None:
    run = subprocess.run(
        ["systemd-sysusers", "--dry-run", str(UNITS / "streamtrain.sysusers.conf")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0 and "streamtrain" in run.stdout + run.stderr


def test_a_command_runs_as_the_daemon_of_its_model_does(tmp_path: Path) -> None:
    """What streamtrain-as asks systemd for is what the unit says; tests.deploy.walk asks a real one."""
    seen = tmp_path / "systemd-run"
    seen.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    seen.chmod(0o755)
    run = subprocess.run(
        ["sh", str(UNITS / "streamtrain-as"), "clicks", "rollback", "model", "12"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
    )
    told = run.stdout.splitlines()
    assert told[-4:] == ["/opt/streamtrain/bin/streamtrain", "rollback", "model", "12"]
    text = (UNITS / "streamtrain@.service").read_text()
    for short, long in (("%S", "/var/lib"), ("%C", "/var/cache"), ("%i", "clicks")):
        text = text.replace(short, long)
    settings = [line for line in text.splitlines() if not line.startswith("#")]
    for asked in (word for word in told if word.startswith("--property=")):
        assert asked.removeprefix("--property=") in settings
    (environment,) = [line for line in settings if line.startswith("Environment=")]
    assert {f"--setenv={pair}" for pair in environment.removeprefix("Environment=").split()} <= set(told)
    assert {line for line in settings if line.startswith("LoadCredential=")} <= {
        word.removeprefix("--property=") for word in told
    }


def test_a_command_without_a_model_is_refused() -> None:
    run = subprocess.run(
        ["sh", str(UNITS / "streamtrain-as"), "clicks"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 2 and "usage" in run.stderr
