"""Every row of ``cvllm-jax doctor --models`` has the golden that it says it was tested by."""

import json
import re
from pathlib import Path

import pytest

from cvllm_jax.checkpoints.checkpoint import open_checkpoint
from cvllm_jax.checkpoints.folder import QUANTIZED
from cvllm_jax.cli import doctor
from cvllm_jax.cli.models import FOLDER_METHODS
from cvllm_jax.models.registry import FAMILIES, family_for

GOLDEN = Path(__file__).parents[1] / "golden"


def families(paths):
    """The families that run these checkpoints."""
    found = set()
    for path in paths:
        with open_checkpoint(path) as checkpoint:
            found.add(family_for(checkpoint.config).name)
    return found


@pytest.fixture(scope="module")
def folders():
    """Those with transformers' outputs."""
    outputs = (path for name in ("npz", "json") for path in GOLDEN.glob(f"*/*/expected.{name}"))
    return [path.parent for path in outputs if path.with_name("config.json").exists()]


def test_every_row_has_its_golden(folders, capsys):
    doctor.doctor(models=True)
    printed = capsys.readouterr().out
    by_transformers = families(folders)
    by_converter = families(path for path in GOLDEN.glob("*/*/model.gguf"))
    for family in FAMILIES:
        names = re.escape(", ".join(family.architectures))
        row = re.search(rf"^{names} +(?P<gguf>[\w.,+ -]*?) *(?P<by>transformers' .*)$", printed, re.M)
        assert row, f"no row for {family.name} says what it was tested by"
        assert family.name in by_transformers, f"{family.name} has no golden of transformers"
        claimed = "llama.cpp's converter" in row["by"]
        assert claimed == bool(row["gguf"].strip()), f"{family.name} has a GGUF name and no judge"
        assert not claimed or family.name in by_converter, f"{family.name} has no file of llama.cpp's converter"


def test_formats_of_few_bits():
    """Each method that a folder may be quantised with has an output of its own code."""
    methods = {
        json.loads(path.read_text())["quantization_config"]["quant_method"]
        for path in GOLDEN.glob("*/*/config.json")
        if "quantization_config" in path.read_text()
        and any(path.with_name(name).exists() for name in ("expected.npy", "expected.npz"))
    }
    assert set(QUANTIZED) == set(FOLDER_METHODS) and set(QUANTIZED) <= methods
