"""The adapter over the real engine: all four ways of asking give the same answer, and none leaves anything."""

import asyncio

import pytest

from cvllm_jax.openai import ChatCompletionRequest, Message, OpenAIAdapter, RequestError


def request(**fields):
    return ChatCompletionRequest(
        model="any", messages=[Message.system("Be brief."), Message.user("wörld 👋")], **{"max_tokens": 20, **fields}
    )


def joined(chunks, index):
    deltas = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices[0].index == index]
    return "".join(deltas)


@pytest.mark.parametrize("fields", [{"temperature": 0.0}, {"seed": 3}, {"seed": -3, "n": 3, "top_p": 0.9}])
def test_every_way_of_asking_gives_the_same_answer(tiny_engine, fields):
    adapter = OpenAIAdapter(tiny_engine)

    async def stream():
        return [chunk async for chunk in adapter.chat_completion_stream(request(**fields))]

    answer = adapter.chat_completion_sync(request(**fields))
    texts = [choice.message.content for choice in answer.choices]
    assert len(set(texts)) == len(texts)
    again = asyncio.run(adapter.chat_completion(request(**fields)))
    assert [choice.message.content for choice in again.choices] == texts
    for chunks in (asyncio.run(stream()), list(adapter.chat_completion_stream_sync(request(**fields)))):
        assert [joined(chunks, index) for index in range(len(texts))] == texts


def test_without_a_limit_an_answer_may_fill_the_context(tiny_engine):
    answer = OpenAIAdapter(tiny_engine).chat_completion_sync(request(max_tokens=None, ignore_eos=True))
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == tiny_engine.model_info().max_sequence_length


def test_leaving_early_leaves_nothing(tiny_engine):
    adapter = OpenAIAdapter(tiny_engine)

    async def scenario():
        async with adapter.chat_completion_stream(request(max_tokens=None, ignore_eos=True, n=2)) as stream:
            await anext(stream)
        task = asyncio.create_task(adapter.chat_completion(request(max_tokens=None, ignore_eos=True)))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 10_000}, "max_tokens"),
        ({"logit_bias": {"100000": 1}}, "logit_bias"),
        ({"stop_token_ids": [100_000]}, "stop_token_ids"),
        ({"min_tokens": 250, "max_tokens": None}, "min_tokens"),
    ],
)
def test_the_engines_refusals_name_the_requests_fields(tiny_engine, fields, param):
    with pytest.raises(RequestError) as caught:
        OpenAIAdapter(tiny_engine).chat_completion_sync(request(**fields))
    assert caught.value.param == param
