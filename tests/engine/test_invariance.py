"""The same request gives the same tokens and log probabilities whatever happens around it."""

import asyncio
import threading

import pytest

from cvllm_jax import FinishReason, GenerationParams, InferenceRequest, RequestUpdate

#: Greedy and sampled, with everything that a choice can depend on.
SETTINGS = (
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.4, "frequency_penalty": 0.5, "presence_penalty": 0.3},
    {"temperature": 1.0, "seed": -7},
    {"temperature": 0.9, "seed": 2**64 - 3, "top_k": 30, "top_p": 0.9, "min_p": 0.01},
    {"temperature": 1.3, "seed": -(2**63), "frequency_penalty": 1.2, "logit_bias": {65: 3.0, 70: -100.0}},
    {"temperature": 0.8, "seed": 11, "repetition_penalty": 1.2, "min_tokens": 20, "ignore_eos": False},
)
LENGTHS = (1, 15, 16, 17, 60)


def probes(new_tokens=24):
    for index, settings in enumerate(SETTINGS):
        for length in LENGTHS:
            prompt = [3 + (n * n + index * length) % 280 for n in range(length)]
            wanted = {"ignore_eos": True, "logprobs": True, "top_logprobs": 2, "max_tokens": new_tokens, **settings}
            yield prompt, GenerationParams(**wanted)


PROBES = tuple(probes())


@pytest.fixture(scope="module")
def alone(make_engine):
    """Each probe by itself in an engine that remembers nothing."""
    engine = make_engine(enable_prefix_caching=False)
    return [engine.generate_sync(prompt, params) for prompt, params in PROBES]


def assert_same(got, want):
    assert got.tokens == want.tokens
    assert (got.text, got.finish_reason) == (want.text, want.finish_reason)
    assert got.logprobs == pytest.approx(want.logprobs, abs=1e-4)
    for ours, theirs in zip(got.top_logprobs, want.top_logprobs, strict=True):
        assert [entry.logprob for entry in ours] == pytest.approx([entry.logprob for entry in theirs], abs=1e-4)


def together(engine, requests=PROBES):
    """All at once, in order of the requests."""
    streams = [engine.generate_stream_sync(prompt, params) for prompt, params in requests]
    return [stream.finish() for stream in streams]


def test_the_probes_are_a_fair_trial(alone):
    assert len({tuple(output.tokens) for output in alone}) > len(alone) // 2
    assert sum(len(set(output.tokens)) > 5 for output in alone) > len(alone) // 2


def test_among_neighbours(tiny_engine, alone):
    for got, want in zip(together(tiny_engine), alone, strict=True):
        assert_same(got, want)


def test_after_a_prefix_hit(tiny_engine, alone):
    for (prompt, params), want in zip(PROBES, alone, strict=True):
        tiny_engine.generate_sync(prompt, params)
        again = tiny_engine.generate_sync(prompt, params)
        assert again.cached_tokens == (len(prompt) - 1) // 16 * 16
        assert_same(again, want)


def test_a_second_turn_on_top_of_the_first(tiny_engine, make_engine):
    """The answer's own pages serve the next prompt."""
    for prompt, params in PROBES[::7]:
        first = tiny_engine.generate_sync(prompt, params)
        history = [*prompt, *first.tokens, 9, 9]
        second = tiny_engine.generate_sync(history, params)
        assert second.cached_tokens >= (len(history) - 3) // 16 * 16
        assert_same(second, make_engine(enable_prefix_caching=False).generate_sync(history, params))


@pytest.mark.parametrize("settings", [{"prefill_chunk_size": 16}, {"enable_chunked_prefill": False}])
def test_however_prompts_are_chunked(make_engine, alone, settings):
    engine = make_engine(**settings)
    for got, want in zip(together(engine), alone, strict=True):
        assert_same(got, want)


def test_with_several_steps_in_one_go(make_engine, alone):
    engine = make_engine(decode_steps=5, max_batch_size=4)
    before = engine.stats().steps
    for got, want in zip(together(engine), alone, strict=True):
        assert_same(got, want)
    assert engine.generate_sync(*PROBES[0]).tokens == alone[0].tokens
    assert engine.stats().steps - before < sum(len(output.tokens) for output in alone) / 3


def test_with_drafts(make_engine, alone):
    """One step verifies what prompt lookup guesses, in every row that neighbours leave free."""
    engine = make_engine(num_speculative_tokens=3)
    for got, want in zip(together(engine), alone, strict=True):
        assert_same(got, want)
    before = engine.stats()
    for (prompt, params), want in zip(PROBES, alone, strict=True):
        assert_same(engine.generate_sync(prompt, params), want)
    after = engine.stats()
    accepted = after.accepted_tokens - before.accepted_tokens
    assert accepted > 30 and after.drafted_tokens - before.drafted_tokens >= accepted
    assert after.steps - before.steps < sum(len(output.tokens) for output in alone) + len(PROBES) - accepted / 2


def test_with_the_steps_of_a_gpu(gpu_steps_engine, alone):
    with gpu_steps_engine.runner.programs.forbid_compile():
        for got, want in zip(together(gpu_steps_engine), alone, strict=True):
            assert_same(got, want)
        params = GenerationParams(temperature=0.0, max_tokens=24, ignore_eos=True)
        greedy = gpu_steps_engine.generate_sync(PROBES[0][0], params)
    assert greedy.tokens == alone[0].tokens
    steps = gpu_steps_engine.runner.settings.steps
    assert len(steps.decode_forms) == 2
    assert len(steps.decode_forms) * len(steps.decode_rows) + len(steps.prefill) + 1 <= 12


def test_after_preemption(tight_engine, alone):
    before = tight_engine.stats().preemptions
    for got, want in zip(together(tight_engine, PROBES * 2), alone * 2, strict=True):
        assert_same(got, want)
    assert tight_engine.stats().preemptions > before + 3


def test_driven_by_step(tiny_engine, alone):
    handles = [tiny_engine.add_request(InferenceRequest(prompt=prompt, params=params)) for prompt, params in PROBES]
    outputs = {}
    while len(outputs) < len(handles):
        for update in tiny_engine.step():
            match update:
                case RequestUpdate.Completed(output, handle):
                    outputs[handle] = output
    for handle, want in zip(handles, alone, strict=True):
        assert_same(outputs[handle], want)
    assert tiny_engine.step() == []


def test_64_streams_on_a_pool_too_small_for_them(tight_engine, make_engine):
    """From 4 threads and 60 tasks: all finish, correct, and every page returns."""
    reference = make_engine(enable_prefix_caching=False)
    requests = [
        ([5 + (n * 3 + i) % 200 for n in range(4 + i % 50)],
         GenerationParams(
             max_tokens=20 + i % 30, temperature=float(i % 2), seed=i - 30, ignore_eos=True, logprobs=True
         ))
        for i in range(64)
    ]  # fmt: skip
    outputs = {}

    def from_thread(index):
        outputs[index] = tight_engine.generate_sync(*requests[index])

    async def from_task(index):
        stream = tight_engine.generate_stream(*requests[index])
        tokens = [update.token async for update in stream if update.token is not None]
        assert tokens == stream.output.tokens
        outputs[index] = stream.output

    async def tasks():
        await asyncio.gather(*(from_task(index) for index in range(4, 64)))

    threads = [threading.Thread(target=from_thread, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    asyncio.run(tasks())
    for thread in threads:
        thread.join()
    for index, (prompt, params) in enumerate(requests):
        want = reference.generate_sync(prompt, params)
        assert outputs[index].tokens == want.tokens
        assert outputs[index].logprobs == pytest.approx(want.logprobs, abs=1e-4)
        assert outputs[index].finish_reason is FinishReason.Length
    stats = tight_engine.stats()
    assert stats.preemptions > 0 and stats.pages_free == stats.pages_total == 24
