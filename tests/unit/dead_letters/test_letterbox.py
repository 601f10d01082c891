"""Nothing behind a refused record is learned before it is kept, however long that takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamtrain import letterbox as module
from streamtrain.dead_letters.file_sink import FileSink
from streamtrain.dead_letters.letter import DeadLetter
from streamtrain.errors import ConfigError, DeadLettersUnavailable, TooManyBadSamples
from streamtrain.letterbox import Letterbox, sink_of
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.lineage import LOSSES_MAX, losses_note, losses_of, with_losses
from streamtrain.metrics import Metrics
from streamtrain.service import Service
from streamtrain.sources import DataLoss, Gap
from streamtrain.training.learner import Learner
from tests.fakes import ScriptedSource, chunk, decoded, job, sample

BAD = b"{broken"


class ListSink:
    """Keeps letters in a list; before each call it raises what `errors` holds, in order."""

    name, bytes_max = "a list", 100

    def __init__(self, *errors: str) -> None:
        self.kept: list[DeadLetter] = []
        self.errors = list(errors)
        self.on_write: Callable[[], object] = lambda: None

    async def open(self) -> None: ...

    async def write(self, letters: Iterable[DeadLetter]) -> int:
        self.on_write()
        if self.errors:
            raise DeadLettersUnavailable(self.errors.pop(0))
        new = list(letters)
        self.kept += new
        return len(new)

    async def close(self) -> None: ...


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Learner, "warm", classmethod(lambda cls, job: cls(job)))
    monkeypatch.setattr(module, "_PAUSE_FIRST_S", 0.0)
    yield
    ScriptedSource.script, ScriptedSource.on_start = (), None


async def run(monkeypatch: pytest.MonkeyPatch, path: Path, sink: ListSink, *script: Any, **bad: Any) -> Any:
    monkeypatch.setattr("streamtrain.service.sink_of", lambda _: sink)
    ScriptedSource.script = script
    training = {"batch_size": 8, "linger_ms": 1, "bad_samples": {"share_max": 1.0, **bad}}
    service = Service(job(path, training=training), until_end=True)
    return service, await asyncio.wait_for(service.run(), 60)


async def test_letters_are_kept_before_the_epoch_that_covers_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = ListSink("no room", "no room", "no room at all")
    heads: list[int | None] = []
    sink.on_write = lambda: heads.append(EpochLog.open(tmp_path / "model").head())
    records = [sample(0), BAD, None, sample(3), b""]
    service, last = await run(monkeypatch, tmp_path, sink, chunk(0, records))
    assert heads == [0] * 4, "nothing but the genesis is durable while letters are not"
    assert [letter.offset for letter in sink.kept] == [1, 2, 4]
    assert (last.samples_total, last.bad_samples) == (2, 3)
    assert _value(service, "streamtrain_dead_letters_total") == 3
    assert _value(service, "streamtrain_dead_letters_unavailable") == 0


async def test_training_pauses_with_words_and_a_metric_while_letters_cannot_be_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    metrics, gate = Metrics(), asyncio.Event()
    sink = ListSink("no room", "no room", "no room at all")

    async def waits(_: float) -> None:
        gate.set()
        await real_sleep(0)

    real_sleep = asyncio.sleep
    monkeypatch.setattr(module.asyncio, "sleep", waits)
    record = chunk(0, [BAD])
    keeping = asyncio.create_task(Letterbox(sink, metrics).keep(record, decoded(0, [BAD]).bad))
    await gate.wait()
    assert metrics.registry.get_sample_value("streamtrain_dead_letters_unavailable") == 1
    await keeping
    assert metrics.registry.get_sample_value("streamtrain_dead_letters_unavailable") == 0
    said = [record.message for record in caplog.records]
    assert said == [
        "training pauses: no room",
        "training pauses: no room at all",
        "dead letters are kept again at a list, training goes on",
    ]


async def test_a_flood_stops_before_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = ListSink()
    with pytest.raises(TooManyBadSamples):
        await run(monkeypatch, tmp_path, sink, chunk(0, [BAD] * 100), share_max=0.05, window=100)
    assert sink.kept == []


async def test_a_gap_is_an_epoch_s_first_and_every_later_record_tells_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = DataLoss((Gap("p", 20, 5, "shrunk"), Gap("q", 0, None, "recreated")), "topic-2", 123)
    ScriptedSource.script = ()
    monkeypatch.setattr(ScriptedSource, "start", _starts_with_two_partitions)
    service, last = await run(
        monkeypatch, tmp_path, ListSink(), chunk(0, 20), loss, chunk(5, 8), chunk(13, 3)
    )
    assert (last.samples_total, dict(last.positions)) == (31, {"p": 16})
    log = EpochLog.open(tmp_path / "model")
    records = [log.read(epoch) for epoch in range((log.head() or 0) + 1)]
    (behind,) = [r for r in records if r.positions["p"] < records[r.epoch - 1].positions["p"] and r.epoch]
    assert behind.spans.spans[0][2] == 5 and dict(records[behind.epoch - 1].positions) == {"p": 20, "q": 0}
    lost = losses_of(last.notes)
    assert [(x["epoch"], x["partition"], x["from"], x["to"], x["reason"], x["at_ms"]) for x in lost] == [
        (behind.epoch, "p", 20, 5, "shrunk", 123),
        (behind.epoch, "q", 0, None, "recreated", 123),
    ]
    assert all(losses_of(r.notes) == (lost if r.epoch >= behind.epoch else []) for r in records)
    assert {r.notes["source"] for r in records[behind.epoch :]} == {"topic-2"}
    assert _value(service, "streamtrain_data_losses_total", reason="shrunk") == 1
    # The next start knows what is lost, and where the new topic stands.
    ScriptedSource.script = (chunk(16, 1),)
    again = await asyncio.wait_for(Service(job(tmp_path), until_end=True).run(), 60)
    assert again is not None and losses_of(again.notes) == lost
    assert ScriptedSource.made.started_at == ({"p": 16}, "topic-2")


def test_the_newest_loss_is_carried_on_whole_and_older_ones_within_a_bound() -> None:
    lost: list[Any] = []
    for epoch in range(5):
        lost = with_losses(lost, [{"epoch": epoch, "partition": f"p:{n}"} for n in range(70)])
        assert losses_of(losses_note(lost)) == lost
        assert [x["epoch"] for x in lost].count(epoch) == 70 and len(lost) <= LOSSES_MAX + 70
    assert losses_note([]) == {} and losses_of({}) == []


async def _starts_with_two_partitions(self: Any, positions: Any, identity: str = "") -> dict[str, int]:
    self.started_at = (positions and dict(positions), identity)
    self.identity = identity or "topic-1"
    return {"p": 0, "q": 0} if positions is None else dict(positions)


def _value(service: Service, name: str, **labels: str) -> float | None:
    return service._metrics.registry.get_sample_value(name, labels)


def _with(folder: Path, /, **letters: Any) -> Any:
    return job(folder, training={"bad_samples": {"dead_letters": letters}})


def test_a_job_says_where_dead_letters_go(tmp_path: Path) -> None:
    assert sink_of(job(tmp_path)) is None
    assert isinstance(sink_of(_with(tmp_path, kind="file", path="dead.jsonl")), FileSink)
    sink = sink_of(
        _with(tmp_path, kind="kafka", topic="dead", connection={"bootstrap_servers": "somewhere:1"})
    )
    assert sink is not None and sink.name == "topic 'dead' at somewhere:1"


@pytest.mark.parametrize(
    ("letters", "message"),
    [
        ({"kind": "kafka", "topic": "dead"}, "dead_letters: connection is required where the source is not"),
        ({"kind": "kafka", "topic": "a b"}, "training.bad_samples.dead_letters.topic = 'a b'"),
        ({"kind": "file"}, "training.bad_samples.dead_letters.path: is required"),
        (
            {"kind": "file", "path": "x", "files": 1},
            "dead_letters.files = 1: is not a setting; allowed: kind",
        ),
        ({"kind": "redis"}, "dead_letters.kind = 'redis': must be one of 'file', 'kafka'"),
    ],
)
def test_what_is_wrong_with_dead_letters_is_named(
    tmp_path: Path, letters: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        _with(tmp_path, **letters)
    assert message in str(raised.value)


def test_dead_letters_never_go_back_into_the_source(tmp_path: Path) -> None:
    source = {"kind": "kafka", "topic": "clicks"}
    for changes, fits in (({"topic": "dead"}, True), ({"topic": "clicks"}, False)):
        training = {"bad_samples": {"dead_letters": {"kind": "kafka", **changes}}}
        if fits:
            assert sink_of(job(tmp_path, source=source, training=training)) is not None
        else:
            with pytest.raises(ConfigError, match="topic 'clicks' is the source's own"):
                job(tmp_path, source=source, training=training)
