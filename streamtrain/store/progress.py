"""How far training is, told by the trainer thread with each epoch and read by who feeds it."""

from __future__ import annotations

from collections import deque

__all__ = ["Progress"]

# Epochs that the store may be behind before older ones are forgotten, which only makes rows wait for newer ones.
_CUTS_MAX = 4096


class Progress:
    """Which batches the store's epochs hold whole. `cut` may be called in another thread than the rest.

    Attributes:
      epoch: the newest epoch that the store was ever seen to have.
      step: that epoch, or one before it, holds all steps before this one.
      batch: number of the last batch that, like all before it, is whole in the epochs up to `epoch`; 0 for none.
      urgent: somebody waits for the next epoch, which should be cut now rather than when it is due. Where an epoch ends
        decides no bit of what is learned. A wish that is lost, as two threads write it, only waits until then.
    """

    def __init__(self, epoch: int = 0, step: int = 0) -> None:
        self.epoch, self.step, self.batch, self.urgent = epoch, step, 0, False
        self._cuts: deque[tuple[int, int, int]] = deque(maxlen=_CUTS_MAX)

    def cut(self, epoch: int, batch: int, step: int) -> None:
        """Every sample of the batches up to number `batch` was learned by the end of `epoch`, which was just cut before `step`."""
        self.urgent = False
        self._cuts.append((epoch, batch, step))

    def applied(self, epoch: int) -> None:
        """The store has `epoch`. One that lost rows since may tell an older one: it will not be asked before it is repaired."""
        self.epoch = max(self.epoch, epoch)
        while self._cuts and self._cuts[0][0] <= self.epoch:
            _, self.batch, self.step = self._cuts.popleft()
