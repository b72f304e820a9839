"""Loading weights: right values from every format, every mismatch in one error, little memory."""

import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import quants
from tiny_llama import CONFIG, expected_targets, llama_targets, llama_tensors, write_folder, write_gguf

from cvllm_jax.checkpoints.checkpoint import open_checkpoint
from cvllm_jax.checkpoints.demo import find_demo_model
from cvllm_jax.checkpoints.loading import load_weights
from cvllm_jax.checkpoints.mappings.llama import RULES
from cvllm_jax.checkpoints.mappings.rules import PerExpert, Rule, Stacked
from cvllm_jax.errors import ModelLoadError


def place(name, array):
    return jax.device_put(array)


def load(source, targets, **options):
    with open_checkpoint(source) as checkpoint:
        return load_weights(checkpoint, RULES, targets, place, **options)


def assert_equal(loaded, expected, targets):
    assert list(loaded) == list(targets)
    for name, array in loaded.items():
        assert (array.shape, array.dtype) == (targets[name].shape, targets[name].dtype), name
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(np.asarray(array), expected[name].astype(array.dtype), name)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_both_formats_give_the_same_targets(tmp_path, dtype, tied):
    config = CONFIG | {"tie_word_embeddings": tied}
    tensors = llama_tensors(config)
    targets, expected = llama_targets(config, dtype), expected_targets(tensors, config)
    assert_equal(load(write_folder(tmp_path / "hf", tensors, config), targets), expected, targets)
    assert_equal(load(write_gguf(tmp_path / "a.gguf", tensors, config), targets), expected, targets)


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_narrow_safetensors_are_converted(tmp_path, stored, dtype):
    tensors = {name: values.astype(stored) for name, values in llama_tensors().items()}
    targets = llama_targets(dtype=dtype)
    expected = {name: values.astype(np.float32) for name, values in expected_targets(tensors).items()}
    assert_equal(load(write_folder(tmp_path / "hf", tensors), targets), expected, targets)


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0])
def test_quantised_gguf_files_load_as_gguf_quants_dequantizes_them(tmp_path, kind):
    tensors = llama_tensors()
    rounded = {
        name: quants.dequantize(quants.quantize(values, kind), kind) if values.ndim > 1 else values
        for name, values in tensors.items()
    }
    targets = llama_targets()
    loaded = load(write_gguf(tmp_path / "a.gguf", tensors, kind=kind), targets, use_cache=False)
    assert_equal(loaded, expected_targets(rounded), targets)


def test_biases_are_concatenated_and_reordered_like_their_weights(tmp_path):
    tensors, targets = llama_tensors(), llama_targets()
    expected = expected_targets(tensors)
    rng = np.random.default_rng(1)
    for i in range(CONFIG["num_hidden_layers"]):
        biases = {name: rng.standard_normal(size, np.float32) for name, size in {"q": 32, "k": 16, "v": 16}.items()}
        tensors |= {f"model.layers.{i}.self_attn.{name}_proj.bias": bias for name, bias in biases.items()}
        targets[f"layers.{i}.attention.qkv_bias"] = jax.ShapeDtypeStruct((64,), jnp.bfloat16)
        expected[f"layers.{i}.attention.qkv_bias"] = np.concatenate(list(biases.values()))
    assert_equal(load(write_folder(tmp_path / "hf", tensors), targets), expected, targets)
    assert_equal(load(write_gguf(tmp_path / "a.gguf", tensors), targets), expected, targets)


def test_tensors_larger_than_a_block_are_whole(tmp_path):
    config = CONFIG | {"vocab_size": 20_000, "num_hidden_layers": 1}
    tensors, targets = llama_tensors(config), llama_targets(config, jnp.bfloat16)
    expected = expected_targets(tensors, config)
    assert_equal(load(write_folder(tmp_path / "hf", tensors, config), targets), expected, targets)


def test_three_dimensional_targets(tmp_path):
    """The rows of each expert come from every source, in whatever way the file has the experts."""
    experts = np.arange(4 * 6 * 8, dtype=np.float32).reshape(4, 6, 8)
    bias = np.arange(4 * 6, dtype=np.float32).reshape(4, 6)
    halves = experts.reshape(4, 2, 3, 8).swapaxes(1, 2).reshape(4, 6, 8)  # rows of both halves in turn
    tensors = {
        "gate": experts[:, :2], "up": experts[:, 2:], "flat": experts.reshape(24, 8), "bias": bias,
        "out": experts.swapaxes(1, 2), "both": halves.swapaxes(1, 2),
        "both_bias": bias.reshape(4, 2, 3).swapaxes(1, 2).reshape(4, 6),
        **{f"{part}.{e}": matrix[rows] for part, rows in (("w1", slice(2)), ("w3", slice(2, 6)))
           for e, matrix in enumerate(experts)},
    }  # fmt: skip
    rules = [
        Rule(target="stacked", hf=("gate", "up")),
        Rule(target="single", hf=(PerExpert("w1.{e}"), PerExpert("w3.{e}"))),
        Rule(target="flat", hf=("flat",)),
        Rule(target="transposed", hf=(Stacked("out", transposed=True),)),
        Rule(target="alternating", hf=(Stacked("both", transposed=True, alternating=True),)),
        Rule(target="plain_bias", hf=("bias",)),
        Rule(target="alternating_bias", hf=(Stacked("both_bias", alternating=True),)),
    ]
    targets = {
        rule.target: jax.ShapeDtypeStruct((4, 6) if "bias" in rule.target else (4, 6, 8), jnp.float32) for rule in rules
    }
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    with open_checkpoint(write_folder(tmp_path / "hf", tensors)) as checkpoint:
        loaded = load_weights(checkpoint, rules, targets, place)
        for name, array in loaded.items():
            np.testing.assert_array_equal(array, bias if "bias" in name else experts, err_msg=name)
        for wrong in (("gate",), ("gate", "up", "gate"), (Stacked("gate", transposed=True),), (PerExpert("w1.{e}"),)):
            with pytest.raises(ModelLoadError, match=r"unexpected .* misshapen .* for stacked \[4, 6, 8\]"):
                load_weights(checkpoint, [Rule(target="stacked", hf=wrong)], {"stacked": targets["stacked"]}, place)


def test_tensors_that_nobody_needs_are_left_alone(tmp_path):
    unneeded = {
        "lm_head.weight": np.ones((64, 32), np.float32),  # tied: the embedding is the head
        "model.layers.1.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
    }
    tensors = llama_tensors()
    assert_equal(load(write_folder(tmp_path / "hf", tensors | unneeded), llama_targets()),
                 expected_targets(tensors), llama_targets())  # fmt: skip


def test_all_mismatches_are_in_one_error(tmp_path):
    tensors = llama_tensors()
    del tensors["model.norm.weight"]
    del tensors["model.layers.0.self_attn.k_proj.weight"]
    tensors["model.layers.1.mlp.up_proj.weight"] = np.ones((60, 32), np.float32)
    tensors["model.layers.1.mlp.down_proj.weight"] = np.ones((32, 60), np.float32)
    tensors["model.layers.1.input_layernorm.weight"] = np.ones((1, 32), np.float32)
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.ones(32, np.float32)
    tensors["model.layers.2.self_attn.q_proj.weight"] = np.ones(32, np.float32)
    tensors["model.embed_tokens.weight"] = np.ones((64, 32), np.int8)
    with pytest.raises(ModelLoadError) as refused:
        load(write_folder(tmp_path / "hf", tensors), llama_targets())
    message = str(refused.value)
    assert "2 missing (model.layers.0.self_attn.k_proj.weight, model.norm.weight)" in message
    assert "2 unexpected (" in message
    assert "model.layers.0.self_attn.q_proj.bias" in message
    assert "model.layers.2.self_attn.q_proj.weight" in message
    assert "4 misshapen (" in message
    assert "model.embed_tokens.weight of type I8, which is not supported yet" in message
    assert "model.layers.1.mlp.up_proj.weight [60, 32] for layers.1.mlp.gate_up [128, 32]" in message
    assert "\n" not in message


def test_long_lists_of_mismatches_are_joined_and_only_then_cut(tmp_path):
    extra = {f"adapter.{index}": np.ones(1, np.float32) for index in range(70)}
    with pytest.raises(ModelLoadError, match=r"70 unexpected \(adapter\.0-69\)"):
        load(write_folder(tmp_path / "hf", llama_tensors() | extra), llama_targets())
    extra = {"a" * index: np.ones(1, np.float32) for index in range(1, 71)}
    with pytest.raises(ModelLoadError, match=r"70 unexpected \(.* and 50 more\)"):
        load(write_folder(tmp_path / "hf", llama_tensors() | extra), llama_targets())
    wide = llama_targets(CONFIG | {"intermediate_size": 128})
    with pytest.raises(ModelLoadError) as refused:
        load(tmp_path / "hf", wide)
    assert "model.layers.0-1.mlp.down_proj.weight [32, 64] for layers.0-1.mlp.down [32, 128]" in str(refused.value)


def test_interleaved_rows_must_divide_into_heads(tmp_path):
    path = write_gguf(tmp_path / "a.gguf", llama_tensors())
    with open_checkpoint(path) as checkpoint:
        checkpoint.config["num_attention_heads"] = 5
        with pytest.raises(ModelLoadError, match="do not divide into 5 heads"):
            load_weights(checkpoint, RULES, llama_targets(), place)


def test_values_outside_float16_are_refused(tmp_path):
    tensors = llama_tensors()
    tensors["model.embed_tokens.weight"][3, 3] = 1e6
    with pytest.raises(ModelLoadError, match=r"model.embed_tokens.weight has values outside float16's range"):
        load(write_folder(tmp_path / "hf", tensors), llama_targets(dtype=jnp.float16))


def test_a_target_without_a_rule_is_refused(tmp_path):
    targets = llama_targets() | {"layers.0.gate": jax.ShapeDtypeStruct((1,), jnp.float32)}
    with pytest.raises(ModelLoadError, match=r"no rule .* layers\.0\.gate"):
        load(write_folder(tmp_path / "hf", llama_tensors()), targets)


def test_progress_counts_bytes_to_the_end(tmp_path):
    targets, seen = llama_targets(), []
    load(write_folder(tmp_path / "hf", llama_tensors()), targets, progress=lambda *args: seen.append(args))
    total = sum(int(np.prod(target.shape)) * 4 for target in targets.values())
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert len(seen) == len(targets)
    assert seen[-1] == ("loading weights", total, total)


MEASURE = """
import sys, threading, time
import jax, jax.numpy as jnp, numpy as np
import gguf.quants
from cvllm_jax.checkpoints.checkpoint import open_checkpoint
from cvllm_jax.checkpoints.loading import load_weights
from cvllm_jax.checkpoints.mappings.llama import RULES
sys.path.insert(0, sys.argv[3])
from tiny_llama import llama_targets

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024

jax.block_until_ready(jax.device_put(np.ones(3)))
before, peak, done = anonymous(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.001)
watcher = threading.Thread(target=watch)
watcher.start()
with open_checkpoint(sys.argv[1]) as checkpoint:
    weights = load_weights(
        checkpoint, RULES, llama_targets(checkpoint.config, jnp.bfloat16),
        lambda name, array: jnp.array(array, copy=sys.argv[2] == "copy"), use_cache=False)
    jax.block_until_ready(weights)
done = True
watcher.join()
print(peak - before, sum(array.nbytes for array in weights.values()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("placing", ["copy", "share"])
@pytest.mark.parametrize("stored", ["gguf", "folder"])
def test_the_rise_of_memory_while_loading_is_bounded(tmp_path, stored, placing):
    config = CONFIG | {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 3, "num_attention_heads": 16,
        "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 16_384,
    }  # fmt: skip
    tensors = llama_tensors(config)
    if stored == "gguf":
        source = write_gguf(tmp_path / "a.gguf", tensors, config, kind=Kind.Q8_0)
    else:
        source = write_folder(tmp_path / "hf", tensors, config)
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), str(source), placing, str(Path(__file__).parent)]
    result = subprocess.run(command, check=True, timeout=120, capture_output=True, text=True)
    rise, weights = map(int, result.stdout.split())
    assert weights > 100 << 20
    assert rise < 1.4 * weights + (64 << 20), f"{rise >> 20} MB for {weights >> 20} MB"


@pytest.mark.skipif(find_demo_model() is None, reason="the demonstration model is not installed")
def test_the_demo_model_loads_to_the_values_of_gguf_quants():
    path = find_demo_model()
    with open_checkpoint(path) as checkpoint:
        targets = llama_targets(checkpoint.config, jnp.bfloat16)
        loaded = load_weights(checkpoint, RULES, targets, place, use_cache=False)
        assert checkpoint.quantization == "Q4_1"
        assert checkpoint.eos_token_ids == (2,)
        down = np.asarray(loaded["layers.29.mlp.down"])
        np.testing.assert_array_equal(down, checkpoint.read("blk.29.ffn_down.weight").astype(jnp.bfloat16))
        assert sum(array.size for array in loaded.values()) == 134_515_008
