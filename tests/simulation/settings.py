"""How a world is set up, by its dice."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from streamtrain.training.settings import TrainingSettings

__all__ = ["Settings"]


@dataclass(frozen=True, slots=True)
class Settings:
    """One world's configuration; each field as in the product's settings.

    Attributes:
      store: rows live in the store, and are pulled; else all of them are in memory.
      reader: a registered reader follows the log, which collects less then.
      exports: epochs are exported and followed: two fifths of what a world costs, so it is not every world's.
    """

    store: bool
    reader: bool
    training: TrainingSettings
    queue_chunks_max: int
    epoch_interval_s: float
    base_every_epochs: int
    keep_epochs: int
    exports: bool
    export_base_every_epochs: int
    export_keep_bases: int

    @staticmethod
    def roll(random: Random) -> Settings:
        return Settings(
            store=random.random() < 0.6,
            reader=random.random() < 0.3,
            training=TrainingSettings(
                batch_size=random.choice([1, 3, 4, 8]), linger_ms=random.choice([0, 50, 500])
            ),
            queue_chunks_max=random.choice([1, 2, 4]),
            epoch_interval_s=random.choice([0.05, 0.1, 0.3]),
            base_every_epochs=random.choice([2, 3, 5]),
            keep_epochs=random.choice([1, 2, 5]),
            exports=random.random() < 0.5,
            export_base_every_epochs=random.choice([1, 2, 4]),
            export_keep_bases=random.choice([1, 2]),
        )
