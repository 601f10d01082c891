"""Manifests: what they accept, and which file they send a follower to."""

from __future__ import annotations

import orjson
import pytest

from streamtrain.errors import DeltaGap, ExportError
from streamtrain.serving.manifest import Entry, Manifest, Position


def base(epoch: int) -> Entry:
    return Entry(epoch, f"v{epoch}", "", f"base{epoch}", 100, epoch, epoch)


def delta(epoch: int) -> Entry:
    return Entry(epoch, f"v{epoch}", f"v{epoch - 1}", f"delta{epoch}", 10, epoch, epoch)


FULL = Manifest("m", (base(2), base(4)), tuple(delta(e) for e in (3, 4, 5, 6)))


def test_a_manifest_survives_its_file(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_bytes(FULL.to_bytes())
    assert Manifest.read(path) == FULL
    assert orjson.loads(path.read_bytes())["head"] == {"epoch": 6, "digest": "v6"}
    assert [entry["name"] for entry in orjson.loads(path.read_bytes())["bases"]] == [
        "bases/00000000000000000002.safetensors",
        "bases/00000000000000000004.safetensors",
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"format": "streamtrain-export"}',
        FULL.to_bytes()[:-40],
        FULL.to_bytes().replace(b'"format_version":1', b'"format_version":2'),
    ],
)
def test_a_damaged_manifest_is_refused_by_name(tmp_path, content):
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(ExportError, match=r"manifest\.json is not a manifest that can be used"):
        Manifest.read(path)


@pytest.mark.parametrize(
    "broken",
    [
        Manifest("m", (), ()),
        Manifest("m", (base(2),), (delta(4),)),
        Manifest("m", (base(2),), (delta(3), delta(5))),
        Manifest("m", (base(2), base(9)), (delta(3),)),
        Manifest("m", (Entry(2, "other", "", "x", 1, 1, 1),), (delta(3),)),
        Manifest("m", (delta(2),), ()),
    ],
)
def test_a_manifest_with_a_gap_is_refused(broken):
    with pytest.raises(ExportError):
        broken.check()


def test_a_new_follower_is_sent_to_the_newest_base():
    assert FULL.next_file(None) == base(4)


@pytest.mark.parametrize(
    ("epoch", "wanted"), [(2, delta(3)), (3, delta(4)), (4, delta(5)), (5, delta(6)), (6, None)]
)
def test_a_follower_on_the_chain_is_sent_to_the_next_delta(epoch, wanted):
    assert FULL.next_file(Position(epoch, f"v{epoch}")) == wanted


@pytest.mark.parametrize("held", [Position(1, "v1"), Position(5, "another history")])
def test_a_follower_off_the_chain_is_told_of_the_gap(held):
    with pytest.raises(DeltaGap, match=str(held.epoch)):
        FULL.next_file(held)


def test_a_follower_ahead_of_the_export_is_never_sent_back():
    with pytest.raises(ExportError, match="stays in service") as caught:
        FULL.next_file(Position(7, "v7"))
    assert not isinstance(caught.value, DeltaGap)


def test_a_damaged_delta_is_passed_over_by_a_base_at_or_after_it_only():
    assert FULL.next_file(Position(3, "v3"), {delta(4)}) == base(4)
    assert FULL.next_file(Position(4, "v4"), {delta(5)}) is None
    assert FULL.next_file(Position(3, "v3"), {delta(4), base(4)}) is None


def test_a_damaged_base_sends_a_new_follower_to_the_older_one():
    assert FULL.next_file(None, {base(4)}) == base(2)
    assert FULL.next_file(None, {base(4), base(2)}) is None


def test_a_new_base_lets_go_of_the_oldest_one_and_its_deltas():
    grown = FULL.with_delta(delta(7)).with_base(base(6), keep=2)
    grown.check()
    assert grown.bases == (base(4), base(6))
    assert [entry.epoch for entry in grown.deltas] == [5, 6, 7]
    alone = FULL.with_base(base(6), keep=1)
    assert (alone.bases, alone.deltas) == ((base(6),), ())


def test_an_older_base_stays_while_its_deltas_are_held_and_those_between_go() -> None:
    long = Manifest("m", (base(3), base(4), base(5)), (delta(4), delta(5), delta(6)))
    kept = long.with_base(base(6), keep=1, held=4)
    kept.check()
    assert [entry.epoch for entry in kept.bases] == [4, 6]
    assert [entry.epoch for entry in kept.deltas] == [5, 6]
    assert [entry.epoch for entry in long.with_base(base(6), keep=1, held=2).bases] == [6]
    assert [entry.epoch for entry in long.with_base(base(6), keep=2, held=5).bases] == [5, 6]
