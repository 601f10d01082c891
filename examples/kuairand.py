"""Joins the public KuaiRand-Pure logs into one file of samples, in time order: what `make kuairand` runs.

    python -m examples.kuairand [SOURCE_DIR] [OUTPUT_DIR]

Histories of a row hold what was known before its instant: impressions with a strictly smaller time. A row never sees
its own label, nor what happened at the same millisecond. Outcomes (play time, the other labels) are left out.

Data: Gao et al., "KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed Videos", CIKM'22.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SOURCE_DIR = Path(__file__).resolve().parents[2] / "shared" / "data" / "kuairand"
OUTPUT_DIR = Path("build/kuairand")

USER_COLUMNS = (
    "user_active_degree",
    "is_lowactive_period",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
    *(f"onehot_feat{i}" for i in range(18)),
)
VIDEO_COLUMNS = ("author_id", "music_id", "tag", "video_type", "upload_type")
HISTORY = 20  # ids a list
OUTCOMES = 5  # last labels in `recent_outcomes`
CHINA_HOURS = 8


def join(source: Path) -> pa.Table:
    """One row an impression, in time order: the log's fields, the user's, the video's, and histories."""
    log = pq.read_table(source / "impressions.parquet")
    users = _matched(pq.read_table(source / "users.parquet"), "user_id", log, USER_COLUMNS)
    videos = _matched(pq.read_table(source / "videos.parquet"), "video_id", log, VIDEO_COLUMNS)
    hour = (log["time_ms"].to_numpy() // 3_600_000 + CHINA_HOURS) % 24
    columns: dict[str, pa.ChunkedArray | pa.Array] = {
        **{name: log[name] for name in ("time_ms", "user_id", "video_id", "tab")},
        **users,
        **videos,
        "hour": pa.array(hour),
        **_histories(log, videos["tag"]),
        **{name: log[name] for name in ("is_click", "long_view", "is_like")},
    }
    return pa.table(columns)


def _matched(side: pa.Table, key: str, log: pa.Table, names: Sequence[str]) -> dict[str, pa.ChunkedArray]:
    """The columns `names` of `side`, one row for each row of `log`."""
    keys, wanted = side[key].to_numpy(), log[key].to_numpy()
    order = np.argsort(keys)
    rows = order[np.searchsorted(keys[order], wanted)]
    if not np.array_equal(keys[rows], wanted):
        raise SystemExit(f"the KuaiRand files do not belong together: some {key} of the log has no row")
    taken = pa.array(rows)
    return {name: _codes(side[name]).take(taken) for name in names}


def _codes(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Small codes are stored as floats with nulls in the public files: they are ids, and become integers."""
    return column.cast(pa.int64()) if pa.types.is_floating(column.type) else column


@dataclass(slots=True)
class _User:
    """What a user did so far, oldest first."""

    clicked_videos: deque[int] = field(default_factory=lambda: deque(maxlen=HISTORY))
    skipped_videos: deque[int] = field(default_factory=lambda: deque(maxlen=HISTORY))
    clicked_tags: deque[int] = field(default_factory=lambda: deque(maxlen=HISTORY))
    skipped_tags: deque[int] = field(default_factory=lambda: deque(maxlen=HISTORY))
    outcomes: deque[str] = field(default_factory=lambda: deque(maxlen=OUTCOMES))
    seen_ms: int = 0

    def learn(self, video: int, tags: Sequence[int], clicked: int, time_ms: int) -> None:
        (self.clicked_videos if clicked else self.skipped_videos).append(video)
        (self.clicked_tags if clicked else self.skipped_tags).extend(tags)
        self.outcomes.append("1" if clicked else "0")
        self.seen_ms = time_ms


def _histories(log: pa.Table, tags: pa.ChunkedArray) -> dict[str, pa.Array]:
    times, users, videos, clicks = (
        log[n].to_pylist() for n in ("time_ms", "user_id", "video_id", "is_click")
    )
    tag_ids = [[int(part) for part in text.split(",")] if text else [] for text in tags.to_pylist()]
    state: dict[int, _User] = {}
    lists: dict[str, list[list[int]]] = {
        name: [] for name in ("clicked_videos", "skipped_videos", "clicked_tags", "skipped_tags")
    }
    outcomes: list[str | None] = []
    gaps: list[float | None] = []
    known = 0
    for row, now in enumerate(times):
        while times[known] < now:
            user = state.setdefault(users[known], _User())
            user.learn(videos[known], tag_ids[known], clicks[known], times[known])
            known += 1
        history = state.get(users[row])
        for name, column in lists.items():
            column.append([] if history is None else list(getattr(history, name)))
        outcomes.append(None if history is None else "".join(history.outcomes))
        gaps.append(None if history is None else (now - history.seen_ms) / 1000)
    return {
        **{name: pa.array(column, pa.list_(pa.int64())) for name, column in lists.items()},
        "recent_outcomes": pa.array(outcomes, pa.string()),
        "gap_s": pa.array(gaps, pa.float64()),
    }


def main() -> None:
    """Joins `KUAIRAND_DIR` (or the first argument) into `build/kuairand/samples.parquet` (or the second's folder)."""
    source = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("KUAIRAND_DIR", SOURCE_DIR))
    output = Path(sys.argv[2]) if len(sys.argv) > 2 else OUTPUT_DIR
    if not (source / "impressions.parquet").exists():
        raise SystemExit(
            f"there is no KuaiRand in {source}: set KUAIRAND_DIR to its folder (the README says where to get it)"
        )
    output.mkdir(parents=True, exist_ok=True)
    aside = output / "samples.parquet.writing"
    pq.write_table(join(source), aside, compression="zstd", row_group_size=32_768)
    aside.rename(output / "samples.parquet")
    print(f"{output / 'samples.parquet'}: {pq.read_metadata(output / 'samples.parquet').num_rows} samples")


if __name__ == "__main__":
    main()
