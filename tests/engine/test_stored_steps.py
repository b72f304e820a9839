"""Compiled steps on disk: used again, and never when somebody else could have written them."""

import jax
import jax.numpy as jnp
import pytest

from cvllm_jax.engine.programs import Programs


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "executables"


def double():
    return jax.jit(lambda x: x * 2).lower(jax.ShapeDtypeStruct((4,), jnp.float32))


def refuse():
    raise AssertionError("the stored step should have been used")


def test_a_stored_step_is_used_by_the_next_process(folder):
    Programs("key", folder).get("double", double)
    stored = Programs("key", folder).get("double", refuse)
    assert stored(jnp.arange(4.0)).tolist() == [0.0, 2.0, 4.0, 6.0]
    assert folder.stat().st_mode & 0o077 == 0


def test_another_key_or_name_is_another_step(folder):
    Programs("key", folder).get("double", double)
    for programs, name in ((Programs("other", folder), "double"), (Programs("key", folder), "triple")):
        with pytest.raises(AssertionError, match="should have been used"):
            programs.get(name, refuse)


def test_what_others_could_have_written_is_not_loaded(folder):
    Programs("key", folder).get("double", double)
    folder.chmod(0o777)
    with pytest.raises(AssertionError, match="should have been used"):
        Programs("key", folder).get("double", refuse)
    folder.chmod(0o700)
    next(folder.iterdir()).chmod(0o666)
    with pytest.raises(AssertionError, match="should have been used"):
        Programs("key", folder).get("double", refuse)


@pytest.mark.parametrize("damage", [b"", b"no pickle", None])
def test_a_damaged_file_is_compiled_anew(folder, damage):
    Programs("key", folder).get("double", double)
    file = next(folder.iterdir())
    file.write_bytes(file.read_bytes()[:-100] if damage is None else damage)
    assert Programs("key", folder).get("double", double)(jnp.ones(4)).tolist() == [2.0] * 4
    assert Programs("key", folder).get("double", refuse)(jnp.ones(4)).tolist() == [2.0] * 4
