"""OpenAI's SDK on /v1/responses, over real sockets."""

import asyncio
import threading
import time

import openai
import pytest
from conftest import wait_until_idle
from live_server import live_server
from pydantic import BaseModel
from responses_api import WEATHER, ResponsesApi, judge_events, kinds, text_of

from server.settings import ServerSettings

MODEL = "script"


@pytest.fixture
def client(api):
    with api.sdk() as client:
        yield client


class Sum(BaseModel):
    sum: int


def polled(client, response_id, seconds=20):
    """A background response, when it has ended."""
    deadline = time.monotonic() + seconds
    while (response := client.responses.retrieve(response_id)).status in ("queued", "in_progress"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return response


def test_create_retrieve_and_delete(client):
    created = client.responses.create(model=MODEL, input="Say hello.", metadata={"a": "b"})
    assert created.output_text == "Hello there."
    assert client.responses.retrieve(created.id) == created
    client.responses.delete(created.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(created.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(created.id)


def test_what_is_not_stored_is_nowhere(client):
    created = client.responses.create(model=MODEL, input="Say hello.", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(created.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, input="Go on.", previous_response_id=created.id)
    assert caught.value.code == "previous_response_not_found"


def test_a_stream(client):
    with client.responses.stream(model=MODEL, input="Say hello. Think.", tools=[WEATHER]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == "Hello there."
    assert kinds[0] == "response.created"
    assert client.responses.retrieve(final.id).output_text == "Hello there."


def test_parse(client):
    parsed = client.responses.parse(model=MODEL, input="the sum as JSON", text_format=Sum)
    assert parsed.output_parsed == Sum(sum=5)
    with client.responses.stream(model=MODEL, input="the sum as JSON", text_format=Sum) as stream:
        assert stream.get_final_response().output_parsed == Sum(sum=5)


def test_a_function_and_its_output(client):
    first = client.responses.create(model=MODEL, input="What's the weather?", tools=[WEATHER])
    (called,) = first.output
    output = {"type": "function_call_output", "call_id": called.call_id, "output": "21 degrees"}
    second = client.responses.create(model=MODEL, input=[output], previous_response_id=first.id, tools=[WEATHER])
    assert second.output_text == "It is 21 degrees."


def test_log_probabilities(client):
    response = client.responses.create(
        model=MODEL, input="Say hello.", top_logprobs=2, include=["message.output_text.logprobs"]
    )
    (part,) = response.output[0].content
    assert "".join(entry.token for entry in part.logprobs) == part.text
    assert {len(entry.top_logprobs) for entry in part.logprobs} == {2}


def test_input_items_in_pages(client):
    items = [{"role": "user", "content": f"number {number}"} for number in range(5)]
    created = client.responses.create(model=MODEL, input=items)
    texts = [item.content[0].text for item in client.responses.input_items.list(created.id, limit=2, order="asc")]
    assert texts == [f"number {number}" for number in range(5)]
    page = client.responses.input_items.list(created.id, limit=2)
    assert [item.content[0].text for item in page.data] == ["number 4", "number 3"]
    assert page.has_more
    child = client.responses.create(model=MODEL, input="more", previous_response_id=created.id)
    assert len(client.responses.input_items.list(child.id).data) == 1


def test_input_tokens(client):
    asked = {"input": "What's the weather?", "tools": [WEATHER], "instructions": "Be brief."}
    count = client.responses.input_tokens.count(model=MODEL, **asked).input_tokens
    assert client.responses.create(model=MODEL, **asked).usage.input_tokens == count
    assert client.responses.input_tokens.count(input="hi").input_tokens < count


def test_compact_and_go_on(client):
    first = client.responses.create(model=MODEL, input="The code word is tango. " * 20)
    compacted = client.responses.compact(model=MODEL, previous_response_id=first.id)
    assert [item.type for item in compacted.output] == ["message", "compaction"]
    items = [item.model_dump(exclude_none=True, warnings=False) for item in compacted.output]
    again = client.responses.create(model=MODEL, input=[*items, {"role": "user", "content": "What is my name?"}])
    assert again.output_text == "Alice."
    assert client.responses.create(model=MODEL, input="Go on.", previous_response_id=again.id).status == "completed"


def test_stored_items_are_referred_to_from_anywhere(client):
    """As the AI SDK does: it names no previous response."""
    first = client.responses.create(model=MODEL, input="What's the weather? Think.", tools=[WEATHER])
    reasoning, called = first.output
    second = client.responses.create(
        model=MODEL, tools=[WEATHER],
        input=[
            {"role": "user", "content": "What's the weather? Think."},
            {"type": "item_reference", "id": reasoning.id},
            {"type": "item_reference", "id": called.id},
            {"type": "function_call_output", "call_id": called.call_id, "output": "21 degrees"},
        ],
    )  # fmt: skip
    assert second.output_text == "It is 21 degrees."
    stored = client.responses.input_items.list(second.id, order="asc").data
    assert [item.id for item in stored][1:3] == [reasoning.id, called.id]
    chained = client.responses.create(
        model=MODEL, tools=[WEATHER], previous_response_id=first.id,
        input=[
            {"type": "item_reference", "id": called.id},
            {"type": "function_call_output", "call_id": called.call_id, "output": "21 degrees"},
        ],
    )  # fmt: skip
    assert chained.usage.input_tokens == second.usage.input_tokens
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(model=MODEL, input=[{"type": "item_reference", "id": "msg_none"}])
    assert caught.value.param == "input"


def test_what_can_be_included_later(client):
    created = client.responses.create(model=MODEL, input="Say hello. Think.")
    assert created.output[0].encrypted_content is None
    wanted = ["reasoning.encrypted_content"]
    reasoning = client.responses.retrieve(created.id, include=wanted).output[0]
    answer = client.responses.create(
        model=MODEL, store=False, include=wanted,
        input=[{"role": "user", "content": "Say hello. Think."}, *created.output[1:], {"role": "user", "content": "x"}],
    )  # fmt: skip
    own = client.responses.create(model=MODEL, input="Say hello. Think.", include=wanted).output[0]
    assert reasoning.encrypted_content == own.encrypted_content
    assert answer.status == "completed"
    child = client.responses.create(
        model=MODEL, input=[created.output[0].model_dump(), {"role": "user", "content": "x"}]
    )
    listed = client.responses.input_items.list(child.id, order="asc", include=wanted).data
    assert listed[0].encrypted_content == own.encrypted_content
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.retrieve(created.id, include=["everything"])
    assert caught.value.param == "include[0]"


@pytest.mark.parametrize(
    ("extension", "text"),
    [
        ({"stop": "STOP"}, "before "),
        ({"stop": ["AFTER", "STOP"]}, "before "),
        ({"top_k": 1, "min_p": 0.5, "seed": 7, "repetition_penalty": 1.1}, "before STOP after"),
        ({"ignore_eos": True, "max_output_tokens": 30}, "before STOP after"),
        ({"min_tokens": 3, "chat_template_kwargs": {"enable_thinking": False}}, "before STOP after"),
    ],
)
def test_sampling_extensions(client, extension, text):
    known = {key: extension.pop(key) for key in ("max_output_tokens",) if key in extension}
    response = client.responses.create(model=MODEL, input="stop here", extra_body=extension, **known)
    assert response.output_text == text
    assert (response.status == "incomplete") == bool(known)


def test_an_extension_that_is_wrong_is_named(client):
    for wrong in ({"top_k": -2}, {"min_p": 2}, {"stop": []}, {"logit_bias": {"99999999": 1}}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model=MODEL, input="hi", extra_body=wrong)
        assert caught.value.param.startswith(next(iter(wrong)))


def test_a_background_response(client):
    queued = client.responses.create(model=MODEL, input="Say hello.", background=True)
    assert (queued.status in ("queued", "in_progress"), queued.background) == (True, True)
    ended = polled(client, queued.id)
    assert (ended.status, ended.output_text) == ("completed", "Hello there.")
    with pytest.raises(openai.BadRequestError, match="completed"):
        client.responses.cancel(queued.id)


def test_a_background_stream_is_resumed(client):
    """Amid the response, several times, by several readers, and after its end."""
    created = client.responses.create(model=MODEL, input="count for ever", background=True, max_output_tokens=600)
    seen = []
    for _ in range(3):
        after = seen[-1].sequence_number if seen else -1
        with client.responses.retrieve(created.id, stream=True, starting_after=after) as stream:
            for event in stream:
                seen.append(event)
                if len(seen) % 100 == 0:
                    break
    last = seen[-1].sequence_number
    seen += client.responses.retrieve(created.id, stream=True, starting_after=last)
    events = judge_events([event.model_dump(mode="json", exclude_unset=True) for event in seen])
    assert kinds(events)[:3] == ["created", "queued", "in_progress"]
    assert events[-1]["response"]["status"] == "incomplete"
    polled(client, created.id)
    again = list(client.responses.retrieve(created.id, stream=True))
    assert [event.sequence_number for event in again] == [event.sequence_number for event in seen]
    assert list(client.responses.retrieve(created.id, stream=True, starting_after=10**9)) == []


def test_a_background_response_outlives_the_client_that_streams_it(client):
    with client.responses.create(model=MODEL, input="count to ten", background=True, stream=True) as stream:
        response_id = next(iter(stream)).response.id
    assert polled(client, response_id).output_text.endswith("nine ten")


def test_cancelling(client, scripted_engine):
    created = client.responses.create(model=MODEL, input="count for ever", background=True)
    reader = client.responses.retrieve(created.id, stream=True)
    next(event for event in reader if event.type == "response.output_text.delta")
    cancelled = client.responses.cancel(created.id)
    assert cancelled.status == "cancelled"
    assert [event.type for event in reader][-1] == "response.incomplete"
    wait_until_idle(scripted_engine)
    assert client.responses.cancel(created.id).status == "cancelled"
    assert client.responses.retrieve(created.id).status == "cancelled"
    plain = client.responses.create(model=MODEL, input="Say hello.")
    with pytest.raises(openai.BadRequestError, match="synchronous"):
        client.responses.cancel(plain.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.cancel("resp_none")


def test_a_background_response_that_cannot_begin_has_failed(client):
    created = client.responses.create(model=MODEL, input="word " * 5000, background=True)
    ended = polled(client, created.id)
    assert (ended.status, ended.error.code, ended.output) == ("failed", "invalid_prompt", [])
    assert "maximum context length" in ended.error.message
    events = list(client.responses.retrieve(created.id, stream=True))
    assert [event.type for event in events][-1] == "response.failed"


def test_deleting_ends_a_background_response(client, scripted_engine):
    created = client.responses.create(model=MODEL, input="count for ever", background=True)
    client.responses.delete(created.id)
    wait_until_idle(scripted_engine)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(created.id)


def test_nothing_goes_on_from_a_response_in_progress(client):
    created = client.responses.create(model=MODEL, input="count for ever", background=True)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, input="x", previous_response_id=created.id)
    assert caught.value.code == "response_in_progress"
    client.responses.cancel(created.id)
    after = client.responses.create(model=MODEL, input="Say hello.", previous_response_id=created.id)
    assert after.output_text == "Hello there."


def test_an_api_key(scripted_engine):
    with live_server(scripted_engine, ServerSettings(api_key="key")) as server:
        with ResponsesApi(server.url, key="key").sdk() as client, client.responses.connect() as connection:
            connection.response.create(model=MODEL, input="Say hello.")
            assert list(_until_end(connection))[-1].response.output_text == "Hello there."
        with ResponsesApi(server.url, key="wrong").sdk() as client:
            with pytest.raises(openai.AuthenticationError):
                client.responses.create(model=MODEL, input="hi")
            with pytest.raises(Exception, match="401"), client.responses.connect(max_retries=0):
                pass


def _until_end(connection):
    for event in connection:
        yield event
        if event.type in ("response.completed", "response.failed", "response.incomplete", "error"):
            return


async def _until_end_async(connection):
    async for event in connection:
        yield event
        if event.type == "response.completed":
            return


def test_turns_over_a_socket(client):
    with client.responses.connect() as connection:
        connection.response.create(model=MODEL, input="I am Alice.", store=False)
        first = list(_until_end(connection))[-1].response
        connection.response.create(model=MODEL, input="What is my name?", store=False, previous_response_id=first.id)
        second = list(_until_end(connection))[-1].response
    assert second.output_text == "Alice."
    assert second.usage.input_tokens > first.usage.input_tokens


def test_many_clients_at_once(api, scripted_engine):
    async def all_of_them():
        async with api.sdk(openai.AsyncOpenAI) as client:

            async def one(number):
                if number % 3 == 0:
                    return (await client.responses.create(model=MODEL, input="Say hello.")).output_text
                if number % 3 == 1:
                    async with client.responses.stream(model=MODEL, input="Say hello.") as stream:
                        return (await stream.get_final_response()).output_text
                async with client.responses.connect() as connection:
                    await connection.response.create(model=MODEL, input="Say hello.")
                    events = [event async for event in _until_end_async(connection)]
                    return events[-1].response.output_text

            return await asyncio.gather(*map(one, range(24)))

    assert asyncio.run(all_of_them()) == ["Hello there."] * 24


def test_a_client_that_leaves_amid_its_stream(client, scripted_engine):
    with client.responses.create(model=MODEL, input="count for ever", stream=True) as stream:
        response_id = next(iter(stream)).response.id
    wait_until_idle(scripted_engine)
    deadline = time.monotonic() + 5
    while (status := client.responses.retrieve(response_id).status) == "in_progress":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert status == "cancelled"


def test_the_end_of_the_server_ends_what_runs(scripted_engine, tmp_path):
    settings = ServerSettings(store=str(tmp_path / "store.sqlite3"))
    streamed = []
    with live_server(scripted_engine, settings) as server:
        api = ResponsesApi(server.url)
        background = api.create("count for ever", background=True)
        begun = threading.Event()

        def read():
            with api.sdk() as client, pytest.raises(openai.APIError, match="shutting down"):
                for event in client.responses.create(model=MODEL, input="count for ever", stream=True):
                    streamed.append(event)
                    begun.set()

        reading = threading.Thread(target=read)
        reading.start()
        assert begun.wait(10)
    reading.join(10)
    wait_until_idle(scripted_engine)
    with live_server(scripted_engine, settings) as server:
        api = ResponsesApi(server.url)
        for response_id in (background["id"], streamed[0].response.id):
            response = api.get(f"/responses/{response_id}").json()
            assert response["status"] in ("cancelled", "incomplete")
        assert text_of(api.create("Say hello.", previous_response_id=background["id"])) == "Hello there."
