"""/v1/conversations, and responses that are part of one."""

import time

import openai
import pytest
from conftest import wait_until_idle
from live_server import live_server
from responses_api import WEATHER, ResponsesApi, error_of, text_of

from server.settings import ServerSettings

MODEL = "script"


@pytest.fixture
def client(api):
    with api.sdk() as client:
        yield client


def message(text, **fields):
    return {"type": "message", "role": "user", "content": text, **fields}


def texts(client, conversation, **query):
    items = client.conversations.items.list(conversation.id, order="asc", **query)
    return [item.content[0].text if item.type == "message" else item.type for item in items]


def test_a_conversation_from_start_to_end(client):
    made = client.conversations.create(metadata={"a": "b"}, items=[message("I am Alice.")])
    assert (made.object, made.metadata) == ("conversation", {"a": "b"})
    assert client.conversations.retrieve(made.id) == made
    assert client.conversations.update(made.id, metadata={"c": "d"}).metadata == {"c": "d"}
    deleted = client.conversations.delete(made.id)
    assert (deleted.object, deleted.deleted) == ("conversation.deleted", True)
    with pytest.raises(openai.NotFoundError):
        client.conversations.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        client.conversations.delete(made.id)


def test_items(client):
    made = client.conversations.create()
    added = client.conversations.items.create(made.id, items=[message("one"), message("two", id="msg_two")])
    assert [item.content[0].text for item in added.data] == ["one", "two"]
    first = client.conversations.items.retrieve(added.data[0].id, conversation_id=made.id)
    assert first == added.data[0]
    client.conversations.items.create(made.id, items=[message(f"more {number}") for number in range(5)])
    assert texts(client, made, limit=2) == ["one", "two", *(f"more {number}" for number in range(5))]
    client.conversations.items.delete("msg_two", conversation_id=made.id)
    with pytest.raises(openai.NotFoundError):
        client.conversations.items.retrieve("msg_two", conversation_id=made.id)
    assert texts(client, made)[:2] == ["one", "more 0"]


def test_responses_go_on_with_a_conversation(client):
    made = client.conversations.create(items=[message("I am Alice.")])
    first = client.responses.create(model=MODEL, conversation=made.id, input="What's the weather?", tools=[WEATHER])
    assert first.conversation.id == made.id
    output = {"type": "function_call_output", "call_id": first.output[0].call_id, "output": "21 degrees"}
    second = client.responses.create(
        model=MODEL, conversation={"id": made.id}, input=[output], tools=[WEATHER], store=False
    )
    assert second.output_text == "It is 21 degrees."
    expected = ["I am Alice.", "What's the weather?", "function_call", "function_call_output", "It is 21 degrees."]
    assert texts(client, made) == expected
    third = client.responses.create(model=MODEL, conversation=made.id, input="What is my name?", stream=True)
    assert [event.type for event in third][-1] == "response.completed"
    assert len(texts(client, made)) == 7
    alone = client.responses.create(model=MODEL, input="What is my name?")
    assert alone.usage.input_tokens < second.usage.input_tokens


def test_a_conversation_is_used_by_one_response_at_a_time(client):
    made = client.conversations.create()
    running = client.responses.create(model=MODEL, conversation=made.id, input="count for ever", background=True)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, conversation=made.id, input="Say hello.")
    assert caught.value.code == "conversation_locked"
    with pytest.raises(openai.BadRequestError) as caught:
        client.conversations.items.create(made.id, items=[message("x")])
    assert caught.value.code == "conversation_locked"
    client.responses.cancel(running.id)
    assert client.responses.create(model=MODEL, conversation=made.id, input="Say hello.").output_text == "Hello there."


@pytest.mark.parametrize(
    "wrong",
    [
        {"input": [{"type": "function_call_output", "call_id": "none", "output": "x"}]},
        {"input": "x", "temperature": 3},
        {"input": "word " * 5000},
        {"input": "x", "tools": [{"type": "mcp", "server_label": "none"}]},
        {"input": [{"type": "item_reference", "id": "none"}]},
    ],
    ids=["output", "field", "length", "server", "reference"],
)
def test_what_is_refused_leaves_the_conversation_as_it_was(api, client, wrong):
    made = client.conversations.create(items=[message("I am Alice.")])
    for fields in ({}, {"store": False}, {"stream": True}):
        answer = api.post(conversation=made.id, **wrong, **fields)
        assert answer.status_code in (400, 404)
    assert texts(client, made) == ["I am Alice."]
    after = client.responses.create(model=MODEL, conversation=made.id, input="Say hello.")
    assert after.output_text == "Hello there."


def test_a_client_that_leaves_unlocks_the_conversation(api, client, scripted_engine):
    made = client.conversations.create()
    with client.responses.create(model=MODEL, conversation=made.id, input="count for ever", stream=True) as stream:
        next(event for event in stream if event.type == "response.output_text.delta")
    wait_until_idle(scripted_engine)
    deadline = time.monotonic() + 5
    while (answer := api.post(input="Say hello.", conversation=made.id)).status_code != 200:
        assert error_of(answer)["code"] == "conversation_locked"
        assert time.monotonic() < deadline


def test_a_conversation_that_is_deleted_meanwhile(client):
    made = client.conversations.create()
    running = client.responses.create(model=MODEL, conversation=made.id, input="count for ever", background=True)
    with pytest.raises(openai.BadRequestError):
        client.conversations.delete(made.id)
    client.responses.cancel(running.id)
    client.conversations.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model=MODEL, conversation=made.id, input="x")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param"),
    [
        ("POST", "/conversations", {"items": [message("x")] * 21}, 400, "items"),
        ("POST", "/conversations", {"metadata": {"x": 1}}, 400, "metadata.x"),
        ("POST", "/conversations", {"metadata": {str(number): "" for number in range(17)}}, 400, "metadata"),
        ("POST", "/conversations", {"items": [{"type": "item_reference", "id": "x"}]}, 404, "items"),
        ("POST", "/conversations", {"items": [message("x", id="a"), message("y", id="a")]}, 400, "input"),
        ("POST", "/conversations/none", {"metadata": {}}, 404, None),
        ("POST", "/conversations/none/items", {"items": []}, 400, "items"),
        ("POST", "/conversations/none/items", {"items": [message("x")]}, 404, None),
        ("POST", "/conversations/none/items", {}, 400, "items"),
        ("GET", "/conversations/none", None, 404, None),
        ("GET", "/conversations/none/items", None, 404, None),
        ("GET", "/conversations/none/items?limit=0", None, 400, "limit"),
        ("GET", "/conversations/none/items?limit=101", None, 400, "limit"),
        ("GET", "/conversations/none/items?order=up", None, 400, "order"),
        ("GET", "/conversations/none/items?include=all", None, 400, "include[0]"),
        ("GET", "/conversations/none/items/x", None, 404, None),
        ("DELETE", "/conversations/none/items/x", None, 404, None),
    ],
)
def test_what_is_refused(api, method, path, body, status, param):
    assert error_of(api.request(method, path, body), status)["param"] == param


def test_both_ways_to_go_on_exclude_each_other(api):
    error = api.refused(input="x", previous_response_id="resp_x", conversation="conv_x")
    assert (error["param"], error["code"]) == ("previous_response_id", "mutually_exclusive_parameters")


def test_conversations_outlive_the_server(scripted_engine, tmp_path):
    settings = ServerSettings(store=str(tmp_path / "store.sqlite3"))
    with live_server(scripted_engine, settings) as server:
        api = ResponsesApi(server.url)
        made = api.request("POST", "/conversations", {"items": [message("I am Alice.")]}).json()
        api.create("Say hello.", conversation=made["id"])
    with live_server(scripted_engine, settings) as server:
        api = ResponsesApi(server.url)
        assert text_of(api.create("What is my name?", conversation=made["id"])) == "Alice."
        assert len(api.get(f"/conversations/{made['id']}/items").json()["data"]) == 5
