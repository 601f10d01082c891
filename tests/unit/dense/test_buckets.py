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


@given(st.integers(1, 65_536), st.integers(1, 8), st.data())
def test_nodes_fit_into_a_shape_that_is_compiled(batch_size, levels, data):
    buckets = Buckets(batch_size, levels=levels)
    size = data.draw(st.integers(1, batch_size))
    counts = sorted(data.draw(st.lists(st.integers(1, size), min_size=levels, max_size=levels)))
    bucket = buckets.of(size)
    nodes = buckets.nodes_of(bucket, counts)
    assert (*nodes, bucket) in buckets.shapes
    assert all(count <= rows for count, rows in zip(counts, nodes, strict=True))


@pytest.mark.parametrize(("levels", "programs"), [(0, 3), (1, 10), (2, 12), (3, 12), (8, 27)])
def test_shapes_stay_few(levels, programs):
    shapes = Buckets(5000, levels=levels).shapes
    assert len(shapes) == len(set(shapes)) == programs
    assert all(list(shape) == sorted(shape) for shape in shapes)


@pytest.mark.parametrize(("repetition", "share"), [(2, 0.65), (8, 0.16), (57, 0.02)])
def test_nodes_that_repeat_about_so_often_are_padded_to_little_more(repetition, share):
    nodes = Buckets(5000, levels=1).nodes_of(5000, [round(1.08 * 5000 / repetition)])
    assert nodes[0] <= share * 5000
