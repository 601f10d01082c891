"""Trains the very model that docs/models.md shows."""

import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from streamtrain.dense.model import Features, build_model, parse_settings
from streamtrain.dense.net import DenseNet
from tests.reference_dense import cross_entropy
from tests.unit.dense.toy import auc, layout_of, prequential_logits, taste

TEXT = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
TOML = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """The `[model]` section of the document that names its own model, which lies in the current folder."""
    (tmp_path / "crossnet.py").write_text(CODE[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "crossnet", raising=False)
    yield tomllib.loads(TOML[-1])["model"]
    sys.modules.pop("crossnet", None)


def test_the_model_shown_has_fewer_than_thirty_lines_and_learns(shown):
    assert len(CODE) == 1 and len(CODE[0].strip().splitlines()) < 30
    layout = layout_of({"user": 8, "item": 8})
    problem = taste(seed=1)
    net = DenseNet(layout, parse_settings(shown), batch_size=64, buckets=[64])
    net.warm_up()
    logits = prequential_logits(net, layout, problem)
    losses = cross_entropy(logits.astype(np.float64), problem.labels)
    assert losses[-2000:].mean() < 0.8 * losses[:1000].mean()
    assert auc(logits[:500, 0], problem.labels[:500, 0]) < 0.7
    assert auc(logits[-2000:, 0], problem.labels[-2000:, 0]) > 0.85
    assert "params/cross/2/0/kernel" in net.state()


@pytest.mark.parametrize("section", TOML)
def test_every_section_shown_is_accepted(shown, section):
    model = tomllib.loads(section)["model"]
    layout = layout_of({"user": 9, "item": 9}, labels=("click", "like"))
    assert build_model(layout, parse_settings(model)).settings.kind == model["kind"]


def test_every_array_that_a_model_is_given_is_described():
    assert all(f"`{name}" in TEXT for name in Features._fields)
