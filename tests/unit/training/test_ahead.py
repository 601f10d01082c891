"""What is prepared beside a step, and evaluated beside it, changes no bit; nothing of it goes on when the step has ended."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from streamtrain.sparse import crew
from streamtrain.training.learner import Learner
from tests.unit.training.test_quarantine import batch, learner

STEPS = 9
POISONED = {4: {"price": 3e38, "click": 1}, 6: {"importance": 1e35}}
"""By step, what leaves no number: in the dense half, which ends the step before rows are learned; in rows alone."""


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(crew, "LEAST", 1)
    yield
    crew.set_threads(1)


def bits(made: Learner) -> dict[str, bytes]:
    tables = {
        f"{name}/{column}": getattr(rows, column).tobytes()
        for name, rows in made.sparse.cut().items()
        for column in ("ids", "weights", "slots", "counts", "last_steps")
    }
    states = made.dense.state() | made.prequential.state()
    return tables | {name: np.asarray(array).tobytes() for name, array in states.items()}


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_looking_ahead_changes_no_bit_also_over_a_quarantined_minibatch(tmp_path: Path, threads: int) -> None:
    batches = [batch(n, **POISONED.get(n, {})) for n in range(STEPS)]
    plain, ahead = learner(tmp_path / "plain"), learner(tmp_path / "ahead")
    # Of one step the wrong one is shown, of another none.
    shown = [*batches[1:], None]
    shown[2], shown[7] = batches[0], None
    asked: list[str] = []
    logits = []
    for made, looks in ((plain, False), (ahead, True)):
        crew.set_threads(threads)
        found = []
        for step, minibatch in enumerate(batches):

            def coming(step: int = step) -> object:
                asked.append(threading.current_thread().name)
                return shown[step]

            found.append(made.step(minibatch, step, coming if looks else None))  # type: ignore[arg-type]
        logits.append(found)
    assert [a is None for a in logits[0]] == [a is None for a in logits[1]]
    assert [n for n, a in enumerate(logits[0]) if a is None] == list(POISONED)
    for one, other in zip(*logits, strict=True):
        assert (None if one is None else one.tobytes()) == (None if other is None else other.tobytes())
    assert bits(plain) == bits(ahead)
    # With a helper each step that began its way back asked once; without one nothing is prepared beforehand.
    assert len(asked) == (0 if threads == 1 else STEPS - 1)


def test_a_step_that_fails_ends_what_it_had_begun_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = learner(tmp_path)
    crew.set_threads(2)
    begun, ended = threading.Event(), threading.Event()

    def coming() -> None:
        begun.set()
        assert not ended.wait(0.05)

    def failing(*_: object) -> bool:
        assert begun.wait(60)
        raise KeyError("backward")

    monkeypatch.setattr(made.sparse, "backward", failing)
    with pytest.raises(KeyError, match="backward"):
        made.step(batch(1), 0, coming)
    ended.set()
