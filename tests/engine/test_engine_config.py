"""Every option does what it says, or is refused with the reason."""

import jax
import pytest

from cvllm_jax import (
    ConfigError,
    Device,
    DeviceError,
    DType,
    EngineConfig,
    GenerationParams,
    InferenceEngine,
    InferenceRequest,
    QuantizationConfig,
)  # fmt: skip
from cvllm_jax.engine.devices import find_device, resolve_dtype

PAGE_BYTES = 2 * 2 * 2 * 16 * 8 * 4


def refuse(error, message, param, **settings):
    with pytest.raises(error, match=message) as caught:
        InferenceEngine.new_sync(EngineConfig(**settings))
    assert caught.value.param == param and "\n" not in str(caught.value)


@pytest.mark.parametrize(("settings", "error", "message", "param"), [
    ({"max_sequence_length": 2049}, ConfigError, "is 2049, but the model's context is 2048", "max_sequence_length"),
    ({"max_sequence_length": 0}, ConfigError, "at least 1, not 0", "max_sequence_length"),
    ({"kv_cache_memory": 100}, ConfigError, "kv_cache_memory of 100 bytes holds 0 tokens", "kv_cache_memory"),
    ({"kv_cache_memory": PAGE_BYTES}, ConfigError, r"holds 0 tokens .* \(256 bytes a token\)", "kv_cache_memory"),
    ({"kv_cache_memory": 3 * PAGE_BYTES, "max_sequence_length": 64}, ConfigError, "holds 32 tokens .* 64 are needed",
     "kv_cache_memory"),
    ({"dtype": "f16"}, ConfigError, "f16 is not supported on CPUs", "dtype"),
    ({"dtype": "q4"}, ConfigError, "unknown dtype 'q4'; choose auto, bf16, f16 or f32", "dtype"),
    ({"quantization": QuantizationConfig(method="int4", group_size=48)}, ConfigError,
     "llama_gqa_tied cannot be quantized: the .* input channels do not divide into groups of 48 of layers.0",
     "quantization"),
    ({"max_batch_size": 0}, ConfigError, "max_batch_size must be at least 1", "max_batch_size"),
    ({"max_batch_size": 2000}, ConfigError, "limited to 1024, not 2000", "max_batch_size"),
    ({"max_batch_size": 1.5}, ConfigError, "must be a whole number, not 1.5", "max_batch_size"),
    ({"max_batch_size": True}, ConfigError, "must be a whole number, not True", "max_batch_size"),
    ({"page_size": 24}, ConfigError, "power of two up to 256, not 24", "page_size"),
    ({"page_size": 512}, ConfigError, "power of two up to 256, not 512", "page_size"),
    ({"decode_steps": 0}, ConfigError, "decode_steps must be at least 1", "decode_steps"),
    ({"decode_steps": 65}, ConfigError, "limited to 64, not 65", "decode_steps"),
    ({"kernels": "triton"}, ConfigError, "kernels must be auto or xla or hopper or native, not 'triton'", "kernels"),
    ({"kernels": "hopper"}, ConfigError, "kernel for attention cannot run: the device is a cpu", "kernels"),
    ({"kv_cache_dtype": "int4"}, ConfigError, "must be auto or int8 or fp8, not 'int4'", "kv_cache_dtype"),
    ({"debug": 1}, ConfigError, "debug must be True or False, not 1", "debug"),
    ({"prefill_chunk_size": -1}, ConfigError, "at least 1, not -1", "prefill_chunk_size"),
    ({"max_queue_size": 0}, ConfigError, "at least 1, not 0", "max_queue_size"),
    ({"device": "cuda"}, DeviceError, "JAX sees no cuda device; .* pip install 'cvllm-jax", None),
    ({"device": Device.metal()}, DeviceError, "JAX sees no metal device", None),
    ({"device": Device("tpu")}, DeviceError, "unknown kind of device 'tpu'; there are cpu, cuda and metal", None),
    ({"device": Device("cpu", 3)}, DeviceError, "there is no device cpu:3: JAX sees 1 of kind cpu", None),
    ({"device": Device("cpu", -1)}, DeviceError, "there is no device cpu:-1", None),
    ({"device": "abacus"}, ConfigError, "unknown device 'abacus'", "device"),
    ({"device": 5}, ConfigError, "device must be a Device or its name, not 5", "device"),
    ({"kv_cache_memory": 10**5000}, ConfigError, "not a number of 16610 bits", "kv_cache_memory"),
    ({"max_sequence_length": 2**63}, ConfigError, "less than 2 to the power of 63", "max_sequence_length"),
    ({"quantization": "int8"}, ConfigError, "must be a QuantizationConfig, not 'int8'", "quantization"),
    ({"revision": 5}, ConfigError, "revision must be a branch, tag or commit, not 5", "revision"),
    ({"progress": "bar"}, ConfigError, "progress must be a function, not 'bar'", "progress"),
    ({"model_path": ""}, ConfigError, "model_path is required", "model_path"),
    ({"model_path": None}, ConfigError, "cvllm-jax demo", "model_path"),
])  # fmt: skip
def test_what_is_refused(tiny_model_path, settings, error, message, param):
    usual = {"model_path": str(tiny_model_path), "device": "cpu", "dtype": "f32", "warmup": False}
    refuse(error, message, param, **{**usual, **settings})


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Device(5), "kind must be a string, not 5"),
    (lambda: Device.cuda("0"), "index must be a whole number, not '0'"),
    (lambda: Device.parse(0), "unknown device 0"),
    (lambda: DType.parse(16), "unknown dtype 16"),
    (lambda: QuantizationConfig(group_size=1.5), "group_size must be a whole number, not 1.5"),
    (lambda: QuantizationConfig(method=["int8"]), "unknown quantization method"),
    (lambda: QuantizationConfig.parse("int3"), "unknown quantization method 'int3'; choose int8, int4, fp8 or none"),
    (lambda: QuantizationConfig.parse("int4:"), "group size must be a whole number, not ''"),
    (lambda: QuantizationConfig.parse("int4:x"), "group size must be a whole number, not 'x'"),
    (lambda: EngineConfig.from_model_path(None), "model_path is required"),
])  # fmt: skip
def test_values_of_another_type(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_types_of_weights():
    cpu = jax.devices("cpu")[0]
    for names, member in ((("bf16", "bfloat16", "BF16"), DType.BF16), (("f32", "float32", "fp32"), DType.F32),
                          (("f16", "float16", "fp16"), DType.F16), (("auto",), DType.AUTO)):  # fmt: skip
        assert {DType.parse(name) for name in names} == {member}
        assert all(EngineConfig(model_path="m", dtype=name).dtype is member for name in names)
    assert resolve_dtype(DType.BF16, cpu) == jax.numpy.bfloat16 and resolve_dtype(DType.F32, cpu) == jax.numpy.float32
    assert resolve_dtype(DType.AUTO, cpu) in (jax.numpy.bfloat16, jax.numpy.float32)


def test_devices():
    assert find_device(Device.cpu()).platform == "cpu" and Device.best_available() == Device.cpu()
    parsed = [Device.parse(text) for text in ("cpu", "cuda", "cuda:3", "metal", "best")]
    assert parsed == [Device.cpu(), Device.cuda(0), Device.cuda(3), Device.metal(0), Device.cpu()]
    assert [str(device) for device in parsed[:4]] == ["cpu", "cuda:0", "cuda:3", "metal:0"]


def test_kv_cache_memory_is_the_size_of_the_pool(tight_engine):
    """The pool, its padding page included, takes what was given and no byte more."""
    (pages,), given = tight_engine.runner.settings.num_pages, tight_engine.config.kv_cache_memory
    assert pages * PAGE_BYTES <= given < (pages + 1) * PAGE_BYTES
    assert tight_engine.stats().pages_total == pages - 1


def test_a_pool_is_no_larger_than_all_places_can_fill(tiny_engine):
    assert tiny_engine.stats().pages_total == 16 * (256 // 16)


def test_max_sequence_length_and_the_model_s_context(tiny_engine, make_engine):
    info = tiny_engine.model_info()
    assert (info.context_length, info.max_sequence_length) == (2048, 256)
    short = make_engine(max_batch_size=1, max_sequence_length=None, kv_cache_memory=5 * PAGE_BYTES, warmup=False)
    assert short.model_info().max_sequence_length == 64  # as far as the pool holds it


def test_max_batch_size_bounds_what_runs(make_engine):
    engine = make_engine(max_batch_size=1, max_queue_size=8)
    for _ in range(4):
        engine.add_request(InferenceRequest(prompt=[5, 6], params=GenerationParams(max_tokens=3, ignore_eos=True)))
    running = []
    while updates := engine.step():
        running.append(engine.stats().running)
        assert len({update.handle for update in updates}) == 1
    assert max(running) == 1 and len(running) == 12


@pytest.mark.parametrize(("settings", "steps"), [
    ({"prefill_chunk_size": 16}, 13), ({"prefill_chunk_size": 64}, 4), ({"enable_chunked_prefill": False}, 1),
])  # fmt: skip
def test_how_many_steps_a_prompt_takes(make_engine, settings, steps):
    engine = make_engine(**settings, enable_prefix_caching=False)
    engine.add_request(InferenceRequest(prompt=[7] * 200, params=GenerationParams(max_tokens=1, ignore_eos=True)))
    taken = 1
    while not engine.step():
        taken += 1
    assert taken == steps


def test_prefix_caching_can_be_switched_off(tiny_engine, make_engine):
    prompt = [11 + n % 5 for n in range(40)]
    params = GenerationParams(max_tokens=1)
    for engine, cached in ((tiny_engine, 32), (make_engine(enable_prefix_caching=False), 0)):
        engine.generate_sync(prompt, params)
        assert engine.generate_sync(prompt, params).cached_tokens == cached
    assert make_engine(enable_prefix_caching=False).stats().pages_cached == 0


def test_without_a_compilation_cache_nothing_is_stored(tiny_model_path, tmp_path, monkeypatch):
    monkeypatch.setenv("CVLLM_CACHE", str(tmp_path))
    settings = {"model_path": str(tiny_model_path), "device": "cpu", "dtype": "f32", "max_batch_size": 1,
                "max_sequence_length": 32, "warmup": False}  # fmt: skip
    for stored in (False, True):
        with InferenceEngine.new_sync(EngineConfig(**settings, compilation_cache=stored)) as engine:
            engine.generate_sync([5], GenerationParams(max_tokens=1))
        assert bool(list(tmp_path.rglob("*.bin"))) == stored
    folder = next(tmp_path.rglob("*.bin")).parent
    assert folder.stat().st_mode & 0o077 == 0  # an executable is code: nobody else may write it
    for file in folder.glob("*.bin"):
        file.write_bytes(b"no executable")
    with InferenceEngine.new_sync(EngineConfig(**settings)) as engine:
        assert engine.generate_sync([5], GenerationParams(max_tokens=1, ignore_eos=True)).tokens


def test_what_the_model_is(tiny_engine):
    info = tiny_engine.model_info()
    assert (info.name, info.architecture) == ("llama_gqa_tied", "LlamaForCausalLM")
    assert (info.dtype, info.device) == ("float32", "cpu")
    assert (info.vocab_size, info.num_layers, info.hidden_size, info.num_attention_heads) == (288, 2, 32, 4)
    assert (info.num_key_value_heads, info.head_dim, info.quantization) == (2, 8, None)
    layer = 32 * (4 + 2 + 2) * 8 + 32 * 32 + 3 * 32 * 56 + 2 * 32
    assert info.parameters == 288 * 32 + 2 * layer + 32
    assert set(info.eos_token_ids) == {2, 0}
    assert info.generation_defaults == {"temperature": 0.7, "top_p": 0.9, "top_k": 50}


@pytest.mark.parametrize(("cache", "difference"), [("int8", 0.1), ("fp8", 0.5)])
def test_a_cache_of_8_bits_holds_more_tokens_and_says_much_the_same(tiny_model_path, tiny_engine, cache, difference):
    """The tiny model's heads have 8 numbers, so a scale of 4 bytes makes 12 of the 32 bytes that f32 takes."""
    config = EngineConfig(
        model_path=str(tiny_model_path), device="cpu", dtype="f32", max_batch_size=4, max_sequence_length=128,
        kv_cache_dtype=cache, kv_cache_memory=10 * PAGE_BYTES, warmup=False,
    )  # fmt: skip
    params = GenerationParams(temperature=0.0, max_tokens=1, logprobs=True, top_logprobs=20, ignore_eos=True)
    prompt = [7 + (n * n) % 250 for n in range(70)]
    with InferenceEngine.new_sync(config) as engine:
        assert engine.stats().pages_total == 10 * 32 // 12 - 1
        got, want = engine.generate_sync(prompt, params), tiny_engine.generate_sync(prompt, params)
    theirs = {entry.token: entry.logprob for entry in want.top_logprobs[0]}
    shared = [entry for entry in got.top_logprobs[0] if entry.token in theirs]
    assert len(shared) > 15
    assert max(abs(entry.logprob - theirs[entry.token]) for entry in shared) < difference


def test_bf16_runs(tiny_model_path):
    config = EngineConfig(
        model_path=str(tiny_model_path), device="cpu", dtype="bf16", max_batch_size=1, max_sequence_length=64,
        warmup=False,
    )  # fmt: skip
    with InferenceEngine.new_sync(config) as engine:
        assert engine.model_info().dtype == "bfloat16"
        output = engine.generate_sync([9] * 20, GenerationParams(max_tokens=5, ignore_eos=True, logprobs=True))
        assert len(output.tokens) == 5 and all(value <= 0 for value in output.logprobs)
