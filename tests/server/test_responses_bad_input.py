"""Requests for responses that cannot be served: each ends as OpenAI ends it, and nobody else notices."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from live_server import live_server
from responses_api import RULES, WEATHER, ResponsesApi, error_of, judge_response, kinds, text_of

from server.settings import ServerSettings

ROOT = Path(__file__).parents[2]


def function(parameters, **fields):
    return {"type": "function", "name": "f", "parameters": parameters, **fields}


def json_schema(schema):
    return {"text": {"format": {"type": "json_schema", "name": "x", "schema": schema}}}


def output_for(call_id):
    return {"type": "function_call_output", "call_id": call_id, "output": "x"}


UNDOABLE = {"type": "object", "properties": {"x": {"type": "string", "pattern": "(?=a)b"}}, "required": ["x"]}
ENDLESS = {"$ref": "#"}


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"previous_response_id": "resp_none"}, "previous_response_id", "previous_response_not_found"),
        ({"previous_response_id": "'; DROP TABLE x;\0"}, "previous_response_id", "previous_response_not_found"),
        ({"background": True, "store": False}, "background", "invalid_parameter_combination"),
        ({"input": [output_for("call_none")]}, "input", None),
        ({"input": [{"type": "mcp_approval_response", "approval_request_id": "mcpr_none", "approve": True}]},
         "input", None),
        ({"input": [{"type": "compaction", "encrypted_content": "bm9uZQ=="}]}, "input", "invalid_encrypted_content"),
        ({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "%"}]}, "input",
         "invalid_encrypted_content"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": [{"role": "user", "content": "x", "id": "a"}, {"role": "user", "content": "y", "id": "a"}]},
         "input", "invalid_value"),
        ({"input": "\ud800"}, None, "invalid_json"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "unsupported_parameter"),
        ({"max_output_tokens": 0}, "max_output_tokens", "integer_below_min_value"),
        ({"tool_choice": "required"}, "tool_choice", None),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "none"}}, "tool_choice", "invalid_value"),
        ({"tools": [WEATHER, WEATHER]}, "tools", "invalid_value"),
        ({"tools": [function(UNDOABLE)], "tool_choice": "required"}, "tools[0].parameters", None),
        ({"tools": [function(UNDOABLE, strict=True)]}, "tools[0].parameters", None),
        ({"tools": [function(ENDLESS)], "tool_choice": {"type": "function", "name": "f"}}, "tools", None),
        (json_schema(UNDOABLE), "text.format.schema", None),
        (json_schema({"type": "none"}), "text.format.schema", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused(api, fields, param, code, stream):
    body = {"input": "x", **fields, "stream": stream}
    error = error_of(raw(api, body))
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    if code is not None:
        assert error["code"] == code


def test_options_of_a_stream_need_one(api):
    assert api.refused(input="x", stream_options={"include_obfuscation": False})["param"] == "stream_options"
    assert api.stream("Say hello.", stream_options={"include_obfuscation": False})


def raw(api, body):
    """The answer to a body that may hold half of a surrogate pair, which only an escape can carry."""
    headers = {"Content-Type": "application/json"}
    return httpx.post(f"{api.url}/v1/responses", content=json.dumps({"model": api.model, **body}), headers=headers)


def test_an_approval_is_given_once(api, mcp_urls):
    tool = {"type": "mcp", "server_label": "sample", "server_url": mcp_urls["sample"]}
    asked = api.create("add 2 and 3", tools=[tool])
    again = {"previous_response_id": asked["id"], "tools": [tool]}
    answer = {"type": "mcp_approval_response", "approval_request_id": asked["output"][-1]["id"], "approve": True}
    assert "do not have an approval" in api.refused(input="x", **again)["message"]
    assert "answered already" in api.refused(input=[answer, answer], **again)["message"]
    done = api.create([answer], **again)
    assert "answered already" in api.refused(input=[answer], previous_response_id=done["id"], tools=[tool])["message"]


def test_calls_want_their_outputs(api):
    called = api.create("What's the weather?", tools=[WEATHER])
    error = api.refused(input="x", previous_response_id=called["id"])
    assert called["output"][0]["call_id"] in error["message"]
    assert error["param"] == "input"


def test_a_chain_that_lost_an_ancestor(api):
    first = api.create("I am Alice.")
    second = api.create("Hello.", previous_response_id=first["id"])
    third = api.create("Hello.", previous_response_id=second["id"])
    api.request("DELETE", f"/responses/{first['id']}")
    for child in (first, second, third):
        error = api.refused(input="x", previous_response_id=child["id"])
        assert (error["param"], error["code"]) == ("previous_response_id", "previous_response_not_found")
        assert first["id"] in error["message"]
    assert api.get(f"/responses/{third['id']}").json() == third


@pytest.mark.parametrize(
    ("path", "status", "param"),
    [
        ("/responses/resp_none", 404, None),
        ("/responses/resp_none?stream=true", 404, None),
        ("/responses/resp_none/input_items", 404, None),
        ("/responses/{id}?stream=true", 400, "stream"),
        ("/responses/{id}?stream=maybe", 400, "stream"),
        ("/responses/{id}?stream=true&starting_after=x", 400, "starting_after"),
        ("/responses/{id}?include=all", 400, "include[0]"),
        ("/responses/{id}/input_items?limit=0", 400, "limit"),
        ("/responses/{id}/input_items?limit=1000", 400, "limit"),
        ("/responses/{id}/input_items?order=up", 400, "order"),
        ("/responses/{id}/input_items?after=msg_none", 404, None),
    ],
)
def test_what_cannot_be_read(api, path, status, param):
    response = api.create("Say hello.")
    assert error_of(api.get(path.format(id=response["id"])), status)["param"] == param


def test_what_agents_send_is_ignored_unless_the_server_is_strict(api, scripted_engine):
    image = {"role": "user", "content": [{"type": "input_image", "image_url": "https://x.example/y.png"}]}
    ignored = [
        ({"client_metadata": {"a": "b"}}, "client_metadata"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "namespace", "name": "x", "tools": []}]}, "tools[0].type"),
        ({"input": [image]}, "input[0].content[0].type"),
    ]
    with live_server(scripted_engine, ServerSettings(strict=True)) as server:
        strict = ResponsesApi(server.url)
        for fields, param in ignored:
            body = {"input": "Say hello.", **fields}
            assert api.create(**body)["status"] == "completed"
            assert strict.refused(**body)["param"] == param
        assert text_of(strict.create("Say hello.")) == "Hello there."


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("kill") / "script.json"
    path.write_text(json.dumps(RULES), encoding="utf-8")
    return path


def test_a_server_that_is_killed_leaves_an_incomplete_response(scripted_engine, script, tmp_path):
    """Between two events of a background response, with its conversation locked."""
    store = tmp_path / "store.sqlite3"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "COLUMNS": "200", "NO_COLOR": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "cvllm_jax", "serve", f"scripted:{script}", "--port", "0", "--device", "cpu",
         "--max-sequence-length", "8192", "--dtype", "f32", "--prefill-chunk-size", "64", "--max-batch-size", "16",
         "--debug", "--store", str(store)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        ready = process.stdout.readline()
        api = ResponsesApi(re.search(r"http://[\d.:]+\d", ready)[0])
        whole = api.create("I am Alice.")
        conversation = api.request("POST", "/conversations", {}).json()["id"]
        created = api.create("count for ever", background=True, conversation=conversation)
        with api.sdk() as client:
            events = client.responses.retrieve(created["id"], stream=True)
            for event in events:
                if event.sequence_number == 40:
                    process.send_signal(signal.SIGKILL)
                    break
        assert process.wait(10) == -signal.SIGKILL
    finally:
        process.kill()
        process.communicate()
    with live_server(scripted_engine, ServerSettings(store=str(store))) as server:
        api = ResponsesApi(server.url)
        found = judge_response(api.get(f"/responses/{created['id']}").json())
        assert (found["status"], found["error"]["code"]) == ("incomplete", "server_error")
        assert api.get(f"/responses/{whole['id']}").json() == whole
        stored = api.get(f"/responses/{created['id']}", stream="true").text
        assert "event: response.created" in stored
        error = error_of(api.request("POST", f"/responses/{created['id']}/cancel"))
        assert "incomplete" in error["message"]
        # what it went on with goes on
        after = api.stream("Say hello.", conversation=conversation)
        assert kinds(after)[-1] == "completed"
        assert text_of(api.create("What is my name?", previous_response_id=whole["id"])) == "Alice."


def test_nobody_else_notices(api):
    begun = time.monotonic()
    assert text_of(api.create("Say hello.")) == "Hello there."
    assert time.monotonic() - begun < 5
