"""Every family's configuration with values that make no sense: read or refused in one sentence, never anything else."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvllm_jax.checkpoints.text_part import text_config
from cvllm_jax.errors import ModelLoadError
from cvllm_jax.models.registry import FAMILIES, family_for

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = sorted(path for path in GOLDEN.glob("*/*/config.json") if path.parts[-3] != "quantized")
NONSENSE = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, -1, 1, 2, 3, 7, 2**24, 2**31, 2**63, 10**12, 10**400, 0.5, -0.0, 1e-320, 1e300, 1e12])
    | st.sampled_from([float("inf"), float("nan"), "", "x" * 10_000, "default", "yarn", "linear", "full_attention"])
)
VALUES = NONSENSE | st.lists(NONSENSE, max_size=3) | st.dictionaries(st.text(max_size=5), NONSENSE, max_size=2)


def test_every_family_is_tried():
    tried = {family_for(json.loads(path.read_text())).name for path in FOLDERS}
    assert tried == {family.name for family in FAMILIES}


@pytest.mark.parametrize("path", FOLDERS, ids=lambda path: path.parent.name)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_nonsense_is_read_or_refused(path, data):
    config = json.loads(path.read_text())
    keys = sorted(set(config) - {"architectures"})  # of which a wrong one is refused at once
    for key in data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=3)):
        inner = config[key]
        if isinstance(inner, dict) and inner and data.draw(st.booleans()):
            inner[data.draw(st.sampled_from(sorted(inner)))] = data.draw(VALUES)
        else:
            config[key] = data.draw(VALUES)
    started = time.process_time()
    try:
        config = text_config(config) or config
        read = family_for(config).config({**config, "max_sequence_length": None})
    except ModelLoadError as refused:
        message = str(refused)
    else:
        message = ""
        assert read.num_layers <= 1024
        assert max(read.vocab_size, read.hidden_size) <= 2**24
    assert "\n" not in message
    assert len(message) < 2000
    assert time.process_time() - started < 1
