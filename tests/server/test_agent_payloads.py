"""Requests as agents' programs write them. The programs themselves run in tests/clients."""

import pytest
from live_server import live_server
from responses_api import WEATHER, ResponsesApi, kinds, output_types, text_of

from server.settings import ServerSettings

TASK = "How is the weather? Think."
RESULT = "Now add 2 and 3. Think."  # of the function; then the model calls the MCP server's tool
ANSWER = "It is 5."


@pytest.fixture(scope="module")
def hosted(mcp_urls):
    return {"type": "mcp", "server_label": "sample", "server_url": mcp_urls["sample"], "require_approval": "never"}


@pytest.fixture(scope="module")
def strict_api(scripted_engine):
    with live_server(scripted_engine, ServerSettings(strict=True)) as running:
        yield ResponsesApi(running.url)


def message(role, text, number):
    content = [{"type": "input_text", "text": text}]
    return {"type": "message", "id": f"msg_01a2053f-{number:04}", "role": role, "content": content}


def namespace(name, function):
    """The tools of an MCP server that codex runs, or other tools of its own."""
    parameters = {"type": "object", "properties": {}}
    tool = {"type": "function", "name": function, "description": "", "strict": False, "parameters": parameters}
    return {"type": "namespace", "name": name, "description": f"Tools in the {name} namespace.", "tools": [tool]}


def codex(**fields):
    """What ``codex exec`` 0.169 sends, with shorter texts."""
    ids = {"session_id": "01a2053f-e581", "thread_id": "01a2053f-e581", "x-codex-window-id": "01a2053f-e581:0"}
    return {
        "instructions": "You are a coding agent.",
        "tools": [
            {**WEATHER, "strict": False},
            namespace("agents", "close_agent"),
            namespace("mcp__sample", "add"),
            namespace("one", "search"),
            namespace("two", "search"),
            {"type": "web_search", "external_web_access": False},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"summary": "auto"},
        "text": {"verbosity": "low"},
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "01a2053f-e581",
        "client_metadata": {**ids, "x-codex-turn-metadata": '{"request_kind": "turn"}'},
        **fields,
    }


def codex_input():
    return [
        message("developer", "You run in a terminal.", 1),
        message("developer", "<skills_instructions>\nNone.\n</skills_instructions>", 2),
        message("user", "<environment_context>\n  <shell>bash</shell>\n</environment_context>", 3),
        message("user", TASK, 4),
    ]


def output_of(call, text=RESULT, **fields):
    return {"type": "function_call_output", "call_id": call["call_id"], "output": text, **fields}


def test_codex(api):
    items = codex_input()
    events = api.stream(items, **codex())
    assert "reasoning_text.delta" in kinds(events)
    response = events[-1]["response"]
    reasoning, call = response["output"]
    assert (reasoning["type"], call["type"], call["name"]) == ("reasoning", "function_call", "get_weather")
    assert reasoning["encrypted_content"]
    assert (response["store"], response["prompt_cache_key"]) == (False, "01a2053f-e581")
    assert api.get(f"/responses/{response['id']}").status_code == 404

    result = "Chunk ID: 9c19a0\nProcess exited with code 0\nOutput:\n21 degrees\n"
    items += [reasoning, call, output_of(call, result, id="fco_01a2053f-f0e2")]
    response = api.stream(items, **codex())[-1]["response"]
    assert text_of(response) == "It is 21 degrees."

    items += [*response["output"], message("user", "What is my name?", 5)]
    assert text_of(api.create(items, **codex())) == "Alice."


def test_codex_and_its_mcp_servers(api):
    """Their tools come in namespaces, and so do the calls of them."""
    items = [message("user", "Please add 2 and 3.", 1)]
    for ask in (api.create, lambda *args, **fields: api.stream(*args, **fields)[-1]["response"]):
        response = ask(items, **codex())
        (call,) = response["output"]
        assert (call["namespace"], call["name"], call["arguments"]) == ("mcp__sample", "add", '{"a": 2, "b": 3}')
        assert text_of(ask([*items, call, output_of(call, "5")], **codex())) == ANSWER
    assert [tool["type"] for tool in response["tools"]] == ["function"]


def test_namespaces_that_have_the_same_function(api):
    items = [message("user", "search both", 1)]
    calls = api.create(items, **codex())["output"]
    assert [(call["namespace"], call["name"]) for call in calls] == [("one", "search"), ("two", "search")]
    results = [output_of(call, "21 degrees") for call in calls]
    read = api.post("/responses/input_tokens", input=[*items, *calls, *results], **codex())
    assert read.status_code == 200
    assert text_of(api.create([*items, *calls, *results], **codex())) == "It is 21 degrees."


def test_codex_when_the_user_interrupts(api):
    """The call has no output: codex writes one itself."""
    items = codex_input()
    *_, call = api.create(items, **codex())["output"]
    items += [call, output_of(call, "aborted by user after 1.2s"), message("user", "Say hello in exactly 3 words.", 5)]
    assert text_of(api.create(items, **codex())) == "Hello to you."


@pytest.mark.parametrize(
    ("field", "param"),
    [("client_metadata", "client_metadata"), ("tools", "tools[1].type")],
)
def test_a_strict_server_refuses_what_it_would_ignore(strict_api, field, param):
    body = {field: codex()[field]}
    error = strict_api.refused(input=TASK, **body)
    assert (error["param"], error["type"]) == (param, "invalid_request_error")


def sent_back(response):
    """As openai-agents and langchain do: every item as it came."""
    return {"input": response["output"]}


def without_ids(response):
    """As pydantic-ai and the AI SDK can be told: what the model said, and no trace of who answered."""
    kept = [item for item in response["output"] if item["type"] in ("function_call", "message")]
    return {"input": [{key: value for key, value in item.items() if key not in ("id", "status")} for item in kept]}


def referenced(response):
    """As the AI SDK does: reasoning and messages by their ids, and calls in full."""
    items = [item for item in response["output"] if item["type"] != "mcp_list_tools"]
    return {
        "input": [
            item if item["type"] == "function_call" else {"type": "item_reference", "id": item["id"]} for item in items
        ]
    }


def chained(response):
    return {"previous_response_id": response["id"], "input": []}


@pytest.mark.parametrize("history", [sent_back, without_ids, referenced, chained])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_two_tools(api, hosted, history, streamed):
    def ask(input, **fields):  # noqa: A002
        fields["tools"] = [WEATHER, hosted]
        return api.stream(input, **fields)[-1]["response"] if streamed else api.create(input, **fields)

    task = [{"role": "user", "content": TASK}]
    first = ask(task)
    assert output_types(first) == ["mcp_list_tools", "reasoning", "function_call"]
    body = history(first)
    before = [] if history is chained else task
    second = ask([*before, *body.pop("input"), output_of(first["output"][-1])], **body)
    assert [kind for kind in output_types(second) if kind != "mcp_list_tools"] == ["reasoning", "mcp_call", "message"]
    assert text_of(second) == ANSWER


@pytest.mark.parametrize("history", [sent_back, referenced, chained])
def test_approvals(api, hosted, history):
    """The AI SDK refers to the request by its id, beside the decision."""
    tools = [{**hosted, "require_approval": {"always": {"tool_names": ["add"]}}}]
    task = [{"role": "user", "content": "add 2 and 3"}]
    asking = api.create(task, tools=tools)
    assert output_types(asking) == ["mcp_list_tools", "mcp_approval_request"]
    body = history(asking)
    before = [] if history is chained else task
    decision = {"type": "mcp_approval_response", "approval_request_id": asking["output"][-1]["id"], "approve": True}
    response = api.create([*before, *body.pop("input"), decision], tools=tools, **body)
    assert text_of(response) == ANSWER
