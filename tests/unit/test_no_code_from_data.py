"""Nothing that is read from a file, a broker, a store or a client can become code. Reads the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("streamtrain", "consumers", "exporters")
# By dotted name; what loads objects of any class, runs text, or asks a shell.
MODULES = {
    "pickle",
    "cPickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "joblib",
    "yaml",
    "jsonpickle",
    "code",
}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "numpy.load",
    "np.load",
    "ssl._create_unverified_context",
}


def faults(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".")[0]
            if module in MODULES and not node.level:
                yield node.module or ""
            if module == "builtins":
                yield from (a.name for a in node.names if a.name in BUILTINS)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in BUILTINS or called in CALLS:
                yield called
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if keyword.arg in ("shell", "allow_pickle") and value is not False:
                    yield f"{called}({keyword.arg}=...)"
        elif isinstance(node, ast.Attribute) and node.attr in ("CERT_NONE", "CERT_OPTIONAL"):
            yield node.attr


def test_no_source_makes_code_of_data() -> None:
    wrong, files = [], 0
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            files += 1
            found = faults(ast.parse(path.read_text(encoding="utf-8")))
            wrong += [f"{path.relative_to(ROOT)}: {what}" for what in found]
    assert not wrong
    assert files > 150


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "import os.path, yaml",
        "eval(x)",
        "from builtins import exec",
        "subprocess.run(c, shell=True)",
        "np.load(f)",
        "np.savez(f, allow_pickle=True)",
        "os.system(x)",
        "context.verify_mode = ssl.CERT_NONE",
    ],
)
def test_the_search_finds_what_it_is_for(text: str) -> None:
    assert [*faults(ast.parse(text))]


@pytest.mark.parametrize("text", ["subprocess.run(c, shell=False)", "re.compile(p)", "store.load(x)"])
def test_the_search_leaves_what_is_harmless(text: str) -> None:
    assert not [*faults(ast.parse(text))]
