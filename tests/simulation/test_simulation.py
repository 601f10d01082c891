"""A few hundred worlds at every test run; `python -m tests.simulation --seeds 10000` runs as many as you like."""

from __future__ import annotations

import pytest

from tests.simulation.mutations import MUTATIONS
from tests.simulation.runner import run_seeds
from tests.simulation.world import Outcome

SEEDS = 400
# Of these, the product was once wrong in what was then the world of that seed; tests/unit has what it was.
REGRESSIONS = [
    131,
    21236,
    100651,
    102316,
    102909,
    107351,
    107523,
    206056,
    207001,
    208053,
    506420,
    700392,
    705488,
]
# A fault of the product that the simulation does not find in so many worlds is one that it does not find.
MUTATION_SEEDS_MAX = 1500


def test_whatever_goes_wrong_every_sample_is_learned_once_and_every_view_follows() -> None:
    for outcome in run_seeds(dict.fromkeys([*REGRESSIONS, *range(SEEDS)])):
        assert outcome.failure is None, outcome.text()


def test_a_seed_tells_the_same_story_every_time() -> None:
    def story(outcome: Outcome) -> list[tuple[float, str]]:
        return [(at, who) for at, who, _ in outcome.trace]

    seeds = [3, 14, 15]
    first, second = (list(run_seeds(seeds)) for _ in range(2))
    assert [story(outcome) for outcome in first] == [story(outcome) for outcome in second]
    assert [outcome.switches for outcome in first] == [outcome.switches for outcome in second]


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_simulation_notices_when(mutation: str) -> None:
    failures = (outcome.failure for outcome in run_seeds(range(MUTATION_SEEDS_MAX), mutation))
    assert next(filter(None, failures), None) is not None
