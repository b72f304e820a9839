"""What only a GPU can show: ``make test-gpu``. ``make test`` runs on the CPU and leaves this folder out."""

import os
from pathlib import Path

import pytest

if os.environ.get("JAX_PLATFORMS") == "cpu":
    collect_ignore_glob = ["test_*.py"]


def pytest_sessionstart(session):
    """Called where this folder alone is to be tested."""
    import jax

    if jax.default_backend() != "gpu":
        pytest.exit(f"there is no GPU to test: JAX runs on {jax.default_backend()} here (use make test-gpu)", 1)


@pytest.fixture(scope="session")
def shape(tmp_path_factory):
    """A folder with the shape of a small Llama whose heads suit the kernels."""
    import json

    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": 2048,
        "hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": False,
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("shape")
    Path(folder, "config.json").write_text(json.dumps(config))
    return str(folder)
