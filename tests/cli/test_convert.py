"""``cvllm-jax convert``: what it prints, what it refuses, and that the other commands take what it makes."""

import pytest
import typer

from cvllm_jax.cli.convert import convert
from cvllm_jax.cli.options import EngineOptions
from cvllm_jax.engine.loading import open_model
from cvllm_jax.errors import IoError, ModelLoadError


def test_a_model_is_converted(tiny_model_path, tmp_path, capsys):
    out = tmp_path / "out"
    convert(str(tiny_model_path), str(out), quantize="int8", dtype="f32", device="cpu")
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{out}: ") and printed.out.endswith(
        f" kB, weights in int8. Next: cvllm-jax serve {out}\n"
    )
    assert "loading weights" in printed.err
    with open_model(EngineOptions().config(str(out))) as checkpoint:
        assert (checkpoint.format, checkpoint.quantization) == ("prepared", "int8")
    with pytest.raises(IoError, match="--overwrite"):
        convert(str(tiny_model_path), str(out), device="cpu")
    convert(str(tiny_model_path), str(out), dtype="bf16", device="cpu", overwrite=True)
    assert "weights in bfloat16" in capsys.readouterr().out


def test_what_cannot_be_converted(tiny_model_path, tmp_path):
    with pytest.raises(typer.BadParameter, match="unknown quantization method"):
        convert(str(tiny_model_path), str(tmp_path / "out"), quantize="int3")
    with pytest.raises(ModelLoadError):
        convert(str(tmp_path / "nothing"), str(tmp_path / "out"), device="cpu")
    assert not any(tmp_path.iterdir())
