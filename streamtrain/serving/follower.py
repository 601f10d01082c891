"""Follows an export directory: finds what is new, checks it, and swaps it in under concurrent readers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import DeltaGap, ExportError, StreamtrainError
from streamtrain.serving.files import ExportedFile, read_export
from streamtrain.serving.freshness import Ages, Freshness, FreshnessReport
from streamtrain.serving.manifest import MANIFEST, MODEL, Entry, Manifest, Position
from streamtrain.serving.model import ServedModel
from streamtrain.serving.registered import Registered
from streamtrain.serving.scorer import Samples, Scorer
from streamtrain.serving.served import Served
from streamtrain.serving.version import FollowerStatus, Version

__all__ = ["Follower"]

_LOG = logging.getLogger(__name__)

_BACKOFF_MAX_S = 1.0


class Follower:
    """A model as a serving process holds it: the newest version of an export directory.

    Use it by hand (`poll`) or let a thread do it (`start` and `stop`, or a `with` block). `predict` may be
    called from any number of threads at any time; each call sees one version, whole.

    Args:
      directory: what the exporter writes to. It need not exist yet.
      poll_s: how often the thread looks for a new manifest.
      request_samples_max: the largest request that `predict` takes.
      piece_samples: a larger request is computed in pieces of this size, for which programs are compiled.
      register: a name of its own, under which the exporter keeps for this follower the deltas that it still needs.
        It takes write permission in the directory. Without, a follower that is far behind loads a base.
      clock: seconds since 1970.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        poll_s: float = 0.1,
        request_samples_max: int = 65_536,
        piece_samples: int = 512,
        register: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._directory = Path(directory)
        self._poll_s = poll_s
        self._request_samples_max = request_samples_max
        self._piece_samples = piece_samples
        self._clock = clock
        self._registered = Registered(self._directory, register, clock)
        self._freshness = Freshness()
        self._status = FollowerStatus()
        self._model: ServedModel | None = None
        self._scorer: Scorer | None = None
        self._served: Served | None = None
        self._caught_up = False  # Deltas that were there when it started say nothing about freshness.
        self._finished: tuple[int, int, int] | None = None  # The manifest that was worked off whole.
        self._polling = threading.Lock()
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    # What is served

    @property
    def model(self) -> ServedModel | None:
        """What the directory's `model.json` says; None until it was read."""
        return self._model

    @property
    def version(self) -> Version | None:
        """What is served now; None before the first version."""
        served = self._served
        return None if served is None else served.version

    @property
    def status(self) -> FollowerStatus:
        """Counters, and why the newest version is not served where it is not."""
        return self._status

    @property
    def rows(self) -> dict[str, int]:
        """By table, how many rows are held; ids without one have their initial vector."""
        return {} if self._served is None else self._served.rows()

    @property
    def freshness(self) -> FreshnessReport:
        """How long samples took to become visible here."""
        return self._freshness.report()

    @property
    def ages(self) -> tuple[Ages, Ages]:
        """How old deltas were when they became visible: since the event and since the commit, counted by bucket."""
        return self._freshness.ages()

    def predict(self, samples: Samples) -> NDArray[np.float32]:
        """Scores samples with the version held now.

        Args:
          samples: as the trainer reads them; labels and weight may be absent. At most
            `request_samples_max` of them, all scored by one version.

        Returns:
          `[B, L]` probabilities, one column a label in the schema's order.

        Raises:
          ExportError: nothing was loaded yet (see `wait_for`).
          BadSample: it names the sample and the field.
          ValueError: the request is too large.
        """
        return self.predict_with_version(samples)[0]

    def predict_with_version(self, samples: Samples) -> tuple[NDArray[np.float32], Version]:
        """As `predict`, and the version that scored them."""
        served = self._served
        if served is None:
            reason = self._status.last_error or "poll() or start() it first, and wait_for() a version"
            raise ExportError(f"no version of {self._directory} is loaded: {reason}")
        batch = served.scorer.decode(samples)
        if batch.size > self._request_samples_max:
            raise ValueError(
                f"a request of {batch.size} samples is larger than request_samples_max = "
                f"{self._request_samples_max}; split it, or make the follower with a larger bound"
            )
        # A base that is loaded meanwhile replaces `self._served`; this request stays with the one it has.
        return served.score(batch)

    # Following

    def poll(self) -> bool:
        """Looks once, and applies everything new that is whole. Never raises for a damaged directory.

        What could not be applied stands in `status.last_error`; the version held stays in service, and the
        next call tries again.

        Returns:
          Whether a newer version became visible.
        """
        with self._polling:
            before, told = self.version, self._status.last_error
            try:
                self._work_off()
                error = None
            except (StreamtrainError, OSError) as caught:
                error = str(caught)
            if error is not None and error != told:
                _LOG.warning("the export in %s cannot be followed to its end: %s", self._directory, error)
            self._status = replace(self._status, last_error=error)
            moved = self.version is not before
            if self.version is not None:
                self._registered.at(self.version.epoch)
        if moved:
            with self._changed:
                self._changed.notify_all()
        return moved

    def _work_off(self) -> None:
        """Takes the version held to the head of the manifest, as far as its files are sound."""
        path = self._directory / MANIFEST
        stat = path.stat()
        stamp = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        if stamp == self._finished:
            return
        self._registered.before_reading(None if self.version is None else self.version.epoch)
        manifest = Manifest.read(path)
        self._status = replace(self._status, head_epoch=manifest.head.epoch)
        model = self._describe(manifest)
        served = self._served if model is self._model else None
        self._model = self._model or model
        refused: dict[Entry, Exception] = {}
        try:
            while (held := _position(served)) != manifest.head:
                entry = self._choose(manifest, held, refused)
                try:
                    served = self._advance(served, read_export(self._directory, entry, model), model)
                except (StreamtrainError, OSError) as error:
                    refused[entry] = error
                    self._status = replace(self._status, refused=self._status.refused + 1)
        finally:
            if served is not None and served is not self._served:
                self._replace(served)
        self._finished = stamp
        self._caught_up = True

    def _describe(self, manifest: Manifest) -> ServedModel:
        """The model that the manifest is of: the one held, or the one that it was migrated to."""
        held = self._model
        if held is not None and held.model_id == manifest.model_id:
            return held
        model = ServedModel.read(self._directory / MODEL)
        if manifest.model_id != model.model_id:
            raise ExportError(
                f"{self._directory / MANIFEST} is of model {manifest.model_id}, {MODEL} of {model.model_id}: the export "
                "begins anew, and is looked at again"
            )
        if held is not None and held.model_id not in model.migrated:
            raise ExportError(
                f"{self._directory} holds model {model.model_id} now, which was not migrated from {held.model_id}; "
                "restart the follower if the new model is what it should serve"
            )
        return model

    def _choose(self, manifest: Manifest, held: Position | None, refused: Mapping[Entry, Exception]) -> Entry:
        try:
            entry = manifest.next_file(held, refused)
        except DeltaGap as gap:
            _LOG.warning("%s: %s; loading a base instead", self._directory, gap)
            entry = manifest.next_file(None, refused)
        if entry is None:
            raise list(refused.values())[-1]
        return entry

    def _advance(self, served: Served | None, exported: ExportedFile, model: ServedModel) -> Served:
        """Applies a delta to what is served, or builds a base beside it."""
        status = self._status
        if not exported.entry.previous:
            if self._scorer is None or self._scorer.model is not model:
                self._scorer = Scorer(model, self._piece_samples)
            built = Served(model, self._scorer, exported, self._now_ms)
            self._status = replace(status, bases_loaded=status.bases_loaded + 1)
            return built
        assert served is not None
        version = served.apply(exported)
        if served is self._served and self._caught_up:
            self._measure(version)
        self._status = replace(status, deltas_applied=status.deltas_applied + 1)
        return served

    def _replace(self, built: Served) -> None:
        """Puts what grew from a base in service, brought up to date already: never an older version than the last."""
        held, new = self.version, built.version
        migrated = self._served is not None and built.model is not self._served.model
        if new is None or (held is not None and new.epoch < held.epoch and not migrated):
            return
        # What a base holds may have been committed long ago, so it and what follows it says nothing about freshness.
        self._caught_up = False
        if self._served is not None:
            self._status = replace(self._status, fallbacks=self._status.fallbacks + 1)
        built.show()
        self._model, self._served = built.model, built
        what = f"model {built.model.model_id} as of {new.position}" if migrated else str(new.position)
        _LOG.info("%s: serving %s, from a base", self._directory, what)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _measure(self, version: Version) -> None:
        lineage = version.lineage
        if lineage.samples and lineage.record_time_ms is not None:
            self._freshness.add(
                samples=lineage.samples,
                record_time_min_ms=lineage.record_time_ms[0],
                committed_at_ms=lineage.committed_at_ms,
                visible_at_ms=version.visible_at_ms,
            )

    def wait_for(self, epoch: int, timeout_s: float) -> Version:
        """Waits until `epoch` or a later one is served; polls itself where no thread does.

        Raises:
          TimeoutError: it says what is served instead, and why.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            if self._thread is None:
                self.poll()
            with self._changed:
                version = self.version
                if version is not None and version.epoch >= epoch:
                    return version
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    held = "nothing" if version is None else str(version.position)
                    reason = self._status.last_error or "nothing newer was exported"
                    raise TimeoutError(f"epoch {epoch} of {self._directory}: {held} is served; {reason}")
                self._changed.wait(min(self._poll_s, left_s))

    def run(self) -> None:
        """Polls until `stop`. A directory that cannot be followed is looked at less and less often."""
        wait_s = self._poll_s
        while not self._stopping.wait(wait_s):
            try:
                self.poll()
                failed = self._status.last_error is not None
            except Exception as error:
                # Whatever it is, a serving process must not stop following unnoticed.
                _LOG.exception("following %s failed", self._directory)
                self._status = replace(self._status, last_error=repr(error))
                failed = True
            wait_s = min(wait_s * 2, max(self._poll_s, _BACKOFF_MAX_S)) if failed else self._poll_s

    def start(self) -> Follower:
        """Follows in a thread of its own until `stop`. Looks once before it returns."""
        if self._thread is None:
            self._stopping.clear()
            self.poll()
            self._thread = threading.Thread(target=self.run, name=f"follow {self._directory}", daemon=True)
            self._thread.start()
        return self

    def stop(self) -> None:
        """Ends the thread and the registration. What is served stays in service. Safe to call twice."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with self._polling:
            self._registered.leave()
            self._finished = None  # Started again it registers, which comes before reading the manifest.

    def __enter__(self) -> Follower:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _position(served: Served | None) -> Position | None:
    version = None if served is None else served.version
    return None if version is None else version.position
