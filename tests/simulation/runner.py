"""Runs seeds in this process."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
from collections.abc import Iterable, Iterator

from tests.simulation import contents, disk, follower
from tests.simulation.loom import woven
from tests.simulation.mutations import mutated
from tests.simulation.world import Outcome, simulate

__all__ = ["pin", "run_chunk", "run_seeds"]

_WORLDS_PER_COLLECTION = 25


def run_seeds(seeds: Iterable[int], mutation: str | None = None) -> Iterator[Outcome]:
    """Simulates one world per seed.

    Args:
      mutation: the name of a fault to put into the product's code; see `mutations`.
    """
    level = logging.root.manager.disable
    # The product warns of every fault that it meets, and here it meets thousands.
    logging.disable(logging.CRITICAL)
    # A world leaves a thousand objects in cycles, all of which die with it; what was imported has no part in them.
    gc.freeze()
    gc.disable()
    try:
        with woven([*disk.PATCHES, *contents.PATCHES, *follower.PATCHES]), mutated(mutation):
            for done, seed in enumerate(seeds, 1):
                yield simulate(seed)
                if done % _WORLDS_PER_COLLECTION == 1:
                    gc.collect()
                    # What is left outlives worlds: modules that the first one imported, compiled kernels, traces.
                    gc.freeze()
    finally:
        gc.enable()
        gc.unfreeze()
        logging.disable(level)


def pin(cores: multiprocessing.SimpleQueue[int]) -> None:
    """Gives this process a core of its own. Fibers take turns, so a second one only makes the turns dearer."""
    os.sched_setaffinity(0, {cores.get()})


def run_chunk(work: tuple[list[int], str | None]) -> list[Outcome]:
    """`run_seeds` as a job of a pool, whose processes do not import `__main__`."""
    return list(run_seeds(*work))
