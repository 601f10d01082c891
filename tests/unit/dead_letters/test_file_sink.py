"""Dead letters in a file: whole lines, bounded files, and what a crash or a full disk leaves behind."""

from __future__ import annotations

import base64
import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from streamtrain.dead_letters.file_sink import FileSink
from streamtrain.dead_letters.letter import MESSAGE_CHARACTERS_MAX, DeadLetter, letters_of
from streamtrain.dead_letters.settings import DeadLetterFile
from streamtrain.errors import BadSample, DeadLettersUnavailable
from streamtrain.sources import TIME_UNKNOWN, Chunk


def sink(path: Path, **changes: Any) -> FileSink:
    return FileSink(DeadLetterFile.model_validate({"kind": "file", "path": str(path), **changes}))


def letter(offset: int, value: bytes | None = b"{broken") -> DeadLetter:
    return DeadLetter("clicks:0", offset, 5, "json", None, "no JSON", b"k", value, len(value or b""))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_a_line_holds_the_original_bytes_and_why_they_were_refused(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "dead.jsonl"
    opened = sink(path)
    await opened.open()
    value = bytes(range(256))
    assert await opened.write([letter(7, value), letter(8, None)]) == 2
    await opened.close()
    await opened.close()
    first, second = lines(path)
    assert base64.b64decode(first.pop("value_base64")) == value
    assert base64.b64decode(first.pop("key_base64")) == b"k"
    assert first == {
        "partition": "clicks:0",
        "offset": 7,
        "leaves": None,
        "timestamp_ms": 5,
        "reason": "json",
        "field": None,
        "message": "no JSON",
        "value_bytes": 256,
    }
    assert (second["value_base64"], second["value_bytes"]) == (None, 0)


@pytest.mark.parametrize("torn", [b'{"partition": "cl', b"x" * 200_000])
async def test_the_beginning_of_a_line_that_a_crash_left_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "dead.jsonl"
    for offset in (1, 2):
        opened = sink(path)
        await opened.open()
        assert [line["offset"] for line in lines(path)] == list(range(1, offset))
        await opened.write([letter(offset)])
        await opened.close()
        with path.open("ab") as file:
            file.write(torn)


async def test_files_are_put_aside_and_the_oldest_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    for start in (0, 100):
        opened = sink(path, rotate_bytes=4096, files_max=3)
        for offset in range(start, start + 100):
            await opened.write([letter(offset, b"x" * 300)])
        await opened.close()
    files = sorted(tmp_path.iterdir())  # noqa: ASYNC240
    assert len(files) == 3 and files[0] == path
    assert all(file.stat().st_size < 4096 + 1000 for file in files)
    kept = [line["offset"] for file in [*files[1:], path] for line in lines(file)]
    assert kept == list(range(kept[0], 200)) and len(kept) > 10


@pytest.mark.parametrize("call", ["write", "fsync"])
async def test_a_full_disk_leaves_whole_lines_and_a_later_try_keeps_the_letters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "dead.jsonl"
    opened = sink(path)
    await opened.write([letter(1)])
    original = getattr(os, call)

    def fails(file: int, *data: Any) -> Any:
        if call == "write":
            original(file, data[0][:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fails)
        with pytest.raises(DeadLettersUnavailable, match=r"dead\.jsonl: No space left on device; make room"):
            await opened.write([letter(2)])
    if call == "write":
        assert [line["offset"] for line in lines(path)] == [1]
    assert await opened.write([letter(2), letter(3)]) == 2
    await opened.close()
    assert list(dict.fromkeys(line["offset"] for line in lines(path))) == [1, 2, 3]


async def test_a_path_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeadLettersUnavailable, match="cannot be written"):
        await sink(tmp_path / "file" / "dead.jsonl").open()


def chunk(records: Any, keys: Any = None) -> Chunk:
    offsets = np.array([3, 5, 9], np.int64)
    return Chunk("clicks:0", 3, 10, offsets, np.array([TIME_UNKNOWN, 50, 90], np.int64), records, keys)


def test_letters_carry_the_records_that_were_refused() -> None:
    bad = [BadSample("missing", "null", offset=3), BadSample("type", "y" * 5000, field="user", offset=9)]
    first, second = letters_of(chunk([None, b"good", b"12345678"], [b"a", b"b", b"key"]), bad, 7)
    assert (first.offset, first.value, first.time_ms, first.key, first.cut) == (3, None, None, b"a", False)
    assert (second.offset, second.value, second.value_bytes, second.cut) == (9, b"1234", 8, True)
    assert (second.key, second.field, second.reason, second.time_ms) == (b"key", "user", "type", 90)
    assert len(second.message) == MESSAGE_CHARACTERS_MAX


def test_a_row_of_a_columnar_file_becomes_json() -> None:
    table = pa.table({"user": [1, 2, None], "f": [0.5, float("nan"), None], "b": [b"x", b"y", b"z"]})
    (found,) = letters_of(chunk(table), [BadSample("non_finite", "NaN", offset=5)], 1000)
    assert found.value == b'{"user": 2, "f": NaN, "b": "b\'y\'"}' and found.key is None


def test_a_record_of_many_samples_is_one_letter_that_says_which_are_refused() -> None:
    def of(leaves: list[int | None]) -> str | None:
        bad = [BadSample("type", "wrong", offset=5, leaf=leaf) for leaf in leaves]
        (found,) = letters_of(chunk([b"a", b"tree", b"c"]), bad, 100)
        assert (found.offset, found.value) == (5, b"tree")
        return found.leaves

    assert [of([None]), of([0]), of([1, 2, 3, 7, 9, 10])] == [None, "0", "1-3,7,9-10"]
    many = of(list(range(0, 5000, 2)))
    assert many is not None and many.startswith("0,2,4,") and many.endswith(",...") and len(many) < 1010
