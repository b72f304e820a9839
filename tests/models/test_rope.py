"""Rotary embedding: frequencies of every scaling, the rotation itself, and what is refused."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from cvllm_jax.errors import ModelLoadError
from cvllm_jax.models.layers import Rope
from pallas_kernels.kv_write.reference import rotate

BASE = 10_000.0 ** -(np.arange(0, 8, 2) / 8)


def rope(scaling=None, **config):
    return Rope.from_config({"max_position_embeddings": 64, "rope_scaling": scaling, **config}, 8)


def test_frequencies_without_scaling():
    np.testing.assert_allclose(rope().frequencies, BASE)
    np.testing.assert_allclose(rope(rope_theta=500.0).frequencies, 500.0 ** -(np.arange(0, 8, 2) / 8))
    for nothing in ({}, {"rope_type": "default"}, {"type": None}):
        assert rope(nothing) == rope()


def test_proportional_frequencies_are_those_of_whole_heads():
    def proportional(**options):
        parameters = {"rope_type": "proportional", **options}
        return Rope.from_config({"rope_parameters": parameters}, 8, supported=("proportional",))

    assert proportional() == rope()
    np.testing.assert_allclose(proportional(partial_rotary_factor=0.5, factor=2.0).frequencies, [*BASE[:2] / 2, 0, 0])
    for wrong in ({"partial_rotary_factor": 1.5}, {"partial_rotary_factor": "x"}, {"factor": 0}):
        with pytest.raises(ModelLoadError, match="needs a partial_rotary_factor up to 1 and a factor above 0"):
            proportional(**wrong)


def test_old_and_new_spellings_mean_the_same():
    old = rope({"type": "linear", "factor": 4.0}, rope_theta=500.0)
    new = Rope.from_config({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}}, 8)
    assert old == new
    np.testing.assert_allclose(old.frequencies, rope(rope_theta=500.0).frequencies / np.float64(4))


def test_llama3_keeps_short_waves_stretches_long_ones_and_blends_between():
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64}  # fmt: skip
    got = np.array(rope(scaling).frequencies)
    wave = 2 * math.pi / BASE
    np.testing.assert_allclose(got[wave < 64 / 4], BASE[wave < 64 / 4])
    np.testing.assert_allclose(got[wave > 64], BASE[wave > 64] / 8)
    between = (wave >= 64 / 4) & (wave <= 64)
    smooth = (64 / wave - 1) / 3
    np.testing.assert_allclose(got[between], ((1 - smooth) * BASE / 8 + smooth * BASE)[between])


def test_factors_of_a_gguf_file_divide():
    scaling = {"rope_type": "factors", "factors": [1.0, 2.0, 4.0, 8.0]}
    np.testing.assert_allclose(rope(scaling).frequencies, BASE / [1, 2, 4, 8])


def test_longrope_follows_the_longest_sequence_that_the_engine_takes():
    scaling = {"type": "su", "short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [1.0, 2.0, 4.0, 8.0]}
    options = {"original_max_position_embeddings": 16, "rope_scaling": scaling}  # of 64

    def table(**config):
        return Rope.from_config({"max_position_embeddings": 64, **options, **config}, 8)

    for config in ({}, {"max_sequence_length": None}, {"max_sequence_length": 17}):
        np.testing.assert_allclose(table(**config).frequencies, BASE / scaling["long_factor"])
    np.testing.assert_allclose(table(max_sequence_length=16).frequencies, BASE / scaling["short_factor"])
    assert table(max_sequence_length=16).scale == pytest.approx(math.sqrt(1 + math.log(4) / math.log(16)))
    assert table(rope_scaling={**scaling, "factor": 1.0}).scale == 1
    assert table(rope_scaling={**scaling, "attention_factor": 1.2}).scale == 1.2


def test_part_of_a_head_is_rotated_where_the_architecture_can():
    config = {"partial_rotary_factor": 0.5}
    np.testing.assert_allclose(Rope.from_config(config, 16, partial=True).frequencies, BASE)
    with pytest.raises(ModelLoadError, match=r"partial_rotary_factor 0.5 is not supported .*; only 1.0 is"):
        Rope.from_config(config, 16)
    for share in (0, 0.2, 1.5, "half", math.nan):
        with pytest.raises(ModelLoadError, match="partial_rotary_factor must rotate an even number of 8 dimensions"):
            Rope.from_config({"partial_rotary_factor": share}, 8, partial=True)


def test_no_rotation_changes_nothing():
    x = np.random.default_rng(0).standard_normal((1, 2, 8)).astype(np.float32)
    np.testing.assert_array_equal(rotate(jnp.asarray(x), Rope.none(8).tables(jnp.array([5]))), x)


def test_yarn_scales_attention_unless_it_is_given():
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    assert rope(scaling).scale == pytest.approx(0.1 * math.log(4) + 1)
    assert rope({**scaling, "attention_factor": 1.5}).scale == 1.5
    assert rope({**scaling, "mscale": 1.0, "mscale_all_dim": 1.0}).scale == 1.0


def test_rotation_keeps_lengths_and_depends_on_distance():
    table = rope(rope_theta=100.0)
    x, y = np.random.default_rng(0).standard_normal((2, 1, 1, 8)).astype(np.float32)

    def at(vector, position):
        return np.asarray(rotate(jnp.asarray(vector), table.tables(jnp.array([position]))))[0, 0]

    np.testing.assert_allclose(at(x, 0), x[0, 0], atol=1e-6)
    assert np.linalg.norm(at(x, 31)) == pytest.approx(np.linalg.norm(x), rel=1e-5)
    assert at(x, 5) @ at(y, 2) == pytest.approx(at(x, 45) @ at(y, 42), abs=1e-4)
    turned = at(np.eye(8, dtype=np.float32)[None, :1], 3)  # a unit vector turns in the plane (0, H/2)
    np.testing.assert_allclose(turned[[0, 4]], [math.cos(3), math.sin(3)], atol=1e-6)


@pytest.mark.parametrize(("scaling", "message"), [
    ({"rope_type": "dynamic", "factor": 2.0}, "'dynamic' is not supported; supported are default, linear, llama3"),
    ({"type": "longrope"}, "'longrope' is incomplete or malformed"),
    ({"type": "su", "original_max_position_embeddings": 8, "long_factor": [1.0]}, "long_factor must be 4 positive"),
    ({"rope_type": "linear"}, "'linear' is incomplete or malformed"),
    ({"rope_type": "linear", "factor": "two"}, "'linear' is incomplete or malformed"),
    ({"rope_type": "linear", "factor": 0}, "factor"),
    ({"rope_type": "linear", "factor": math.nan}, "factor"),
    ({"rope_type": "llama3", "factor": 8.0}, "'llama3' is incomplete or malformed"),
    ({"rope_type": "factors", "factors": [1.0, 2.0]}, "'factors' is incomplete or malformed"),
    ({"rope_type": "factors", "factors": [1.0]}, "'factors' is incomplete or malformed"),
    ({"rope_type": "factors", "factors": [1.0, 0.0, 1.0, 1.0]}, "'factors' is incomplete or malformed"),
    ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": -3}, "'yarn' is incomplete or malformed"),
    ("linear", "rope_scaling must be an object"),
    ([1, 2], "rope_scaling must be an object"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
])  # fmt: skip
def test_scalings_that_are_refused(scaling, message):
    with pytest.raises(ModelLoadError, match=message):
        rope(scaling)


@pytest.mark.parametrize("theta", [0, -1.0, "big", math.inf, math.nan, True, [1]])
def test_bases_that_are_refused(theta):
    with pytest.raises(ModelLoadError, match="rope_theta must be"):
        rope(rope_theta=theta)
    with pytest.raises(ModelLoadError, match="rope_theta must be"):
        rope({"rope_type": "default", "rope_theta": theta})
