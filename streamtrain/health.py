"""What `/startupz`, `/livez` and `/readyz` answer."""

from __future__ import annotations

from streamtrain.training.pulse import Pulse

__all__ = ["Health"]


class Health:
    """Liveness and readiness of the daemon. Belongs to the loop.

    Ready means: kernels and dense programs are compiled, the model is recovered, and the source has been found.
    Live means: the loop answers, and the trainer thread has ended a step or a look for samples not long ago. A thread that
    hangs inside a kernel or a plug-in never comes back by itself.
    """

    def __init__(self) -> None:
        self._phase = "starting"
        self._ready = self._started = False
        self._pulse = Pulse()

    def say(self, phase: str) -> None:
        """Not ready: names what is being done."""
        self._phase, self._ready = phase, False

    def set_ready(self, phase: str = "learning") -> None:
        """Ready to learn or, as a standby, to take over."""
        self._phase, self._ready, self._started = phase, True, True

    def watch(self, pulse: Pulse) -> None:
        """From here on the trainer's pulse counts."""
        self._pulse = pulse

    @property
    def silent_s(self) -> float:
        """Seconds for which the trainer has given no sign of life; 0 before it runs, and while it waits for the log."""
        return self._pulse.silent_s

    @property
    def ready(self) -> bool:
        return self._ready

    @property
    def started(self) -> bool:
        """Whether it has been ready once: from then on, silence is a fault and no long start."""
        return self._started

    @property
    def phase(self) -> str:
        """For people: starting, recovering, waiting for the store, standby, taking over, learning, stopping."""
        return self._phase
