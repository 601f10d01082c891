"""Every snippet of settings in the documents is one that a job accepts, and says what its comments promise."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from streamtrain.config import parse_job

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What snippets are about: they say the rest.
AROUND: dict[str, Any] = {
    "name": "clicks",
    "source": {"kind": "kafka", "bootstrap_servers": "broker:9092", "topic": "clicks"},
    "schema": {"labels": ["click", "like"], "slots": {"user": {"table": "main"}, "item": {"table": "main"}}},
    "tables": {"main": {"dim": 8}},
    "model": {"kind": "mlp"},
    "log": {"path": "model"},
}


def snippets() -> list[Any]:
    """By page and number, each block of TOML; where it says `# or`, once with what stands before and once after."""
    found = []
    for page in PAGES:
        for number, block in enumerate(re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.M | re.S)):
            first, *others = block.split("# or\n")
            head = first.partition("\n")[0]
            for choice, text in enumerate([first, *(f"{head}\n{other}" for other in others)]):
                found.append(pytest.param(text, id=f"{page.name}-{number}-{choice}"))
    return found


@pytest.mark.parametrize("text", snippets())
def test_a_job_accepts_the_settings_that_a_document_shows(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = (ROOT / "docs" / "models.md").read_text()
    (tmp_path / "crossnet.py").write_text(
        "\n".join(re.findall(r"^```python\n(.*?)^```", models, re.M | re.S))
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    shown = tomllib.loads(text)
    assert shown
    job = AROUND | shown
    if "tables" in shown and "schema" not in shown:
        slots = {f"of_{table}": {"table": table} for table in shown["tables"]}
        job["schema"] = AROUND["schema"] | {"slots": slots}
    parse_job(job, "a document")


def test_the_snippets_are_found() -> None:
    assert len(snippets()) >= 13
