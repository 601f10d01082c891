"""What a newer version of streamtrain wrote is told from what is damaged: nobody is to move it away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamtrain.errors import CorruptRecord, ExportError, FormatUnknown
from streamtrain.log import container
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.files import Aside, Files
from streamtrain.log.format import document, tensors
from streamtrain.log.sealed import seal, unseal
from streamtrain.log.verify import verify
from streamtrain.serving.manifest import Entry, Manifest
from streamtrain.store.store import StoreDescription
from tests.reference_log import append_epochs, epoch_record


@pytest.fixture
def log(tmp_path: Path) -> EpochLog:
    log = EpochLog.create(tmp_path / "log", "clicks", {"seed": 1})
    append_epochs(log, 1)
    return log


@pytest.mark.parametrize(
    ("keys", "named", "said"),
    [
        ({"format": 2}, {}, "its format is 2, this version of streamtrain reads 1"),
        (
            {"lanes": [1]},
            {"lanes/a": np.zeros(1)},
            "it has 'lanes', 'lanes/a', which this version does not know",
        ),
    ],
)
def test_a_record_of_a_newer_version_is_told_from_a_damaged_one(
    log: EpochLog, tmp_path: Path, keys: dict[str, Any], named: dict[str, np.ndarray], said: str
) -> None:
    record = epoch_record(2, log.digest(1))
    path = log.epoch_path(2)
    with Aside(Files(), tmp_path, path.name) as aside:
        container.write(document(record, "epoch", log.model.model_id) | keys, tensors(record) | named, aside)
        aside.link(path)
    with pytest.raises(FormatUnknown) as raised:
        log.read(2)
    assert str(raised.value) == (
        f"{path}: {said}: a newer version of streamtrain wrote it. Nothing is damaged, move nothing away: run that version "
        "or a newer one, and stop those that are older"
    )
    assert log.read(1).epoch == 1
    found = verify(log.path)
    assert said in str(found)


def test_a_damaged_record_is_still_damaged(log: EpochLog) -> None:
    data = bytearray(log.epoch_path(1).read_bytes())
    data[-1] ^= 1
    log.epoch_path(1).write_bytes(data)
    with pytest.raises(CorruptRecord) as raised:
        log.read(1)
    assert not isinstance(raised.value, FormatUnknown)


def test_a_model_of_a_newer_version_is_not_one_to_restore_from_a_backup(log: EpochLog) -> None:
    path = log.path / "model.json"
    path.write_bytes(seal(unseal(path.read_bytes()) | {"format": 2}))
    with pytest.raises(FormatUnknown, match=r"model\.json: its format is 2, .* move nothing away"):
        EpochLog.open(log.path)


def test_an_export_of_a_newer_version_is_not_one_to_remove(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    manifest = Manifest("m", (Entry(1, "aa", "", "bb", 10, 0, 0),), ())
    path.write_bytes(seal(unseal(manifest.to_bytes()) | {"format_version": 3, "bases": "in another shape"}))
    with pytest.raises(ExportError, match=r"has version 3 .* reads up to 2: upgrade what reads it"):
        Manifest.read(path)


def test_a_store_of_another_version_is_told_from_one_with_other_settings() -> None:
    description = StoreDescription("m", {"main": (4, 1)}, 8)
    other = StoreDescription("m", {"main": (5, 1)}, 8)
    assert "bring back the old settings" in description.refusal(other.text().encode())
    newer = other.text().replace('"format": 1', '"format": 2').encode()
    assert description.refusal(newer) == (
        "was filled in format 2 by another version of streamtrain, and this one has format 1; run that version"
    )
    assert "was filled as garbage, but" in description.refusal(b"garbage")
