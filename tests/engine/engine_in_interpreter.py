"""A small bf16 model served with XLA and with the Hopper kernels in Mosaic's interpreter: prints what each says.

``python engine_in_interpreter.py FOLDER auto|int8|fp8``; the second argument is the type of the KV cache.
"""

import json
import sys
from functools import partial
from pathlib import Path

from jax.experimental.pallas import mosaic_gpu as plgpu

from cvllm_jax import EngineConfig, GenerationParams, InferenceEngine, InferenceRequest, RequestUpdate
from pallas_kernels.kv_write import api as kv_write
from pallas_kernels.paged_attention import HopperConfig, hopper, hopper_decode
from pallas_kernels.paged_attention import api as paged_attention

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 320, "hidden_size": 128,
    "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 64, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "hidden_act": "silu",
}  # fmt: skip
PARAMS = GenerationParams(temperature=0.0, max_tokens=4, ignore_eos=True, logprobs=True, top_logprobs=2)
PROMPTS = [[5 + (n * n) % 250 for n in range(length)] for length in (20, 3)]


def serve(folder, cache, kernels):
    """Of steps in this thread, because the interpreter is on in one thread only."""
    config = EngineConfig(
        model_path=str(folder), load_format="dummy", device="cpu", dtype="bf16", max_batch_size=2,
        max_sequence_length=128, prefill_chunk_size=64, kv_cache_dtype=cache, kernels=kernels, warmup=False, debug=True,
    )  # fmt: skip
    with InferenceEngine(config) as engine:
        handles = [engine.add_request(InferenceRequest(prompt=prompt, params=PARAMS)) for prompt in PROMPTS]
        outputs = {}
        while len(outputs) < len(PROMPTS):
            outputs |= {u.handle: u.output for u in engine.step() if not isinstance(u, RequestUpdate.Token)}
        used = engine.runner.settings.kernels
    said = [
        {
            "tokens": output.tokens,
            "logprobs": output.logprobs,
            "margins": [top[0].logprob - top[1].logprob for top in output.top_logprobs],
        }
        for output in (outputs[handle] for handle in handles)
    ]
    return said, used


def main(folder, cache):
    Path(folder, "config.json").write_text(json.dumps(CONFIG))
    for module in (paged_attention, kv_write):  # the CPU under the name of an H100
        module.hopper_refusal = lambda device: None
    # few pieces: the interpreter takes its time for unused ones too
    for module in (hopper, hopper_decode):
        module.HopperConfig = partial(HopperConfig, thread_blocks=2, min_tokens=64)
    printed = {"kernels": {}}
    printed["xla"], printed["kernels"]["xla"] = serve(folder, cache, "xla")
    with plgpu.force_gpu_interpret_mode():
        printed["auto"], printed["kernels"]["auto"] = serve(folder, cache, "auto")
    printed["trials"] = len(list(Path(folder, "kernel-trials").iterdir()))
    print(json.dumps(printed))


if __name__ == "__main__":
    main(*sys.argv[1:])
