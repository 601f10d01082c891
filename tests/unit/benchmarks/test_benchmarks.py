"""The arithmetic and the command lines of the benchmarks; what they measure is never a test."""

from __future__ import annotations

import json
import os
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import options_of
from benchmarks.end_to_end import minibatches, work_of
from benchmarks.end_to_end import options_of as end_to_end_options
from benchmarks.failover import options_of as failover_options
from benchmarks.freshness import Epoch, ages, overrides, percentiles
from benchmarks.freshness import options_of as freshness_options
from benchmarks.growth import options_of as growth_options
from benchmarks.growth import pauses
from benchmarks.harness import Usage, counters, rows_as_text, stage_shares
from benchmarks.model import SLOTS, job_text, sample_lines, shares, write_model
from benchmarks.model import job_of as resident_job
from benchmarks.quality import HISTORY, VARIANTS, job_of
from benchmarks.recovery import options_of as recovery_options
from benchmarks.recovery import phases
from benchmarks.scaling import options_of as scaling_options
from benchmarks.scaling import slope
from benchmarks.soak import growth_per_hour, look
from streamtrain.config import load_job, parse_job
from streamtrain.log.reader import LogReader
from streamtrain.log.verify import verify
from streamtrain.samples.decoder import Decoder

EXAMPLE = Path(__file__).parents[3] / "examples" / "kuairand.toml"


def test_an_epoch_is_visible_with_the_first_sighting_of_it_or_of_a_later_one() -> None:
    epochs = [Epoch(1, 10, 1000, 2000), Epoch(2, 20, 2000, 3000), Epoch(3, 30, 3000, 4000)]
    samples, visible, commit, view = ages(epochs, [(0, 500), (1, 2100), (3, 4300)])
    assert samples.tolist() == [10, 20, 30]
    assert visible.tolist() == [1.1, 2.3, 1.3]
    assert commit.tolist() == [1.0, 1.0, 1.0]
    assert view.tolist() == pytest.approx([0.1, 1.3, 0.3])


def test_an_epoch_that_was_never_visible_is_named() -> None:
    with pytest.raises(ValueError, match="epoch 3"):
        ages([Epoch(3, 1, 0, 0)], [(1, 5), (2, 6)])


def test_percentiles_count_an_epoch_once_a_sample() -> None:
    found = percentiles(np.array([5.0, 1.0, 2.0]), np.array([2, 94, 4]))
    assert found == {"p50": 1.0, "p95": 2.0, "p99": 5.0, "max": 5.0}


@pytest.mark.parametrize("exports", [True, False])
def test_the_environment_changes_source_log_store_and_exports_of_a_job(tmp_path: Path, exports: bool) -> None:
    source = {"kind": "files", "paths": ['a "b".jsonl'], "follow": True}
    environment = overrides(tmp_path, source=source, store="redis://h:1/0", exports=exports)
    job = load_job(EXAMPLE, environment)
    assert (job.source.paths, job.source.follow, job.store.url) == (['a "b".jsonl'], True, "redis://h:1/0")
    assert job.log.path == str(tmp_path / "model")
    assert [export.path for export in job.exports] == [str(tmp_path / "exports")] * exports


@pytest.mark.parametrize("model", list(VARIANTS))
def test_every_variant_of_the_example_is_a_valid_job(model: str) -> None:
    example = tomllib.loads(EXAMPLE.read_text())
    job = parse_job(job_of(example, model, history=True), "test")
    assert (job.model.kind, set(HISTORY) <= set(job.sample_schema.slots)) == (model, True)
    assert example == tomllib.loads(EXAMPLE.read_text())
    assert not set(HISTORY) & set(job_of(example, model, history=False)["schema"]["slots"])


def test_counters_add_up_labels_and_shares_are_of_the_wall_clock() -> None:
    page = "\n".join(
        [
            "# TYPE streamtrain_stage_busy_seconds_total counter",
            'streamtrain_stage_busy_seconds_total{stage="decode"} 3.0',
            'streamtrain_stage_busy_seconds_total{stage="train"} 2.0',
            'streamtrain_stage_busy_seconds_total{stage="commit"} 0.5',
            "# TYPE streamtrain_stage_wait_seconds_total counter",
            'streamtrain_stage_wait_seconds_total{stage="train",on="input"} 0.75',
            'streamtrain_stage_wait_seconds_total{stage="train",on="room"} 0.25',
            "# TYPE streamtrain_lag_records gauge",
            'streamtrain_lag_records{partition="a"} 2.0',
            'streamtrain_lag_records{partition="b"} 3.0',
        ]
    )
    after = counters(page + "\n")
    assert after["streamtrain_lag_records"] == 5.0
    shares = {stage: share for stage, share in stage_shares({}, after, 4.0).items() if share}
    assert shares == {"decode": 0.75, "train": 0.5, "trainer_waits": 0.25, "commit": 0.125}


def test_the_work_of_end_to_end_is_a_job_that_reads_every_sample(tmp_path: Path) -> None:
    samples = work_of(tmp_path, samples=100, rows=2300, batch=30)
    found = list(minibatches(load_job(str(samples.config)), samples.lines))
    assert samples.samples == 120 and [minibatch.batch.size for minibatch in found] == [30] * 4
    assert len(found[0].batch.ids) == 23 and 0 < found[0].batch.labels.sum() < 30


def test_freshness_end_to_end_needs_the_codec_that_it_is_measured_with() -> None:
    assert end_to_end_options(["--codec", "arrow", "--load", "0"]).codec == ["arrow"]
    with pytest.raises(SystemExit):
        end_to_end_options(["--codec", "arrow"])


def test_growth_is_the_slope_of_the_second_half() -> None:
    at = [0.0, 900.0, 1800.0, 2700.0, 3600.0, 4500.0]
    assert growth_per_hour(at, [0, 500, 900, 1000, 1025, 1050]) == pytest.approx(100)
    seen = look(os.getpid())
    assert seen["rss_mb"] >= seen["rss_anon_mb"] > 1 and seen["fds"] >= 3 and seen["threads"] >= 1


def test_tables_align_numbers_to_the_right() -> None:
    rows = [{"name": "a", "rate": 1200, "note": None}, {"name": "long", "rate": 7, "note": None}]
    assert rows_as_text(rows) == "name   rate  note\na     1,200     -\nlong      7     -"


def test_a_process_can_be_weighed() -> None:
    import os

    usage = Usage.of(os.getpid())
    assert usage.resident_bytes > 1 << 20
    assert usage.processor_s > 0


def test_every_id_of_the_samples_has_a_row_in_the_base_of_the_resident_model(tmp_path: Path) -> None:
    rows = 2000
    source = {"kind": "files", "paths": ["samples.jsonl"]}
    job = resident_job(tmp_path / "job.toml", job_text(tmp_path, source, rows_max=2 * rows))
    write_model(job, rows, {"samples.jsonl": 0}, "files")
    log = LogReader.open(job.log.path)
    assert verify(log.path).ok
    resident = log.read_base(1).tables["main"]
    assert sum(shares(rows)) == rows == len(np.unique(resident.ids))
    assert 4 * (resident.weights.shape[1] + resident.slots.shape[1] + 2) == 152
    samples = [json.loads(line) for line in sample_lines(rows, 500)]
    batch = Decoder(job.sample_schema, codec=job.source.codec).decode_samples(samples)
    named = np.unique(np.concatenate([ragged.values for ragged in batch.ids.values()]))
    assert (batch.size, len(batch.ids)) == (500, SLOTS) and len(named) > rows / 4
    assert np.isin(named, resident.ids).all()


def test_the_phases_of_a_start_are_told_by_the_daemons_log() -> None:
    def line(second: str, message: str) -> dict[str, str]:
        return {"time": f"2026-01-01T00:00:{second}Z", "message": message}

    told = [
        line("01.000", "metrics and probes at http://127.0.0.1:1/metrics"),
        line("02.500", "compiled in 1.000 s"),
        line(
            "03.500",
            "restored from 301 records: the first read in 0.800 s, loaded in 0.500 s; "
            "the rest waited for 0.100 s, loaded in 0.900 s",
        ),
        line("03.700", "learning: epoch 301, 5 samples so far"),
    ]
    begin = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    assert phases(told, begin, begin + 4.0) == {
        "imports": 1.0,
        "open_log_and_store": 0.2,
        "compile": 1.0,
        "base_check": 0.8,
        "base_load": 0.5,
        "epochs_wait_for_check": 0.1,
        "epochs_load": 0.9,
        "source_start": 0.2,
        "first_step": 0.3,
    }


def test_command_lines_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert options_of(["--json", "store"]).name == ["store"]
    assert options_of([]).name[-1] == "freshness"
    assert freshness_options(["--rate", "10"]).rate == 10.0
    for refused in (
        lambda: options_of(["nothing"]),
        lambda: freshness_options(["--rate", "0"]),
        lambda: recovery_options(["--rows", "1"]),
        lambda: growth_options(["--rows", "5", "--keep", "5"]),
        lambda: failover_options(["--session-timeout", "5"]),
        lambda: scaling_options(["--rows", "0"]),
    ):
        with pytest.raises(SystemExit):
            refused()
    assert "there is no benchmark 'nothing'" in capsys.readouterr().err


def test_a_slope_is_the_exponent_of_the_rate() -> None:
    points = [{"dim": dim, "samples_per_core_s": 5000 / dim**0.5} for dim in (4, 8, 18)]
    assert slope(points, "dim") == pytest.approx(-0.5)
    assert slope(points[:1], "dim") == 0.0


def test_the_longest_pause_is_told_whatever_the_others_are() -> None:
    found = pauses(np.array([0.001] * 999 + [0.5]), np.array([0.25] + [0.001] * 999))
    assert (found["longest_ms"], found["longest_cpu_ms"], found["median_cpu_ms"]) == (500.0, 250.0, 1.0)
    assert (found["batches"], found["cpu_s"]) == (1000, 1.25)
