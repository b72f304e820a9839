"""Streams and callers: tasks and threads, cancelling in every way, slow readers, and how engines end."""

import asyncio
import contextlib
import gc
import threading
import time
import weakref

import pytest

from cvllm_jax import (
    CancelledError,
    ConfigError,
    EngineConfig,
    FinishReason,
    GenerationError,
    GenerationParams,
    GenerationStream,
    InferenceEngine,
    InferenceRequest,
    RequestHandle,
    RequestUpdate,
)  # fmt: skip

pytestmark = pytest.mark.anyio

PROMPT = [40, 41, 42, 43, 44]
LONG = GenerationParams(max_tokens=240, temperature=0.0, ignore_eos=True)
SHORT = GenerationParams(max_tokens=12, temperature=0.0, ignore_eos=True)


@pytest.fixture
def answer(tiny_engine):
    return tiny_engine.generate_sync(PROMPT, SHORT)


def idle(engine, seconds=5.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        stats = engine.stats()
        if stats.running == stats.waiting == 0 and stats.pages_free == stats.pages_total:
            return True
        time.sleep(0.002)
    return False


# --- reading ---


async def test_waiting_for_the_whole_output(tiny_engine, answer):
    output = await tiny_engine.generate(PROMPT, SHORT)
    assert (output.tokens, output.text) == (answer.tokens, answer.text)
    assert (await tiny_engine.generate(tiny_engine.detokenize([80, 81]), SHORT)).stats.prompt_tokens > 0


async def test_an_async_stream(tiny_engine, answer):
    stream = tiny_engine.generate_stream(PROMPT, SHORT)
    assert isinstance(stream, GenerationStream) and isinstance(stream.handle, RequestHandle)
    with pytest.raises(GenerationError, match="has not ended"):
        _ = stream.output
    updates = [update async for update in stream]
    assert [update.token for update in updates if update.token is not None] == answer.tokens
    assert "".join(update.text for update in updates) == stream.output.text == answer.text
    assert stream.output.finish_reason is FinishReason.Length
    assert [update async for update in stream] == []  # it has ended and stays so


async def test_a_stream_may_be_awaited_first(tiny_engine, answer):
    stream = await tiny_engine.generate_stream(PROMPT, SHORT)
    async with stream:
        first = await anext(stream)
    assert first.token == answer.tokens[0]


async def test_many_tasks_at_once(tiny_engine, answer):
    async def one(wait):
        tokens = []
        async for update in tiny_engine.generate_stream(PROMPT, SHORT):
            tokens.append(update.token)
            await asyncio.sleep(wait)
        return [token for token in tokens if token is not None]

    assert await asyncio.gather(*(one(0.001 * (i % 3)) for i in range(40))) == [answer.tokens] * 40


def test_a_sync_stream(tiny_engine, answer):
    with tiny_engine.generate_stream_sync(PROMPT, SHORT) as stream:
        assert next(stream).token == answer.tokens[0]
        rest = list(stream)
    assert [u.token for u in rest if u.token is not None] == answer.tokens[1:] and stream.output.text == answer.text


def test_many_threads_and_event_loops_at_once(tiny_engine, answer):
    results = []

    def thread(index):
        if index % 2:
            results.append(asyncio.run(tiny_engine.generate(PROMPT, SHORT)).tokens)
        else:
            results.append(tiny_engine.generate_sync(PROMPT, SHORT).tokens)

    threads = [threading.Thread(target=thread, args=(index,)) for index in range(12)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert results == [answer.tokens] * 12


async def test_a_stream_that_nobody_reads_holds_nobody_up(tiny_engine, answer):
    unread = tiny_engine.generate_stream(PROMPT, LONG)
    for _ in range(3):
        assert (await tiny_engine.generate(PROMPT, SHORT)).tokens == answer.tokens
    assert await asyncio.to_thread(idle, tiny_engine)  # it ran to its end all the same
    assert len([update async for update in unread]) >= 240


def test_the_loop_of_a_caller_may_be_gone(tiny_engine, answer):
    """An event loop that closes in the middle of a stream takes nothing with it."""

    async def start():
        return tiny_engine.generate_stream(PROMPT, LONG)

    stream = asyncio.run(start())
    assert tiny_engine.generate_sync(PROMPT, SHORT).tokens == answer.tokens
    del stream


# --- cancelling ---


async def test_leaving_a_loop_early_frees_the_pages(tiny_engine):
    async for update in tiny_engine.generate_stream(PROMPT, LONG):
        assert update.token is not None
        break
    gc.collect()
    assert await asyncio.to_thread(idle, tiny_engine)
    assert tiny_engine.stats().requests_completed


@pytest.mark.parametrize("way", ["cancel", "aclose", "async with", "handle"])
async def test_ending_a_stream(tiny_engine, answer, way):
    stream = tiny_engine.generate_stream(PROMPT, LONG)
    tokens = [(await anext(stream)).token for _ in range(3)]
    if way == "cancel":
        stream.cancel()
    elif way == "aclose":
        await stream.aclose()
    elif way == "handle":
        tiny_engine.cancel_request(stream.handle)
    else:
        async with stream:
            pass
    tokens += [update.token async for update in stream if update.token is not None]
    assert stream.output.finish_reason is FinishReason.Cancelled
    assert stream.output.tokens == tokens and len(tokens) < 240 and tokens[:12] == answer.tokens[: len(tokens)][:12]
    stream.cancel()
    tiny_engine.cancel_request(stream.handle)  # both do nothing now
    assert idle(tiny_engine)


def test_closing_a_sync_stream(tiny_engine):
    stream = tiny_engine.generate_stream_sync(PROMPT, LONG)
    next(stream)
    stream.close()
    assert stream.finish().finish_reason is FinishReason.Cancelled
    for update in tiny_engine.generate_stream_sync(PROMPT, LONG):
        assert update
        break
    gc.collect()
    assert idle(tiny_engine)


@pytest.mark.parametrize("kind", ["generate", "stream"])
async def test_cancelling_the_waiting_task(tiny_engine, kind):
    """asyncio's own exception passes, and the pages come back."""

    async def wait():
        if kind == "generate":
            return await tiny_engine.generate(PROMPT, LONG)
        return [update async for update in tiny_engine.generate_stream(PROMPT, LONG)]

    task = asyncio.create_task(wait())
    while not tiny_engine.stats().running:  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(idle, tiny_engine)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(tiny_engine.generate(PROMPT, LONG), 0.002)
    assert await asyncio.to_thread(idle, tiny_engine)


def test_cancelling_in_every_state(make_engine):
    engine = make_engine(max_queue_size=2, max_batch_size=1)
    running, waiting = (engine.generate_stream_sync(PROMPT, LONG) for _ in range(2))
    waiting.cancel()
    output = waiting.finish()
    assert (output.tokens, output.text, output.finish_reason) == ([], "", FinishReason.Cancelled)
    running.cancel()
    assert running.finish().finish_reason is FinishReason.Cancelled
    for limit in (1, 2, 3):  # at a time when the last token may be on its way, read or reported
        for wait in (0, 0.001, 0.003):
            stream = engine.generate_stream_sync(PROMPT, GenerationParams(max_tokens=limit, ignore_eos=True))
            time.sleep(wait)
            stream.cancel()
            output = stream.finish()
            assert output.finish_reason in (FinishReason.Cancelled, FinishReason.Length)
            assert len(output.tokens) == limit or output.finish_reason is FinishReason.Cancelled
    assert idle(engine)


def test_cancelling_by_step_in_every_state(tiny_engine, answer):
    """Before the first step, in the middle, in the last step and after the end; outputs hold what was made."""

    def updates_of(handle):
        return [update for update in tiny_engine.step() if update.handle == handle]

    for steps in range(14):
        handle = tiny_engine.add_request(InferenceRequest(prompt=PROMPT, params=SHORT))
        tokens = [update.token for _ in range(steps) for update in updates_of(handle) if hasattr(update, "token")]
        tiny_engine.cancel_request(handle)
        last = updates_of(handle)
        if steps >= 12:  # had ended
            assert last == [] and tokens == answer.tokens
            continue
        [completed] = last
        assert isinstance(completed, RequestUpdate.Completed)
        assert completed.output.finish_reason is FinishReason.Cancelled
        assert completed.output.tokens == tokens == answer.tokens[:steps]
        assert completed.output.handle == completed.handle == handle
    assert tiny_engine.step() == []


def test_a_handle_that_nobody_knows_is_ignored(tiny_engine):
    tiny_engine.cancel_request(RequestHandle(10**9))


# --- step() and the background loop ---


def test_step_and_the_background_loop_do_not_mix(tiny_engine, answer):
    stream = tiny_engine.generate_stream_sync(PROMPT, LONG)
    with pytest.raises(ConfigError, match="are run by the background loop"):
        tiny_engine.step()
    with pytest.raises(ConfigError, match="are run by the background loop"):
        tiny_engine.add_request(InferenceRequest(prompt=PROMPT))
    stream.cancel()
    stream.finish()
    handle = tiny_engine.add_request(InferenceRequest(prompt=PROMPT, params=SHORT))
    with pytest.raises(ConfigError, match=r"are run by step\(\)"):
        tiny_engine.generate_sync(PROMPT, SHORT)
    updates = []
    while not updates or not isinstance(updates[-1], RequestUpdate.Completed):
        updates += tiny_engine.step()
    assert all(update.handle == handle for update in updates) and updates[-1].output.tokens == answer.tokens
    assert tiny_engine.generate_sync(PROMPT, SHORT).tokens == answer.tokens


def test_step_from_several_threads(tiny_engine, answer):
    """Each update is given to one caller."""
    handles = [tiny_engine.add_request(InferenceRequest(prompt=PROMPT, params=SHORT)) for _ in range(20)]
    updates = []

    def drive():
        while sum(isinstance(update, RequestUpdate.Completed) for update in updates) < len(handles):
            updates.extend(tiny_engine.step())

    threads = [threading.Thread(target=drive) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ended = {update.handle: update.output.tokens for update in updates if isinstance(update, RequestUpdate.Completed)}
    assert ended == dict.fromkeys(handles, answer.tokens)
    assert len(updates) == 20 * 13


# --- the ends of engines ---


@pytest.fixture
def new_engine(make_engine):
    """Engines that a test may end; their programs come from the disk."""
    config = make_engine().config
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(InferenceEngine.new_sync(config))


def engine_threads():
    return [thread for thread in threading.enumerate() if thread.name == "cvllm-jax engine"]


def test_two_engines_in_one_process(tiny_engine, new_engine, answer):
    other = new_engine()
    streams = [engine.generate_stream_sync(PROMPT, SHORT) for engine in (tiny_engine, other) for _ in range(3)]
    assert [stream.finish().tokens for stream in streams] == [answer.tokens] * 6
    other.close()
    assert tiny_engine.generate_sync(PROMPT, SHORT).tokens == answer.tokens


def test_closing_while_requests_run(new_engine):
    engine = new_engine()
    streams = [engine.generate_stream_sync(PROMPT, LONG) for _ in range(30)]
    next(streams[0])
    before = len(engine_threads())
    engine.close()
    assert len(engine_threads()) == before - 1
    for stream in streams:
        output = stream.finish()
        assert output.finish_reason is FinishReason.Cancelled and len(output.tokens) < 240
    engine.close()  # a second time does nothing
    for use in (
        lambda: engine.generate_sync(PROMPT), lambda: engine.generate_stream_sync(PROMPT), engine.step,
        lambda: engine.add_request(InferenceRequest(prompt=PROMPT)),
    ):  # fmt: skip
        with pytest.raises(CancelledError, match="the engine is closed"):
            use()
    assert engine.tokenize("a") and engine.stats().running == 0 and engine.model_info().name
    engine.cancel_request(streams[0].handle)


def test_closing_from_many_threads(new_engine):
    engine = new_engine()
    engine.generate_stream_sync(PROMPT, LONG)
    threads = [threading.Thread(target=engine.close) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


async def test_an_engine_is_a_context_manager(tiny_model_path, make_engine):
    config = make_engine().config
    async with await InferenceEngine.new(config) as engine:
        assert (await engine.generate(PROMPT, SHORT)).tokens
    with pytest.raises(CancelledError):
        await engine.generate(PROMPT, SHORT)


def test_a_dropped_engine_ends_its_thread_and_frees_its_memory(make_engine):
    config = make_engine().config
    before = len(engine_threads())
    engine = InferenceEngine.new_sync(config)
    engine.generate_sync(PROMPT, SHORT)
    assert len(engine_threads()) == before + 1
    weights = [weakref.ref(leaf) for leaf in engine.runner.leaves]
    runner = weakref.ref(engine.runner)
    handle = engine.add_request(InferenceRequest(prompt=PROMPT, params=LONG))
    assert handle
    del engine
    gc.collect()
    assert len(engine_threads()) == before
    assert runner() is None and not any(leaf() is not None for leaf in weights)


def test_a_closed_engine_holds_no_compiled_steps(make_engine):
    engine = InferenceEngine.new_sync(make_engine().config)
    engine.generate_sync(PROMPT, SHORT)
    assert engine.wait_until_warm(60)
    runner, compilations = engine.runner, engine.stats().compilations
    names = list(runner.programs._programs)
    assert names
    engine.close()
    assert not any(name in runner.programs for name in names)
    assert engine.stats().compilations == compilations


def test_an_engine_dropped_in_a_cycle_while_a_request_runs(make_engine):
    """The collector may find it on any thread, its own included."""
    config = make_engine().config
    before = len(engine_threads())
    for _ in range(3):
        engine = InferenceEngine.new_sync(config)
        holder = {"engine": engine}
        holder["self"] = holder
        streams = [engine.generate_stream_sync(PROMPT, LONG) for _ in range(4)]
        next(streams[0])
        del engine, holder, streams
    deadline = time.monotonic() + 10
    while len(engine_threads()) > before and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert len(engine_threads()) == before


async def test_loading_does_not_block_the_event_loop(tiny_model_path, make_engine):
    config = make_engine().config
    ticks, loading = 0, asyncio.create_task(InferenceEngine.new(config))
    while not loading.done():
        await asyncio.sleep(0.001)
        ticks += 1
    (await loading).close()
    assert ticks > 5


def test_an_engine_that_was_not_loaded_leaves_nothing(tmp_path):
    before = threading.active_count()
    with pytest.raises(Exception, match=r"config\.json"):
        InferenceEngine.new_sync(EngineConfig(model_path=str(tmp_path), device="cpu"))
    assert threading.active_count() == before
