"""Whether a job still describes the model that a log holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from streamtrain.config import Job, parse_job
from streamtrain.errors import ConfigError

__all__ = ["check_same_model", "differences"]

# What decides the bits of the model. Everything else may change from one start to the next.
_DECIDING = ("seed", "schema", "tables", "model", "optimizer")
# Bounds inside these sections that decide nothing that was learned.
_FREE = {"rows_max", "memory_bytes_max"}


def check_same_model(job: Job, recorded: Mapping[str, Any], log_path: str) -> None:
    """Raises ConfigError where the job differs from the one that made the log in something that decides its bits."""
    found = [
        f"  {path}: the log has {_show(before)}, the job says {_show(after)}"
        for path, before, after in differences(job, recorded, log_path)
    ]
    if found:
        raise ConfigError(
            f"the log at {log_path} holds a model that was made with other settings:\n"
            + "\n".join(found)
            + "\nA model cannot change these while it lives: set them back, or set another log.path and begin there with "
            f"what was learned (`streamtrain migrate CONFIG --from {log_path}`) or with nothing. Where nothing is lost "
            f"(`streamtrain inspect {log_path}` says 0 samples), remove the directory instead"
        )


def differences(job: Job, recorded: Mapping[str, Any], log_path: str) -> list[tuple[str, Any, Any]]:
    """Settings that decide the bits of a model: their path, value in `recorded` (a log's description), and in `job`."""
    now, recorded = job.describe(), _completed(recorded, log_path)
    return [
        difference
        for section in _DECIDING
        for difference in _differences(section, recorded.get(section), now.get(section))
    ]


def _completed(recorded: Mapping[str, Any], log_path: str) -> Mapping[str, Any]:
    """The recorded job with the defaults of settings that are newer than the log: an upgrade is no other model."""
    try:
        return parse_job(dict(recorded), f"{log_path}/model.json").describe()
    except ConfigError:
        # A setting or plug-in of then is not there any more: compared as it was written.
        return recorded


def _differences(path: str, before: Any, after: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        if path == "schema.slots" and set(before) == set(after) and list(before) != list(after):
            yield f"{path}, in order", list(before), list(after)
        for key in sorted({*before, *after} - _FREE):
            yield from _differences(f"{path}.{key}", before.get(key), after.get(key))
    elif before != after:
        yield path, before, after


def _show(value: Any) -> str:
    return "nothing" if value is None else repr(value)
