"""The OpenAI SDK's helpers, in the major version before the one that `make test` uses."""

import json

import openai
import pytest
from client_answers import ADA, CAPITAL, GREETING, REPORT, WEATHER_TOOL, Person, get_weather, user


@pytest.fixture
def client(scripted):
    with openai.OpenAI(base_url=scripted.base_url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_a_tool_call_and_its_result(client, scripted):
    messages = [user("How is the weather?")]
    asked = {"model": scripted.model, "messages": messages, "tools": [WEATHER_TOOL]}
    with client.chat.completions.stream(**asked) as stream:
        message = stream.get_final_completion().choices[0].message
    (call,) = message.tool_calls
    result = get_weather(**json.loads(call.function.arguments))
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": result}]
    answer = client.chat.completions.create(**asked).choices[0].message
    assert (answer.content, answer.reasoning_content) == (REPORT, "The tool says 21.")


def test_parsed_answers_whole_and_streamed(client, scripted):
    asked = {"model": scripted.model, "messages": [user("Ada as JSON")], "response_format": Person}
    assert client.chat.completions.parse(**asked).choices[0].message.parsed == ADA
    with client.chat.completions.stream(**asked) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == ADA


def test_a_parsed_tool_call(client, scripted):
    tools = [openai.pydantic_function_tool(Person)]
    asked = {"model": scripted.model, "messages": [user("Ada with Person")], "tools": tools}
    (call,) = client.chat.completions.parse(**asked, tool_choice="required").choices[0].message.tool_calls
    assert call.function.parsed_arguments == ADA


def test_an_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="nobody", messages=[user("hello")])
    assert raised.value.code == "model_not_found"


@pytest.mark.anyio
async def test_asynchronous_with_usage(scripted):
    async with openai.AsyncOpenAI(base_url=scripted.base_url, api_key="none", max_retries=0) as client:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        stream = await client.chat.completions.create(model=scripted.model, messages=[user("hello")], **options)
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == GREETING
    assert chunks[-1].usage.completion_tokens == len(GREETING.encode())


def test_the_demo_model(demo):
    with openai.OpenAI(base_url=demo.base_url, api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [demo.model]
        answer = client.chat.completions.create(model=demo.model, messages=[user(CAPITAL)], temperature=0)
    assert "Paris" in answer.choices[0].message.content
