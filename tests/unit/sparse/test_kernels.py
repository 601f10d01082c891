"""How kernels are built: cached soundly, and compiled once, in the warm-up."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numba.core.dispatcher import Dispatcher

import streamtrain.sparse
from streamtrain.log.record import FilterRows, TableRows
from streamtrain.sparse.dynamic import DynamicTable
from streamtrain.sparse.net import SparseNet
from streamtrain.sparse.reader import SparseReader
from streamtrain.sparse.settings import TableSettings
from streamtrain.sparse.tables import AnyTable, HashTable, MultiHashTable
from tests.unit.sparse.cases import LAYOUT, OPTIMIZERS, random_batch, random_gradients, table_settings

ROOT = Path(__file__).resolve().parents[3]
HINTS = "streamtrain.sparse.jit"


def kernels() -> dict[str, Dispatcher]:
    found = {}
    for module in pkgutil.iter_modules(streamtrain.sparse.__path__, "streamtrain.sparse."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, Dispatcher):
                found[f"{value.py_func.__module__}.{value.py_func.__name__}"] = value
    return found


def test_no_kernel_calls_one_of_another_file_because_the_cache_would_not_notice_its_change() -> None:
    for name, kernel in kernels().items():
        function = kernel.py_func
        called = [function.__globals__.get(used) for used in function.__code__.co_names]
        files = {each.py_func.__module__ for each in called if isinstance(each, Dispatcher)}
        assert files <= {function.__module__, HINTS}, name


def test_kernels_keep_to_ieee_754() -> None:
    for name, kernel in kernels().items():
        assert not kernel.targetoptions["fastmath"], name
        assert kernel.targetoptions["nogil"], name
        assert kernel.targetoptions["error_model"] == "numpy", name


def test_a_plain_import_of_the_settings_does_not_import_numba() -> None:
    code = "import sys, streamtrain.sparse.settings; sys.exit('numba' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


LIVES = (
    {"admission": {"kind": "count", "threshold": 2, "halve_every_steps": 2}, "expiry": {"after_steps": 2}},
    {
        "admission": {"kind": "counting_bloom", "threshold": 2, "expected_ids": 500, "halve_every_steps": 2},
        "expiry": {"norm_min": 0.1},
        "decay": {"every_steps": 2, "weights": 0.9, "slots": 0.9},
    },
    {"admission": {"kind": "probability", "p": 0.5}, "decay": {"every_steps": 2, "slots": 0.9}},
)
TABLES: tuple[Mapping[str, AnyTable], ...] = (
    *map(table_settings, OPTIMIZERS.values()),
    *(
        {name: TableSettings.model_validate({"dim": dim} | life) for name, dim in (("user", 3), ("item", 18))}
        for life in LIVES
    ),
    {
        "user": HashTable(kind="hash", dim=3, rows=500),
        "item": MultiHashTable(kind="multi_hash", dim=18, rows=[90, 70], combine="multiply"),
    },
    {
        "user": MultiHashTable(kind="multi_hash", dim=3, rows=60, hashes=4),
        "item": MultiHashTable(kind="multi_hash", dim=18, rows=50, hashes=3, combine="concat"),
    },
)


def test_nothing_compiles_after_the_warm_up() -> None:
    # In a fresh process: here, other tests may have compiled what the warm-up forgets.
    code = "from tests.unit.sparse.test_kernels import *; [check_warm_up(tables) for tables in TABLES]"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, cwd=ROOT)


def check_warm_up(tables: Mapping[str, AnyTable]) -> None:
    net = SparseNet(LAYOUT, tables, 1)
    net.warm_up()
    SparseReader(LAYOUT, net.tables).warm_up()
    before = signatures()
    assert max(before.values()) == 1
    assert net.rows("item") == 0

    rng = np.random.default_rng(0)
    for step in range(3):
        batch = random_batch(rng, 40, ids=3000)
        net.forward(batch, step, 64)
        pooled, sequences = random_gradients(rng, 64)
        pooled.flags.writeable = False
        net.backward(pooled, {name: frozen(gradient) for name, gradient in sequences.items()}, step)
    filters = {
        name: FilterRows(*map(frozen, (part.ids, part.values, part.tombstones)))
        for name, part in net.cut_filters()[0].items()
    }
    SparseNet(LAYOUT, tables, 1).load_filters(filters, {})
    net.forward(batch, 3, 64)
    assert not net.backward(np.full_like(pooled, np.nan), sequences, 3)
    rows = {name: TableRows(*map(frozen, columns(rows))) for name, rows in net.cut().items()}
    net.remove("item", frozen(rows["item"].ids[:5]))
    other = SparseNet(LAYOUT, tables, 1)
    other.load(rows, dirty=True)
    other.insert_missing("item", rows["item"])
    other.contains("item", frozen(rows["item"].ids))
    other.score(random_batch(rng, 40), 40)
    other.export("item")
    other.cut()
    table = other.tables["item"]
    if isinstance(table, DynamicTable):
        table.rows.remove(frozen(rows["item"].ids[:-2]))
        table.rows.compact(least=1)
    assert signatures() == before


def signatures() -> dict[str, int]:
    return {name: len(kernel.signatures) for name, kernel in kernels().items()}


def columns(rows: TableRows) -> list[np.ndarray]:
    return [rows.ids, rows.weights, rows.slots, rows.counts, rows.last_steps, rows.tombstones]


def frozen(array: np.ndarray) -> np.ndarray:
    """A read-only, unaligned copy, as from a file's bytes."""
    raw = bytearray(array.nbytes + 1)
    raw[1:] = array.tobytes()
    return np.frombuffer(bytes(raw), array.dtype, array.size, 1).reshape(array.shape)
