"""Files: every row once from anywhere, bounded, and damage said plainly."""

from __future__ import annotations

import gzip
import itertools
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from streamtrain.errors import ConfigError, SourceError
from streamtrain.samples import file_codecs
from streamtrain.samples.codec import FileRows, file_codec_of
from streamtrain.samples.file_codecs import JsonLines, Parquet

LINES = [b'{"n": %d}' % n for n in range(25)]


def write(path: Path, content: bytes) -> Path:
    """Writes as the name says; compressed content as two streams, one behind the other."""
    half = len(content) // 2
    if path.suffix == ".gz":
        content = gzip.compress(content[:half]) + gzip.compress(content[half:])
    elif path.suffix == ".zst":
        content = b"".join(zstandard.compress(part) for part in (content[:half], content[half:]))
    path.write_bytes(content)
    return path


def read(path: Path, start_row: int = 0, rows_max: int = 10, **options: Any) -> list[FileRows]:
    runs = list(file_codec_of(path).rows(path, start_row, ["n"], rows_max, **options))
    for one, two in itertools.pairwise(runs):
        assert one.next_row == two.first_row
    assert all(run.next_row - run.first_row <= rows_max for run in runs)
    return runs


def rows(runs: list[FileRows]) -> list[tuple[int, Any]]:
    found: list[tuple[int, Any]] = []
    for run in runs:
        records = run.records.column("n").to_pylist() if isinstance(run.records, pa.Table) else run.records
        found.extend(zip(run.rows.tolist(), records, strict=True))
    return found


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.ndjson.zst", "A.JSON"])
@pytest.mark.parametrize("start", [0, 1, 9, 10, 24, 25, 26])
def test_json_lines_are_read_from_any_row(tmp_path: Path, name: str, start: int) -> None:
    path = write(tmp_path / name, b"\n".join(LINES) + b"\n")
    assert rows(read(path, start)) == list(enumerate(LINES))[start:]


@pytest.mark.parametrize("start", [0, 1, 9, 10, 24, 25, 26])
def test_parquet_is_read_from_any_row(tmp_path: Path, start: int) -> None:
    pq.write_table(pa.table({"n": range(25), "m": range(25)}), tmp_path / "a.parquet", row_group_size=7)
    runs = read(tmp_path / "a.parquet", start)
    assert rows(runs) == [(n, n) for n in range(25)][start:]
    assert all(run.records.column_names == ["n"] for run in runs)


def test_blank_lines_are_rows_without_a_record(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b"\n{}\r\n  \t\n\n[] \n\n")
    assert rows(read(path, rows_max=2)) == [(1, b"{}"), (4, b"[]")]
    assert read(path)[-1].next_row == 6
    assert [(run.first_row, run.next_row) for run in read(path, 2, rows_max=2)] == [(2, 4), (4, 6)]


def test_a_last_line_without_newline_is_a_row_unless_it_may_still_grow(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b"{}\n[1")
    assert rows(read(path)) == [(0, b"{}"), (1, b"[1")]
    (run,) = read(path, complete_only=True)
    assert (run.next_row, run.next_byte, run.records) == (1, 3, [b"{}"])
    with path.open("ab") as file:
        file.write(b", 2]\n\n{")
    (run,) = read(path, run.next_row, start_byte=run.next_byte, complete_only=True)
    assert (run.first_row, run.rows.tolist(), run.records, run.next_row) == (1, [1], [b"[1, 2]"], 3)
    assert read(path, run.next_row, start_byte=run.next_byte, complete_only=True) == []


def test_every_run_of_a_plain_file_says_where_the_next_begins(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b"\n\n".join(LINES))
    for run in read(path, 3, rows_max=4):
        assert rows(read(path, run.next_row, start_byte=run.next_byte)) == rows(read(path, run.next_row))
    assert all(run.next_byte is None for run in read(write(tmp_path / "a.jsonl.gz", b"{}\n")))


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b""])
def test_a_line_that_is_too_long_costs_no_memory_and_stays_one_row(tmp_path: Path, ending: bytes) -> None:
    fits, huge = b"x" * 50, b"y" * 500_000
    path = write(tmp_path / "a.jsonl", ending.join([fits, huge, b"z"]) if ending else b"{}\n" + huge)
    (run,) = JsonLines(record_bytes_max=50).rows(path, 0, [], 10)
    if ending:
        assert run.records[0] == fits and run.records[2] == b"z" and run.rows.tolist() == [0, 1, 2]
    assert 50 < len(run.records[1]) <= 52 and huge.startswith(run.records[1])


def test_a_run_is_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_codecs, "RUN_BYTES_MAX", 20)
    runs = read(write(tmp_path / "a.jsonl", b"\n".join(LINES)))
    assert max(len(run.records) for run in runs) == 3 and rows(runs) == list(enumerate(LINES))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_truncated_file_is_not_taken_for_a_short_one(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, b"\n".join(LINES * 100))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(SourceError, match=f"{name}: cannot be read as JSON lines: .*Is the file whole"):
        read(path)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_file_of_another_format_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"something else" * 100)
    with pytest.raises(SourceError, match=f"{name}: cannot be read"):
        read(tmp_path / name)


def test_damage_inside_a_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": [n * 7919 % 100_003 for n in range(20_000)]}), path)
    content = bytearray(path.read_bytes())
    content[200:2000] = b"x" * 1800
    path.write_bytes(content)
    with pytest.raises(SourceError, match="cannot be read as Parquet"):
        read(path)


@pytest.mark.parametrize("codec", [JsonLines(), Parquet()])
def test_a_missing_file_is_not_found(tmp_path: Path, codec: JsonLines | Parquet) -> None:
    with pytest.raises(FileNotFoundError):
        next(codec.rows(tmp_path / "gone.jsonl", 0, [], 10))


def test_columns_that_a_parquet_file_lacks_are_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pq.write_table(pa.table({"m": [1, 2, 3]}), tmp_path / "a.parquet")
    with caplog.at_level(logging.WARNING):
        (run,) = Parquet().rows(tmp_path / "a.parquet", 1, ["n", "o"], 10)
    assert run.rows.tolist() == [1, 2] and run.records.num_rows == 2
    assert [record.getMessage().split(" has ")[1] for record in caplog.records] == [
        "no column n, o; there they count as missing"
    ]


def test_a_file_that_no_codec_reads_is_a_mistake_of_the_settings() -> None:
    assert isinstance(file_codec_of(Path("x/day.JSONL.zst")), JsonLines)
    with pytest.raises(
        ConfigError, match=r"day.csv: no file codec reads such files; names end with one of .*\.parquet"
    ):
        file_codec_of(Path("day.csv"))


def test_a_line_that_grows_between_two_reads_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer appends while the reader stands in the middle of a line: found by the demo, once in 100,000 lines."""
    path = write(tmp_path / "growing.jsonl", b'{"n": 0}\n{"n"')
    real = Path.open

    def opened(self: Path, *arguments: Any, **options: Any) -> Any:
        file = real(self, *arguments, **options)
        readline = file.readline

        class Growing:
            def readline(self, size: int = -1) -> bytes:
                line: bytes = readline(size)
                if line == b'{"n"':
                    with real(path, "ab") as writer:
                        writer.write(b": 1}\n")
                return line

            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def __getattr__(self, name: str) -> Any:
                return getattr(file, name)

        return Growing()

    monkeypatch.setattr(Path, "open", opened)
    runs = read(path, complete_only=True)
    assert [record for run in runs for record in run.records] == [b'{"n": 0}', b'{"n": 1}']
    assert runs[-1].next_byte == path.stat().st_size
