"""Experts in few bits: kept as files have them, rounded while they load, and true in both."""

import json
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from paged_text import Text

from cvllm_jax import EngineConfig, QuantizationConfig
from cvllm_jax.checkpoints.checkpoint import open_checkpoint
from cvllm_jax.engine.devices import mesh_of
from cvllm_jax.engine.loading import place_weights
from cvllm_jax.engine.weight_layouts import weight_layouts
from cvllm_jax.models.layers import WeightLayout
from cvllm_jax.models.registry import family_for
from pallas_kernels.quantized_matmul import QuantizedWeight, dequantize

GOLDEN = Path(__file__).parents[1] / "golden" / "families"
LENGTH = 48
CPU = jax.devices("cpu")[0]
GPU = type("Gpu", (), {"platform": "gpu", "compute_capability": "8.0", "device_kind": "A100"})()
EXPERTS, WIDTH, HIDDEN = 3, 64, 32
CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 32, "hidden_size": WIDTH,
    "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 32, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "num_experts": EXPERTS,
    "num_experts_per_tok": 2, "moe_intermediate_size": HIDDEN, "tie_word_embeddings": True, "eos_token_id": 2,
}  # fmt: skip
SHAPES = {"gate_proj": (HIDDEN, WIDTH), "up_proj": (HIDDEN, WIDTH), "down_proj": (WIDTH, HIDDEN)}


def write_safetensors(path, tensors):
    """Also of types that numpy has no name for."""
    names = {"float8_e4m3fn": "F8_E4M3", "float32": "F32", "float16": "F16", "int32": "I32", "int64": "I64"}
    header, end = {}, 0
    for name, values in tensors.items():
        offsets = [end, end := end + values.nbytes]
        header[name] = {"dtype": names[values.dtype.name], "shape": list(values.shape), "data_offsets": offsets}
    text = json.dumps(header).encode()
    parts = [np.ascontiguousarray(values).tobytes() for values in tensors.values()]
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def words(codes):
    """Codes of 4 bits, eight neighbours of the last axis in a word."""
    grouped = codes.astype(np.uint32).reshape(*codes.shape[:-1], -1, 8)
    return np.bitwise_or.reduce(grouped << 4 * np.arange(8, dtype=np.uint32), -1).view(np.int32)


def fp8(rng, shape):
    values = rng.standard_normal(shape).astype(ml_dtypes.float8_e4m3fn)
    return {"weight": values, "weight_scale_inv": rng.random((shape[0] // 16, shape[1] // 32)).astype(np.float32)}


def gptq(rng, shape):
    codes = rng.integers(0, 16, shape[::-1])
    groups = shape[1] // 32
    return {
        "qweight": words(codes.T).T, "qzeros": words(rng.integers(0, 15, (groups, shape[0]))),
        "scales": rng.random((groups, shape[0])).astype(np.float16),
    }  # fmt: skip


def awq(rng, shape):
    return {
        "qweight": words(rng.integers(0, 16, shape[::-1])), "qzeros": words(rng.integers(0, 16, (1, shape[0]))),
        "scales": rng.random((1, shape[0])).astype(np.float16),
    }  # fmt: skip


def compressed(rng, shape):
    return {
        "weight_packed": words(rng.integers(0, 16, shape)), "weight_shape": np.asarray(shape, np.int64),
        "weight_scale": rng.random((shape[0], shape[1] // 32)).astype(np.float16),
    }  # fmt: skip


#: By method, its options, what packs a matrix, and the layouts of both products of an expert.
FORMATS = {
    "fp8": ({"weight_block_size": [16, 32]}, fp8, ("fp8:32", "fp8")),
    "gptq": ({"bits": 4, "group_size": 32}, gptq, ("int4:32 with offsets", "int4 with offsets")),
    "awq": ({"bits": 4}, awq, ("int4 with offsets", "int4 with offsets")),
    "compressed-tensors": ({"config_groups": {}}, compressed, ("int4:32", "int4")),
}


def shared_tensors(rng):
    """Embeddings, attention, norms and routers."""
    layer = "model.layers.0."
    shapes = {
        "model.embed_tokens": (32, WIDTH), "model.norm": (WIDTH,), layer + "input_layernorm": (WIDTH,),
        layer + "post_attention_layernorm": (WIDTH,), layer + "self_attn.q_norm": (32,),
        layer + "self_attn.k_norm": (32,), layer + "self_attn.q_proj": (64, WIDTH),
        layer + "self_attn.k_proj": (32, WIDTH), layer + "self_attn.v_proj": (32, WIDTH),
        layer + "self_attn.o_proj": (WIDTH, 64), layer + "mlp.gate": (EXPERTS, WIDTH),
    }  # fmt: skip
    return {f"{name}.weight": rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write_folder(folder, method):
    options, pack, _ = FORMATS[method]
    rng = np.random.default_rng(0)
    tensors = shared_tensors(rng)
    for expert in range(EXPERTS):
        for name, shape in SHAPES.items():
            stored = pack(rng, shape)
            tensors |= {f"model.layers.0.mlp.experts.{expert}.{name}.{key}": stored[key] for key in stored}
    config = CONFIG | {"quantization_config": {"quant_method": method, **options}}
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def load(path: Path, quantization=None, *, dtype="f32", device=CPU):
    """Layouts and the tree of weights."""
    asked = None if quantization is None else QuantizationConfig.parse(quantization)
    engine = EngineConfig(model_path=str(path), device="cpu", dtype=dtype, quantization=asked, compilation_cache=False)
    numbers = {"f32": jnp.float32, "bf16": jnp.bfloat16}[dtype]
    with open_checkpoint(path) as checkpoint:
        family = family_for(checkpoint.config)
        model = family.config({**checkpoint.config, "max_sequence_length": LENGTH})
        layouts = weight_layouts(engine, checkpoint, numbers, device, family, model)
        weights = place_weights(family, model, checkpoint, numbers, mesh_of([CPU]), engine, layouts)
    return layouts, model, weights


def experts_of(layouts, weights):
    """The matrices of a layer's experts in float32, quantised or not."""
    mlp = jax.tree.unflatten(weights.treedef, weights.leaves)["layers"][0]["mlp"]["experts"]
    matrices = {}
    for name in ("gate_up", "down"):
        arrays = {key: mlp[name][key][...] for key in ("weight", "scales", "offsets") if key in mlp[name]}
        if "scales" not in arrays:
            matrices[name] = np.asarray(arrays["weight"], np.float32)
            continue
        layout = layouts if isinstance(layouts, WeightLayout) else layouts[f"layers.0.mlp.experts.{name}"]
        of = None if layout.method == "int8" else layout.method
        stack = QuantizedWeight(arrays["weight"], arrays["scales"], arrays.get("offsets"), bytes_of=of)
        assert stack.values.dtype == (jnp.int8 if of is None else jnp.uint8)
        each = [dequantize(jax.tree.map(lambda array, e=expert: array[e], stack)) for expert in range(EXPERTS)]
        matrices[name] = np.stack(each)
    return matrices


def described(layout):
    group = "" if layout.group_size is None else f":{layout.group_size}"
    return f"{layout.method}{group}{' with offsets' if layout.offsets else ''}"


@pytest.mark.parametrize("method", FORMATS)
def test_few_bits_of_folders_stay(method, tmp_path):
    folder = write_folder(tmp_path, method)
    expected_layouts = dict(zip(("gate_up", "down"), FORMATS[method][2], strict=True))
    layouts, _, weights = load(folder)
    assert len(layouts) == 2  # attention is plain
    _, _, plain = load(folder, "none")
    expected = experts_of(None, plain)
    for name, matrix in experts_of(layouts, weights).items():
        assert described(layouts[f"layers.0.mlp.experts.{name}"]) == expected_layouts[name]
        # offsets are rounded to float16
        np.testing.assert_allclose(matrix, expected[name], rtol=1e-6, atol=4e-3 * ("offsets" in expected_layouts[name]))
    assert weights.parameters == plain.parameters


@pytest.mark.parametrize(("kind", "layout"), [
    ("Q4_0", "int4:32"), ("Q4_1", "int4:32 with offsets"), ("Q8_0", "int8:32"), ("MXFP4", "mxfp4:32"),
])  # fmt: skip
def test_experts_of_gguf_files_stay_on_a_gpu(kind, layout, tmp_path):
    path = write_gguf(tmp_path / "a.gguf", gguf.GGMLQuantizationType[kind])
    layouts, _, weights = load(path, dtype="bf16", device=GPU)
    assert described(layouts["layers.0.mlp.experts.gate_up"]) == layout
    _, _, plain = load(path, "none")
    expected = experts_of(None, plain)
    for name, matrix in experts_of(layouts, weights).items():
        np.testing.assert_allclose(matrix, expected[name], rtol=2**-10, atol=2e-3)
    on_cpu, *_ = load(path, dtype="bf16")
    assert (on_cpu.method, on_cpu.group_size) == ("int8", None)
    assert load(path)[0] is None  # float32 was asked for


def write_gguf(path, kind):
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(48)
    writer.add_expert_feed_forward_length(HIDDEN)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(2)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_key_length(32)
    writer.add_value_length(32)
    writer.add_rope_freq_base(1e4)
    writer.add_layer_norm_rms_eps(1e-5)
    rng = np.random.default_rng(0)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "model.layers.0.": "blk.0.",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm", "self_attn.o_proj": "attn_output", "self_attn.": "attn_", "_proj": "",
        "mlp.gate": "ffn_gate_inp",
    }  # fmt: skip
    for name, values in shared_tensors(rng).items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        writer.add_tensor(name, values)
    for name, shape in SHAPES.items():
        values = rng.standard_normal((EXPERTS, *shape)).astype(np.float32)
        packed = gguf.quants.quantize(values, kind)
        writer.add_tensor(f"blk.0.ffn_{name.removesuffix('_proj')}_exps.weight", packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_mxfp4_of_gpt_oss_stays_and_is_exact():
    """Against transformers, in prefill and decoding."""
    folder = GOLDEN / "gpt_oss_mxfp4"
    layouts, model, weights = load(folder)
    assert {described(layout) for layout in layouts.values()} == {"mxfp4"}  # 32 is all of a row
    assert len(layouts) == 2 * model.num_layers
    assert {str(leaf.dtype) for leaf in weights.leaves} == {"float32", "uint8", "float8_e8m0fnu"}
    expected = np.load(folder / "expected.npz")
    prompt, logits = expected["prompt"], expected["logits"]
    text = Text(model, weights, len(prompt))
    np.testing.assert_allclose(text.add(prompt[:-1], len(prompt)), logits[:-1], atol=1e-4, rtol=0)
    np.testing.assert_allclose(text.add(prompt[-1:], 1), logits[-1:], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("method", "limit"), [("int8", 1e-2), ("int4", 0.15), ("fp8", 5e-2)])
def test_experts_are_rounded_while_they_load(method, limit, tmp_path):
    folder = write_folder(tmp_path, "compressed-tensors")
    layout, model, weights = load(folder, method)
    _, _, plain = load(folder, "none")
    expected = experts_of(None, plain)
    for name, matrix in experts_of(layout, weights).items():
        assert np.linalg.norm(matrix - expected[name]) < limit * np.linalg.norm(expected[name])
    tokens = np.arange(12) % 7
    ours, theirs = (Text(model, each, 16).add(tokens, 16) for each in (weights, plain))
    assert np.linalg.norm(ours - theirs) < 10 * limit * np.linalg.norm(theirs)


def test_decoding_reads_the_experts_of_its_tokens_only():
    """The compiled step of a stack in bytes has no room for another stack."""
    from pallas_kernels.grouped_matmul import grouped_matmul
    from pallas_kernels.quantized_matmul import in_bytes, quantize

    rng = np.random.default_rng(0)
    x, sizes = jnp.ones((2, 256), jnp.bfloat16), jnp.zeros(64, jnp.int32).at[jnp.asarray([3, 9])].set(1)
    for method in ("int8", "int4", "fp8", "mxfp4"):
        one = in_bytes(quantize(jnp.asarray(rng.standard_normal((128, 256)), jnp.float32), method, 32))
        stack = jax.tree.map(lambda array: jnp.broadcast_to(array, (64, *array.shape)), one)
        step = jax.jit(grouped_matmul).lower(x, stack, sizes).compile()
        assert step.memory_analysis().temp_size_in_bytes < 64 * one.values.nbytes / 2, method
