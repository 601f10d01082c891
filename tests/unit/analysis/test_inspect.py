"""`streamtrain inspect --table` as its users type it."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamtrain.cli import main
from streamtrain.log.epoch_log import EpochLog
from streamtrain.samples.hashing import cross_id, feature_id
from tests.reference_analysis import Table, applied, norm, random_parts
from tests.reference_log import epoch_record, table_rows

JOB: dict[str, Any] = {
    "schema": {
        "labels": ["click"],
        "slots": {
            "user": {},
            "item": {"type": "string", "table": "other"},
            "price": {"kind": "bucket", "boundaries": [1.0, 5.0]},
            "history": {"kind": "sequence", "shares": "user"},
            "user_price": {"kind": "cross", "of": ["user", "price"]},
            "height": {"kind": "dense"},
        },
    },
    "tables": {"main": {"dim": 3}, "other": {"dim": 2}},
}
for slot in ("user", "price", "user_price"):
    JOB["schema"]["slots"][slot]["table"] = "main"

USER, PRICE = feature_id("user", -7), feature_id("price", 1)
CROSS = cross_id("user_price", [USER, PRICE])


@pytest.fixture
def log(tmp_path: Path) -> EpochLog:
    log = EpochLog.create(tmp_path / "log", "clicks", JOB)
    named = table_rows([USER, PRICE, CROSS], seed=3)
    for epoch, part in enumerate([*random_parts(np.random.default_rng(3), 5, 300), named]):
        log.append(epoch_record(epoch, "" if epoch == 0 else log.digest(epoch - 1), {"main": part}))
    return log


@pytest.fixture
def table(log: EpochLog) -> Table:
    return applied([log.read(epoch).tables["main"] for epoch in range(6)])


def inspect(
    capsys: pytest.CaptureFixture[str], log: EpochLog, *options: str | Path, table: str = "main"
) -> Any:
    """What `--json` says, after the text for people was printed too."""
    assert run(capsys, log, *options, table=table)[0] == 0
    code, out, err = run(capsys, log, *options, "--json", table=table)
    assert code == 0, err
    return json.loads(out)


def run(
    capsys: pytest.CaptureFixture[str], log: EpochLog, *options: str | Path, table: str = "main"
) -> tuple[int, str, str]:
    code = main(["inspect", str(log.path), "--table", table, *map(str, options)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_summary_counts_every_row_in_each_histogram(
    log: EpochLog, table: Table, capsys: pytest.CaptureFixture[str]
) -> None:
    found = inspect(capsys, log, "--epochs", "3")
    assert (found["epoch"], found["rows"], found["dim"], found["samples"]) == (5, len(table), 3, 50)
    assert found["bytes"] == len(table) * (16 + 4 * 3 + 4 * 2)
    for name in ("frequency", "age", "norm"):
        assert sum(count for *_, count in found[name]["bars"]) == len(table)
    assert [one["epoch"] for one in found["epochs"]] == [5, 4, 3]
    n = len(table)
    assert found["collisions"]["probability"] == pytest.approx(n * (n - 1) / 2**65)


def test_the_summary_reads_as_text(log: EpochLog, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, log)
    assert out.startswith("clicks, table main, epoch 5 (5 steps)\n")
    for part in (
        "rows  ",
        "two values share one 64-bit id",
        "frequency: ",
        "age: ",
        "norm: ",
        "new  changed  removed",
    ):
        assert part in out
    assert all(len(line) <= 110 for line in out.splitlines())


@pytest.mark.parametrize(
    ("options", "id"),
    [
        (["--id", str(USER)], USER),
        (["--id", hex(PRICE)], PRICE),
        (["--slot", "user", "--id", "-7"], USER),
        (["--slot", "history", "--id", "-7"], USER),
        (["--slot", "price", "--id", "4.99"], PRICE),
        (["--slot", "user_price", "--id", "-7", "1"], CROSS),
    ],
)
def test_a_row_is_found_by_its_id_and_by_what_its_slot_held(
    options: list[str], id: int, log: EpochLog, table: Table, capsys: pytest.CaptureFixture[str]
) -> None:
    row = inspect(capsys, log, *options)["row"]
    assert row["id"] == id
    assert (row["vector"], row["count"], row["last_step"]) == table[id]
    assert row["age"] == 4 - row["last_step"] and row["norm"] == pytest.approx(norm(row["vector"]))
    assert len(row["optimizer"]) == 2


def test_the_nearest_rows_have_both_measures_and_the_one_asked_for_decides(
    log: EpochLog, capsys: pytest.CaptureFixture[str]
) -> None:
    for by in ("cosine", "dot"):
        near = inspect(capsys, log, "--id", USER, "--nearest", "5", "--by", by)["nearest"]
        scores = [row[by] for row in near]
        assert scores == sorted(scores, reverse=True) and len(near) == 5
        assert all(-1.0001 <= row["cosine"] <= 1.0001 and row["id"] != USER for row in near)


def test_sorted_rows_begin_with_the_largest(
    log: EpochLog, table: Table, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = inspect(capsys, log, "--sort", "count", "--top", "4")["rows"]
    assert [row["count"] for row in rows] == sorted((count for _, count, _ in table.values()), reverse=True)[
        :4
    ]


def test_movers_tell_the_three_sorts_apart(log: EpochLog, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect(capsys, log, "--movers", "2", "5", "--top", "2")
    assert (found["from"], found["to"]) == (2, 5)
    assert len(found["farthest"]) == len(found["largest_new"]) == len(found["largest_removed"]) == 2
    assert found["farthest"][0]["distance"] >= found["farthest"][1]["distance"]
    assert {USER, PRICE} & {row["id"] for row in found["largest_new"]}


@pytest.mark.parametrize("at", [2, 5])
def test_csv_and_parquet_hold_every_row_to_the_bit(
    at: int,
    log: EpochLog,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streamtrain.analysis.snapshot.CHUNK_ROWS", 100)
    expected = applied([log.read(epoch).tables["main"] for epoch in range(at + 1)])
    for kind in ("csv", "parquet"):
        found = inspect(capsys, log, f"--{kind}", tmp_path / f"rows.{kind}", "--at", str(at))
        assert found["files"] == {str(tmp_path / f"rows.{kind}"): len(expected)}
    read = pq.read_table(tmp_path / "rows.parquet")
    assert [(name, str(kind)) for name, kind in zip(read.schema.names, read.schema.types, strict=True)] == [
        ("id", "uint64"),
        ("count", "uint32"),
        ("last_step", "uint32"),
        ("age", "uint32"),
        ("norm", "float"),
        ("vector", "fixed_size_list<element: float>[3]"),
    ]
    rows = read.to_pylist()
    assert [row["id"] for row in rows] == sorted(expected)
    assert {row["id"]: (row["vector"], row["count"], row["last_step"]) for row in rows} == expected
    with (tmp_path / "rows.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {
        int(line["id"]): (
            [float(np.float32(line[f"w{d}"])) for d in range(3)],
            int(line["count"]),
            int(line["last_step"]),
        )
        for line in lines
    } == expected
    assert [float(np.float32(line["norm"])) for line in lines] == [row["norm"] for row in rows]
    assert [int(line["age"]) for line in lines] == [row["age"] for row in rows]


def test_a_table_without_rows_is_written_with_its_columns(
    log: EpochLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect(capsys, log, "--parquet", tmp_path / "none.parquet", table="other")
    read = pq.read_table(tmp_path / "none.parquet")
    assert (read.num_rows, read.schema.field("vector").type) == (
        0,
        pa.list_(pa.field("element", pa.float32()), 2),
    )
    assert inspect(capsys, log, table="other")["rows"] == 0


def test_a_file_that_cannot_be_written_leaves_the_one_before_and_nothing_beside(
    log: EpochLog, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "rows.parquet"
    target.write_text("before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_batch", full)
        code, _, err = run(capsys, log, "--parquet", target)
    assert code == 1 and f"cannot write {target}: No space left on device" in err
    assert target.read_text() == "before" and [path.name for path in target.parent.iterdir()] == [
        "rows.parquet"
    ]
    code, _, err = run(capsys, log, "--csv", tmp_path / "nowhere" / "rows.csv")
    assert code == 1 and "rows.csv: No such file or directory; choose another path" in err


def test_a_picture_is_drawn_where_matplotlib_is(
    log: EpochLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    inspect(capsys, log, "--png", tmp_path / "main.png")
    data = (tmp_path / "main.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 20_000


def test_without_matplotlib_a_picture_names_the_extra_to_install(
    log: EpochLog, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    code, _, err = run(capsys, log, "--png", tmp_path / "main.png")
    assert code == 2 and "pip install 'streamtrain[analysis]'" in err and not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--id", "seven"], "an id is a number from 0 to 2^64 - 1"),
        (["--id", str(2**64)], "an id is a number from 0 to 2^64 - 1"),
        (["--id", "1", "2"], "--id takes one id"),
        (["--id", "1"], "no row of id 0x0000000000000001 at epoch 5"),
        (["--slot", "user", "--id", "seven"], "holds integers of 64 bits with sign, not 'seven'"),
        (["--slot", "user", "--id", str(2**63)], "holds integers of 64 bits with sign"),
        (["--slot", "users", "--id", "1"], "there is no such slot; there are: user, item"),
        (["--slot", "item", "--id", "a"], "its table is not 'main', whose slots are: user, price, "),
        (["--slot", "height", "--id", "1"], "a dense slot has no ids"),
        (["--slot", "price", "--id", "nan"], "finite number"),
        (["--slot", "user_price", "--id", "1"], "takes 2 values, not 1"),
        (["--slot", "user"], "--slot needs --id"),
        (["--nearest", "3"], "--nearest needs --id"),
        (["--id", "1", "--png", "x.png"], "not with --id"),
        (["--movers", "1", "2", "--at", "1"], "not with --at"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_words(
    options: list[str], words: str, log: EpochLog, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, log, *options)
    assert (code, out) == (2, "") and words in err


def test_options_of_one_table_ask_for_the_table(log: EpochLog, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(log.path), "--sort", "count"]) == 2
    assert "--sort looks into one table: add --table NAME" in capsys.readouterr().err


def test_an_epoch_that_is_not_there_is_a_fault_not_a_wrong_option(
    log: EpochLog, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, log, "--at", "77")
    assert code == 1 and "epochs 0 to 5 can" in err


def test_inspecting_writes_nothing_to_the_log(log: EpochLog, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in log.path.rglob("*")}
    for options in ([], ["--id", str(USER), "--nearest", "3"], ["--movers", "0", "5"], ["--sort", "age"]):
        inspect(capsys, log, *options)
    assert {path: path.stat().st_mtime_ns for path in log.path.rglob("*")} == before


def test_a_reader_that_goes_away_is_no_fault(log: EpochLog) -> None:
    command = (
        f"{sys.executable} -m streamtrain inspect {log.path} --table main --sort count --top 10000 | head -1"
    )
    ran = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert ran.stderr == "" and ran.stdout.count("\n") == 1
