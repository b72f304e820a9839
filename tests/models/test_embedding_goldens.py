"""Decoders that give embeddings against sentence-transformers; tests/golden/make_embedding.py has the cases."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvllm_jax.checkpoints.checkpoint import open_checkpoint
from cvllm_jax.checkpoints.dense import read_dense_weights
from cvllm_jax.checkpoints.pooling import pooling_of_gguf, read_pooling
from cvllm_jax.config import EngineConfig
from cvllm_jax.engine.devices import mesh_of
from cvllm_jax.engine.embedding import EmbeddingEngine
from cvllm_jax.engine.loading import place_weights
from cvllm_jax.errors import GenerationError, ModelLoadError
from cvllm_jax.models.layers import encoder_attention
from cvllm_jax.models.registry import family_for


@pytest.fixture(scope="module")
def golden(pytestconfig):
    return pytestconfig.rootpath / "tests" / "golden" / "embedding"


def engine_for(path, **settings):
    return EmbeddingEngine(EngineConfig(model_path=str(path), device="cpu", dtype="f32", warmup=False, **settings))


@pytest.mark.parametrize("case", ["qwen3", "qwen3_options", "gemma3", "gemma3_causal"])
def test_tokens_and_vectors(case, golden, monkeypatch):
    monkeypatch.setattr(encoder_attention, "QUERIES", 24)  # some texts in one part, some in several
    file = json.loads((golden / case / "expected.json").read_text())
    with engine_for(golden / case, max_batch_size=4 if case == "gemma3" else 1) as engine:
        for expected in file["expected"]:
            name = expected["prompt_name"]
            assert [engine.tokenize(text, prompt_name=name) for text in file["texts"]] == expected["tokens"]
            output = engine.embed_sync(file["texts"], prompt_name=name)
            np.testing.assert_allclose(output.vectors, expected["vectors"], atol=1e-4, rtol=0)
            assert output.vectors.shape[1] == engine.dimensions
        alone = engine.embed_sync([expected["tokens"][0]]).vectors  # ids take no prompt
        np.testing.assert_allclose(alone[0], expected["vectors"][0], atol=1e-4, rtol=0)
        known = ", ".join(engine.prompts.by_name) or "none"
        with pytest.raises(GenerationError, match=f"prompt_name is 'x'; the prompts of this model are {known}"):
            engine.embed_sync(["text"], prompt_name="x")


@pytest.mark.parametrize("case", ["qwen3", "gemma3"])
def test_gguf_files_say_the_same(case, golden):
    def load(path):
        with open_checkpoint(path) as checkpoint:
            family = family_for(checkpoint.config)
            config = family.config(checkpoint.config)
            engine = EngineConfig(model_path=str(path), device="cpu", dtype="f32")
            weights = place_weights(family, config, checkpoint, jnp.float32, mesh_of(jax.devices("cpu")[:1]), engine)
            if checkpoint.format == "gguf":
                pooling = pooling_of_gguf(checkpoint.config, checkpoint.tensors)
            else:
                pooling = read_pooling(checkpoint.path, checkpoint.config)
            dense = read_dense_weights(checkpoint, pooling.dense, config.hidden_size)
            shared = replace(pooling, dense=tuple(replace(layer, place="") for layer in pooling.dense))
            return family, config, shared, (*weights.leaves, *dense)

    folder, file = load(golden / case), load(golden / case / "model.gguf")
    assert folder[:3] == file[:3]
    jax.tree.map(np.testing.assert_array_equal, folder[3], file[3])


def test_files_that_ask_for_what_is_not_there(golden, tmp_path):
    def refused(path, **change):
        folder = tmp_path / "model"
        shutil.copytree(golden / "gemma3", folder)
        value = json.loads((folder / path).read_text())
        (folder / path).write_text(json.dumps({**value, **change} if isinstance(value, dict) else change["modules"]))
        with pytest.raises(ModelLoadError) as caught:
            engine_for(folder)
        shutil.rmtree(folder)
        return str(caught.value)

    dense = "2_Dense/config.json"
    assert "activation os.system is not supported; torch.nn" in refused(dense, activation_function="os.system")
    assert "in_features and out_features from 1 to 65536" in refused(dense, in_features=2**40)
    assert "use_residual is not supported" in refused(dense, use_residual=True)
    assert "module_input_name token_embeddings is not" in refused(dense, module_input_name="token_embeddings")
    assert "2_Dense must hold the tensors" in refused(dense, bias=True)
    assert "3_Dense of" in refused("3_Dense/config.json", in_features=23)
    assert "include_prompt" in refused("1_Pooling/config.json", include_prompt=False)
    prompts = "config_sentence_transformers.json"
    assert "default_prompt_name is 'x', which is none of its prompts" in refused(prompts, default_prompt_name="x")
    assert "prompts must be an object of names and texts" in refused(prompts, prompts={"query": 1})
    modules = json.loads((golden / "gemma3" / "modules.json").read_text())
    assert "'Dense' at a place where it is not supported" in refused("modules.json", modules=modules[::-1])
    modules[2]["path"] = "../2_Dense"
    assert "the name of a folder" in refused("modules.json", modules=modules)
    modules[2]["path"] = ""
    assert "'Dense' at a place where it is not supported" in refused("modules.json", modules=modules)
    assert "is_causal=False" in refused("config.json", is_causal=False)


def test_a_folder_with_modules_is_no_chat_model(golden):
    with open_checkpoint(golden / "qwen3_options") as checkpoint:
        assert json.loads((golden / "qwen3_options" / "config.json").read_text())["architectures"] == [
            "Qwen3ForCausalLM"
        ]
        assert family_for(checkpoint.config).name == "qwen3_embedding"
