"""What loading weights in few bits takes: little more than they do, so that what is too large in bfloat16 fits."""

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
WIDTH, HIDDEN, LAYERS, VOCAB = 1024, 4096, 8, 8192

LOAD = """
import resource, sys, threading, time
import jax, jax.numpy as jnp, numpy as np
import gguf.quants
from cvllm_jax import EngineConfig, QuantizationConfig
from cvllm_jax.checkpoints.checkpoint import open_checkpoint
from cvllm_jax.engine.devices import mesh_of
from cvllm_jax.engine.loading import place_weights
from cvllm_jax.engine.weight_layouts import weight_layouts
from cvllm_jax.models.registry import family_for

def memory(kind):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(kind)) * 1024

path, method, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
config = EngineConfig(model_path=path, device="cpu", quantization=QuantizationConfig.parse(method))
device = jax.devices("cpu")[0]
with open_checkpoint(path) as checkpoint:
    family = family_for(checkpoint.config)
    model = family.config({**checkpoint.config, "max_sequence_length": 64})
    layouts = weight_layouts(config, checkpoint, jnp.bfloat16, device, family, model)
    jax.block_until_ready(jax.device_put(np.ones(3)))
    before, peak, done = memory("RssAnon"), 0, False
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (memory("VmData") + limit,) * 2)
    def watch():
        global peak
        while not done:
            peak = max(peak, memory("RssAnon"))
            time.sleep(0.002)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    weights = place_weights(family, model, checkpoint, jnp.bfloat16, mesh_of([device]), config, layouts)
    jax.block_until_ready(weights.leaves)
done = True
watcher.join()
print(peak - before, sum(leaf.nbytes for leaf in weights.leaves))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A Llama of 140 million weights in Q4_0, with random blocks."""
    path = tmp_path_factory.mktemp("model") / "a.gguf"
    writer, rng = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(16)
    writer.add_head_count_kv(16)
    writer.add_layer_norm_rms_eps(1e-5)

    def add(name, rows, columns):
        blocks = rng.integers(0, 256, (rows, columns // 32, 18), np.uint8)
        blocks[..., :2] = np.float16(0.01).reshape(1).view(np.uint8)
        writer.add_tensor(f"{name}.weight", blocks.reshape(rows, -1), raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    add("token_embd", VOCAB, WIDTH)
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{name}", WIDTH, WIDTH)
        add(f"blk.{layer}.ffn_gate", HIDDEN, WIDTH)
        add(f"blk.{layer}.ffn_up", HIDDEN, WIDTH)
        add(f"blk.{layer}.ffn_down", WIDTH, HIDDEN)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load(model, method, limit, cache):
    command = [sys.executable, "-c", LOAD, str(model), method, str(limit)]
    environment = {"PATH": "/usr/bin:/bin", "CVLLM_CACHE": str(cache), "CVLLM_CACHE_LIMIT_GB": "0"}
    return subprocess.run(command, timeout=300, capture_output=True, text=True, cwd=ROOT, env=environment)


@pytest.mark.parametrize("method", ["int8", "int4"])
def test_repacking_takes_little_more_than_the_result(method, model, tmp_path):
    result = load(model, method, 0, tmp_path)
    rise, weights = map(int, result.stdout.split())
    assert rise < 1.4 * weights + 64e6, f"{rise / 1e6:.0f} MB for {weights / 1e6:.0f} MB"


def test_what_is_too_large_in_bfloat16_loads_in_four_bits(model, tmp_path):
    limit = 200 << 20  # bfloat16 takes 286 MB
    small, large = (load(model, method, limit, tmp_path) for method in ("int4", "none"))
    assert small.returncode == 0, small.stderr[-500:]
    assert large.returncode != 0
