"""Whatever is learned, removed, folded, restarted and missed: a follower holds what a dictionary holds."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamtrain.exports import ExportRunner
from streamtrain.log.fold import fold
from streamtrain.serving import Follower
from tests.exporting import TABLES, History, held, make_exporter

IDS = st.sampled_from([0, 1, 2, 3, 2**63, 2**64 - 1])
WEIGHTS = st.floats(-8, 8, width=32)
CHANGES = st.dictionaries(
    st.sampled_from(TABLES), st.dictionaries(IDS, st.none() | WEIGHTS, max_size=4), max_size=2
)
EPOCH = st.tuples(CHANGES, st.booleans(), st.sampled_from(["", "", "", "restart", "collect", "lag"]))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(EPOCH, min_size=1, max_size=8), st.integers(1, 4), st.integers(1, 2), st.booleans())
def test_a_follower_equals_a_dictionary_at_every_version(epochs, base_every, keep_bases, compressed):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        history = History(path / "log")
        history.append()
        compression = itertools.cycle(["zstd", "none"] if compressed else ["none", "zstd"])
        options = {"base_every_epochs": base_every, "keep_bases": keep_bases}
        exporter = make_exporter(history.log, path / "x", compression=next(compression), **options)
        early = Follower(path / "x", piece_samples=1)
        for changes, polls, event in epochs:
            history.append(changes, bias=float(len(history.oracle)))
            if event == "collect":
                _collect(history)
            if event == "restart":
                exporter.close()
                exporter = make_exporter(history.log, path / "x", compression=next(compression), **options)
            if event != "lag":
                ExportRunner(history.log, exporter).catch_up()
            if exporter._folding is not None:
                exporter._folding.exception(timeout=20)
            if polls:
                early.poll()
                _check(early, history)
        ExportRunner(history.log, exporter).catch_up()
        early.poll()
        late = Follower(path / "x", piece_samples=1)
        late.poll()
        for follower in (early, late):
            assert follower.version.epoch == history.log.head()
            _check(follower, history)
        assert held(early) == held(late)
        exporter.close()


def _collect(history: History) -> None:
    """Folds a base at the head and removes all epochs up to it: an exporter that lags has lost its next one."""
    head = history.log.head()
    fold(history.log.path, head)
    for epoch in history.log.epochs():
        history.log.epoch_path(epoch).unlink()


def _check(follower: Follower, history: History) -> None:
    version = follower.version
    if version is not None:
        assert held(follower) == history.oracle[version.epoch]
        score = float(follower.predict([{}])[0, 0])
        assert follower.status.last_error is None
        assert score > 0.5 or version.epoch == 0
