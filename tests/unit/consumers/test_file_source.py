"""Files: their order, following, and what is refused."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.file_list import list_files, natural_key
from consumers.files import FileSettings, FileSource
from streamtrain.errors import ConfigError, PartitionMissing, SourceError, SourceRecreated
from streamtrain.sources import Chunk


@asynccontextmanager
async def source(*paths: Path | str, until_end: bool = False, **changes: Any) -> AsyncIterator[FileSource]:
    settings = FileSettings(
        kind="files", paths=[str(path) for path in paths], **({"poll_interval_s": 0.01} | changes)
    )
    opened = FileSource(settings, until_end=until_end)
    try:
        yield opened
    finally:
        await opened.close()


async def read_records(source: FileSource, count: int) -> list[Any]:
    records: list[Any] = []
    async with asyncio.timeout(20):
        while len(records) < count:
            chunk = await source.read()
            assert chunk is not None
            records.extend(chunk.records)
    assert len(records) == count
    return records


async def read_chunks(source: FileSource) -> list[Chunk]:
    chunks = []
    async with asyncio.timeout(20):
        while (chunk := await source.read()) is not None:
            chunks.append(chunk)
    return chunks


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_numbers_in_names_sort_as_numbers(tmp_path: Path) -> None:
    for name in ("part-10.jsonl", "part-9.jsonl", "part-09.jsonl", "a.jsonl", "part.jsonl"):
        (tmp_path / name).touch()
    files, unmatched = list_files([str(tmp_path / "*.jsonl"), str(tmp_path / "*.parquet")])
    names = [Path(file).name for file in files]
    assert names == ["a.jsonl", "part-09.jsonl", "part-9.jsonl", "part-10.jsonl", "part.jsonl"]
    assert unmatched == [str(tmp_path / "*.parquet")]


@given(st.sets(st.text("ab019-/.", max_size=8)), st.randoms(use_true_random=False))
def test_the_order_of_names_does_not_depend_on_how_they_were_found(names: set[str], random: Random) -> None:
    ordered = sorted(names, key=natural_key)
    shuffled = ordered[:]
    random.shuffle(shuffled)
    assert sorted(shuffled, key=natural_key) == ordered


def test_a_file_named_twice_is_read_once_at_its_first_place(tmp_path: Path) -> None:
    first, second = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    for path in (first, second):
        path.touch()
    assert list_files([str(second), str(tmp_path / "*")])[0] == [str(second), str(first)]


async def test_a_growing_file_is_read_line_by_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    append(path, '{"n": 1}\n{"n"')
    async with source(path, follow=True) as opened:
        assert await opened.start(None) == {str(path): 0}
        assert await read_records(opened, 1) == [b'{"n": 1}']
        append(path, ": 2}\n")
        assert await read_records(opened, 1) == [b'{"n": 2}']
        append(path, '{"n": 3}\n{"n": 4}\n')
        assert await read_records(opened, 2) == [b'{"n": 3}', b'{"n": 4}']


async def test_following_goes_on_where_the_log_says(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    append(path, '{"n": 1}\n\n{"n": 2}\n')
    async with source(path, follow=True) as opened:
        assert await opened.start({str(path): 2}) == {str(path): 2}
        assert await read_records(opened, 1) == [b'{"n": 2}']
        append(path, '{"n": 3}\n')
        assert await read_records(opened, 1) == [b'{"n": 3}']


async def test_a_newer_file_is_noticed_and_finishes_the_one_before(tmp_path: Path) -> None:
    append(tmp_path / "9.jsonl", '{"n": 1}\n{"n": 2}')
    async with source(tmp_path / "*.jsonl", follow=True) as opened:
        await opened.start(None)
        assert await read_records(opened, 1) == [b'{"n": 1}']
        append(tmp_path / "10.jsonl", '{"n": 3}\n')
        assert await read_records(opened, 2) == [b'{"n": 2}', b'{"n": 3}']


async def test_following_waits_for_the_first_file(tmp_path: Path) -> None:
    async with source(tmp_path / "*.jsonl", tmp_path / "named.jsonl", follow=True) as opened:
        assert await opened.start(None) == {}
        append(tmp_path / "1.jsonl", '{"n": 1}\n')
        assert await read_records(opened, 1) == [b'{"n": 1}']


async def test_until_end_leaves_the_unfinished_line_of_a_followed_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    append(path, '{"n": 1}\n{"n"')
    async with source(path, follow=True, until_end=True) as opened:
        await opened.start(None)
        assert [chunk.next for chunk in await read_chunks(opened)] == [1]


async def test_the_last_line_of_a_finished_file_needs_no_newline(tmp_path: Path) -> None:
    append(tmp_path / "events.jsonl", '{"n": 1}\n{"n": 2}')
    async with source(tmp_path / "events.jsonl") as opened:
        await opened.start(None)
        assert [chunk.next for chunk in await read_chunks(opened)] == [2]


@pytest.mark.parametrize("how", ["truncated", "replaced", "removed"])
async def test_a_followed_file_that_does_not_only_grow_stops_the_reading(tmp_path: Path, how: str) -> None:
    path = tmp_path / "events.jsonl"
    append(path, '{"n": 1}\n{"n": 2}\n')
    async with source(path, follow=True) as opened:
        await opened.start(None)
        await read_records(opened, 2)
        if how == "truncated":
            os.truncate(path, 5)
        elif how == "removed":
            path.unlink()
        else:
            append(tmp_path / "other", '{"n": 5}\n{"n": 6}\n{"n": 7}\n')
            (tmp_path / "other").rename(path)
        with pytest.raises(SourceError, match=how) as caught:
            await read_records(opened, 1)
        assert isinstance(caught.value, SourceRecreated) == (how != "removed")


async def test_a_file_with_fewer_rows_than_were_learned_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    append(path, '{"n": 1}\n{"n": 2}\n')
    async with source(path) as opened:
        with pytest.raises(SourceRecreated, match="fewer than the 3 rows"):
            await opened.start({str(path): 3})
    async with source(path, until_end=True) as opened:
        assert await opened.start({str(path): 2}) == {str(path): 2}
        assert await read_chunks(opened) == []


async def test_missing_files_are_named(tmp_path: Path) -> None:
    append(tmp_path / "1.jsonl", "{}\n")
    async with source(tmp_path / "1.jsonl", tmp_path / "2.jsonl") as opened:
        with pytest.raises(PartitionMissing, match=r"2\.jsonl' is not there"):
            await opened.start(None)
    async with source(tmp_path / "*.jsonl") as opened:
        with pytest.raises(PartitionMissing, match=r"the log goes on in 'gone\.jsonl' at row 4"):
            await opened.start({"gone.jsonl": 4})


async def test_a_file_that_no_codec_reads_is_refused_at_the_start(tmp_path: Path) -> None:
    append(tmp_path / "1.csv", "1\n")
    async with source(tmp_path / "1.csv") as opened:
        with pytest.raises(ConfigError, match="no file codec"):
            await opened.start(None)


async def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    append(tmp_path / "1.parquet", "not parquet at all")
    async with source(tmp_path / "1.parquet") as opened:
        await opened.start(None)
        for _ in range(2):
            with pytest.raises(SourceError, match=r"1\.parquet"):
                await opened.read()
