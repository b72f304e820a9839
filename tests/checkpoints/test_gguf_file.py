"""The GGUF reader against ``gguf``'s own writer and dequantisation, and against files made to hurt."""

import os
import struct
import time
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from cvllm_jax.checkpoints.gguf import GgufFile
from cvllm_jax.errors import ModelLoadError


def dequantizable() -> list[Kind]:
    kinds = []
    for kind in Kind:
        try:
            gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError:
            continue
        kinds.append(kind)
    return kinds


def write(path: Path, tensors: dict[str, tuple[np.ndarray, Kind]], **metadata) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        getattr(writer, f"add_{key}")(value)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", dequantizable(), ids=lambda kind: kind.name)
def test_every_type_reads_as_gguf_quants_dequantizes_it(tmp_path, kind):
    numbers, size = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = 37, 512
    rng = np.random.default_rng(int(kind))
    if kind in (Kind.F32, Kind.F16):
        data = rng.standard_normal((rows, columns)).astype(kind.name.lower().replace("f", "float"))
    else:  # random blocks: scales may be infinite or NaN, which must come out alike
        data = rng.integers(0, 256, (rows, columns // numbers * size), dtype=np.uint8)
    path = write(tmp_path / "a.gguf", {"a": (np.ones(32, np.float32), Kind.F32), "w": (data, kind)})
    with np.errstate(all="ignore"), GgufFile(path) as file:
        expected = gguf.quants.dequantize(data, kind)
        assert file.tensors["w"].shape == (rows, columns)
        assert file.tensors["w"].type is kind
        whole = file.read("w")
        assert whole.dtype == np.float32
        np.testing.assert_array_equal(whole, expected)
        np.testing.assert_array_equal(file.read("w", 5, 23), expected[5:23])
        assert file.read("w", 7, 7).shape == (0, columns)
        np.testing.assert_array_equal(file.read("a"), np.ones((1, 32)))
        with pytest.raises(IndexError):
            file.read("w", 0, rows + 1)


def test_large_tensors_are_dequantized_in_parts(tmp_path):
    values = np.random.default_rng(0).standard_normal((4, 50_016)).astype(np.float32)
    data = gguf.quants.quantize(values, Kind.Q4_0)
    with GgufFile(write(tmp_path / "a.gguf", {"w": (data, Kind.Q4_0)})) as file:
        np.testing.assert_array_equal(file.read("w"), gguf.quants.dequantize(data, Kind.Q4_0))


def test_three_dimensions_count_as_rows(tmp_path):
    values = np.arange(2 * 3 * 32, dtype=np.float32).reshape(2, 3, 32)
    with GgufFile(write(tmp_path / "a.gguf", {"experts": (values, Kind.F32)})) as file:
        assert file.tensors["experts"].shape == (2, 3, 32)
        np.testing.assert_array_equal(file.read("experts", 2, 4), values.reshape(6, 32)[2:4])


def test_metadata_of_every_kind(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    values = {
        "uint8": 200, "int8": -5, "uint16": 60_000, "int16": -3, "uint32": 2**32 - 1, "int32": -(2**31),
        "uint64": 2**64 - 1, "int64": -(2**63), "float32": 0.5, "float64": 0.1, "bool": True,
        "string": "größer ✓",
    }  # fmt: skip
    for kind, value in values.items():
        getattr(writer, f"add_{kind}")(f"x.{kind}", value)
    lists = {"ints": [1, -2, 3], "words": ["", "a", "é"], "flags": [True, False], "floats": [0.5, 1.5]}
    for key, items in lists.items():
        writer.add_array(key, items)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with GgufFile(tmp_path / "a.gguf") as file:
        assert {key: file.metadata[f"x.{key}"] for key in values} == values
        assert {key: file.metadata[key] for key in lists} == lists
        assert type(file.metadata["x.bool"]) is bool
        assert all(type(flag) is bool for flag in file.metadata["flags"])
        assert file.tensors == {}


def test_version_2_is_read_and_others_are_refused(tmp_path):
    path = write(tmp_path / "a.gguf", {"a": (np.ones(32, np.float32), Kind.F32)})
    content = path.read_bytes()
    path.write_bytes(content[:4] + struct.pack("<I", 2) + content[8:])
    with GgufFile(path) as file:
        assert file.version == 2
    for version in (0, 1, 4, 77):
        path.write_bytes(content[:4] + struct.pack("<I", version) + content[8:])
        with pytest.raises(ModelLoadError, match=rf"version {version}; versions 2 and 3"):
            GgufFile(path)


def test_big_endian_is_refused_by_name(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelLoadError, match="big-endian"):
        GgufFile(tmp_path / "a.gguf")


def test_a_large_vocabulary_opens_fast(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    tokens = [f"token{index}" for index in range(262_144)]
    writer.add_token_list(tokens)
    writer.add_token_scores([float(index) for index in range(len(tokens))])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    start = time.process_time()
    with GgufFile(tmp_path / "a.gguf") as file:
        seconds = time.process_time() - start
        assert file.metadata["tokenizer.ggml.tokens"] == tokens
    assert seconds < 0.5


def test_the_header_digest_sees_metadata_and_not_weights(tmp_path):
    def digest(name: str, weight: float) -> str:
        path = write(tmp_path / "a.gguf", {"a": (np.full(32, weight, np.float32), Kind.F32)}, name=name)
        with GgufFile(path) as file:
            return file.header_digest()

    assert digest("x", 1.0) == digest("x", 2.0) != digest("y", 1.0)


# --- files made by hand -------------------------------------------------------------------------


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def tensor(name="w", sizes=(32,), kind=0, offset=0) -> bytes:
    packed = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
    return text(name) + packed + struct.pack("<IQ", kind, offset)


def handmade(entries=(), tensors=(), *, entry_count=None, tensor_count=None, data=128) -> bytes:
    head = b"GGUF" + struct.pack("<I", 3)
    head += struct.pack("<Q", len(tensors) if tensor_count is None else tensor_count)
    head += struct.pack("<Q", len(entries) if entry_count is None else entry_count)
    head += b"".join(entries) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + b"\0" * data


def entry(key, kind, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind, count, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + items


def nested(depth: int) -> bytes:
    return array(9, 1, nested(depth - 1)) if depth else array(4, 1, struct.pack("<I", 7))


HUGE = 2**62
DAMAGED = {
    "no magic": b"GGML" + bytes(60),
    "short": b"GGUF\3\0\0\0",
    "no counts": b"GGUF\3\0\0\0" + bytes(8),
    "entries beyond the file": handmade(entry_count=HUGE),
    "tensors beyond the file": handmade(tensor_count=HUGE),
    "one entry too many": handmade([entry("a", 4, bytes(4))], entry_count=9),
    "key longer than the file": handmade([struct.pack("<Q", HUGE) + bytes(40)]),
    "key longer than the limit": handmade([text("k" * 70_000) + struct.pack("<I", 4) + bytes(4)]),
    "key twice": handmade([entry("a", 4, bytes(4)), entry("a", 4, bytes(4))]),
    "value of unknown type": handmade([entry("a", 13, bytes(8))]),
    "string longer than the file": handmade([entry("a", 8, struct.pack("<Q", HUGE))]),
    "string not UTF-8": handmade([entry("a", 8, text(b"\xff\xfe"))]),
    "array longer than the file": handmade([entry("a", 9, array(10, 2**21))]),
    "array longer than the limit": handmade([entry("a", 9, array(0, HUGE))]),
    "array of unknown type": handmade([entry("a", 9, array(99, 4, bytes(16)))]),
    "strings beyond the file": handmade([entry("a", 9, array(8, 1000, text("b") * 3))]),
    "string in array beyond the file": handmade([entry("a", 9, array(8, 1, struct.pack("<Q", HUGE)))]),
    "string in array not UTF-8": handmade([entry("a", 9, array(8, 1, text(b"\xc3")))]),
    "arrays nested too deep": handmade([entry("a", 9, nested(6))]),
    "more arrays than the limit": handmade([entry("a", 9, array(9, 2**17, array(0, 0) * 2**17))]),
    "more entries than the limit": handmade(entry_count=2**17, data=2**22),
    "more tensors than the limit": handmade(tensor_count=2**17, data=2**23),
    "strings that are not there": handmade([entry("a", 9, array(8, 2**22))], data=2**20),
    "arrays of no arrays": handmade([entry("a", 9, array(9, 2**22, array(0, 0) * 3))]),
    "alignment not a power of two": handmade([entry("general.alignment", 4, struct.pack("<I", 48))]),
    "alignment zero": handmade([entry("general.alignment", 4, struct.pack("<I", 0))]),
    "alignment huge": handmade([entry("general.alignment", 4, struct.pack("<I", 2**31))]),
    "alignment a string": handmade([entry("general.alignment", 8, text("32"))]),
    "tensor twice": handmade([], [tensor("w"), tensor("w", offset=128)], data=256),
    "tensors overlap": handmade([], [tensor("a", (64,)), tensor("b", (32,), offset=128)], data=512),
    "same place twice": handmade([], [tensor("a"), tensor("b")], data=512),
    "tensor past the end": handmade([], [tensor("w", (32,), offset=64)], data=160),
    "offset past the end": handmade([], [tensor("w", offset=2**63)]),
    "offset wraps around": handmade([], [tensor("w", offset=2**64 - 32)]),
    "offset not aligned": handmade([], [tensor("w", offset=4)], data=256),
    "no dimensions": handmade([], [tensor("w", ())]),
    "five dimensions": handmade([], [tensor("w", (1,) * 5)]),
    "a billion dimensions": handmade([], [text("w") + struct.pack("<I", 10**9) + bytes(64)]),
    "dimension zero": handmade([], [tensor("w", (32, 0))]),
    "product wraps around": handmade([], [tensor("w", (2**32, 2**32))]),
    "half a block": handmade([], [tensor("w", (33,), kind=2)]),
    "unknown tensor type": handmade([], [tensor("w", kind=4)]),
    "tensor name too long": handmade([], [tensor("w" * 70_000)]),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_files_are_refused_in_one_sentence(tmp_path, content):
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    start = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(ModelLoadError) as refused:
            GgufFile(path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < 1
    message = str(refused.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 400 + len(str(path))


def test_a_good_handmade_file_opens(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(handmade([entry("a", 9, nested(3))], [tensor("a"), tensor("b", offset=128)], data=256))
    with GgufFile(path) as file:
        assert file.metadata["a"] == [[[[7]]]]
        assert list(file.tensors) == ["a", "b"]


def test_every_truncation_is_refused(tmp_path):
    path = write(
        tmp_path / "a.gguf",
        {"a": (np.ones((2, 32), np.float32), Kind.F32), "b": (np.ones(32, np.float32), Kind.F32)},
        token_list=["x", "yy", "zzz"],
        token_types=[1, 2, 3],
    )
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ModelLoadError):
            GgufFile(path)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    for name, reason in {
        "absent": "No such file", "pipe": "not a regular file", ".": "not a regular file", "empty": "is empty",
    }.items():  # fmt: skip
        with pytest.raises(ModelLoadError, match=reason):
            GgufFile(tmp_path / name)
    with pytest.raises(ModelLoadError):
        GgufFile("nul\0byte")


def test_types_that_cannot_be_dequantized_are_named(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(handmade([], [tensor("w", (32,), kind=int(Kind.I32))]))
    with GgufFile(path) as file, pytest.raises(ModelLoadError, match="I32"):
        file.read("w")


def test_an_array_outlives_its_closed_file(tmp_path):
    path = write(tmp_path / "a.gguf", {"a": (np.ones(32, np.float32), Kind.F32)})
    file = GgufFile(path)
    values = file.read("a")
    file.close()
    assert values.sum() == 32
