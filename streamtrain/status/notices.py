"""What is not as it should be, in words for whoever looks at the page first."""

from __future__ import annotations

from collections.abc import Iterator

from streamtrain.status.readings import Readings

__all__ = ["notices"]

# A view that follows at all is at most a cut and its own work behind.
_VIEW_LATE_S = 30.0
_DISK_SHARE_MIN = 0.1


def notices(now: Readings, silent_s: float, silent_max_s: float) -> Iterator[str]:
    """One sentence for each thing that needs a look; nothing while all is well.

    Args:
      now: the daemon's metrics.
      silent_s: for how long the trainer thread has given no sign of life.
      silent_max_s: from when on `/livez` fails for it.
    """
    if silent_s > silent_max_s:
        yield f"The trainer thread has ended no step for {silent_s:.0f} s: /livez fails."
    if now.value("streamtrain_log_full"):
        yield "The log has no room: training has paused, and goes on when there is some."
    if now.value("streamtrain_dead_letters_unavailable"):
        yield "Refused records cannot be kept: training has paused."
    for view, seconds in sorted(now.by("streamtrain_view_lag_seconds", "view").items()):
        if seconds > _VIEW_LATE_S:
            yield f"View {view} has been behind the log for {seconds:.0f} s."
    free, size = now.value("streamtrain_log_disk_free_bytes"), now.value("streamtrain_log_disk_size_bytes")
    if free is not None and size and free < _DISK_SHARE_MIN * size:
        yield f"The disk of the log has {free / size:.1%} of its room left."
    if lost := now.total("streamtrain_lost_offsets_total"):
        yield f"{lost:.0f} offsets were skipped that were never learned."
    if quarantined := now.value("streamtrain_quarantined_minibatches_total"):
        yield f"{quarantined:.0f} minibatches were quarantined, to keep NaN out of the model."
    if late := now.value("streamtrain_compilations_after_warm_up_total"):
        yield f"Samples waited for {late:.0f} compilations after the warm-up: please report this."
