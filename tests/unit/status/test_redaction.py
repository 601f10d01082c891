"""The configuration as the page shows it."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import Field

from streamtrain.settings import Settings
from tests.fakes import job


class Leaky(Settings):
    """A plug-in whose author put secrets where ours never are."""

    kind: str = "leaky"
    api_token: str = "SECRET-1"
    passwords: list[str] = Field(default=["SECRET-2"])
    secrets: dict[str, dict[str, str]] = Field(default={"a": {"b": "SECRET-3"}})
    url: str = "https://user:SECRET-4@host/path"
    token_file: str = "/run/credentials/token"
    attempts: int = 3


def test_secrets_of_plug_ins_are_left_out_and_everything_else_is_there(tmp_path: Path) -> None:
    described = job(tmp_path).model_copy(update={"source": Leaky()}).describe_redacted()
    assert "SECRET" not in json.dumps(described)
    source = described["source"]
    assert (source["attempts"], source["token_file"]) == (3, "/run/credentials/token")
    assert source["api_token"] == "***" and source["secrets"] == {"a": {"b": "***"}}


def test_a_job_without_secrets_is_described_as_it_is(tmp_path: Path) -> None:
    made = job(tmp_path)
    assert made.describe_redacted() == made.describe()
