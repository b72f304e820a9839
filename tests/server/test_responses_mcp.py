"""MCP tools in requests for responses: listed, approved, called and failing, with the SDK's servers and odd ones."""

import json
import logging
import socket
import time

import pytest
import stream_lint
from conftest import wait_until_idle
from live_server import live_server
from responses_api import WEATHER, ResponsesApi, kinds, output_types, text_of
from responses_mcp import answer_without_end, in_thread, stream_without_end
from served import FakeServer, hang_up, respond, status

from cvllm_jax.mcp import McpServerConfig
from server.settings import ServerSettings

CALLED = ["mcp_list_tools", "mcp_call", "message"]


def hosted(url, label="sample", approval="never", **fields):
    tool = {"type": "mcp", "server_label": label, "server_url": url, **fields}
    return tool if approval is None else {**tool, "require_approval": approval}


@pytest.fixture
def sample(mcp_urls):
    return lambda *arguments, **fields: hosted(mcp_urls["sample"], *arguments, **fields)


def of_type(response, kind):
    return [item for item in response["output"] if item["type"] == kind]


@pytest.mark.parametrize("think", ["", " Think."])
def test_a_call_that_needs_no_approval(api, sample, think):
    events = api.stream(f"add 2 and 3{think}", tools=[sample()])
    response = events[-1]["response"]
    assert [kind for kind in output_types(response) if kind != "reasoning"] == CALLED
    assert text_of(response) == "It is 5."
    (called,) = of_type(response, "mcp_call")
    assert (called["server_label"], called["name"], called["output"], called["error"]) == ("sample", "add", "5", None)
    assert json.loads(called["arguments"]) == {"a": 2, "b": 3}
    told = [kind for kind in kinds(events) if kind.startswith("mcp") and not kind.endswith("delta")]
    assert told == [
        "mcp_list_tools.in_progress", "mcp_list_tools.completed",
        "mcp_call.in_progress", "mcp_call_arguments.done", "mcp_call.completed",
    ]  # fmt: skip
    assert response["usage"]["output_tokens"] > len("It is 5.")
    (listed,) = of_type(response, "mcp_list_tools")
    (add,) = (tool for tool in listed["tools"] if tool["name"] == "add")
    assert add["annotations"]["readOnlyHint"] is True
    assert all(tool.get("annotations", {}) is not None for tool in listed["tools"])


def approve(request, approved=True, **fields):
    return {"type": "mcp_approval_response", "approval_request_id": request["id"], "approve": approved, **fields}


@pytest.mark.parametrize("approval", [None, "always"])
def test_approval_is_asked_for_by_default(api, sample, approval):
    asked = api.create("add 2 and 3", tools=[sample(approval=approval)])
    assert (asked["status"], output_types(asked)) == ("completed", ["mcp_list_tools", "mcp_approval_request"])
    request = asked["output"][-1]
    assert (request["name"], json.loads(request["arguments"])) == ("add", {"a": 2, "b": 3})
    again = {"previous_response_id": asked["id"], "tools": [sample(approval=approval)]}
    done = api.stream([approve(request)], **again)[-1]["response"]
    assert output_types(done) == ["mcp_call", "message"]
    assert done["output"][0]["approval_request_id"] == request["id"]
    assert text_of(done) == "It is 5."
    denied = api.create([approve(request, approved=False, reason="Not today.")], **again)
    assert (output_types(denied), text_of(denied)) == (["message"], "As you wish.")
    later = api.create("Say hello.", previous_response_id=denied["id"])
    assert text_of(later) == "Hello there."


def test_approvals_without_a_stored_response(api, sample):
    """A client that keeps the items itself gives them all back."""
    asked = api.create("add 2 and 3", tools=[sample(approval=None)], store=False)
    items = [{"role": "user", "content": "add 2 and 3"}, *asked["output"], approve(asked["output"][-1])]
    done = api.create(items, tools=[sample(approval=None)], store=False)
    assert output_types(done) == ["mcp_call", "message"]


@pytest.mark.parametrize(
    ("approval", "asks"),
    [
        ({"never": {"tool_names": ["add"]}}, False),
        ({"never": {"tool_names": ["boom"]}}, True),
        ({"never": {"read_only": True}}, False),
        ({"always": {"tool_names": ["add"]}}, True),
        ({"always": {"tool_names": ["add"]}, "never": {"tool_names": ["boom"]}}, True),
    ],
)
def test_approval_by_filter(api, sample, approval, asks):
    response = api.create("add 2 and 3", tools=[sample(approval=approval)])
    assert output_types(response) == (["mcp_list_tools", "mcp_approval_request"] if asks else CALLED)


def test_servers_that_the_operator_names(scripted_engine, mcp_urls):
    settings = ServerSettings(mcp_servers={"home": McpServerConfig(url=mcp_urls["sample"])}, mcp_approval="never")
    with live_server(scripted_engine, settings) as server:
        api = ResponsesApi(server.url)
        tool = {"type": "mcp", "server_label": "home"}
        assert output_types(api.create("add 2 and 3", tools=[tool])) == CALLED
        asked = api.create("add 2 and 3", tools=[{**tool, "require_approval": "always"}])
        assert output_types(asked)[-1] == "mcp_approval_request"
        error = api.refused(input="x", tools=[{"type": "mcp", "server_label": "other"}])
        assert error["param"] == "tools[0].server_url"
        error = api.refused(input="x", tools=[hosted(mcp_urls["sample"])])
        assert (error["param"], error["code"]) == ("tools[0].server_url", "mcp_server_not_allowed")


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://169.254.169.254/latest/meta-data", "mcp_server_not_allowed"),
        ("http://localhost:1/mcp", "mcp_server_not_allowed"),
        ("http://[::1]/mcp", "mcp_server_not_allowed"),
        ("http://2130706433/mcp", "mcp_server_not_allowed"),
        ("file:///etc/passwd", "invalid_value"),
        ("http://user:secret@127.0.0.1/mcp", "invalid_value"),
    ],
)
def test_urls_that_may_not_be_reached(api, url, code):
    error = api.refused(input="x", tools=[hosted(url)])
    assert error["param"] == "tools[0].server_url"
    assert error["code"] in (code, "mcp_server_not_allowed", "invalid_value")
    assert "secret" not in error["message"]


NOTE = {"type": "custom", "name": "note", "description": "Notes."}


def test_functions_custom_tools_and_mcp_tools_in_one_turn(api, sample):
    tools = [WEATHER, NOTE, sample()]
    first = api.stream("add, ask and note", tools=tools)[-1]["response"]
    assert output_types(first) == ["mcp_list_tools", "mcp_call", "function_call", "custom_tool_call"]
    _, added, asked, noted = first["output"]
    assert (added["output"], noted["input"]) == ("5", "n = 1")
    outputs = [
        {"type": "function_call_output", "call_id": asked["call_id"], "output": "rain"},
        {"type": "custom_tool_call_output", "call_id": noted["call_id"], "output": "21 degrees"},
    ]
    second = api.create(outputs, previous_response_id=first["id"], tools=tools)
    assert (output_types(second), text_of(second)) == (["message"], "It is 21 degrees.")
    error = api.refused(input=outputs[:1], previous_response_id=first["id"], tools=tools)
    assert noted["call_id"] in error["message"]


def test_an_approval_and_a_function_in_one_turn(api, sample):
    tools = [WEATHER, sample(approval="always")]
    first = api.create("add and ask", tools=tools)
    assert output_types(first) == ["mcp_list_tools", "mcp_approval_request", "function_call"]
    _, request, asked = first["output"]
    answers = [approve(request), {"type": "function_call_output", "call_id": asked["call_id"], "output": "21 degrees"}]
    second = api.create(answers, previous_response_id=first["id"], tools=tools)
    assert output_types(second) == ["mcp_call", "message"]
    assert second["status"] == "completed"


@pytest.mark.parametrize("syntax", ["regex", "lark"])
def test_a_custom_tools_input_follows_its_grammar(api, syntax):
    definition = {"regex": "[a-c]+-[0-9]+", "lark": 'start: WORD "-" NUMBER\nWORD: /[a-c]+/\nNUMBER: /[0-9]+/'}[syntax]
    tool = {**NOTE, "format": {"type": "grammar", "syntax": syntax, "definition": definition}}
    (noted,) = api.create("note it", tools=[tool], tool_choice={"type": "custom", "name": "note"})["output"]
    assert (noted["type"], noted["input"]) == ("custom_tool_call", "abc-12")


def test_several_calls_of_one_turn(api, sample):
    response = api.stream("add twice", tools=[sample()])[-1]["response"]
    assert output_types(response) == ["mcp_list_tools", "mcp_call", "mcp_call", "message"]
    assert [json.loads(item["arguments"])["a"] for item in of_type(response, "mcp_call")] == [2, 1]
    one = api.create("add twice", tools=[sample()], parallel_tool_calls=False)
    assert len(of_type(one, "mcp_call")) == 1


def test_as_many_calls_as_may_be(api, mcp_urls):
    tool = hosted(mcp_urls["one"], "one")
    response = api.stream("again and again", tools=[tool], max_tool_calls=3)[-1]["response"]
    assert response["status"] == "completed"
    assert len(of_type(response, "mcp_call")) == 3
    assert output_types(response)[-1] == "message"
    assert api.refused(input="x", max_tool_calls=0)["param"] == "max_tool_calls"


def test_only_tools_that_are_allowed_are_seen(api, sample):
    for allowed in (["add", "sleep"], {"tool_names": ["add"]}, {"read_only": True}):
        (listed, *_) = api.create("add 2 and 3", tools=[sample(allowed_tools=allowed)])["output"]
        names = {tool["name"] for tool in listed["tools"]}
        assert "add" in names
        assert names <= {"add", "sleep"}
    response = api.create("add 2 and 3", tools=[sample(allowed_tools=["boom"])])
    assert "mcp_call" not in output_types(response)


def test_a_choice_among_mcp_tools(api, sample):
    choice = {"type": "mcp", "server_label": "sample", "name": "add"}
    response = api.create("add 2 and 3", tools=[WEATHER, sample()], tool_choice=choice)
    assert (output_types(response), response["tool_choice"]) == (CALLED, choice)
    anyone = {"type": "mcp", "server_label": "sample"}
    response = api.create("What's the weather?", tools=[WEATHER, sample(approval="always")], tool_choice=anyone)
    assert output_types(response) == ["mcp_list_tools", "mcp_approval_request"]
    none = api.create("add 2 and 3", tools=[sample()], tool_choice="none")
    assert "mcp_call" not in output_types(none)
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [anyone]}
    response = api.create("add 2 and 3", tools=[WEATHER, sample()], tool_choice=allowed)
    assert output_types(response) == CALLED
    failed = api.stream("x", tools=[sample()], tool_choice={**choice, "name": "none"})[-1]["response"]
    assert (failed["status"], failed["error"]["code"]) == ("failed", "invalid_prompt")


def test_tools_of_two_servers_with_one_name(api, mcp_urls):
    tools = [hosted(mcp_urls["one"], "one"), hosted(mcp_urls["two"], "two")]
    response = api.create("search both", tools=tools)
    assert output_types(response) == ["mcp_list_tools", "mcp_list_tools", "mcp_call", "mcp_call", "message"]
    called = of_type(response, "mcp_call")
    assert [(item["server_label"], item["name"], item["output"]) for item in called] == [
        ("one", "search", "one has x"), ("two", "search", "two has y"),
    ]  # fmt: skip
    error = api.refused(input="x", tools=[tools[0], tools[0]])
    assert error["param"] == "tools"


def test_a_server_is_asked_for_its_tools_once_in_a_chain(api):
    with in_thread(fake := FakeServer()) as url:
        first = api.create("act", tools=[hosted(url, "fake")])
        second = api.create("act", tools=[hosted(url, "fake")], previous_response_id=first["id"])
        alone = api.create("act", tools=[hosted(url, "fake")])
        assert fake.count("tools/list") == 2
        assert fake.count("tools/call") == 3
    assert (output_types(first), output_types(second)) == (CALLED, CALLED[1:])
    assert output_types(alone) == CALLED


@pytest.fixture
def nowhere():
    """A URL where nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unused.getsockname()[1]}/mcp"


def test_a_server_that_is_down(api, nowhere):
    error = api.refused(input="add 2 and 3", tools=[hosted(nowhere)], status=424)
    assert (error["type"], error["code"], error["param"]) == ("external_connector_error", "http_error", "tools")
    assert "'sample'" in error["message"]
    events = api.stream("add 2 and 3", tools=[hosted(nowhere)])
    assert kinds(events)[-1] == "failed"
    response = events[-1]["response"]
    assert (response["output"][0]["error"], response["output"][0]["tools"]) == (response["error"]["message"], [])
    assert "mcp_list_tools.failed" in kinds(events)
    again = api.create("Say hello.", previous_response_id=response["id"])
    assert text_of(again) == "Hello there."


async def garbage(server, writer, request):
    await respond(writer, b"<html>no JSON</html>")


@pytest.mark.parametrize(
    "fault", [hang_up, status(500), status(401), garbage, answer_without_end], ids=lambda fault: fault.__name__
)
def test_a_server_that_breaks_amid_a_call(api, fault):
    """The model is told, and goes on."""
    with in_thread(FakeServer(tools_call=fault)) as url:
        events = api.stream("act", tools=[hosted(url, "fake")])
    response = events[-1]["response"]
    assert (response["status"], output_types(response)) == ("completed", CALLED)
    (called,) = of_type(response, "mcp_call")
    assert (called["status"], called["output"]) == ("failed", None)
    assert "mcp_call.failed" in kinds(events)
    assert text_of(response) == "That did not work."


def test_a_tool_that_fails(api, sample):
    (called,) = of_type(api.create("fail", tools=[sample()]), "mcp_call")
    assert called["status"] == "failed"
    assert "Error executing tool boom" in called["error"]["content"][0]["text"]
    assert "secret" not in json.dumps(called)


def test_ten_megabytes(api, sample):
    begun = time.monotonic()
    response = api.create("ten megabytes", tools=[sample()])
    assert time.monotonic() - begun < 20
    assert len(json.dumps(response)) < 300_000
    assert response["status"] in ("completed", "failed")


def test_a_stream_without_an_end_is_left_with_its_client(scripted_engine, api):
    """What waits for a tool is no request of the engine, and ends with its client."""
    with in_thread(fake := FakeServer(tools_call=stream_without_end)) as url, api.sdk() as client:
        stream = client.responses.create(model=api.model, input="act", tools=[hosted(url, "fake")], stream=True)
        next(event for event in stream if event.type == "response.mcp_call_arguments.done")
        while not fake.count("tools/call"):
            time.sleep(0.01)
        stream.close()
    wait_until_idle(scripted_engine)


SECRETS = ("PATHSECRET", "QUERYSECRET", "AUTHSECRET", "HEADERSECRET")


@pytest.mark.parametrize(
    "odd",
    [{}, {"tools_list": status(401)}, {"tools_list": hang_up}, {"tools_call": status(500)}],
    ids=["fine", "refuses", "breaks", "fails"],
)
def test_secrets_stay_with_the_request(scripted_engine, tmp_path, caplog, odd):
    """Neither a response, an event or an error has them, nor the store's files, nor the server's log."""
    seen = []
    settings = ServerSettings(store=str(tmp_path / "store.sqlite3"), mcp_allow=("127.0.0.1",))
    for name in ("cvllm_jax", "server"):
        caplog.set_level(logging.DEBUG, name)
    with in_thread(fake := FakeServer(**odd)) as url, live_server(scripted_engine, settings) as server:
        api = ResponsesApi(server.url)
        secret = url.replace("/mcp", "/PATHSECRET/mcp?key=QUERYSECRET")
        tool = hosted(secret, authorization="AUTHSECRET", headers={"X-Key": "HEADERSECRET"})
        for body in ({}, {"stream": True}, {"store": False}, {"background": True}):
            seen.append(api.post(input="act", tools=[tool], **body).text)
        path = f"/responses/{json.loads(seen[-1])['id']}"
        seen += [api.get(path, stream="true").text, api.get(path).text, api.get(f"{path}/input_items").text]
        headers = fake.requests[0]["headers"]
        assert (headers["authorization"], headers["x-key"]) == ("bearer authsecret", "headersecret")
        assert "/PATHSECRET/mcp?key=QUERYSECRET" in fake.requests[0]["path"]
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"<redacted>" in stored
    everything = "\n".join([*seen, stored.decode(errors="replace"), caplog.text]).lower()
    assert [name for name in SECRETS if name.lower() in everything] == []


def test_the_linter_as_a_program(api, mcp_urls, monkeypatch, capsys):
    arguments = ["stream_lint.py", f"{api.url}/v1", api.model, "--tools", "--mcp", mcp_urls["sample"]]
    monkeypatch.setattr("sys.argv", arguments)
    assert stream_lint.main() == 0, capsys.readouterr().out
