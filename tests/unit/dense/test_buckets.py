import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.dense.buckets import Buckets
from streamtrain.errors import ConfigError


@given(st.integers(1, 65_536), st.data())
def test_bucket_holds_the_minibatch_and_is_the_smallest_that_does(batch_size, data):
    buckets = Buckets(batch_size)
    size = data.draw(st.integers(0, batch_size))
    assert size <= buckets.of(size) <= batch_size
    assert all(other < size for other in buckets.sizes if other < buckets.of(size))
    assert len(buckets.sizes) <= 3


def test_a_full_minibatch_is_never_padded():
    assert Buckets(5000).of(5000) == 5000
    assert Buckets(3).sizes == (3,)
    assert Buckets(64).sizes == (16, 64)


def test_too_many_samples_are_refused():
    with pytest.raises(ValueError, match="65 samples are more than the batch size 64"):
        Buckets(64).of(65)


@pytest.mark.parametrize("sizes", [[8, 32], [0, 64], [64, 128]])
def test_sizes_that_do_not_end_with_the_batch_size_are_refused(sizes):
    with pytest.raises(ConfigError, match="end with the batch size 64"):
        Buckets(64, sizes)
