"""How fast weights load: a model folder, the same rounded while it loads, and prepared checkpoints of both.

    python -m bench.loading [FOLDER] [--quantization int8] [--dtype bf16] [--repeats 5]

Without a folder it is a random Llama of 8 layers and 476 million weights. Every load is timed until a byte of each
cache line of each weight has been read, because files that are only mapped would otherwise be read later. All take
turns; medians are printed. Files are in the page cache, and converted weights are not cached.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from cvllm_jax import DType, EngineConfig, QuantizationConfig
from cvllm_jax.engine.converting import convert
from cvllm_jax.engine.devices import mesh_of
from cvllm_jax.engine.loading import open_model, place_weights, prepare_device
from cvllm_jax.engine.weight_layouts import weight_layouts
from cvllm_jax.models.registry import family_for


def load(config):
    """Seconds to have every weight, and their bytes."""
    begun = time.perf_counter()
    _, device, dtype = prepare_device(config)
    with open_model(config) as checkpoint:
        family = family_for(checkpoint.config)
        model = family.config(checkpoint.config)
        layouts = weight_layouts(config, checkpoint, dtype, device, family, model)
        weights = place_weights(family, model, checkpoint, dtype, mesh_of([device]), config, layouts)
    leaves = [np.asarray(leaf).reshape(-1).view(np.uint8) for leaf in jax.block_until_ready(weights.leaves)]
    sum(int(leaf[::64].sum(dtype=np.int64)) for leaf in leaves)
    return time.perf_counter() - begun, sum(leaf.nbytes for leaf in leaves)


WIDTH, FFN, VOCABULARY, LAYERS, HEADS = 2048, 5632, 32000, 8, 16
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": VOCABULARY,
    "hidden_size": WIDTH, "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS, "rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip


def random_llama(folder):
    """A model folder without a tokenizer."""
    shapes = {"model.embed_tokens": (VOCABULARY, WIDTH), "model.norm": (WIDTH,)}
    for layer in range(LAYERS):
        names = {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"} | {
            "mlp.gate_proj": (FFN, WIDTH), "mlp.up_proj": (FFN, WIDTH), "mlp.down_proj": (WIDTH, FFN),
            "input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,),
        }  # fmt: skip
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in names.items()}
    rng = np.random.default_rng(0)
    tensors = {
        f"{name}.weight": rng.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)
        for name, shape in shapes.items()
    }
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--quantization", default="int8")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    def config(path, quantization=None):
        asked = None if quantization is None else QuantizationConfig.parse(quantization)
        return EngineConfig(model_path=str(path), device="cpu", dtype=DType.parse(options.dtype), quantization=asked)

    with tempfile.TemporaryDirectory(dir=Path.cwd()) as place:
        folder = options.folder or random_llama(Path(place) / "random")
        plain = convert(config(folder), Path(place) / "plain").path
        small = convert(config(folder, options.quantization), Path(place) / "small").path
        cases = {
            options.dtype: config(folder),
            f"{options.dtype}, prepared": config(plain),
            f"{options.quantization} while loading": config(folder, options.quantization),
            f"{options.quantization}, prepared": config(small),
        }
        seconds = {name: [] for name in cases}
        for _ in range(options.repeats):
            for name, case in cases.items():
                taken, size = load(case)
                seconds[name].append(taken)
                print(f"{name:24} {size / 1e6:6.0f} MB {taken:7.3f} s", flush=True)
        for name, taken in seconds.items():
            print(f"{name:24} median {statistics.median(taken):.3f} s, {min(taken):.3f} to {max(taken):.3f}")


if __name__ == "__main__":
    main()
