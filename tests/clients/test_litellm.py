import json

import litellm
import pytest
from client_answers import ADA, CAPITAL, GREETING, REPORT, WEATHER_TOOL, Person, get_weather, user


def ask(served, *messages, model=None, complete=litellm.completion, **fields):
    where = {"api_base": served.base_url, "api_key": "none", "max_retries": 0, "timeout": 60}
    return complete(model=f"openai/{model or served.model}", messages=list(messages), **where, **fields)


def test_whole_and_streamed(scripted):
    answer = ask(scripted, user("hello"))
    assert answer.choices[0].message.content == GREETING
    assert answer.usage.completion_tokens == len(GREETING.encode())
    chunks = list(ask(scripted, user("hello"), stream=True, stream_options={"include_usage": True}))
    rebuilt = litellm.stream_chunk_builder(chunks)
    assert rebuilt.choices[0].message.content == GREETING
    assert rebuilt.usage.completion_tokens == answer.usage.completion_tokens


def test_a_tool_call_and_its_result(scripted):
    question = user("How is the weather?")
    answer = ask(scripted, question, tools=[WEATHER_TOOL])
    streamed = litellm.stream_chunk_builder(list(ask(scripted, question, tools=[WEATHER_TOOL], stream=True)))
    for choice in (answer.choices[0], streamed.choices[0]):
        assert choice.finish_reason == "tool_calls"
        (call,) = choice.message.tool_calls
        result = get_weather(**json.loads(call.function.arguments))
        reply = {"role": "tool", "tool_call_id": call.id, "content": result}
        message = ask(scripted, question, choice.message, reply, tools=[WEATHER_TOOL]).choices[0].message
        assert (message.content, message.reasoning_content) == (REPORT, "The tool says 21.")


def test_structured_output(scripted):
    content = ask(scripted, user("Ada as JSON"), response_format=Person).choices[0].message.content
    assert Person.model_validate_json(content) == ADA


@pytest.mark.anyio
async def test_asynchronous(scripted):
    stream = await ask(scripted, user("hello"), complete=litellm.acompletion, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == GREETING


def test_an_unknown_model(scripted):
    with pytest.raises(litellm.NotFoundError):
        ask(scripted, user("hello"), model="nobody")


def test_the_demo_model(demo):
    assert "Paris" in ask(demo, user(CAPITAL), temperature=0).choices[0].message.content
