"""The cache of prepared weights: used when it is right, rebuilt when it is not, bounded always."""

import json
import os
import stat
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from tiny_llama import llama_targets, llama_tensors, write_folder, write_gguf

import cvllm_jax.checkpoints.cache as cache_module
from cvllm_jax.checkpoints.cache import PreparedWeights, cache_dir
from cvllm_jax.checkpoints.checkpoint import open_checkpoint
from cvllm_jax.checkpoints.loading import load_weights
from cvllm_jax.checkpoints.mappings.llama import RULES
from cvllm_jax.errors import ConfigError

TARGETS = llama_targets(dtype=jnp.bfloat16)


@pytest.fixture
def model(tmp_path):
    return write_gguf(tmp_path / "a.gguf", llama_tensors(), kind=Kind.Q8_0)


def load(path, targets=TARGETS, place=None, **options):
    """The loaded weights, and the names of the tensors that were read from the checkpoint for it."""
    reads = []
    with open_checkpoint(path) as checkpoint:
        original = type(checkpoint._weights).read

        def counting(self, name, *rows):
            reads.append(name)
            return original(self, name, *rows)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(checkpoint._weights), "read", counting)
            weights = load_weights(
                checkpoint, RULES, targets, place or (lambda name, array: jnp.array(array)), **options
            )
    return {name: np.asarray(array) for name, array in weights.items()}, reads


def entries(root):
    return sorted(path.name for path in (root / "weights").iterdir()) if (root / "weights").exists() else []


def assert_same(first, second):
    assert list(first) == list(second)
    for name in first:
        assert first[name].dtype == second[name].dtype
        np.testing.assert_array_equal(first[name], second[name], name)


def test_the_second_load_reads_nothing_of_the_model(model, own_cache):
    first, reads = load(model)
    assert reads
    assert len(entries(own_cache)) == 1
    seen = []
    second, reads = load(model, progress=lambda *args: seen.append(args))
    assert reads == []
    assert_same(first, second)
    assert seen[-1][1] == seen[-1][2] > 0
    assert len(entries(own_cache)) == 1


def test_arrays_from_the_cache_are_aligned_and_read_only(model):
    load(model)
    seen = {}
    load(model, place=lambda name, array: seen.setdefault(name, array) is None or jax.device_put(array))
    assert set(seen) == set(TARGETS)
    for array in seen.values():
        assert array.ctypes.data % 64 == 0
        assert not array.flags.writeable


def test_the_cache_is_private(model, own_cache):
    load(model)
    for folder in (own_cache / "weights", *(own_cache / "weights").iterdir()):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_what_changes_the_result_changes_the_entry(model, own_cache):
    load(model)
    assert load(model, llama_targets(dtype=jnp.float32))[1]
    os.utime(model, (1, 1))
    assert load(model)[1]
    write_gguf(model, llama_tensors(seed=1), kind=Kind.Q4_0)
    assert load(model)[1]
    assert len(entries(own_cache)) == 4


def test_what_reads_as_fast_is_not_stored(tmp_path, own_cache):
    load(write_gguf(tmp_path / "a.gguf", llama_tensors()))
    load(write_folder(tmp_path / "hf", llama_tensors()))
    load(write_gguf(tmp_path / "b.gguf", llama_tensors(), kind=Kind.Q8_0), use_cache=False)
    assert entries(own_cache) == []


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: flip(entry / "weights.bin", 0),
        lambda entry: flip(entry / "weights.bin", 12_345),
        lambda entry: os.truncate(entry / "weights.bin", 1000),
        lambda entry: (entry / "weights.bin").write_bytes(b""),
        lambda entry: (entry / "weights.bin").unlink(),
        lambda entry: (entry / "index.json").unlink(),
        lambda entry: (entry / "index.json").write_bytes(b"\xff{"),
        lambda entry: (entry / "index.json").write_text("[]"),
        lambda entry: (entry / "index.json").write_text("{}"),
        lambda entry: (entry / "index.json").write_text("null"),
        lambda entry: (entry / "index.json").write_text(
            json.dumps(json.loads((entry / "index.json").read_text()) | {"layout": 99})
        ),
    ],
)
def test_damaged_entries_are_dropped_and_made_again(model, own_cache, damage):
    first, _ = load(model)
    (name,) = entries(own_cache)
    damage(own_cache / "weights" / name)
    again, reads = load(model)
    assert reads
    assert_same(first, again)
    assert entries(own_cache) == [name]
    assert load(model)[1] == []


def test_an_interrupted_load_leaves_nothing(model, own_cache):
    def failing(name, array):
        if name == "norm":
            raise KeyboardInterrupt
        return jnp.array(array)

    with pytest.raises(KeyboardInterrupt):
        load(model, place=failing)
    assert entries(own_cache) == []


def test_a_killed_writer_leaves_nothing_that_looks_whole(model, own_cache):
    with open_checkpoint(model) as checkpoint:
        entry = PreparedWeights.for_load(checkpoint, RULES, TARGETS)
        writer = entry.writer()
        writer.add("embed", np.zeros((64, 32), jnp.bfloat16))  # and then the process dies
        assert entry.load() is None
    (abandoned,) = entries(own_cache)
    assert load(model)[1]
    assert abandoned in entries(own_cache)  # it might still be written
    for path in (own_cache / "weights" / abandoned).iterdir():
        os.utime(path, (1, 1))
    os.utime(model, (1, 1))
    load(model)
    assert abandoned not in entries(own_cache)


def test_a_full_disk_gives_up_the_entry_and_not_the_load(model, own_cache, monkeypatch, caplog):
    class Usage:
        free = 1000

    with monkeypatch.context() as patch:
        patch.setattr(cache_module.shutil, "disk_usage", lambda path: Usage)
        weights, _ = load(model)
    assert set(weights) == set(TARGETS)
    assert entries(own_cache) == []
    assert "only 1000 bytes are free" in caplog.text


def test_an_unwritable_cache_is_no_obstacle(model, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CVLLM_CACHE", str(tmp_path / "file"))
    weights, _ = load(model)
    assert set(weights) == set(TARGETS)
    assert "not kept" in caplog.text


def sizes_of(root):
    return {
        folder.name: sum(file.stat().st_size for file in folder.iterdir()) for folder in (root / "weights").iterdir()
    }


def test_the_least_recently_used_go_first(tmp_path, own_cache, monkeypatch):
    paths = [write_gguf(tmp_path / f"{name}.gguf", llama_tensors(), kind=Kind.Q8_0) for name in "abcd"]
    for index, path in enumerate(paths[:3]):
        before = set(entries(own_cache))
        load(path)
        (new,) = set(entries(own_cache)) - before
        os.utime(own_cache / "weights" / new / "index.json", (index + 1, index + 1))
        os.utime(own_cache / "weights" / new / "weights.bin", (1, 1))
    assert load(paths[0])[1] == []  # marks the oldest as used
    one = max(sizes_of(own_cache).values())
    monkeypatch.setenv("CVLLM_CACHE_LIMIT_GB", str(3.5 * one / 1e9))
    assert load(paths[3])[1]
    assert sum(sizes_of(own_cache).values()) <= 3.5 * one
    assert [bool(load(path, use_cache=True)[1]) for path in (paths[0], paths[2], paths[3])] == [False] * 3
    assert load(paths[1])[1]


def test_entries_over_the_limit_are_not_stored(model, own_cache, monkeypatch, caplog):
    monkeypatch.setenv("CVLLM_CACHE_LIMIT_GB", "0.000001")
    load(model)
    assert entries(own_cache) == []
    assert "over the limit" in caplog.text
    monkeypatch.setenv("CVLLM_CACHE_LIMIT_GB", "0")
    load(model)
    assert entries(own_cache) == []


@pytest.mark.parametrize("limit", ["x", "-1", "nan", "inf"])
def test_an_impossible_limit_is_refused(model, monkeypatch, limit):
    monkeypatch.setenv("CVLLM_CACHE_LIMIT_GB", limit)
    with pytest.raises(ConfigError, match="CVLLM_CACHE_LIMIT_GB"):
        load(model)


def test_loads_at_the_same_time_leave_one_whole_entry(model, own_cache):
    expected, _ = load(model, use_cache=False)
    results, errors = [], []

    def work():
        try:
            with open_checkpoint(model) as checkpoint:
                place = lambda name, array: jnp.array(array)  # noqa: E731
                results.append(load_weights(checkpoint, RULES, TARGETS, place))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for result in results:
        assert_same({name: np.asarray(array) for name, array in result.items()}, expected)
    assert len(entries(own_cache)) == 1
    assert load(model)[1] == []


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("CVLLM_CACHE", str(tmp_path / "a"))
    assert cache_dir() == tmp_path / "a"
    monkeypatch.delenv("CVLLM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_dir() == tmp_path / "b" / "cvllm-jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "cvllm-jax"
