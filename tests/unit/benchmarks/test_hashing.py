"""The stream with many tail ids, the tables that are compared on it, and how collisions are counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from benchmarks.hashing import TAIL_JOB, collided_share, options_of, tail_samples, variants
from streamtrain.config import parse_job
from streamtrain.sparse.tables import AnyTable, Hashing

TABLE: TypeAdapter[Any] = TypeAdapter(AnyTable)


def test_most_ids_of_the_tail_stream_come_once_or_twice_and_it_is_the_same_every_time() -> None:
    table = tail_samples(20_000)
    _, counts = np.unique(table["user"].to_numpy(), return_counts=True)
    assert (counts <= 2).mean() > 0.8 and counts.max() > 500
    assert 0.2 < table["click"].to_numpy().mean() < 0.5
    assert table.equals(tail_samples(20_000)) and not table.equals(tail_samples(20_000, seed=1))


@pytest.mark.parametrize("rows", [1000, 45_718])
def test_every_table_is_valid_and_as_large_as_its_name_says(rows: int) -> None:
    for name, settings in variants(rows):
        table = TABLE.validate_python({"dim": 8} | settings)
        share = int(name.rpartition("%")[0].rpartition(" ")[2]) / 100
        floats = table.hashing.rows * table.row_dim
        assert floats == pytest.approx(share * rows * 8, rel=0.02, abs=16), name
        source = {"source": {"kind": "files", "paths": ["x.parquet"]}}
        parse_job(TAIL_JOB | source | {"tables": {"main": {"dim": 8} | settings}}, "test")


def test_ids_that_share_all_rows_are_counted() -> None:
    ids = np.arange(1000, dtype=np.uint64)
    assert collided_share(Hashing(scheme="independent", sizes=[1], combine="add"), 0, "t", ids) == 1.0
    assert collided_share(Hashing(scheme="independent", sizes=[2**30] * 2, combine="add"), 0, "t", ids) == 0.0
    # Chances of 1 - (1 - 1/500)^999.
    one = Hashing(scheme="quotient_remainder", sizes=[50, 10], combine="add")
    assert collided_share(one, 0, "t", ids) == pytest.approx(0.865, abs=0.05)


def test_the_command_line_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert options_of(["--data", "tail"]).data == ["tail"]
    with pytest.raises(SystemExit):
        options_of(["--samples", "0"])
    assert "--samples 0: must be at least 1" in capsys.readouterr().err
