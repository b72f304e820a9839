import openai
import pytest
from client_answers import ADA, CAPITAL, GREETING, REPORT, Person, get_weather
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI


def chat(served, **settings):
    settings = {"model": served.model, "stream_usage": True, **settings}
    return ChatOpenAI(base_url=served.base_url, api_key="none", max_retries=0, timeout=60, **settings)


def test_whole_and_streamed(scripted):
    answer = chat(scripted).invoke("hello")
    assert answer.content == GREETING
    assert answer.usage_metadata["output_tokens"] == len(GREETING.encode())
    chunks = list(chat(scripted).stream("hello"))
    total = sum(chunks[1:], chunks[0])
    assert total.content == GREETING
    assert total.usage_metadata["total_tokens"] == answer.usage_metadata["total_tokens"]
    assert total.response_metadata["finish_reason"] == "stop"


def test_a_tool_call_and_its_result(scripted):
    model = chat(scripted).bind_tools([get_weather])
    messages = [HumanMessage("How is the weather?")]
    chunks = list(model.stream(messages))
    streamed = sum(chunks[1:], chunks[0])
    answer = model.invoke(messages)
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    assert [(each["name"], each["args"]) for each in streamed.tool_calls] == [(call["name"], call["args"])]
    messages += [answer, ToolMessage(get_weather(**call["args"]), tool_call_id=call["id"])]
    assert model.invoke(messages).content == REPORT


@pytest.mark.parametrize(
    ("method", "text"),
    [("json_schema", "Ada as JSON"), ("json_mode", "Ada as JSON"), ("function_calling", "Ada with Person")],
)
def test_structured_output(scripted, method, text):
    assert chat(scripted).with_structured_output(Person, method=method).invoke(text) == ADA


@pytest.mark.anyio
async def test_asynchronous(scripted):
    model = chat(scripted)
    assert (await model.ainvoke("hello")).content == GREETING
    assert "".join([chunk.content async for chunk in model.astream("hello")]) == GREETING


def test_an_unknown_model(scripted):
    with pytest.raises(openai.NotFoundError):
        chat(scripted, model="nobody").invoke("hello")


def test_the_demo_model(demo):
    assert "Paris" in chat(demo, temperature=0).invoke(CAPITAL).content
