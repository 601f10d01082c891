"""The breaker for bad samples."""

import pytest

from streamtrain.errors import BadSample, TooManyBadSamples
from streamtrain.training.guard import BadSampleGuard
from streamtrain.training.settings import BadSampleSettings


def bad(n: int) -> list[BadSample]:
    return [BadSample("type", "holds a string", field="user", partition="t:0", offset=i) for i in range(n)]


def test_a_share_at_the_bound_goes_on_forever() -> None:
    guard = BadSampleGuard(BadSampleSettings(share_max=0.05, window=1000))
    for _ in range(100):
        guard.see(100, bad(5))


def test_a_share_above_the_bound_stops_and_names_reason_and_record() -> None:
    guard = BadSampleGuard(BadSampleSettings(share_max=0.05, window=1000))
    with pytest.raises(TooManyBadSamples, match=r"type in user.*t:0 offset 5: field 'user'"):
        for _ in range(10):
            guard.see(100, bad(6))


def test_a_stream_that_is_bad_from_its_first_record_stops_before_the_window_is_full() -> None:
    with pytest.raises(TooManyBadSamples, match="60 of the last 60"):
        BadSampleGuard(BadSampleSettings(share_max=0.05, window=1000)).see(60, bad(60))


def test_one_poisoned_record_in_a_small_first_chunk_does_not_stop() -> None:
    BadSampleGuard(BadSampleSettings(share_max=0.05, window=1000)).see(1, bad(1))


def test_a_bound_of_one_never_stops() -> None:
    guard = BadSampleGuard(BadSampleSettings(share_max=1.0, window=10))
    for _ in range(20):
        guard.see(100, bad(100))


def test_a_short_source_without_one_good_record_is_refused_at_its_end() -> None:
    guard = BadSampleGuard(BadSampleSettings(share_max=0.05, window=1000))
    guard.see(3, bad(3))
    with pytest.raises(TooManyBadSamples, match="3 of the last 3 records are bad, and there was no good one"):
        guard.end()


def test_a_short_source_with_good_records_ends_well() -> None:
    guard = BadSampleGuard(BadSampleSettings(share_max=0.05, window=1000))
    guard.see(3, bad(2))
    guard.end()
