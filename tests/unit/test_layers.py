"""Imports point one way: see docs/architecture.md. Reads the sources, so a hidden import inside a function counts too."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# By package (or module): the packages of ours that it may import. Longest prefix wins.
ALLOWED = {
    "streamtrain.errors": set(),
    "streamtrain.settings": set(),
    "streamtrain.findings": set(),
    "streamtrain.plugins": {"errors"},
    "streamtrain.samples": {"errors", "settings", "plugins", "sources", "samples"},
    "streamtrain.sources": {"settings"},
    "streamtrain.layout": {"errors", "samples"},
    "streamtrain.ownership": {"settings"},
    "streamtrain.log": {"errors", "settings", "log"},
    "streamtrain.sparse": {"errors", "settings", "plugins", "layout", "samples", "log", "sparse"},
    "streamtrain.dense": {"errors", "settings", "plugins", "layout", "samples", "dense"},
    "streamtrain.store": {
        "errors",
        "findings",
        "settings",
        "credentials",
        "tls",
        "layout",
        "samples",
        "log",
        "sparse",
        "store",
        "metrics",
    },
    "streamtrain.serving": {
        "errors",
        "settings",
        "plugins",
        "layout",
        "samples",
        "log",
        "sparse",
        "dense",
        "serving",
    },
    "streamtrain.dictionary": {"errors", "settings", "sparse", "dictionary"},
    "streamtrain.analysis": {"errors", "layout", "samples", "log", "sparse", "dictionary", "analysis"},
    "streamtrain.status": {"health", "metrics", "stages", "status"},
    "streamtrain.exports": {"errors", "settings", "plugins", "log", "serving"},
    "streamtrain.credentials": {"errors"},
    "streamtrain.tls": {"errors", "credentials"},
    "streamtrain.kafka_connection": {"errors", "settings", "credentials", "tls"},
    "streamtrain.dead_letters": {"errors", "settings", "sources", "kafka_connection", "dead_letters"},
    "consumers": {
        "errors",
        "findings",
        "settings",
        "plugins",
        "sources",
        "ownership",
        "samples",
        "kafka_connection",
        "dead_letters",
        "consumers",
    },
    "exporters": {"errors", "settings", "log", "exports", "serving", "exporters"},
}
# By third-party library: who may import it.
ONLY = {
    "redis": ("streamtrain.store",),
    "lmdb": ("streamtrain.store.lmdb_file", "streamtrain.store.lmdb_store"),
    "aiokafka": ("consumers.kafka", "streamtrain.produce", "streamtrain.commands.produce"),
    "jax": ("streamtrain.dense",),
    "optax": ("streamtrain.dense",),
    "aiohttp": ("streamtrain.http", "streamtrain.http_guard"),
    "matplotlib": ("streamtrain.analysis.picture",),
    "prometheus_client": (
        "streamtrain.metrics",
        "streamtrain.thread_seconds",
        "streamtrain.http",
        "streamtrain.serving.metrics",
    ),
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for top in ("streamtrain", "consumers", "exporters"):
        for path in sorted((ROOT / top).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def ours(imported: str) -> str | None:
    """The package of ours that an import reaches: `errors`, `samples`, `consumers`, ..."""
    parts = imported.split(".")
    if parts[0] == "streamtrain":
        return parts[1] if len(parts) > 1 else None
    return parts[0] if parts[0] in ("consumers", "exporters") else None


def test_packages_import_only_what_lies_below_them() -> None:
    wrong = []
    for name, tree in modules():
        rule = max((p for p in ALLOWED if name == p or name.startswith(p + ".")), key=len, default=None)
        if rule is None:
            continue
        for imported in imports(tree):
            reached = ours(imported)
            if reached is not None and reached not in ALLOWED[rule]:
                wrong.append(f"{name} imports {imported}")
    assert not wrong


def test_each_library_is_imported_by_its_own_package_only() -> None:
    wrong = [
        f"{name} imports {imported}"
        for name, tree in modules()
        for imported in imports(tree)
        if (allowed := ONLY.get(imported.split(".")[0])) is not None
        if not any(name == a or name.startswith(a + ".") for a in allowed)
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        (
            "import streamtrain.serving",
            ("aiokafka", "redis", "consumers", "streamtrain.training", "streamtrain.service"),
        ),
        ("import streamtrain.log.epoch_log, streamtrain.log.inspect", ("jax", "aiokafka", "redis", "numba")),
        ("import streamtrain.commands.inspect_table", ("jax", "aiokafka", "redis", "numba", "matplotlib")),
        ("import streamtrain.cli", ("jax", "aiokafka", "redis", "numba", "pyarrow")),
        ("import streamtrain.config", ("jax", "aiokafka", "redis", "lmdb")),
    ],
)
def test_importing_stays_light(statement: str, absent: tuple[str, ...]) -> None:
    check = f"{statement}; import sys; print([m for m in {absent!r} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"
