"""The last warnings and errors."""

from __future__ import annotations

import logging

from streamtrain.status.recent import RecentProblems

logger = logging.getLogger("streamtrain.tests.recent")


def test_the_newest_is_first_and_repeats_are_counted() -> None:
    problems = RecentProblems()
    with problems.listening():
        logger.warning("store %s falls behind: %s", "a", "no answer")
        logger.error("log is full")
        logger.info("nothing is wrong")
        logger.warning("store %s falls behind: %s", "b", "refused")
    logger.error("nobody listens any more")
    found = [(p["level"], p["message"], p["times"]) for p in problems.describe()]
    assert found == [("warning", "store b falls behind: refused", 2), ("error", "log is full", 1)]


def test_a_flood_of_kinds_and_long_lines_stays_bounded() -> None:
    problems = RecentProblems()
    with problems.listening():
        for i in range(80):
            logger.warning(f"kind {i}" + "x" * 5000)
    described = problems.describe()
    assert len(described) == 50
    assert described[0]["message"].startswith("kind 79") and described[-1]["message"].startswith("kind 30")
    assert {len(p["message"]) for p in described} == {2000}
