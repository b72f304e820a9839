"""The library as the API's specification has it: names, defaults, builders, match statements, its Example 4."""

import asyncio
import dataclasses
import inspect

import pytest

import cvllm_jax
from cvllm_jax import (
    Device,
    DType,
    EngineConfig,
    EngineStats,
    Error,
    FinishReason,
    GenerationOutput,
    GenerationParams,
    GenerationStats,
    InferenceEngine,
    InferenceRequest,
    ModelInfo,
    QuantizationConfig,
    RequestHandle,
    RequestUpdate,
    TokenUpdate,
)  # fmt: skip

pytestmark = pytest.mark.anyio


def defaults(kind):
    return {f.name: getattr(kind(), f.name) for f in dataclasses.fields(kind)}


def test_generation_parameters_and_their_defaults():
    assert defaults(GenerationParams) == {
        "max_tokens": 256, "temperature": 1.0, "top_p": 1.0, "top_k": None, "repetition_penalty": 1.0,
        "frequency_penalty": 0.0, "presence_penalty": 0.0, "stop_sequences": (), "logprobs": False, "seed": None,
        "min_p": 0.0, "min_tokens": 0, "stop_token_ids": (), "ignore_eos": False, "logit_bias": {}, "top_logprobs": 0,
        "grammar": None, "skip_special_tokens": True,
    }  # fmt: skip
    with pytest.raises(TypeError):
        GenerationParams(5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        GenerationParams().seed = 1


def test_configuration():
    config = EngineConfig.from_model_path("models/m")
    assert config == EngineConfig(model_path="models/m")
    built = (
        EngineConfig.builder().model_path("m").device(Device.cuda(0)).max_batch_size(8).max_sequence_length(512)
        .kv_cache_memory(4 * 1024**3).dtype(DType.BF16).quantization(None).enable_cuda_graph(True)
        .enable_chunked_prefill(False).prefill_chunk_size(128).build()
    )  # fmt: skip
    assert built == EngineConfig(
        model_path="m", device=Device.cuda(0), max_batch_size=8, max_sequence_length=512, kv_cache_memory=4 * 1024**3,
        dtype=DType.BF16, enable_cuda_graph=True, enable_chunked_prefill=False, prefill_chunk_size=128,
    )  # fmt: skip
    with pytest.raises(Error.Config, match="model_path is required"):
        EngineConfig.builder().build()
    fields = {field.name for field in dataclasses.fields(EngineConfig)}
    assert fields <= set(dir(EngineConfig.builder())) & set(dir(InferenceEngine.builder()))
    assert DType.FP16 is DType.F16 and DType.FP32 is DType.F32 and QuantizationConfig().method == "int8"


def test_errors():
    kinds = ("ModelLoad", "Tokenization", "Generation", "Device", "Config", "McpConnection", "McpToolExecution",
             "Cancelled", "Io", "Other")  # fmt: skip
    for kind in kinds:
        error = getattr(Error, kind)("what happened", param="field")
        assert type(error) is getattr(cvllm_jax, f"{kind}Error")
        assert isinstance(error, Error) and error.kind == kind
        assert str(error) == error.message == "what happened" and error.param == "field"
    assert isinstance(Error.Io("gone"), OSError)


def name_of(reason):
    match reason:
        case FinishReason.Stop:
            return "stop"
        case FinishReason.Length:
            return "length"
        case FinishReason.StopSequence(text):
            return f"stop string {text}"
        case FinishReason.Cancelled:
            return "cancelled"
        case FinishReason.Error(message):
            return f"error {message}"


def test_finish_reasons_match():
    reasons = [FinishReason.Stop, FinishReason.Length, FinishReason.StopSequence("x"), FinishReason.Cancelled,
               FinishReason.Error("e")]  # fmt: skip
    assert [name_of(reason) for reason in reasons] == ["stop", "length", "stop string x", "cancelled", "error e"]
    assert [reason.name for reason in reasons] == ["Stop", "Length", "StopSequence", "Cancelled", "Error"]
    assert all(isinstance(reason, FinishReason) for reason in reasons) and len(set(reasons)) == 5
    assert FinishReason.StopSequence("x") == FinishReason.StopSequence("x") != FinishReason.StopSequence("y")
    assert FinishReason.StopSequence("x").value == "x" and FinishReason.Error("e").message == "e"


def test_request_updates_match(tiny_engine):
    letter = tiny_engine.tokenize("a")[0]  # a whole character, so that no text is left for the end
    params = GenerationParams(max_tokens=3, temperature=0.0, logit_bias={letter: 100.0}, logprobs=True)
    handle = tiny_engine.add_request(InferenceRequest(prompt=[5, 6], params=params))
    kinds = []
    while "completed" not in kinds:
        for update in tiny_engine.step():
            assert isinstance(update, RequestUpdate) and update.handle == handle
            match update:
                case RequestUpdate.Token(token, text):
                    assert isinstance(token, int) and isinstance(text, str) and update.logprob <= 0
                    kinds.append("token")
                case RequestUpdate.Completed(output):
                    assert output.handle == handle and len(output.tokens) == 3
                    kinds.append("completed")
                case RequestUpdate.Failed(error, output):
                    raise error
    assert kinds == ["token"] * 3 + ["completed"]


async def test_basic_usage(tiny_model_path):
    """The specification's first example."""
    engine = await (
        InferenceEngine.builder().model_path(str(tiny_model_path)).device(Device.cpu()).dtype(DType.F32)
        .max_batch_size(16).max_sequence_length(256).prefill_chunk_size(64).build()
    )  # fmt: skip
    prompt = engine.tokenize("Hello, how are you?")
    output = await engine.generate(prompt, GenerationParams())
    assert engine.detokenize(output.tokens) == output.text
    assert isinstance(output, GenerationOutput) and isinstance(output.stats, GenerationStats)
    assert isinstance(engine.model_info(), ModelInfo) and isinstance(engine.stats(), EngineStats)
    engine.close()


def test_builders_and_twins(tiny_model_path):
    builder = InferenceEngine.builder().model_path(tiny_model_path).device(Device.cpu()).warmup(False)
    with builder.build_sync() as engine:
        assert engine.tokenize("a")
    assert InferenceEngine.load == InferenceEngine.new
    for name in ("new", "load", "generate"):
        assert inspect.iscoroutinefunction(getattr(InferenceEngine, name))
        assert not inspect.iscoroutinefunction(getattr(InferenceEngine, f"{name}_sync"))


def test_example_4_batch_processing(tiny_engine):
    """As written there: requests queued, steps taken until every prompt has its text."""
    engine = tiny_engine
    prompts = ["What is Rust?", "Explain async/await", "What are lifetimes?", "How do I use tokio?"]
    handles = []
    for prompt in prompts:
        tokens = engine.tokenize(prompt)
        handle = engine.add_request(InferenceRequest(prompt=tokens, params=GenerationParams()))
        handles.append(handle)
    results = []
    while True:
        updates = engine.step()
        for update in updates:
            if isinstance(update, RequestUpdate.Completed):
                text = engine.detokenize(update.output.tokens)
                results.append((update.output.handle, text))
        if len(results) == len(prompts):
            break
    assert {handle for handle, _ in results} == set(handles) and len(set(handles)) == 4
    assert all(isinstance(handle, RequestHandle) for handle in handles)


async def test_a_stream_of_token_updates(tiny_engine):
    stream = tiny_engine.generate_stream("Hello", GenerationParams(max_tokens=5, ignore_eos=True))
    async for update in stream:
        assert isinstance(update, TokenUpdate)
        match update:
            case TokenUpdate(token, text, logprob):
                assert (token is None or isinstance(token, int)) and isinstance(text, str) and logprob is None
    assert len(stream.output.tokens) == 5


def test_text_and_tokens(tiny_engine):
    text = "A tokenizer that knows every byte: é, 日本, \U0001f600\n"
    ids = tiny_engine.tokenize(text)
    assert ids == tiny_engine.tokenizer.encode(text) and tiny_engine.detokenize(ids) == text
    assert tiny_engine.detokenize([]) == "" == tiny_engine.detokenize(list(tiny_engine.model_info().eos_token_ids))
    with pytest.raises(Error.Generation, match="tokens holds token 288"):
        tiny_engine.detokenize([288])
    chat = tiny_engine.chat_template.encode([{"role": "user", "content": "hi"}])
    assert tiny_engine.generate_sync(chat, GenerationParams(max_tokens=2)).stats.prompt_tokens == len(chat)


def test_generate_stream_needs_an_event_loop(tiny_engine):
    with pytest.raises(RuntimeError, match="event loop"):
        tiny_engine.generate_stream("Hello")
    assert asyncio.run(tiny_engine.generate("Hello", GenerationParams(max_tokens=1))).tokens is not None
