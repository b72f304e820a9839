"""The safetensors reader against the format's own library, and against damaged files."""

import json
import struct
import time
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from cvllm_jax.checkpoints.safetensors_file import SafetensorsFile
from cvllm_jax.errors import ModelLoadError


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_rows_read_as_the_library_wrote_them(tmp_path, dtype):
    values = np.random.default_rng(0).standard_normal((10, 7)).astype(dtype)
    save_file({"w": values, "b": values[0], "s": values[0, :1].reshape(())}, tmp_path / "a.safetensors")
    file = SafetensorsFile(tmp_path / "a.safetensors")
    assert file.tensors["w"].shape == (10, 7)
    for read, expected in {
        "w": (file.read("w"), values), "rows": (file.read("w", 2, 5), values[2:5]),
        "vector": (file.read("b"), values[:1]), "scalar": (file.read("s"), values[:1, :1]),
    }.values():  # fmt: skip
        assert read.dtype == dtype
        np.testing.assert_array_equal(read, expected)
        assert not read.flags.writeable
    with pytest.raises(IndexError):
        file.read("w", 0, 11)


def test_other_types_are_refused_by_name_when_read(tmp_path):
    arrays = {"q": np.ones((2, 2), np.int8), "f8": np.ones(4, ml_dtypes.float8_e4m3fn)}
    save_file(arrays, tmp_path / "a.safetensors")
    file = SafetensorsFile(tmp_path / "a.safetensors")
    for name, dtype in {"q": "I8", "f8": "F8_E4M3"}.items():
        with pytest.raises(ModelLoadError, match=f"{dtype} are not supported yet"):
            file.read(name)


def handmade(header, data: bytes = bytes(64)) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def entry(dtype="F32", shape=(4, 4), offsets=(0, 64)):
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


DAMAGED = {
    "short": b"abc",
    "header longer than the file": struct.pack("<Q", 2**63) + b"{}",
    "header longer than the limit": struct.pack("<Q", 2**24) + bytes(2**24),
    "header of empty lists": handmade(b"[" + b"[]," * 2_000_000 + b"[]]"),
    "not JSON": handmade(b"{nope"),
    "not UTF-8": handmade(b'{"\xff": 1}'),
    "nested JSON": handmade(b"[" * 100_000),
    "huge number": handmade(b'{"w": ' + b"9" * 10_000 + b"}"),
    "a list": handmade([1, 2]),
    "entry no object": handmade({"w": 5}),
    "key twice": handmade(b'{"w": {"dtype": "F32", "dtype": "F16"}}'),
    "tensor twice": handmade(b'{"w": {}, "w": {}}'),
    "no dtype": handmade({"w": {"shape": [4], "data_offsets": [0, 16]}}),
    "unknown dtype": handmade(entry("F33")),
    "dtype no string": handmade(entry(["F32"])),
    "negative size": handmade(entry(shape=(-4, -4))),
    "boolean size": handmade(entry(shape=(True, 16))),
    "float size": handmade(entry(shape=(4.0, 4))),
    "too many dimensions": handmade(entry(shape=(1,) * 9 + (16,))),
    "product too large": handmade(entry(shape=(2**62, 2**62))),
    "size and bytes differ": handmade(entry(shape=(4, 5))),
    "past the end": handmade(entry(offsets=(64, 128))),
    "backwards": handmade(entry(offsets=(64, 0))),
    "one offset": handmade(entry(offsets=(0,))),
    "huge offset": handmade(entry(offsets=(2**62, 2**62 + 64))),
    "overlap": handmade(entry() | {"v": {"dtype": "F32", "shape": [4], "data_offsets": [16, 32]}}),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_files_are_refused_in_one_sentence(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    start = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(ModelLoadError) as refused:
            SafetensorsFile(path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < 1
    message = str(refused.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 400 + len(str(path))


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"w": np.ones((3, 4), np.float32)}, path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ModelLoadError):
            SafetensorsFile(path)
