"""`streamtrain check`: what is wrong with a job is found without a network, each thing by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from streamtrain.cli import main
from streamtrain.doctor import check
from streamtrain.doctor.report import as_text, exit_code
from streamtrain.findings import Finding, Level
from streamtrain.log.epoch_log import EpochLog
from tests.fakes import job


def faults(found: list[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.level is Level.FAULT]


def test_a_job_that_is_right_has_no_fault_and_makes_no_log(tmp_path: Path) -> None:
    found = check(job(tmp_path))
    assert not faults(found) and exit_code(found) == 0
    assert {"settings", "source", "model", "caches", "log"} <= {f.area for f in found}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("sections", "area", "says"),
    [
        ({"http": {"token_file": "{folder}/none"}}, "secrets", "http.token_file"),
        (
            {"store": {"url": "redis://127.0.0.1:1", "password_file": "{folder}/none"}},
            "secrets",
            "store.password_file",
        ),
        (
            {"store": {"url": "rediss://127.0.0.1:1", "tls_ca_file": "{folder}/none"}},
            "secrets",
            "store.tls_ca_file",
        ),
        (
            {
                "source": {
                    "kind": "kafka",
                    "topic": "t",
                    "security_protocol": "SASL_PLAINTEXT",
                    "sasl_username": "u",
                    "sasl_password_file": "{folder}/none",
                }
            },
            "secrets",
            "source: sasl_password_file",
        ),
        ({"model": {"kind": "din"}}, "model", "din"),
    ],
)
def test_each_thing_that_would_keep_the_daemon_from_starting_is_named(
    sections: dict[str, Any], area: str, says: str, tmp_path: Path
) -> None:
    filled = json.loads(json.dumps(sections).replace("{folder}", str(tmp_path)))
    (fault,) = faults(check(job(tmp_path, **filled)))
    assert fault.area == area and says in fault.text


def test_a_log_of_another_model_and_a_directory_of_other_things_are_faults(tmp_path: Path) -> None:
    mine = job(tmp_path)
    EpochLog.create(mine.log.path, mine.name, job(tmp_path, seed=4).describe())
    (fault,) = faults(check(mine))
    assert fault.area == "log" and "seed: the log has 4, the job says 3" in fault.text
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo").touch()
    (fault,) = faults(check(job(tmp_path, log={"path": str(tmp_path / "other")})))
    assert "other things than a log" in fault.text


def test_a_cache_that_others_may_write_to_is_told(tmp_path: Path) -> None:
    found = check(job(tmp_path, training={"compiled_cache": "/dev/null/x"}))
    assert [f.level for f in found if f.area == "caches"] == [Level.WARNING] and not faults(found)


def test_people_read_the_remedy_below_what_is_wrong() -> None:
    found = [
        Finding.ok("a", "fine"),
        Finding.warning("b", "slow\nvery", "hurry"),
        Finding.fault("c", "broken", "mend it\nor not"),
    ]
    assert as_text(found).splitlines() == [
        "ok       a: fine",
        "WARNING  b: slow",
        "         very",
        "         -> hurry",
        "FAULT    c: broken",
        "         -> mend it",
        "         -> or not",
        "1 faults, 1 warnings",
    ]
    assert (
        exit_code(found) == 1 and exit_code(found[:2]) == 0 and as_text(found[:1]).endswith("all is well\n")
    )


def test_programs_read_one_object_and_wrong_settings_end_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"""
    name = "x"
    source = {{ kind = "files", paths = ["{tmp_path}/*.jsonl"] }}
    schema = {{ labels = ["click"], slots = {{ user = {{}} }} }}
    tables = {{ main = {{ dim = 1 }} }}
    model = {{ kind = "linear" }}
    log = {{ path = "{tmp_path}/model" }}
    """
    config = tmp_path / "job.toml"
    config.write_text("\n".join(line.strip() for line in text.splitlines()))
    assert main(["check", str(config), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and {"area", "level", "text", "remedy"} == set(found["findings"][0])
    assert main(["doctor", str(config), "--json"]) == 0
    areas = {f["area"] for f in json.loads(capsys.readouterr().out)["findings"]}
    assert {"settings", "processor", "clock", "disk", "log", "source"} <= areas
    config.write_text(config.read_text() + "\nnonsense = 1\n")
    assert main(["check", str(config)]) == 2
    assert "nonsense" in capsys.readouterr().err
