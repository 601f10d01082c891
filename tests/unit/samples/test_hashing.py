"""Feature ids against the xxhash library and the vectors in the documentation."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtrain.samples import hashing
from tests import reference_samples as reference

SPECIFICATION = Path(__file__).parents[3] / "docs" / "feature-ids.md"
int64s = st.integers(-(2**63), 2**63 - 1)
uint64s = st.integers(0, 2**64 - 1)


def table(heading: str) -> list[list[str]]:
    """The cells between backquotes of each row of the table of the documentation that begins with `heading`."""
    lines = SPECIFICATION.read_text().split(heading)[1].splitlines()[2:]
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), lines))
    return [re.findall(r"`([^`]*)`", row) for row in rows]


def test_values_have_the_documented_ids() -> None:
    rows = table("| namespace | value | id |")
    assert len(rows) >= 16
    for namespace, text, id in rows:
        value = json.loads(text)
        assert hashing.feature_id(namespace, value) == int(id, 16)
        if isinstance(value, int):
            assert hashing.hash_ints(np.array([value]), namespace).tolist() == [int(id, 16)]
        else:
            data = np.frombuffer(value.encode(), np.uint8)
            assert hashing.hash_strings(data, np.array([0, len(data)]), namespace).tolist() == [int(id, 16)]


def test_crosses_have_the_documented_ids() -> None:
    rows = table("| namespace | ids | id |")
    assert len(rows) >= 5
    for namespace, *ids, id in rows:
        numbers = [int(i, 16) for i in ids]
        assert hashing.cross_id(namespace, numbers) == int(id, 16)
        values = [np.array([number], np.uint64) for number in numbers]
        one = np.array([0, 1])
        assert hashing.hash_crosses(values, [one] * len(values), one, namespace).tolist() == [int(id, 16)]


@given(st.lists(int64s), st.text(max_size=20))
def test_integers_hash_as_the_library_does(values: list[int], namespace: str) -> None:
    ids = hashing.hash_ints(np.array(values, np.int64), namespace)
    assert ids.tolist() == [reference.feature_id(namespace, value) for value in values]


@given(st.lists(st.text(max_size=100)), st.text(max_size=20), st.sampled_from([np.int32, np.int64]))
def test_strings_hash_as_the_library_does(values: list[str], namespace: str, width: type[np.integer]) -> None:
    texts = [value.encode() for value in values]
    data = np.frombuffer(b"--" + b"".join(texts), np.uint8)
    offsets = np.cumsum([2, *map(len, texts)]).astype(width)
    ids = hashing.hash_strings(data, offsets, namespace)
    assert ids.tolist() == [reference.feature_id(namespace, value) for value in values]


@settings(deadline=None)
@given(
    st.integers(2, 4).flatmap(
        lambda parts: st.lists(st.tuples(*[st.lists(uint64s, max_size=3)] * parts), min_size=1, max_size=4)
    )
)
def test_crosses_are_all_combinations_in_order(samples: list[tuple[list[int], ...]]) -> None:
    parts = range(len(samples[0]))
    values = [np.array([id for sample in samples for id in sample[part]], np.uint64) for part in parts]
    offsets = [np.cumsum([0] + [len(sample[part]) for sample in samples]) for part in parts]
    expected = [[reference.cross_id("c", ids) for ids in itertools.product(*sample)] for sample in samples]
    crossed = np.cumsum([0] + [len(ids) for ids in expected])
    ids = hashing.hash_crosses(values, offsets, crossed, "c")
    assert ids.tolist() == [id for ids in expected for id in ids]


def test_an_integer_beyond_64_bits_has_no_id() -> None:
    with pytest.raises(OverflowError):
        hashing.feature_id("user", 2**63)
