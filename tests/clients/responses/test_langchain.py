"""langchain-openai on the Responses API."""

import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from two_tools import ADA, ANSWER, DENIED, GREETING, TASK, Person, get_weather


def chat(place, **settings):
    return ChatOpenAI(
        base_url=place.base_url, api_key="none", model=place.model, max_retries=0, timeout=60,
        use_responses_api=True, **settings,
    )  # fmt: skip


@pytest.fixture(params=["whole", "streamed"])
def ask(request):
    def ask(model, messages, **options):
        if request.param == "whole":
            return model.invoke(messages, **options)
        chunks = list(model.stream(messages, **options))
        return sum(chunks[1:], chunks[0])

    return ask


def results(answer):
    return [ToolMessage(get_weather(**call["args"]), tool_call_id=call["id"]) for call in answer.tool_calls]


def kinds(answer):
    return [block["type"] for block in answer.content]


def test_whole_and_streamed(place, ask):
    answer = ask(chat(place), "hello")
    assert (answer.text, answer.usage_metadata["output_tokens"]) == (GREETING, len(GREETING.encode()))


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_previous_response_id": True}, {"store": False, "include": ["reasoning.encrypted_content"]}],
    ids=["replayed", "stored", "store-false"],
)
def test_two_tools(place, ask, settings):
    model = chat(place, **settings).bind_tools([get_weather, place.hosted])
    messages = [HumanMessage(TASK)]
    first = ask(model, messages)
    assert [(call["name"], call["args"]) for call in first.tool_calls] == [("get_weather", {"city": "Paris"})]
    second = ask(model, [*messages, first, *results(first)])
    assert second.text == ANSWER
    assert "mcp_call" in kinds(second)


@pytest.mark.parametrize(("approve", "answer"), [(True, ANSWER), (False, DENIED)])
def test_approvals(place, ask, approve, answer):
    hosted = {**place.hosted, "require_approval": "always"}
    model = chat(place, use_previous_response_id=True).bind_tools([get_weather, hosted])
    messages = [HumanMessage(TASK)]
    for _ in range(2):
        messages.append(ask(model, messages))
        messages += results(messages[-1])
    (request,) = [block for block in messages[-1].content if block["type"] == "mcp_approval_request"]
    decision = {"type": "mcp_approval_response", "approval_request_id": request["id"], "approve": approve}
    assert ask(model, [*messages, HumanMessage([decision])]).text == answer


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
def test_structured_output(place, method):
    assert chat(place).with_structured_output(Person, method=method).invoke("Ada as JSON") == ADA


@pytest.mark.anyio
async def test_asynchronous(place):
    model = chat(place).bind_tools([get_weather, place.hosted])
    first = await model.ainvoke(TASK)
    messages = [HumanMessage(TASK), first, *results(first)]
    assert "".join([chunk.text async for chunk in model.astream(messages)]) == ANSWER
