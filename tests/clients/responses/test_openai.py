"""The OpenAI SDK in its current major version."""

import json

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from openresponses_types import ResponseResource
from pydantic import TypeAdapter
from two_tools import ADA, ANSWER, DENIED, GREETING, TASK, WEATHER_TOOL, Person, get_weather

EVENT = TypeAdapter(ResponseStreamEvent)


@pytest.fixture
def client(place):
    with openai.OpenAI(base_url=place.base_url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def whole(client, **request):
    return client.responses.create(**request)


def streamed(client, **request):
    with client.responses.stream(**request) as stream:
        for event in stream:
            assert event.sequence_number >= 0
        return stream.get_final_response()


def over_a_websocket(client, **request):
    with client.responses.connect() as connection:
        connection.response.create(**request)
        for event in connection:
            if event.type == "response.completed":
                return event.response
    raise AssertionError("the connection ended")


def outputs(response):
    """What the client's function gives for each call."""
    return [
        {"type": "function_call_output", "call_id": item.call_id, "output": get_weather(**json.loads(item.arguments))}
        for item in response.output
        if item.type == "function_call"
    ]


def kinds(response):
    return [item.type for item in response.output]


@pytest.mark.parametrize("ask", [whole, streamed, over_a_websocket])
def test_two_tools(client, place, ask):
    asked = {"model": place.model, "tools": [WEATHER_TOOL, place.hosted]}
    first = ask(client, **asked, input=TASK)
    assert kinds(first) == ["mcp_list_tools", "reasoning", "function_call"]
    second = ask(client, **asked, input=outputs(first), previous_response_id=first.id)
    assert kinds(second) == ["mcp_call", "reasoning", "message"]
    assert (second.output[0].output, second.output_text) == ("69.8", ANSWER)


@pytest.mark.parametrize("ask", [whole, streamed])
def test_two_tools_without_a_store(client, place, ask):
    asked = {
        "model": place.model, "tools": [WEATHER_TOOL, place.hosted], "store": False,
        "include": ["reasoning.encrypted_content"],
    }  # fmt: skip
    items = [{"role": "user", "content": TASK}]
    first = ask(client, **asked, input=items)
    items += [item.to_dict() for item in first.output] + outputs(first)
    assert ask(client, **asked, input=items).output_text == ANSWER
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_both_tools_at_once(client, place):
    """The server runs its own call, and waits for the result of the other."""
    asked = {"model": place.model, "tools": [WEATHER_TOOL, place.hosted]}
    first = streamed(client, **asked, input="Both at once")
    assert sorted(kinds(first)) == ["function_call", "mcp_call", "mcp_list_tools"]
    second = whole(client, **asked, input=outputs(first), previous_response_id=first.id)
    assert second.output_text == ANSWER


@pytest.mark.parametrize(("approve", "answer"), [(True, ANSWER), (False, DENIED)])
def test_approvals(client, place, approve, answer):
    asked = {"model": place.model, "tools": [WEATHER_TOOL, {**place.hosted, "require_approval": "always"}]}
    first = whole(client, **asked, input=TASK)
    second = streamed(client, **asked, input=outputs(first), previous_response_id=first.id)
    (request,) = second.output
    assert (request.type, request.name) == ("mcp_approval_request", "to_fahrenheit")
    decision = {"type": "mcp_approval_response", "approval_request_id": request.id, "approve": approve}
    assert streamed(client, **asked, input=[decision], previous_response_id=second.id).output_text == answer


def test_events_are_as_the_types_say(client, place):
    """The SDK itself does not check them."""
    asked = {"model": place.model, "tools": [WEATHER_TOOL, place.hosted], "input": "Both at once"}
    with client.responses.with_streaming_response.create(**asked, stream=True) as response:
        events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
    for event in events:
        EVENT.validate_python(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    Response.model_validate(events[-1]["response"])
    plain = client.responses.with_raw_response.create(model=place.model, input=TASK, tools=[WEATHER_TOOL])
    ResponseResource.model_validate_json(plain.text)


def test_parsed_answers(client, place):
    asked = {"model": place.model, "input": "Ada as JSON", "text_format": Person}
    assert client.responses.parse(**asked).output_parsed == ADA
    assert streamed(client, **asked).output_parsed == ADA


def test_stored_responses(client, place):
    made = whole(client, model=place.model, input="hello", metadata={"a": "b"})
    assert client.responses.retrieve(made.id) == made
    assert [item.content[0].text for item in client.responses.input_items.list(made.id)] == ["hello"]
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError) as raised:
        whole(client, model=place.model, input="hello", previous_response_id=made.id)
    assert raised.value.code == "previous_response_not_found"


def test_a_background_response(client, place):
    begun = whole(client, model=place.model, input=TASK, tools=[place.hosted], background=True)
    with client.responses.stream(response_id=begun.id, starting_after=0) as stream:
        assert stream.get_final_response().status == "completed"
    assert client.responses.retrieve(begun.id).status == "completed"


@pytest.mark.filterwarnings("ignore:Pydantic serializer")  # the SDK takes messages of the user for the model's
def test_compaction(client, place):
    short = client.responses.compact(model=place.model, input="hello")
    items = [*(item.to_dict() for item in short.output), {"role": "user", "content": "hello"}]
    assert whole(client, model=place.model, input=items).output_text == GREETING


def test_input_tokens(client, place):
    asked = {"model": place.model, "input": "hello", "tools": [WEATHER_TOOL]}
    assert client.responses.input_tokens.count(**asked).input_tokens == whole(client, **asked).usage.input_tokens


@pytest.mark.anyio
async def test_asynchronous(place):
    async with openai.AsyncOpenAI(base_url=place.base_url, api_key="none", max_retries=0) as client:
        stream = await client.responses.create(model=place.model, input="hello", stream=True)
        events = [event async for event in stream]
        assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == GREETING
        async with client.responses.connect() as connection:
            await connection.response.create(model=place.model, input="hello")
            async for event in connection:
                if event.type == "response.completed":
                    break
        assert event.response.output_text == GREETING
