"""Opening checkpoints: what the files say about the model, and what is refused."""

import json
import subprocess
import sys

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import save_file
from tiny_llama import CONFIG, llama_tensors, write_folder, write_gguf

from cvllm_jax.checkpoints.checkpoint import TensorInfo, open_checkpoint
from cvllm_jax.errors import ModelLoadError


def test_a_gguf_file_has_the_configuration_of_its_folder(tmp_path):
    with open_checkpoint(write_gguf(tmp_path / "tiny.gguf", llama_tensors(), kind=Kind.Q8_0)) as checkpoint:
        assert (checkpoint.name, checkpoint.format) == ("tiny", "gguf")
        config = checkpoint.config
        assert config.pop("rms_norm_eps") == pytest.approx(CONFIG["rms_norm_eps"])  # float32 in GGUF
        expected = CONFIG | {"attention_bias": False, "mlp_bias": False}
        assert config == {key: value for key, value in expected.items() if key != "rms_norm_eps"}
        assert checkpoint.eos_token_ids == (2,)
        assert checkpoint.quantization == "Q8_0"
        assert checkpoint.tensors["blk.0.ffn_down.weight"] == TensorInfo((32, 64), "Q8_0", True)


def test_untied_and_biased_gguf_files_are_seen(tmp_path):
    config = CONFIG | {"tie_word_embeddings": False}
    tensors = llama_tensors(config) | {"model.layers.0.self_attn.q_proj.bias": np.ones(32, np.float32)}
    with open_checkpoint(write_gguf(tmp_path / "a.gguf", tensors, config)) as checkpoint:
        assert checkpoint.config["tie_word_embeddings"] is False
        assert checkpoint.config["attention_bias"] is True
        assert checkpoint.quantization is None


def open_gguf(tmp_path, extra, tensors=None):
    path = write_gguf(tmp_path / "a.gguf", llama_tensors() if tensors is None else tensors, extra=extra)
    return open_checkpoint(path)


def test_rope_scaling_from_metadata(tmp_path):
    def linear(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    def yarn(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(8.0)
        writer.add_rope_scaling_orig_ctx_len(4096)

    assert open_gguf(tmp_path, linear).config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert open_gguf(tmp_path, yarn).config["rope_scaling"] == {
        "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 4096,
    }  # fmt: skip


def test_rope_factors_become_configuration(tmp_path):
    factors = np.array([1, 2, 4, 8], np.float32)
    with open_gguf(tmp_path, None, llama_tensors() | {"rope_freqs.weight": factors}) as checkpoint:
        assert checkpoint.config["rope_scaling"] == {"rope_type": "factors", "factors": [1, 2, 4, 8]}
        assert "rope_freqs.weight" not in checkpoint.tensors
    with pytest.raises(ModelLoadError, match="no usable factors"):
        open_gguf(tmp_path, None, llama_tensors() | {"rope_freqs.weight": -factors})


def test_window_and_sampling_settings_of_a_gguf_file(tmp_path):
    def extra(writer):
        writer.add_sliding_window(16)
        writer.add_float32("general.sampling.temp", 0.5)
        writer.add_int32("general.sampling.top_k", 20)

    with open_gguf(tmp_path, extra) as checkpoint:
        assert checkpoint.config["sliding_window"] == 16
        assert checkpoint.generation_defaults == {"temperature": 0.5, "top_k": 20}


def test_end_tokens_of_a_gguf_file(tmp_path):
    def extra(writer):
        tokens = ["a", "b", "</s>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>"] + [f"t{i}" for i in range(58)]
        writer.add_token_list(tokens)
        writer.add_token_types([1, 1, 3, 3, 3, 1] + [1] * 58)
        writer.add_chat_template("{{ messages }}<|im_end|><end_of_turn>")  # the latter is a normal token
        writer.add_eot_token_id(7)

    assert open_gguf(tmp_path, extra).eos_token_ids == (2, 7, 3)
    with pytest.raises(ModelLoadError, match="64 as an end token"):
        open_gguf(tmp_path, lambda writer: writer.add_eot_token_id(64))


def test_other_architectures_keep_their_name(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "mamba")
    writer.add_tensor("w", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_checkpoint(tmp_path / "a.gguf") as checkpoint:
        assert checkpoint.config["architectures"] == ["mamba"]


def test_experts_make_another_architecture(tmp_path):
    def mixtral(writer):
        writer.add_expert_count(8)
        writer.add_expert_used_count(2)

    with open_gguf(tmp_path, mixtral) as checkpoint:
        config = checkpoint.config
        assert config["architectures"] == ["MixtralForCausalLM"]
        assert (config["num_local_experts"], config["num_experts_per_tok"]) == (8, 2)
    with pytest.raises(ModelLoadError, match=r"lacks the size llama\.expert_used_count"):
        open_gguf(tmp_path, lambda writer: writer.add_expert_count(8))
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "qwen2")
    writer.add_expert_count(8)
    writer.add_tensor("w", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_checkpoint(tmp_path / "b.gguf") as checkpoint:
        assert checkpoint.config["architectures"] == ["qwen2 with experts"]


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (lambda writer: writer.add_string("llama.vocab_size", "x") or writer.add_value_length(16), "different"),
        (lambda writer: writer.add_array("llama.attention.sliding_window", [1, 2]), "sliding_window"),
        (lambda writer: writer.add_uint16("split.count", 3), "part 1 of 3"),
        (lambda writer: writer.add_string("llama.rope.scaling.factor", "x"), "no number"),
        (lambda writer: writer.add_float32("general.sampling.top_p", 7.0), "top_p"),
    ],
)
def test_impossible_metadata_is_refused(tmp_path, extra, reason):
    with pytest.raises(ModelLoadError, match=reason):
        open_gguf(tmp_path, extra)


def test_too_many_layers_are_refused_before_anything_is_planned(tmp_path):
    with pytest.raises(ModelLoadError, match="2000000000 layers"):
        write_gguf(tmp_path / "a.gguf", {"model.norm.weight": np.ones(32, np.float32)},
                   CONFIG | {"num_hidden_layers": 2_000_000_000})  # fmt: skip
        open_checkpoint(tmp_path / "a.gguf")


def test_a_vocabulary_only_file_is_refused(tmp_path):
    with pytest.raises(ModelLoadError, match="vocabulary only"):
        open_gguf(tmp_path, None, {})


def test_a_folder(tmp_path):
    folder = write_folder(tmp_path / "tiny", llama_tensors())
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [2, 7], "temperature": 0.6, "top_p": 0.9, "top_k": 0, "max_new_tokens": 5})
    )
    for source in (folder, folder / "model.safetensors"):
        with open_checkpoint(source) as checkpoint:
            assert (checkpoint.name, checkpoint.format, checkpoint.path) == ("tiny", "safetensors", folder)
            assert checkpoint.config == CONFIG
            assert checkpoint.eos_token_ids == (2, 7)
            assert checkpoint.generation_defaults == {"temperature": 0.6, "top_p": 0.9}
            assert checkpoint.quantization is None
            np.testing.assert_array_equal(checkpoint.read("model.norm.weight")[0], llama_tensors()["model.norm.weight"])


def test_sampling_settings_that_are_switched_off_are_not_taken(tmp_path):
    folder = write_folder(tmp_path / "tiny", llama_tensors())
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": False, "temperature": 0.6, "repetition_penalty": 1.1})
    )
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.generation_defaults == {"repetition_penalty": 1.1}
        assert checkpoint.eos_token_ids == (2,)


def shard(folder, tensors, *, parts=3):
    names = list(tensors)
    weight_map = {}
    for part in range(parts):
        shard_name = f"model-{part + 1:05}-of-{parts:05}.safetensors"
        chosen = {name: tensors[name] for name in names[part::parts]}
        save_file(chosen, folder / shard_name)
        weight_map |= dict.fromkeys(chosen, shard_name)
    (folder / "model.safetensors").unlink()
    write_index(folder, weight_map)
    return weight_map


def write_index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_sharded_folder(tmp_path):
    tensors = llama_tensors()
    folder = write_folder(tmp_path / "tiny", tensors)
    shard(folder, tensors)
    for source in (folder, folder / "model-00002-of-00003.safetensors"):
        with open_checkpoint(source) as checkpoint:
            assert set(checkpoint.tensors) == set(tensors)
            for name, values in tensors.items():
                np.testing.assert_array_equal(checkpoint.read(name).reshape(values.shape), values)


def test_hostile_shard_indices_are_refused(tmp_path):
    tensors = llama_tensors()
    folder = write_folder(tmp_path / "tiny", tensors)
    weight_map = shard(folder, tensors)
    outside = tmp_path / "outside.safetensors"
    save_file(tensors, outside)
    for name in ("../outside.safetensors", str(outside), "model.safetensors.index.json", "..", "", "a\\b.safetensors",
                 ".hidden.safetensors", "nul\0.safetensors", None, 5, ["x"]):  # fmt: skip
        write_index(folder, weight_map | {"model.norm.weight": name})
        with pytest.raises(ModelLoadError, match="no plain name"):
            open_checkpoint(folder)
    write_index(folder, weight_map | {"model.norm.weight": "absent.safetensors"})
    with pytest.raises(ModelLoadError, match=r"lacks 1 of 4 shards: absent\.safetensors"):
        open_checkpoint(folder)
    write_index(folder, weight_map | {"more": "model-00001-of-00003.safetensors"})
    with pytest.raises(ModelLoadError, match="lacks the tensor 'more'"):
        open_checkpoint(folder)
    for broken in ({}, [], None, "x"):
        write_index(folder, broken)
        with pytest.raises(ModelLoadError, match="no weight_map"):
            open_checkpoint(folder)
    write_index(folder, weight_map)
    save_file(tensors, folder / "model-00002-of-00003.safetensors")
    with pytest.raises(ModelLoadError, match="in more than one shard"):
        open_checkpoint(folder)


def test_what_is_no_model_is_refused_in_one_sentence(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()

    def refused(reason, source=folder):
        with pytest.raises(ModelLoadError, match=reason) as error:
            open_checkpoint(source)
        assert "\n" not in str(error.value)

    refused("has no config.json")
    (folder / "a.gguf").touch()
    refused(r"give the path of one of them \(a\.gguf\)")
    (folder / "config.json").write_text("{")
    refused("not valid JSON")
    (folder / "config.json").write_text("[" + "[]," * 1_000_000 + "[]]")
    refused("more lists and objects than the limit")
    (folder / "config.json").write_text("[" * 50_000)
    refused("not valid JSON")
    (folder / "config.json").write_text(" " * (1 << 25) + "{}")
    refused("over the limit of 33554432 bytes")
    (folder / "config.json").write_text("[]")
    refused("does not hold a JSON object")
    (folder / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": {"quant_method": "aqlm"}}))
    refused("quantised with aqlm")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    refused("has GGUF files")
    (folder / "a.gguf").unlink()
    refused("has neither model.safetensors nor")
    (folder / "pytorch_model.bin").touch()
    refused("only as pickle files.*python -c 'from transformers import LlamaForCausalLM as Model; Model.from_pretr")
    refused("is a pickle file.*python -c ", folder / "pytorch_model.bin")
    (folder / "model.safetensors").touch()
    refused("is empty")
    write_folder(folder, llama_tensors(), CONFIG | {"eos_token_id": "x"})
    refused("eos_token_id must be")
    refused("no existing file", "not/a/model")
    refused("no existing file", "")
    refused("no existing file", "x" * 5000)
    refused("no existing file", "nul\0byte")


def test_weights_that_transformers_dequantised_are_plain(tmp_path):
    config = CONFIG | {"quantization_config": {"quant_method": "gguf", "dequantize": False}}
    assert open_checkpoint(write_folder(tmp_path / "a", llama_tensors(), config)).quantization is None


def test_a_revision_needs_a_hub_id(tmp_path):
    with pytest.raises(ModelLoadError, match="revision belongs to a hub id"):
        open_checkpoint(write_folder(tmp_path / "a", llama_tensors()), revision="main")


def test_the_fingerprint_follows_the_files(tmp_path):
    import os

    path = write_gguf(tmp_path / "a.gguf", llama_tensors())
    first = open_checkpoint(path).fingerprint
    assert open_checkpoint(path).fingerprint == first
    os.utime(path, (1, 1))
    assert open_checkpoint(path).fingerprint != first


def test_safetensors_load_without_gguf_and_the_hub_library(tmp_path):
    folder = write_folder(tmp_path / "tiny", llama_tensors())
    gguf_path = write_gguf(tmp_path / "a.gguf", llama_tensors())
    script = f"""
import sys
for name in ("gguf", "huggingface_hub", "pydantic"):
    sys.modules[name] = None
from cvllm_jax.checkpoints.checkpoint import open_checkpoint
from cvllm_jax.checkpoints.loading import load_weights
from cvllm_jax.checkpoints.mappings.llama import RULES
from cvllm_jax.errors import ModelLoadError
open_checkpoint({str(folder)!r}).close()
for source, package in (({str(gguf_path)!r}, "gguf"), ("a/b", "huggingface-hub")):
    try:
        open_checkpoint(source)
    except ModelLoadError as error:
        assert f"pip install {{package}}" in str(error), error
    else:
        raise AssertionError(source)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_bfloat16_rows_come_as_stored(tmp_path):
    tensors = {name: values.astype(ml_dtypes.bfloat16) for name, values in llama_tensors().items()}
    with open_checkpoint(write_folder(tmp_path / "a", tensors)) as checkpoint:
        assert checkpoint.read("model.embed_tokens.weight").dtype == ml_dtypes.bfloat16
