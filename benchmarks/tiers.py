"""A bound on a table's memory: is it kept, and what does it cost?

    python -m benchmarks.tiers [--ids 50000000] [--share 0.125] [--runs bounded_and_lmdb ...] [--json]

Stream: samples of 8 ids in Parquet. Half of the ids come once; the others are Zipf (exponent 1) over a head of a twentieth
of all ids. The whole daemon learns it three times: with all rows in memory; so too, with a copy in an LMDB store; and with
`memory_bytes_max`, `--share` of what all rows take, and the same store. Memory is RssAnon of the process, above what it
was before its first step, and what the table itself counts, each asked four times a second.
"""

from __future__ import annotations

import argparse
import re
import shutil
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import FOLDER, counters, machine, running, streamtrain, tell
from benchmarks.sparse import feature_ids
from streamtrain.sparse.residents import rows_within
from streamtrain.sparse.settings import TableSettings
from tests.servers import free_port

SLOTS, DIM, PART = 8, 8, 250_000
MIB = 1 << 20
POLL_S = 0.25
BYTES_A_ROW = 4 * (2 * DIM + 2) + 33 + 2 * 16  # with the slots of two indexes

BOUNDED = "bounded_and_lmdb"
STORES = {
    "in_memory": "memory://",
    "in_memory_and_lmdb": "lmdb://{folder}/store",
    BOUNDED: "lmdb://{folder}/store",
}

JOB = """
name = "tiers"
[source]
kind = "files"
paths = ["{stream}/*.parquet"]
[schema]
labels = ["y"]
[schema.slots]
{slots}
[tables.main]
dim = {dim}
rows_max = {rows_max}
{bound}
[model]
kind = "mlp"
hidden = [16]
[training]
batch_size = 1024
[log]
path = "{folder}/log"
base_every_epochs = 100000
[store]
url = "{store}"
disk_bytes_max = {disk}
[http]
port = {port}
"""


def write_stream(folder: Path, ids: int) -> int:
    """Writes the stream, in parts; returns how many samples it has."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    random, head = np.random.default_rng(0), ids // 20
    samples = 2 * (ids - head) // SLOTS
    for part, start in enumerate(range(0, samples, PART)):
        count = min(PART, samples - start)
        shape = (SLOTS, count)
        ranks = np.minimum(head ** random.random(shape), head - 1).astype(np.int64)
        once = random.random(shape) < 0.5
        ordinals = np.where(once, head + start * SLOTS + np.arange(SLOTS * count).reshape(shape), ranks)
        values = feature_ids(ordinals).view(np.int64)
        columns = {f"s{slot}": values[slot] for slot in range(SLOTS)}
        labels = random.random(count) < 0.3 + 0.4 * (values[0] % 2)
        pq.write_table(
            pa.table(columns | {"y": labels.astype(np.float32)}), folder / f"part-{part:06d}.parquet"
        )
    return samples


@dataclass
class Seen:
    """What was asked of the daemon at one instant."""

    at_s: float
    rss_anon: int
    counters: dict[str, float]

    @classmethod
    def of(cls, process: int, port: int) -> Seen | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
                text = page.read().decode()
            status = Path(f"/proc/{process}/status").read_text()
        except (OSError, urllib.error.URLError):
            return None
        found = counters(text)
        for reason, value in re.findall(r'tier_stall_seconds_total\{reason="(\w+)"\} (\S+)', text):
            found[f"streamtrain_stalled_for_{reason}"] = float(value)
        kib = next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon"))
        return cls(time.perf_counter(), int(kib) * 1024, found)

    def __getitem__(self, name: str) -> float:
        return self.counters.get(f"streamtrain_{name}", 0.0)

    @property
    def processor_s(self) -> float:
        return self.counters["process_cpu_seconds_total"]

    @property
    def table_bytes(self) -> float:
        return self["table_bytes"] + self["tier_bytes"]


def measure(folder: Path, stream: Path, ids: int, bound: int | None, store: str) -> dict[str, Any]:
    """Runs the daemon over the stream to its end."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    port = free_port()
    text = JOB.format(
        stream=stream.absolute(),
        folder=folder.absolute(),
        slots="\n".join(f"s{slot} = {{}}" for slot in range(SLOTS)),
        dim=DIM,
        rows_max=2 * ids,
        bound="" if bound is None else f"memory_bytes_max = {bound}",
        store=store.format(folder=folder.absolute()),
        disk=max(1 << 30, ids * 1024),
        port=port,
    )
    (folder / "job.toml").write_text(text)
    seen: list[Seen] = []
    start_rss = 0
    with running(streamtrain("run", folder / "job.toml", "--until-end"), folder / "output.txt") as process:
        while process.poll() is None:
            now = Seen.of(process.pid, port)
            if now is not None and now["steps_total"] and now["table_rows"]:
                seen.append(now)
            elif now is not None:
                start_rss = now.rss_anon
            time.sleep(POLL_S)
        assert process.returncode == 0, (folder / "output.txt").read_text()[-2000:]
    return summary(seen, start_rss, bound)


def summary(seen: list[Seen], start_rss: int, bound: int | None) -> dict[str, Any]:
    """Of the run: rates, what memory it took, and how rows came and went."""
    first, last = seen[0], seen[-1]
    samples = last["samples_total"] - first["samples_total"]
    # What follows is the store catching up before the daemon ends.
    learned = next(s for s in seen if s["samples_total"] == last["samples_total"])
    seconds = learned.at_s - first.at_s
    result: dict[str, Any] = {
        "samples_a_second": round(samples / seconds),
        "samples_a_processor_second": round(samples / (learned.processor_s - first.processor_s)),
        "rows_in_memory": int(last["table_rows"]),
        "table_mib_most": round(max(s.table_bytes for s in seen) / MIB, 1),
        "process_anon_mib_above_start_most": round((max(s.rss_anon for s in seen) - start_rss) / MIB, 1),
    }
    if bound is None:
        return result
    named = last["tier_hits_total"] + last["tier_misses_total"]
    # Once as many rows have left as fit, the set of rows is full: from there on the process must not grow either.
    full = [s for s in seen if s["tier_evicted_rows_total"] > last["table_rows"]]
    return result | {
        "bound_mib": round(bound / MIB, 1),
        "table_of_bound_most": round(max(s.table_bytes for s in seen) / bound, 4),
        "process_growth_of_bound_once_full": round(
            (max(s.rss_anon for s in full) - full[0].rss_anon) / bound, 4
        )
        if full
        else None,
        "evicted": int(last["tier_evicted_rows_total"]),
        "pulled": int(last["store_pulled_rows_total"]),
        "hit_rate_of_chunks": round(last["tier_hits_total"] / named, 4),
        "seconds": round(seconds, 1),
        "stalled_for_rows_s": round(last["stalled_for_rows"], 1),
        "stalled_for_room_s": round(last["stalled_for_room"], 1),
        "trainer_waited_s": round(last["stage_wait_seconds_total.train"], 1),
    }


def main() -> None:
    """Prints what the module's docstring says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ids", type=int, default=50_000_000)
    parser.add_argument("--share", type=float, default=0.125)
    parser.add_argument("--runs", nargs="+", choices=STORES, default=list(STORES), help="default: all")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    folder, ids = FOLDER / "tiers", arguments.ids
    samples = write_stream(folder / "stream", ids)
    bound = int(ids * BYTES_A_ROW * arguments.share)
    rows = rows_within("main", TableSettings(dim=DIM, rows_max=2 * ids), bound)
    result: dict[str, Any] = {"machine": machine(), "ids": ids, "samples": samples, "rows_bound": rows}
    for name in arguments.runs:
        memory = bound if name == BOUNDED else None
        result[name] = measure(folder / name, folder / "stream", ids, memory, STORES[name])
        shutil.rmtree(folder / name)
    shutil.rmtree(folder / "stream")
    tell(result, arguments.json)


if __name__ == "__main__":
    main()
