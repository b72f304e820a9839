"""A step that raises ends its own requests; all others are recomputed, and the engine goes on."""

import json
import logging

import jax
import pytest

from cvllm_jax import (
    EngineConfig,
    FinishReason,
    GenerationError,
    GenerationParams,
    InferenceEngine,
    InferenceRequest,
    RequestUpdate,
)
from cvllm_jax.errors import EngineStoppedError

REQUESTS = [
    ([7 + (i * n) % 250 for n in range(1, 30 + i)],
     GenerationParams(max_tokens=10 + i % 5, temperature=float(i % 2), seed=i, ignore_eos=True,
                      frequency_penalty=0.5 * (i % 3)))
    for i in range(24)
]  # fmt: skip


@pytest.fixture(scope="module")
def expected(make_engine):
    engine = make_engine(enable_prefix_caching=False)
    return [engine.generate_sync(*request).tokens for request in REQUESTS]


def fail_at(monkeypatch, runner, method, step, *, lose_buffers):
    """Raise once, in the n-th call; the buffers may be gone by then, as after a fault on the device."""
    real, calls = getattr(runner, method), []

    def failing(argument):
        calls.append(argument)
        if len(calls) != step:
            return real(argument)
        if lose_buffers:
            for array in jax.tree.leaves(runner._cache):
                array.delete()
        raise RuntimeError("the device caught fire\nand more lines")

    monkeypatch.setattr(runner, method, failing)
    return calls


def check(outputs, expected, *, some_finish=True):
    failed = [output for output in outputs if isinstance(output.finish_reason, FinishReason.Error)]
    assert failed
    for output in failed:
        assert output.finish_reason == FinishReason.Error("a step failed on the device: the device caught fire")
    for output, tokens in zip(outputs, expected, strict=True):
        if output in failed:
            assert output.tokens == tokens[: len(output.tokens)]
        else:
            assert output.finish_reason is FinishReason.Length and output.tokens == tokens
    assert not some_finish or len(failed) < len(outputs)


@pytest.mark.parametrize("lose_buffers", [False, True])
@pytest.mark.parametrize("step", [1, 3, 12])
@pytest.mark.parametrize("method", ["dispatch", "read"])
def test_with_the_background_loop(tiny_engine, expected, monkeypatch, caplog, method, step, lose_buffers):
    calls = fail_at(monkeypatch, tiny_engine.runner, method, step, lose_buffers=lose_buffers)
    with caplog.at_level(logging.CRITICAL):
        streams = [tiny_engine.generate_stream_sync(*request) for request in REQUESTS]
        outputs = [stream.finish() for stream in streams]
    assert len(calls) > step
    check(outputs, expected)
    stats = tiny_engine.stats()
    assert stats.running == stats.waiting == 0 and stats.pages_free == stats.pages_total
    monkeypatch.undo()
    assert [tiny_engine.generate_sync(*request).tokens for request in REQUESTS[:3]] == expected[:3]


@pytest.mark.parametrize("method", ["dispatch", "read"])
def test_with_step(tiny_engine, expected, monkeypatch, caplog, method):
    """step() reports the failed ones and goes on with the rest."""
    fail_at(monkeypatch, tiny_engine.runner, method, 4, lose_buffers=True)
    handles = [tiny_engine.add_request(InferenceRequest(prompt=p, params=params)) for p, params in REQUESTS]
    outputs = {}
    with caplog.at_level(logging.CRITICAL):
        for _ in range(500):
            for update in tiny_engine.step():
                match update:
                    case RequestUpdate.Completed(output, handle):
                        outputs[handle] = output
                    case RequestUpdate.Failed(error, output, handle):
                        assert isinstance(error, GenerationError)
                        outputs[handle] = output
            if len(outputs) == len(handles):
                break
    check([outputs[handle] for handle in handles], expected)


def test_a_step_that_fails_twice(tiny_engine, expected, monkeypatch, caplog):
    """The steps in flight behind the one that raised are lost with it, and raise as well."""
    real, calls = tiny_engine.runner.read, []

    def read(step):
        calls.append(step)
        if len(calls) in (5, 6):
            raise RuntimeError("the device caught fire")
        return real(step)

    monkeypatch.setattr(tiny_engine.runner, "read", read)
    with caplog.at_level(logging.CRITICAL):
        streams = [tiny_engine.generate_stream_sync(*request) for request in REQUESTS]
        check([stream.finish() for stream in streams], expected)


def test_an_engine_that_cannot_go_on_ends_everything(make_engine, tiny_model_path, monkeypatch, caplog):
    """No memory for new buffers: every caller is told, and the next one too."""
    settings = make_engine().config
    with caplog.at_level(logging.CRITICAL), InferenceEngine.new_sync(settings) as engine:
        fail_at(monkeypatch, engine.runner, "dispatch", 3, lose_buffers=True)

        def no_memory():
            raise RuntimeError("out of memory")

        monkeypatch.setattr(engine.runner, "reset", no_memory)
        streams = [engine.generate_stream_sync(*request) for request in REQUESTS]
        for stream in streams:
            assert isinstance(stream.finish().finish_reason, FinishReason.Error)
        assert engine.failure == "out of memory"
        with pytest.raises(EngineStoppedError, match="the engine has stopped: out of memory"):
            engine.generate_sync(*REQUESTS[0])


def test_tokens_without_text_fail_their_request_only(tiny_model_path, tmp_path, caplog):
    """A vocabulary of words has no bytes to stream: a clear error, and nobody waits for ever."""
    from tokenizers import Tokenizer, models

    for file in tiny_model_path.iterdir():
        if file.name in ("config.json", "model.safetensors"):
            (tmp_path / file.name).symlink_to(file)
    Tokenizer(models.WordLevel({f"w{n}": n for n in range(288)}, unk_token="w0")).save(str(tmp_path / "tokenizer.json"))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["vocab_size"] == 288
    settings = EngineConfig(
        model_path=str(tmp_path), device="cpu", dtype="f32", max_batch_size=16, max_sequence_length=256,
        prefill_chunk_size=64,
    )  # fmt: skip
    with InferenceEngine.new_sync(settings) as engine:
        for _ in range(2):
            output = engine.generate_sync([5, 6, 7], GenerationParams(max_tokens=4, ignore_eos=True))
            assert isinstance(output.finish_reason, FinishReason.Error) and "bytes" in output.finish_reason.message
        stats = engine.stats()
        assert stats.running == stats.waiting == 0 and stats.pages_free == stats.pages_total


def test_a_tokenizer_that_raises_anything_fails_one_request_only(tiny_engine, monkeypatch):
    expected = tiny_engine.generate_sync(*REQUESTS[0])
    monkeypatch.setattr(tiny_engine.tokenizer, "token_bytes", lambda token: 1 // 0)
    output = tiny_engine.generate_sync(*REQUESTS[0])
    assert isinstance(output.finish_reason, FinishReason.Error) and "division" in output.finish_reason.message
    monkeypatch.undo()
    assert tiny_engine.generate_sync(*REQUESTS[0]).tokens == expected.tokens
