"""Damage to each region of each file of an export: the file is named, and nothing of it is served."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from streamtrain.errors import CorruptRecord, ExportError
from streamtrain.serving import Follower
from streamtrain.serving.packed import unpacked
from tests.exporting import held
from tests.unit.serving.test_follower import Exported


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory):
    made = Exported(tmp_path_factory.mktemp("exported"))
    made.learn(1.0)
    made.learn(2.0)
    made.close()
    return made


def kinds(exported: Exported) -> dict[str, Path]:
    manifest = exported.manifest
    return {
        "manifest": exported.path / "manifest.json",
        "model": exported.path / "model.json",
        "base": exported.file(manifest.bases[0]),
        "delta": exported.file(manifest.deltas[-1]),
    }


# By kind, the newest version that can be served without the file.
SERVED = {"manifest": None, "model": None, "base": None, "delta": 1}


@pytest.mark.parametrize("kind", SERVED)
def test_a_flipped_bit_or_a_cut_anywhere_is_named_and_nothing_of_it_is_served(exported, kind):
    path = kinds(exported)[kind]
    data = path.read_bytes()
    # Every eleventh byte meets each region; the ends are sure.
    places = {*range(0, len(data), 11), 7, 8, len(data) - 2}
    harms = [data[:at] + bytes([data[at] ^ 0x01]) + data[at + 1 :] for at in sorted(places)]
    harms += [data[:at] for at in sorted(places) if at < len(data) - 2]
    harms += [b""]
    try:
        for harm in harms:
            if kind in ("manifest", "model") and harm.split() == data.split():
                continue  # white space for white space
            path.write_bytes(harm)
            follower = Follower(exported.path, piece_samples=1)
            follower.poll()
            assert path.name in follower.status.last_error
            version = follower.version
            assert (None if version is None else version.epoch) == SERVED[kind]
            if version is None:
                with pytest.raises(ExportError, match=path.name):
                    follower.predict([{}])
            else:
                assert held(follower) == exported.history.oracle[version.epoch]
    finally:
        path.write_bytes(data)
    follower = Follower(exported.path, piece_samples=1)
    assert follower.poll() and follower.version.epoch == 2


def test_a_compressed_delta_with_a_flipped_bit_or_a_cut_is_named_or_holds_what_it_held(
    tmp_path: Path,
) -> None:
    exported = Exported(tmp_path, compression="zstd")
    exported.learn(1.0)
    exported.learn(2.0)
    exported.close()
    path = exported.file(exported.manifest.deltas[-1])
    assert path.name.endswith(".safetensors.zst")
    data = path.read_bytes()
    places = range(0, len(data), 7)
    harms = [data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :] for at in places]
    harms += [data[:at] for at in places] + [data + b"\0" * 16, data + data]
    for harm in harms:
        path.write_bytes(harm)
        follower = Follower(exported.path, piece_samples=1)
        follower.poll()
        version, error = follower.version, follower.status.last_error
        # A bit that says nothing about the content may be any.
        assert version.epoch == 2 if error is None else (version.epoch == 1 and path.name in error)
        assert held(follower) == exported.history.oracle[version.epoch]
    path.write_bytes(data)
    follower = Follower(exported.path, piece_samples=1)
    assert follower.poll() and follower.version.epoch == 2


def test_no_more_is_unpacked_than_the_manifest_says(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.zst"
    bomb.write_bytes(pa.Codec("zstd").compress(bytes(64 << 20), asbytes=True))
    told = pytest.raises(CorruptRecord, match=r"bomb\.zst: unpacked it has not the 1000 bytes")
    with told, unpacked(bomb, 1000, tmp_path):
        pass
    assert list(tmp_path.iterdir()) == [bomb]
