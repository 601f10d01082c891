"""What `/livez` and `/readyz` answer."""

from __future__ import annotations

__all__ = ["Health"]


class Health:
    """Liveness and readiness of the daemon. Belongs to the loop.

    Ready means: kernels and dense programs are compiled, the model is recovered, and the source has been found.
    """

    def __init__(self) -> None:
        self._phase = "starting"
        self._ready = False

    def say(self, phase: str) -> None:
        """Not ready: names what is being done."""
        self._phase, self._ready = phase, False

    def set_ready(self) -> None:
        """Ready to learn."""
        self._phase, self._ready = "learning", True

    @property
    def ready(self) -> bool:
        return self._ready

    @property
    def phase(self) -> str:
        """One word for people: starting, compiling, recovering, learning, stopping."""
        return self._phase
