"""docs/serving.md says what is so: its code runs, and a follower written from its rules alone gets the same rows."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from pathlib import Path

import pytest
from safetensors.numpy import load

from exporters.deltas import DeltaSettings
from streamtrain.exports import ExportRunner
from tests.exporting import History, make_exporter

TEXT = (Path(__file__).parents[3] / "docs/serving.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    assert found
    return found[1]


@pytest.fixture
def history(tmp_path: Path) -> History:
    made = History(tmp_path / "log")
    made.append()
    for weight in (1.0, 2.0, 3.0, 4.0, 5.0):
        made.append(
            {"users": {int(weight): weight, 9: weight}, "items": {int(weight - 1): None, int(weight): weight}}
        )
    exporter = make_exporter(made.log, tmp_path / "exports/clicks", base_every_epochs=2, keep_bases=1)
    runner = ExportRunner(made.log, exporter)
    for _ in range(6):
        rounds = iter([False, True])
        runner.catch_up(lambda rounds=rounds: next(rounds))
        if exporter._folding is not None:
            exporter._folding.exception(timeout=20)
    exporter.close()
    return made


def test_the_settings_of_the_example_are_the_defaults():
    (section,) = tomllib.loads(block("toml"))["exports"]
    assert DeltaSettings.model_validate(section) == DeltaSettings(path=section["path"])


def test_the_example_runs(history, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(block("python"), "docs/serving.md", "exec"), {})
    shape, status = capsys.readouterr().out.splitlines()
    assert shape == "(2, 1)"
    assert status.startswith("5 None {")


def test_a_follower_written_from_the_rules_gets_the_same_rows(history, tmp_path):
    directory = tmp_path / "exports/clicks"
    manifest = json.loads((directory / "manifest.json").read_bytes())
    base = manifest["bases"][-1]
    assert base["epoch"] == 4
    tables: dict[str, dict[int, float]] = {"users": {}, "items": {}}
    for entry in [base, *(delta for delta in manifest["deltas"] if delta["epoch"] > base["epoch"])]:
        content = (directory / entry["name"]).read_bytes()
        claimed = content[35:99].decode()
        zeroed = content[:35] + b"0" * 64 + content[99:]
        assert hashlib.sha256(zeroed).hexdigest() == claimed == entry["digest"]
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        document = json.loads(header["__metadata__"]["streamtrain"])
        assert all(document[key] == entry[key] for key in ("epoch", "version", "previous"))
        assert document["model_id"] == manifest["model_id"]
        tensors = load(content)
        for name, rows in tables.items():
            ids, weights = tensors[f"tables/{name}/ids"], tensors[f"tables/{name}/weights"]
            rows |= dict(zip(ids.tolist(), weights[:, 0].tolist(), strict=True))
            for id in tensors[f"tables/{name}/tombstones"].tolist():
                rows.pop(id, None)
    assert (tables, entry["epoch"]) == (history.oracle[5], 5)
    assert manifest["head"] == {"epoch": 5, "digest": entry["version"]}
