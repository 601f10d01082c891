"""docs/epoch-log.md against the files it specifies."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from streamtrain.log import format
from streamtrain.log.container import DIGEST_OFFSET, Container
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.fold import fold
from tests.reference_log import append_epochs, epoch_record, fold_dicts, table_rows

DOCS = (Path(__file__).parents[3] / "docs" / "epoch-log.md").read_text()


def example_log(path: Path) -> EpochLog:
    log = EpochLog.create(path, "clicks", {})
    append_epochs(log, 3)
    fold(log.path)
    append_epochs(log, 5)
    log.append(epoch_record(6, log.digest(5), {"user": table_rows([3], [1, 2], seed=6)}))
    return log


def test_the_documented_reader_reads_a_log(tmp_path: Path) -> None:
    log = example_log(tmp_path / "model" / "log")
    (code,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    rows = fold_dicts(log.read(epoch).tables["user"] for epoch in range(7))
    assert answer.stdout == f"epoch 6: {len(rows)} rows, 60 samples\n", answer.stderr
    log.epoch_path(5).write_bytes(log.epoch_path(5).read_bytes()[:-1] + b"\1")
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert "is damaged" in answer.stderr


def test_the_documented_names_and_offsets_are_those_written(tmp_path: Path) -> None:
    file = Container(example_log(tmp_path / "log").epoch_path(6))
    table = DOCS[DOCS.index("### The document") : DOCS.index("### The tensors")]
    keys = {
        key
        for line in table.splitlines()
        if line.startswith("| `")
        for key in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert keys == file.document.keys() | format._RARE.keys()
    assert f"bytes {DIGEST_OFFSET} to {DIGEST_OFFSET + 63}" in DOCS
    columns = {f"tables/user/{name}" for name in re.findall(r"\| `tables/<table>/(\w+)`", DOCS)}
    assert columns == {name for name in file.tensors if name.startswith("tables/")}
    order = [(-tensor.dtype.itemsize, name) for name, tensor in file.tensors.items()]
    assert order == sorted(order)
