"""Where reading a topic resumes, and what is refused; and the settings that say how to reach it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from consumers.kafka.positions import (
    BeyondEnd,
    check_identity,
    number_of,
    partition_name,
    seek_offsets,
    skip_offsets,
)
from consumers.kafka.settings import KafkaSettings, StartAt
from streamtrain.errors import ConfigError, OffsetOutOfRange, PartitionMissing, SourceRecreated
from streamtrain.sources import Gap

offsets = st.integers(0, 100)


@given(st.from_regex(r"[A-Za-z0-9._-]{1,30}", fullmatch=True), st.integers(0, 10_000))
def test_a_partition_s_name_gives_back_its_number(topic: str, number: int) -> None:
    assert number_of(partition_name(topic, number), topic) == number


@pytest.mark.parametrize(
    "partition", ["other:0", "clicks", "clicks:", "clicks:x", "clicks:-1", "/data/a.jsonl"]
)
def test_positions_of_something_else_are_refused(partition: str) -> None:
    with pytest.raises(PartitionMissing, match=re.escape(repr(partition))):
        number_of(partition, "clicks")


@given(
    st.dictionaries(st.integers(0, 3), offsets), st.lists(st.tuples(offsets, offsets), min_size=1, max_size=4)
)
def test_reading_resumes_inside_the_topic_or_not_at_all(
    positions: dict[int, int], bounds: list[tuple[int, int]]
) -> None:
    begin = {number: min(pair) for number, pair in enumerate(bounds)}
    end = {number: max(pair) for number, pair in enumerate(bounds)}
    fits = all(n in begin and begin[n] <= position <= end[n] for n, position in positions.items())
    try:
        found = seek_offsets("clicks", positions, begin, end)
    except (OffsetOutOfRange, PartitionMissing):
        assert not fits
    else:
        assert fits
        assert found == begin | positions


def test_what_cannot_be_read_from_is_refused_with_the_way_out() -> None:
    begin, end = {0: 0, 1: 7}, {0: 9, 1: 9}
    for positions, error, message in (
        ({1: 2}, OffsetOutOfRange, "clicks:1: 5 offsets that were never learned"),
        ({0: 10}, BeyondEnd, "the log goes on at offset 10, but the topic ends at 9"),
        ({2: 0}, PartitionMissing, "clicks:2 is in the log's positions"),
    ):
        with pytest.raises(error, match=message) as raised:
            seek_offsets("clicks", positions, begin, end)
        assert 'source.on_data_loss = "skip"' in str(raised.value)


@pytest.mark.parametrize(
    ("position", "recreated", "goes_on", "reason", "lost"),
    [
        ({1: 2}, False, 7, "retention", 5),
        ({1: 12}, False, 7, "shrunk", 0),
        ({1: 8}, True, 7, "recreated", 0),
        ({1: 3}, True, 7, "recreated", 4),
        ({3: 8}, False, None, "removed", 0),
        ({3: 8}, True, None, "recreated", 0),
    ],
)
def test_what_cannot_be_read_from_goes_on_at_the_beginning_when_told_so(
    position: dict[int, int], recreated: bool, goes_on: int | None, reason: str, lost: int
) -> None:
    begin, end = {0: 1, 1: 7}, {0: 9, 1: 9}
    offsets, (gap,) = skip_offsets("clicks", position, begin, end, recreated=recreated)
    assert offsets == begin
    ((number, first),) = position.items()
    assert gap == Gap(f"clicks:{number}", first, goes_on, reason)
    assert gap.lost == lost


@given(
    st.dictionaries(st.integers(0, 3), offsets), st.lists(st.tuples(offsets, offsets), min_size=1, max_size=4)
)
def test_skipping_moves_what_would_be_refused_and_nothing_else(
    positions: dict[int, int], bounds: list[tuple[int, int]]
) -> None:
    begin = {number: min(pair) for number, pair in enumerate(bounds)}
    end = {number: max(pair) for number, pair in enumerate(bounds)}
    found, gaps = skip_offsets("clicks", positions, begin, end, recreated=False)
    moved = {number_of(gap.partition, "clicks") for gap in gaps}
    assert set(found) == set(begin)
    for number, position in positions.items():
        fits = number in begin and begin[number] <= position <= end[number]
        assert (number in moved) != fits
        assert found.get(number) == (position if fits else begin.get(number))


def test_another_id_is_another_topic_but_an_unknown_one_may_be_the_same() -> None:
    check_identity("clicks", "a", "a")
    check_identity("clicks", "", "a")
    check_identity("clicks", "a", "")
    with pytest.raises(SourceRecreated):
        check_identity("clicks", "a", "b")


def settings(**changes: object) -> KafkaSettings:
    return KafkaSettings.model_validate({"kind": "kafka", "topic": "clicks", **changes})


def test_start_is_a_word_or_a_time() -> None:
    assert settings().start == "earliest"
    assert settings(start={"timestamp_ms": 5}).start == StartAt(timestamp_ms=5)
    with pytest.raises(ValidationError):
        settings(start="yesterday")


SASL = {"security_protocol": "SASL_PLAINTEXT", "sasl_username": "trainer"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"security_protocol": "SASL_SSL"}, "needs sasl_username"),
        ({"sasl_username": "trainer"}, "needs security_protocol"),
        (SASL, "exactly one of"),
        (SASL | {"sasl_password_env": "A", "sasl_password_file": "b"}, "exactly one of"),
        ({"ssl_keyfile": "key.pem"}, "needs ssl_certfile"),
        ({"sasl_password": "secret"}, "Extra inputs"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**changes)


def test_the_password_comes_from_the_environment_or_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KAFKA_PASSWORD", "from-environment")
    by_name = settings(**SASL, sasl_password_env="KAFKA_PASSWORD")
    assert by_name.client_options()["sasl_plain_password"] == "from-environment"
    assert "from-environment" not in by_name.model_dump_json()
    (tmp_path / "password").write_text("from-file\n")
    by_file = settings(**SASL, sasl_password_file=str(tmp_path / "password"))
    assert by_file.client_options()["sasl_plain_password"] == "from-file"
    with pytest.raises(ConfigError, match="no NOT_THERE"):
        settings(**SASL, sasl_password_env="NOT_THERE").client_options()
    with pytest.raises(ConfigError, match="cannot read"):
        settings(**SASL, sasl_password_file=str(tmp_path / "absent")).client_options()


def test_certificates_that_cannot_be_read_are_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="certificates"):
        settings(security_protocol="SSL", ssl_cafile=str(tmp_path / "absent.pem")).client_options()
    assert settings(security_protocol="SSL").client_options()["ssl_context"] is not None
    assert settings(**SASL, sasl_password_env="PATH").client_options()["ssl_context"] is None
