"""What the benchmarks of the whole daemon share: the data, the machine, processes and their metrics.

Rows are KuaiRand-Pure where it is there (`make kuairand`, or its public files in `KUAIRAND_DIR`), otherwise the
synthetic click stream: each result says which, because rates on one say little about the other.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from prometheus_client.parser import text_string_to_metric_families

from examples import kuairand
from streamtrain.produce import SyntheticStream, file_batches
from streamtrain.stages import CHAIN
from tests.servers import missing_programs

__all__ = [
    "FOLDER",
    "Data",
    "Usage",
    "at_least_one",
    "counters",
    "data",
    "machine",
    "parser_of",
    "rows_as_text",
    "running",
    "skip_without",
    "stage_shares",
    "streamtrain",
    "tell",
    "thread_seconds",
]

FOLDER = Path("build/bench")
"""Everything that benchmarks write; on the disk that the working tree is on, so that syncing costs what it costs."""

SYNTHETIC_SAMPLES = 200_000
_ROOT = Path(__file__).resolve().parents[1]
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def parser_of(name: str, about: str | None) -> argparse.ArgumentParser:
    """The command line of `python -m benchmarks.NAME`, whose help is `about` as it stands; with `--json`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def at_least_one(parser: argparse.ArgumentParser, options: argparse.Namespace, *names: str) -> None:
    """Ends the program where one of these options is below 1."""
    for name in names:
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)}: must be at least 1")


@dataclass(frozen=True, slots=True)
class Data:
    """Samples in both forms, and the job that reads them from files.

    Attributes:
      name: `kuairand` or `synthetic`.
      samples: how many there are.
      parquet, lines: the same samples, in order.
      config: a TOML whose source and paths are overridden by the environment.
    """

    name: str
    samples: int
    parquet: Path
    lines: Path
    config: Path


def data() -> Data:
    """KuaiRand where it is there, otherwise the synthetic stream, which it says on standard error."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    name, parquet, config = "kuairand", kuairand.OUTPUT_DIR / "samples.parquet", "examples/kuairand.toml"
    source = Path(os.environ.get("KUAIRAND_DIR", kuairand.SOURCE_DIR))
    if not parquet.exists() and (source / "impressions.parquet").exists():
        _write(kuairand.join(source), parquet)
    elif not parquet.exists():
        sys.stderr.write(f"no KuaiRand in {source}: measuring with the synthetic stream instead\n")
        name, parquet, config = "synthetic", FOLDER / "synthetic.parquet", "benchmarks/synthetic.toml"
        if not parquet.exists():
            stream = SyntheticStream(0)
            blocks = [stream.next_block().table for _ in range(SYNTHETIC_SAMPLES // 1000)]
            _write(pa.concat_tables(blocks), parquet)
    lines = FOLDER / f"{name}.jsonl"
    if not lines.exists() or lines.stat().st_mtime < parquet.stat().st_mtime:
        aside = lines.with_suffix(".writing")
        with aside.open("wb") as file:
            for batch in file_batches([parquet], 4096):
                file.write(b"".join(message.value + b"\n" for message in batch))
        aside.rename(lines)
    return Data(
        name, pq.read_metadata(parquet).num_rows, parquet.absolute(), lines.absolute(), _ROOT / config
    )


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".writing")
    pq.write_table(table, aside, compression="zstd", row_group_size=32_768)
    aside.rename(path)


def machine() -> dict[str, Any]:
    """What figures depend on: processor, cores, memory, and how busy others keep it (mean of the last minute)."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def skip_without(*programs: str, as_json: bool) -> None:
    """Ends the benchmark, successfully and in words, where it cannot run on this machine."""
    if missing := missing_programs(*programs):
        words = f"{' and '.join(missing)} not found on PATH"
        print(json.dumps({"skipped": words}) if as_json else f"skipped: {words}")
        raise SystemExit(0)


def streamtrain(*arguments: str | Path) -> list[str]:
    """The command line of this very interpreter's streamtrain."""
    return [sys.executable, "-m", "streamtrain", *map(str, arguments)]


@contextlib.contextmanager
def running(command: Sequence[str], output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose standard output goes to a file; killed at the end where it still runs."""
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdout=file)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@dataclass(frozen=True, slots=True)
class Usage:
    """A process at an instant, its ended children counted in.

    Attributes:
      processor_s: seconds on any core since it began.
      resident_bytes: memory that it holds now.
    """

    processor_s: float
    resident_bytes: int

    @classmethod
    def of(cls, process: int) -> Usage:
        """Reads what Linux tells about a process id (proc(5))."""
        # The name, second of the fields, may hold spaces; the numbers begin after its parenthesis.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks = sum(int(field) for field in fields[11:15])
        return cls(ticks / _TICKS_A_SECOND, int(fields[21]) * os.sysconf("SC_PAGE_SIZE"))


def counters(exposition: str) -> dict[str, float]:
    """The samples of a `/metrics` page by name; those that differ in labels alone are added up, but for `name.STAGE` and `name.THREAD`."""
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            kind = sample.labels.get("stage") or sample.labels.get("thread")
            name = sample.name if kind is None else f"{sample.name}.{kind}"
            values[name] = values.get(name, 0.0) + sample.value
    return values


STAGES = {
    **{stage: f"streamtrain_stage_busy_seconds_total.{stage}" for stage in (*CHAIN, "cut")},
    "trainer_waits": "streamtrain_stage_wait_seconds_total.train",
}
"""The daemon's counters of seconds: a stage each, but `train`, `cut` and `trainer_waits` are one thread's."""


def stage_shares(before: Mapping[str, float], after: Mapping[str, float], seconds: float) -> dict[str, float]:
    """What share of the wall clock each stage was busy between two pages of `/metrics`; 0 for one that has not worked.

    A stage near 1 is the bound; a stage's seconds include waiting for the interpreter's lock and for a core.
    """
    return {
        stage: round((after.get(name, 0.0) - before.get(name, 0.0)) / seconds, 3)
        for stage, name in STAGES.items()
    }


def thread_seconds(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Processor seconds between two pages of `/metrics`, by kind of the daemon's threads."""
    prefix = "streamtrain_thread_cpu_seconds_total."
    return {
        name.removeprefix(prefix): seconds - before.get(name, 0.0)
        for name, seconds in after.items()
        if name.startswith(prefix)
    }


def rows_as_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Equal records as an aligned table: numbers to the right, with separators."""
    names = list(rows[0]) if rows else []
    cells = [names, *([_cell(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    numeric = [all(isinstance(row[name], (int, float, type(None))) for row in rows) for name in names]
    return "\n".join(
        "  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(line, widths, numeric)).rstrip()
        for line in cells
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}"


def flat(result: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested records as dotted names."""
    for name, value in result.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def tell(result: Mapping[str, Any], as_json: bool) -> None:
    """Prints a result: one line of JSON, or text in which lists of records are tables."""
    if as_json:
        print(json.dumps(result))
    else:
        print("\n".join(text_of(result)))


def text_of(result: Mapping[str, Any]) -> Iterable[str]:
    """A result as lines for people."""
    pairs = list(flat(result))
    width = max((len(name) for name, value in pairs if not isinstance(value, list)), default=0)
    for name, value in pairs:
        if not isinstance(value, list):
            yield f"{name:{width}}  {_cell(value)}"
    for name, value in pairs:
        if isinstance(value, list):
            yield from ("", name, rows_as_text(value))
