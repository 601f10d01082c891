"""Settings of training: minibatches, evaluation windows, and what happens to bad samples."""

from __future__ import annotations

from pydantic import Field

from streamtrain.dead_letters.settings import AnyDeadLetters
from streamtrain.dense.threads import DEFAULT as DENSE_THREADS
from streamtrain.settings import Settings

__all__ = ["BadSampleSettings", "TrainingSettings"]


class BadSampleSettings(Settings):
    """One poisoned record never stops the stream; a flood of them never passes silently."""

    share_max: float = Field(default=0.05, ge=0, le=1)
    """The daemon stops when more than this share of a window is bad. 1 never stops."""
    window: int = Field(default=1000, ge=1, le=10_000_000)
    """Records a window."""
    dead_letters: AnyDeadLetters | None = None
    """Where refused records are kept, with their bytes and the reason. Default: they are logged, counted and passed over."""


class TrainingSettings(Settings):
    """How samples become steps."""

    batch_size: int = Field(default=64, ge=1, le=65_536)
    """Samples a minibatch. Small ones learn more from each sample, large ones learn faster."""
    linger_ms: int = Field(default=50, ge=0, le=60_000)
    """A minibatch that is not full is learned from after this time."""
    queue_chunks_max: int = Field(default=4, ge=1, le=1024)
    """The depth of the pipeline: chunks that may wait between two of reading, decoding, fetching rows and learning. When all
    wait for the trainer, reading waits; then partitions pause."""
    window_samples: int = Field(default=50_000, ge=100, le=1_000_000_000)
    """Samples a window of prequential evaluation."""
    threads: int = Field(default=2, ge=1, le=64)
    """Threads that share the rows of a minibatch, the trainer's among them: as many as there are cores to spare. What is
    learned is the same, bit for bit, for any number."""
    dense_threads: int = Field(default=DENSE_THREADS, ge=1, le=64)
    """Threads that compute the dense half. The last bits of what is learned depend on their number, not on the cores that they
    get: each epoch notes it, and `replay` uses what it notes. 1 is the fastest for tiny models and minibatches."""
    stop_timeout_s: float = Field(default=30.0, gt=0, le=3600)
    """On SIGTERM: how long the last epoch and the views of the log may take."""
    quarantine_max: int = Field(default=10, ge=0, le=1_000_000)
    """A minibatch that would leave NaN or an infinity in the model is not learned from: it is quarantined. The daemon
    stops when more than this many minibatches in a row are; 0 stops at the first."""
    compiled_cache: str = Field(default="auto", min_length=1)
    """Where compiled programs of the dense half are kept, so that a restart does not compile them again: a directory that
    only this user may write to. `auto` is `streamtrain/` in the user's cache directory, `off` keeps nothing."""
    bad_samples: BadSampleSettings = BadSampleSettings()
    """What happens to records that are not samples."""
