"""Damage to each region of each kind of file: it is found, the file is named, the remedy said. And the one repair."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest

from streamtrain.cli import main
from streamtrain.errors import CorruptRecord, EpochMissing, LogError, StreamtrainError
from streamtrain.log.container import DIGEST_OFFSET
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.fold import fold
from streamtrain.log.recovery import recover
from streamtrain.log.verify import verify
from tests.reference_log import append_epochs, table_rows

TENSORS = (
    "spans", "dense/mlp/kernel", "dense/adam/count", "metrics/auc",
    *(f"tables/user/{column}" for column in ("ids", "weights", "slots", "counts", "last_steps", "tombstones")),
)  # fmt: skip


def make(path: Path) -> EpochLog:
    """Epochs 0 to 5 with rows and tombstones, a base of 3."""
    log = EpochLog.create(path, "clicks", {"seed": 7, "schema": {"slots": {"a": {}, "b": {}}}})
    append_epochs(log, 5, tables={"user": table_rows([1, 2, 3], [9], seed=1)})
    fold(log.path, 3)
    return log


@pytest.fixture
def log(tmp_path: Path) -> EpochLog:
    return make(tmp_path / "log")


def regions(data: bytes) -> Iterator[tuple[str, int, int]]:
    """What a file is made of: name, first byte, byte after the last."""
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length]
    text = header.rstrip(b" ")
    names = orjson.loads(text)
    document = data.index(b'"streamtrain":"')
    yield "header length", 0, 8
    yield "start of the header", 8, DIGEST_OFFSET
    yield "digest", DIGEST_OFFSET, DIGEST_OFFSET + 64
    yield "document", document, document + 200
    yield "names of the tensors", 8 + text.index(b'"dtype"') - 20, 8 + len(text)
    if len(text) < length:
        yield "padding", 8 + len(text), 8 + length
    for name in names:
        if name != "__metadata__":
            first, last = names[name]["data_offsets"]
            if first < last:
                yield name, 8 + length + first, 8 + length + last


FILES = {"an epoch in between": "epochs/4", "the newest epoch": "epochs/5", "a base": "bases/3"}


def path_of(log: EpochLog, which: str) -> Path:
    folder, number = FILES[which].split("/")
    return log.path / folder / f"{int(number):020d}.safetensors"


def found(log: EpochLog) -> str:
    """What a daemon that starts says."""
    again = EpochLog.open(log.path)
    with again.lock(), pytest.raises(CorruptRecord) as error:
        list(recover(again))
    return str(error.value)


@pytest.mark.parametrize("which", FILES)
def test_a_flipped_bit_anywhere_is_found_by_the_daemon_and_by_verify(log: EpochLog, which: str) -> None:
    path = path_of(log, which)
    data = path.read_bytes()
    seen = set()
    for name, first, last in regions(data):
        seen.add(name)
        for at in {first, first + 1, first + 2, (first + last) // 2, last - 1}:
            for bit in (0x01, 0x80):
                path.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
                said = found(log)
                assert said.startswith(f"{path}: ") and said.endswith(remedy(log, which)), (name, at)
        (problem,) = verify(log.path).problems
        assert (problem.file, problem.remedy) == (str(path), remedy(log, which)), name
    missing = {"tables/user/tombstones", "spans"} if which == "a base" else set()
    assert seen >= {"header length", "digest", "document", "padding", *TENSORS} - missing - {"padding"}
    path.write_bytes(data)
    assert verify(log.path).ok


def remedy(log: EpochLog, which: str) -> str:
    folder, number = FILES[which].split("/")
    return log.remedy("epoch" if folder == "epochs" else "base", int(number))


def test_every_remedy_works(tmp_path: Path) -> None:
    """What the message says is done; then the log is sound, and the daemon can go on."""
    for which, act in {
        "the newest epoch": lambda log: path_of(log, "the newest epoch").unlink(),
        "an epoch in between": lambda log: [path.unlink() for path in (log.epoch_path(4), log.epoch_path(5))],
        "a base": lambda log: path_of(log, "a base").unlink(),
    }.items():
        log = make(tmp_path / which.replace(" ", "-"))
        flip(path_of(log, which))
        assert not verify(log.path).ok
        act(log)
        assert verify(log.path).ok, which
        again = EpochLog.open(log.path)
        with again.lock():
            assert list(recover(again))


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_anywhere_in_model_json_is_found(log: EpochLog) -> None:
    path = log.path / "model.json"
    data = path.read_bytes()
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 0x01]) + data[at + 1 :]
        if data[at : at + 1].isspace() and changed[at : at + 1].isspace():
            continue
        path.write_bytes(changed)
        with pytest.raises(CorruptRecord, match=rf"{path}: cannot be read .* restore it from a backup"):
            EpochLog.open(log.path)
    for cut in range(len(data) - 2):
        path.write_bytes(data[:cut])
        with pytest.raises(CorruptRecord, match=str(path)):
            EpochLog.open(log.path)
    path.unlink()
    with pytest.raises(LogError, match=r"it has no model\.json; check the path"):
        EpochLog.open(log.path)


def test_a_model_json_of_before_digests_is_believed(log: EpochLog) -> None:
    path = log.path / "model.json"
    document = orjson.loads(path.read_bytes())
    del document["digest"]
    path.write_bytes(orjson.dumps(document))
    assert EpochLog.open(log.path).model == log.model


@pytest.mark.parametrize("which", ["an epoch in between", "a base"])
def test_a_file_that_is_cut_short_and_is_not_the_newest_is_never_repaired(log: EpochLog, which: str) -> None:
    path = path_of(log, which)
    data = path.read_bytes()
    for cut in {0, *(first for _, first, _ in regions(data)), len(data) - 1}:
        path.write_bytes(data[:cut])
        said = found(log)
        assert said.startswith(f"{path}: ") and said.endswith(remedy(log, which))
        assert path.read_bytes() == data[:cut] and not (log.path / "damaged").exists()
        (problem,) = verify(log.path).problems
        assert (problem.file, problem.remedy) == (str(path), remedy(log, which))


@pytest.mark.parametrize(
    ("swap", "file", "what"),
    [
        ((4, 5), 4, "it holds epoch 5"),
        ((0, 5), 5, "it holds epoch 0"),
    ],
)
def test_swapped_files_are_found(log: EpochLog, swap: tuple[int, int], file: int, what: str) -> None:
    one, other = (log.epoch_path(epoch) for epoch in swap)
    aside = log.path / "aside"
    one.rename(aside), other.rename(one), aside.rename(other)
    problems = {Path(problem.file): problem.what for problem in verify(log.path).problems}
    assert what in problems[log.epoch_path(file)]
    assert f"{log.epoch_path(file)}: {what}" in found(log)


def test_a_base_in_the_place_of_an_epoch_and_the_other_way_round_are_found(log: EpochLog) -> None:
    shutil.copy(log.base_path(3), log.epoch_path(5))
    assert "it holds base 3" in found(log)
    shutil.copy(log.epoch_path(4), log.base_path(4))
    assert f"{log.base_path(4)}: it holds epoch 4" in found(log)


def test_an_epoch_that_is_gone_is_missed(log: EpochLog, capsys: pytest.CaptureFixture[str]) -> None:
    log.epoch_path(4).unlink()
    again = EpochLog.open(log.path)
    with again.lock(), pytest.raises(EpochMissing, match="no epoch 4"):
        list(recover(again))
    assert main(["verify", str(log.path)]) == 1
    said = capsys.readouterr().out
    assert (
        f"{log.epoch_path(4)}: epochs 4 to 4 are missing; Restore them from a backup, or move the epochs from 5"
        in (said)
    )


# The one repair: the end of the newest epoch, lost with the power by a disk that had promised to keep it.


def test_a_newest_epoch_whose_end_is_lost_is_moved_aside_and_the_log_goes_on(
    log: EpochLog, caplog: pytest.LogCaptureFixture
) -> None:
    path = log.epoch_path(5)
    data = path.read_bytes()
    cuts = sorted({0, 1, *(first for _, first, _ in regions(data)), len(data) - 1})
    for number, cut in enumerate(cuts, 1):
        path.write_bytes(data[:cut])
        assert not verify(log.path).ok, "readers repair nothing"
        again = EpochLog.open(log.path)
        with caplog.at_level(logging.WARNING), again.lock():
            assert [record.epoch for record in recover(again)] == [3, 4]
            assert verify(log.path).ok
            append_epochs(again, 5, tables={"user": table_rows([1, 2, 3], [9], seed=1)})
        kept = list((log.path / "damaged").iterdir())
        assert len(kept) == number and data[:cut] in [file.read_bytes() for file in kept]
        assert path.read_bytes() == data
    assert "epoch 5 was lost with the power: it has" in caplog.text
    assert "what it had learned is learned again" in caplog.text


NOT_TORN: dict[str, Callable[[EpochLog], object]] = {
    "a flipped bit in the newest": lambda log: flip(log.epoch_path(5)),
    "a newest of zeros": lambda log: log.epoch_path(5).write_bytes(bytes(log.epoch_path(5).stat().st_size)),
    "bytes after its end": lambda log: log.epoch_path(5).write_bytes(log.epoch_path(5).read_bytes() + b"x"),
    "the newest two": lambda log: [log.epoch_path(epoch).write_bytes(b"") for epoch in (4, 5)],
}


@pytest.mark.parametrize("name", NOT_TORN)
def test_whatever_else_is_wrong_at_the_end_is_told_and_left_alone(log: EpochLog, name: str) -> None:
    NOT_TORN[name](log)
    before = {path: path.read_bytes() for path in log.path.rglob("*.safetensors")}
    assert str(log.path / "epochs") in found(log)
    assert before == {path: path.read_bytes() for path in log.path.rglob("*.safetensors")}


def test_a_torn_genesis_is_told_because_nothing_stands_before_it(tmp_path: Path) -> None:
    log = EpochLog.create(tmp_path / "log", "m", {})
    append_epochs(log, 0)
    log.epoch_path(0).write_bytes(b"")
    assert str(log.epoch_path(0)) in found(log)


def test_a_torn_epoch_that_follows_a_base_alone_is_moved_aside(log: EpochLog) -> None:
    fold(log.path)
    log.collect(1)
    append_epochs(log, 6)
    log.epoch_path(5).unlink()
    log.epoch_path(6).write_bytes(b"")
    again = EpochLog.open(log.path)
    with again.lock():
        assert again.head() == 5 and [record.epoch for record in recover(again)] == [5]


def test_every_fault_is_typed_whatever_the_bytes_are(log: EpochLog) -> None:
    """Noise in place of a file: never another exception than ours."""
    noise = bytes((7 * n * n + n // 3) % 256 for n in range(4096))
    for which in FILES:
        path = path_of(log, which)
        data = path.read_bytes()
        for content in (noise, data[:200] + noise, data[: len(data) // 2] + noise, b"\xff" * 8 + data):
            path.write_bytes(content)
            again = EpochLog.open(log.path)
            with again.lock(), pytest.raises(StreamtrainError, match=str(path)):
                list(recover(again))
        path.write_bytes(data)
