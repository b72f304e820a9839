"""Responses over a WebSocket: turns, conversations that live with the connection, and how connections end."""

import json
import time
from importlib import import_module

import pytest
from conftest import wait_until_idle
from live_server import live_server
from responses_api import WEATHER, ResponsesApi, kinds, text_of
from websockets.exceptions import ConnectionClosed, InvalidStatus

from server.settings import ServerSettings

MODEL = "script"
SOCKETS = import_module("server.routes.responses_socket")  # the package has a function of that name


def test_two_at_once_are_answered_in_turn(api):
    with api.socket() as socket:
        socket.send(model=MODEL, input="count to ten")
        socket.send(model=MODEL, input="What is my name?")
        socket.send(model=MODEL, input="as JSON", tools=[{"type": "function"}])
        socket.send(model=MODEL, input="Say hello in exactly 3 words.")
        texts = [text_of(socket.events()[-1]["response"]) for _ in range(2)]
        (error,) = socket.events()
        assert error["error"]["param"] == "tools[0].name"
        texts.append(text_of(socket.events()[-1]["response"]))
    assert texts == ["one two three four five six seven eight nine ten", "Alice.", "Hello to you."]


def test_too_many_at_once_are_refused(api, monkeypatch):
    monkeypatch.setattr(SOCKETS, "_MAX_WAITING", 2)
    with api.socket() as socket:
        for _ in range(8):
            socket.send(model=MODEL, input="count to ten")
        ends, refused = 0, 0
        while ends + refused < 8:
            event = json.loads(socket.socket.recv(timeout=20))
            ends += event["type"] == "response.completed"
            if event["type"] == "error":
                refused += 1
                assert (event["status"], event["error"]["code"]) == (429, "too_many_messages")
    assert refused >= 1


@pytest.mark.parametrize(
    ("text", "param", "code"),
    [
        ("no JSON", None, "invalid_json"),
        ("[1]", None, "invalid_json"),
        ('{"model": "script", "input": "hi"}', "type", "invalid_value"),
        ('{"type": "response.steer", "input": "hi"}', "type", "invalid_value"),
        ('{"type": "response.create", "input": "hi"}', "model", "missing_required_parameter"),
        ('{"type": "response.create", "model": "none", "input": "hi"}', "model", "model_not_found"),
        ('{"type": "response.create", "model": "script", "input": "hi", "generate": 1}', "generate", "invalid_type"),
        ('{"type": "response.create", "model": "script"}', "input", "missing_required_parameter"),
    ],
)
def test_a_message_that_is_none_leaves_the_connection_open(api, text, param, code):
    with api.socket() as socket:
        socket.socket.send(text)
        (event,) = socket.events()
        assert (event["error"]["param"], event["error"]["code"]) == (param, code)
        assert text_of(socket.turn(model=MODEL, input="Say hello.")) == "Hello there."


def test_bytes_are_text(api):
    with api.socket() as socket:
        socket.socket.send(json.dumps({"type": "response.create", "model": MODEL, "input": "Say hello."}).encode())
        assert text_of(socket.events()[-1]["response"]) == "Hello there."


def test_only_the_last_response_is_kept(api):
    with api.socket() as socket:
        first = socket.turn(model=MODEL, store=False, input="I am Alice.")
        second = socket.turn(model=MODEL, store=False, input="Hello.", previous_response_id=first["id"])
        error = socket.refused(model=MODEL, store=False, input="x", previous_response_id=first["id"])
        assert error["code"] == "previous_response_not_found"
        # what has failed did not go on from it
        third = socket.turn(model=MODEL, store=False, input="x", previous_response_id=second["id"])
        assert socket.refused(model=MODEL, input="x", top_p=3)["param"] == "top_p"
        assert socket.turn(model=MODEL, store=False, input="x", previous_response_id=third["id"])["output"]


def test_what_fails_midway_takes_what_it_went_on_from_along(api):
    hopeless = {"type": "mcp", "server_label": "x", "server_url": "http://127.0.0.1:9/mcp", "require_approval": "never"}
    with api.socket() as socket:
        first = socket.turn(model=MODEL, store=False, input="I am Alice.")
        again = {"model": MODEL, "store": False, "previous_response_id": first["id"]}
        failed = socket.turn(**again, input="x", tools=[hopeless])
        assert failed["status"] == "failed"
        assert socket.refused(**again, input="x")["code"] == "previous_response_not_found"


def test_a_stored_response_goes_on_from_one_that_is_not(api):
    """It takes along what nobody has stored."""
    with api.socket() as socket:
        first = socket.turn(model=MODEL, store=False, input="I am Alice.")
        second = socket.turn(model=MODEL, input="Hello.", previous_response_id=first["id"])
        third = socket.turn(model=MODEL, input="Hello again.", previous_response_id=second["id"])
        here = socket.turn(model=MODEL, store=False, input="What is my name?", previous_response_id=third["id"])
    elsewhere = api.create("What is my name?", previous_response_id=third["id"])
    assert elsewhere["usage"]["input_tokens"] == here["usage"]["input_tokens"]
    assert second["previous_response_id"] == first["id"]
    assert len(api.get(f"/responses/{second['id']}/input_items").json()["data"]) == 3
    assert len(api.get(f"/responses/{third['id']}/input_items").json()["data"]) == 1
    api.request("DELETE", f"/responses/{second['id']}")
    assert api.refused(input="x", previous_response_id=third["id"])["code"] == "previous_response_not_found"


def test_a_stored_response_is_gone_on_from_on_any_connection(api):
    stored = api.create("I am Alice.")
    with api.socket() as socket:
        first = socket.turn(model=MODEL, input="What is my name?", previous_response_id=stored["id"])
    with api.socket() as socket:
        second = socket.turn(model=MODEL, store=False, input="What is my name?", previous_response_id=first["id"])
    assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]


def test_a_prompt_is_prepared_without_an_answer(api):
    with api.socket() as socket:
        socket.send(model=MODEL, input="I am Alice.", store=False, generate=False, tools=[WEATHER])
        events = socket.events()
        assert kinds(events) == ["created", "in_progress", "completed"]
        assert events[-1]["response"]["output"] == []
        again = {"store": False, "previous_response_id": events[-1]["response"]["id"], "tools": [WEATHER]}
        assert text_of(socket.turn(model=MODEL, input="What is my name?", **again)) == "Alice."


def test_a_connection_has_its_time(api, monkeypatch):
    monkeypatch.setattr(SOCKETS, "_MAX_SECS", 1.0)
    with api.socket() as socket:
        socket.turn(model=MODEL, input="Say hello.")
        (event,) = socket.events()
        assert event["error"]["code"] == "websocket_connection_limit_reached"
        assert event["status"] == 400
        with pytest.raises(ConnectionClosed) as caught:
            socket.socket.recv(timeout=5)
        assert caught.value.rcvd.code == 1000


def test_a_client_that_leaves_frees_its_pages(api, scripted_engine):
    with api.socket() as socket:
        socket.send(model=MODEL, input="count for ever")
        event = json.loads(socket.socket.recv(timeout=20))
        while event["type"] != "response.output_text.delta":
            event = json.loads(socket.socket.recv(timeout=20))
        assert scripted_engine.stats().running == 1
        socket.socket.socket.close()  # without a word
    wait_until_idle(scripted_engine)


def test_a_client_that_reads_nothing_frees_its_pages(api, scripted_engine):
    with api.socket(max_queue=1, close_timeout=0.1) as socket:
        socket.send(model=MODEL, input="count for ever")
        deadline = time.monotonic() + 10
        while not scripted_engine.stats().running:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    wait_until_idle(scripted_engine)


def refusal(api, **headers):
    with pytest.raises(InvalidStatus) as caught, api.socket(headers=headers):
        pass
    return caught.value.response.status_code, json.loads(caught.value.response.body)["error"]["code"]


def test_pages_of_other_origins_may_not_connect(api, scripted_engine):
    assert refusal(api, Origin="https://elsewhere.example") == (403, "origin_not_allowed")
    with api.socket(headers={"Origin": api.url}) as socket:
        assert socket.turn(model=MODEL, input="Say hello.")["status"] == "completed"
    with live_server(scripted_engine, ServerSettings(cors_origins=("https://page.example",))) as server:
        other = ResponsesApi(server.url)
        assert refusal(other, Origin="https://elsewhere.example") == (403, "origin_not_allowed")
        with other.socket(headers={"Origin": "https://page.example"}) as socket:
            assert socket.turn(model=MODEL, input="Say hello.")["status"] == "completed"


def test_a_key_is_asked_for(scripted_engine):
    with live_server(scripted_engine, ServerSettings(api_key="key")) as server:
        assert refusal(ResponsesApi(server.url)) == (401, "invalid_api_key")
        assert refusal(ResponsesApi(server.url, key="wrong")) == (401, "invalid_api_key")
        with ResponsesApi(server.url, key="key").socket() as socket:
            assert socket.turn(model=MODEL, input="Say hello.")["status"] == "completed"


def test_the_end_of_the_server_ends_connections(scripted_engine):
    with live_server(scripted_engine) as server:
        idle, busy = ResponsesApi(server.url), ResponsesApi(server.url)
        with idle.socket() as silent, busy.socket() as socket:
            socket.send(model=MODEL, input="count for ever")
            json.loads(socket.socket.recv(timeout=20))
            server.call(server.state.stop)
            for connection in (silent, socket):
                event = {"type": None}
                while event["type"] != "error":
                    event = json.loads(connection.socket.recv(timeout=20))
                assert event["error"]["code"] == "server_stopping"
                with pytest.raises(ConnectionClosed) as caught:
                    connection.socket.recv(timeout=5)
                assert caught.value.rcvd.code == 1001
    wait_until_idle(scripted_engine)


def test_a_conversation_that_is_too_large_to_keep(api, monkeypatch):
    """Images are not looked at, but kept."""
    monkeypatch.setattr("cvllm_jax.responses.service._MAX_LOCAL_BYTES", 3000)
    image = {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64," + "A" * 1000}]}
    with api.socket() as socket:
        previous = {}
        for _ in range(2):
            response = socket.turn(model=MODEL, store=False, input=[image], **previous)
            previous = {"previous_response_id": response["id"]}
        error = socket.refused(model=MODEL, store=False, input=[image], **previous)
        assert error["code"] == "conversation_too_large"
        assert text_of(socket.turn(model=MODEL, store=False, input="Say hello.")) == "Hello there."
