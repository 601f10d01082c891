"""The reverse dictionary: what is written down, within which bounds, and what happens when the disk fails."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtrain.dictionary import recorder as recorder_module
from streamtrain.dictionary.reader import Dictionary
from streamtrain.dictionary.recorder import ValueRecorder
from streamtrain.dictionary.segments import VALUES, segments
from streamtrain.dictionary.settings import ReverseDictionarySettings
from streamtrain.errors import ConfigError, LogError
from streamtrain.samples.arrays import hash_values
from streamtrain.samples.decoder import Decoder
from streamtrain.samples.hashing import feature_id
from streamtrain.samples.schema import Schema
from tests.fakes import chunk, job


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def recorder(path: Path, clock: Clock | None = None, **of: int) -> ValueRecorder:
    return ValueRecorder(path, {"item": ReverseDictionarySettings(**of)}, clock or Clock())


def see(to: ValueRecorder, values: list[str] | list[int], slot: str = "item") -> None:
    column = pa.array(values, pa.string()) if isinstance(values[0], str) else np.array(values, np.int64)
    to.see(slot, column, hash_values(column, slot))


def known(path: Path, values: list[str] | list[int], slot: str = "item") -> list[str | None]:
    """What the dictionary says of the ids of these values."""
    ids = np.array([feature_id(slot, value) for value in values], np.uint64)
    found: list[str | None] = Dictionary(path, [slot]).find(ids)[1].to_pylist()
    return found


Batches = st.lists(
    st.lists(st.sampled_from([f"v{n}" for n in range(12)]), min_size=1, max_size=9), max_size=8
)


@settings(max_examples=60, deadline=None)
@given(Batches, st.integers(1, 12), st.sets(st.integers(0, 7)), st.booleans())
def test_the_first_values_are_known_up_to_the_bound_over_restarts_and_unions_of_files(
    tmp_path_factory: pytest.TempPathFactory,
    batches: list[list[str]],
    values_max: int,
    ends: set[int],
    large: bool,
) -> None:
    path = tmp_path_factory.mktemp("log")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder_module, "_PENDING_MAX", 2)
        patch.setattr(recorder_module, "_SEGMENTS_MAX", 2)
        to = recorder(path, values_max=values_max)
        for number, batch in enumerate(batches):
            column = pa.array(batch, pa.large_string() if large else pa.string())
            to.see("item", column, hash_values(column, "item"))
            if number in ends:
                to.close()
                to = recorder(path, values_max=values_max)
        to.close()
    expected = list(dict.fromkeys(value for batch in batches for value in batch))[:values_max]
    everything = [f"v{n}" for n in range(12)]
    assert known(path, everything) == [value if value in expected else None for value in everything]
    assert len(segments(path / VALUES / "item")) <= 3
    assert not list(path.rglob("*.aside"))


def test_integers_are_told_as_text_with_their_slot(tmp_path: Path) -> None:
    to = recorder(tmp_path)
    see(to, [-5, 2**62])
    to.close()
    slots, values = Dictionary(tmp_path, ["item"]).find(
        np.array([feature_id("item", -5), 1, feature_id("item", 2**62)], np.uint64)
    )
    assert (slots.to_pylist(), values.to_pylist()) == (["item", None, "item"], ["-5", None, str(2**62)])


def test_values_are_written_after_ten_seconds_or_when_many_wait(tmp_path: Path) -> None:
    clock = Clock()
    to = recorder(tmp_path, clock)
    see(to, ["a"])
    assert known(tmp_path, ["a"]) == [None]
    clock.now_s = 10.0
    see(to, ["a"])
    assert known(tmp_path, ["a"]) == ["a"]
    see(to, list(range(20_000)))
    assert known(tmp_path, [19_999]) == ["19999"]


def test_what_a_crash_lost_is_written_when_it_comes_again(tmp_path: Path) -> None:
    see(recorder(tmp_path), ["a", "b"])
    again = recorder(tmp_path)
    see(again, ["b"])
    again.close()
    assert known(tmp_path, ["a", "b"]) == [None, "b"]


def test_a_long_string_is_left_out_and_another_slot_is_not_recorded(tmp_path: Path) -> None:
    to = recorder(tmp_path, value_bytes_max=4)
    see(to, ["müll", "abcd", "müllx"])
    see(to, ["abcd"], slot="user")
    to.close()
    assert known(tmp_path, ["müll", "abcd", "müllx"]) == [None, "abcd", None]
    assert known(tmp_path, ["abcd"], slot="user") == [None]


def test_a_full_dictionary_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    to = recorder(tmp_path, values_max=2)
    for value in ("a", "b", "c", "d"):
        see(to, [value])
    assert [record.message for record in caplog.records] == [
        "the reverse dictionary of slot item holds values_max = 2 values; values that come from now on are not recorded"
    ]


def test_a_failing_disk_ends_the_recording_in_words_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / VALUES).write_text("in the way")
    to = recorder(tmp_path)
    see(to, ["a"])
    to.close()
    see(to, ["b"])
    to.close()
    assert len(caplog.records) == 1 and caplog.records[0].levelno == logging.WARNING
    assert (
        "slot item is not recorded until the next start" in caplog.text and "learning goes on" in caplog.text
    )


def test_a_damaged_file_is_named_by_both_who_write_and_who_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    to = recorder(tmp_path)
    see(to, ["a"])
    to.close()
    file = segments(tmp_path / VALUES / "item")[0]
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(LogError, match=f"{file}.*remove it"):
        Dictionary(tmp_path, ["item"])
    recorder(tmp_path)
    assert str(file) in caplog.text


def test_files_that_are_united_while_they_are_listed_are_listed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = recorder(tmp_path)
    for value in ("a", "b"):
        see(to, [value])
        to.close()
    from streamtrain.dictionary import reader

    listings = iter([[tmp_path / "gone.parquet"], segments(tmp_path / VALUES / "item")])
    monkeypatch.setattr(reader, "segments", lambda directory: next(listings))
    assert len(Dictionary(tmp_path, ["item"])) == 2


def test_the_decoder_tells_of_good_samples_only_and_of_shared_slots_under_the_name_they_share(
    tmp_path: Path,
) -> None:
    schema = Schema.model_validate(
        {
            "labels": ["click"],
            "slots": {
                "user": {},
                "item": {"type": "string"},
                "past": {"kind": "sequence", "shares": "item", "type": "string", "length_max": 2},
            },
        }
    )
    decoder, told = Decoder(schema), []
    decoder.columns.observer = lambda name, values, ids: told.append(
        (name, pa.array(values).to_pylist(), ids.tolist())
    )
    records = [
        b'{"user": 1, "item": "a", "past": ["x", "y", "z"], "click": 0}',
        b'{"user": 2, "item": "secret", "past": [], "click": 7}',
        b'{"user": 3, "item": "b", "past": [], "click": 1}',
    ]
    assert len(decoder.decode(chunk(0, records)).bad) == 1
    assert [(name, values) for name, values, _ in told] == [
        ("user", [1, 3]),
        ("item", ["a", "b"]),
        ("item", ["y", "z"]),
    ]
    assert all(ids == [feature_id(name, value) for value in values] for name, values, ids in told)


def test_only_a_slot_that_owns_ids_can_be_asked_for(tmp_path: Path) -> None:
    schema = {
        "labels": ["click"],
        "slots": {"user": {}, "past": {"kind": "sequence", "shares": "user", "pooling": "sum"}},
    }
    assert (
        job(tmp_path, schema=schema, reverse_dictionary={"user": {}}).reverse_dictionary["user"].values_max
        == 10**6
    )
    for slot, words in (
        ("items", "not a sparse or sequence slot; there are: user"),
        ("past", "ask for reverse_dictionary.user"),
    ):
        with pytest.raises(ConfigError, match=words):
            job(tmp_path, schema=schema, reverse_dictionary={slot: {}})
