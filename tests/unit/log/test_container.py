from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load

from streamtrain.errors import CorruptRecord
from streamtrain.log.container import DIGEST_OFFSET, DTYPES, Container, Stream, read_digest, write
from streamtrain.log.files import Aside, Files

TENSORS: dict[str, np.ndarray] = {
    "z/ids": np.array([0, 2**64 - 1], np.uint64),
    "a/weights": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a/empty": np.empty((0, 3), np.float32),
    "a/none": np.empty((2, 0), np.float32),
    "scalar": np.array(7, np.int32),
    "flags": np.array([True, False, True]),
}


def store(path: Path, document: dict, tensors: dict) -> str:
    files = Files()
    with Aside(files, path.parent, "test") as aside:
        digest = write(document, tensors, aside)
        aside.link(path)
    return digest


def test_a_file_opens_in_the_safetensors_library(tmp_path: Path) -> None:
    store(tmp_path / "f", {"a": 1}, TENSORS)
    with safe_open(tmp_path / "f", "np") as file:
        assert set(file.keys()) == set(TENSORS)
        for name, tensor in TENSORS.items():
            np.testing.assert_array_equal(file.get_tensor(name), tensor, strict=True)
        assert file.metadata()["streamtrain"] == '{"a":1}'


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_survives(tmp_path: Path, name: str) -> None:
    tensor = np.array([0, 1, 1], DTYPES[name])
    store(tmp_path / "f", {}, {"x": tensor})
    np.testing.assert_array_equal(Container(tmp_path / "f").tensors["x"], tensor, strict=True)
    np.testing.assert_array_equal(load((tmp_path / "f").read_bytes())["x"], tensor, strict=True)


def test_the_digest_is_that_of_the_file_with_its_own_digits_zeroed(tmp_path: Path) -> None:
    digest = store(tmp_path / "f", {"a": "ü"}, TENSORS)
    data = (tmp_path / "f").read_bytes()
    zeroed = data[:DIGEST_OFFSET] + b"0" * 64 + data[DIGEST_OFFSET + 64 :]
    assert data[DIGEST_OFFSET : DIGEST_OFFSET + 64].decode() == digest == hashlib.sha256(zeroed).hexdigest()
    assert read_digest(tmp_path / "f", Files()) == digest == write({"a": "ü"}, TENSORS)


def test_bytes_do_not_depend_on_insertion_order_byte_order_or_strides() -> None:
    wide = np.arange(12, dtype=">f4").reshape(2, 6)
    other: dict[str, np.ndarray] = {"a/weights": wide[:, ::2] / 2, "b": np.asfortranarray(np.ones((2, 3)))}
    same: dict[str, np.ndarray] = {
        "b": np.ones((2, 3)),
        "a/weights": np.array([[0, 1, 2], [3, 4, 5]], np.float32),
    }
    assert write({"x": 1, "y": 2}, other) == write({"y": 2, "x": 1}, same)


def test_every_tensor_is_aligned_to_its_items(tmp_path: Path) -> None:
    store(tmp_path / "f", {"odd": "x" * 13}, TENSORS)
    for tensor in Container(tmp_path / "f").tensors.values():
        assert tensor.flags.aligned and not tensor.flags.writeable


def test_views_outlive_the_files_name(tmp_path: Path) -> None:
    store(tmp_path / "f", {}, TENSORS)
    tensors = Container(tmp_path / "f").tensors
    (tmp_path / "f").unlink()
    np.testing.assert_array_equal(tensors["a/weights"], TENSORS["a/weights"])


def test_a_stream_gives_the_bytes_of_the_whole() -> None:
    whole: np.ndarray = np.arange(10, dtype=np.float32).reshape(5, 2)
    stream = Stream(whole.dtype, whole.shape, lambda: iter([whole[:2], whole[2:2], whole[2:]]))
    assert write({}, {"x": stream}) == write({}, {"x": whole})


def test_a_stream_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="stream of tensor 'x'"):
        write({}, {"x": Stream(np.dtype("f4"), (5,), lambda: [np.zeros(4, np.float32)])})


def test_a_dtype_that_the_format_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="'x' is complex64"):
        write({}, {"x": np.zeros(1, np.complex64)})


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "f"
    store(path, {"a": 1}, TENSORS)
    data = path.read_bytes()
    # The header's regions byte by byte would be slow; every 7th byte meets each of them, and the ends are sure.
    for at in {*range(0, len(data), 7), 0, 7, 8, DIGEST_OFFSET, DIGEST_OFFSET + 63, len(data) - 1}:
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        with pytest.raises(CorruptRecord, match=str(path)):
            Container(path)
        path.write_bytes(data[:at])
        with pytest.raises(CorruptRecord, match=str(path)):
            Container(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(CorruptRecord, match="SHA-256"):
        Container(path)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b'{"__metadata__":{"streamtrain":"{}"},"x":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
        b'{"__metadata__":{"streamtrain":"{}"},"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,-4]}}',
        b'{"__metadata__":{"streamtrain":"{}"},"x":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}',
        b'{"__metadata__":{"streamtrain":"{}"},"x":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}',
        b'{"__metadata__":{"streamtrain":"{}"},"x":{"dtype":"F128","shape":[0],"data_offsets":[0,0]}}',
        b'{"__metadata__":{"streamtrain":"{}"},"x":7}',
        b'{"__metadata__":{"streamtrain":"{}"}}',
        b'{"__metadata__":{}}',
    ],
)
def test_a_header_that_lies_is_refused_even_with_a_right_digest(tmp_path: Path, header: bytes) -> None:
    header = header.replace(
        b'{"__metadata__":{', b'{"__metadata__":{"digest":"' + b"0" * 64 + b'",', 1
    ).replace(b",}", b"}")
    path = tmp_path / "f"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(CorruptRecord, match=str(path)):
        Container(path, check=False)


@pytest.mark.parametrize("chunk", [256, 1000, 4096])
def test_a_file_of_many_chunks_is_checked_to_its_last_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr("streamtrain.log.container._CHUNK_BYTES", chunk)
    path = tmp_path / "f"
    store(path, {}, {"x": np.arange(5000, dtype=np.uint8)})
    np.testing.assert_array_equal(Container(path).tensors["x"], np.arange(5000, dtype=np.uint8))
    whole = path.read_bytes()
    for at in (len(whole) - 1, len(whole) - chunk, chunk + DIGEST_OFFSET, chunk):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(CorruptRecord, match="SHA-256"):
            Container(path)
