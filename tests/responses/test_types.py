"""Requests, responses and other resources of the Responses API, judged by the SDK's types and Open Responses'."""

import json
import logging
from typing import get_args

import openresponses_types
import pytest
from openai.types.conversations import Conversation as SdkConversation
from openai.types.responses import CompactedResponse as SdkCompactedResponse
from openai.types.responses import InputTokenCountResponse, ResponseItem, ResponseStreamEvent
from openai.types.responses import Response as SdkResponse
from openai.types.responses.response_create_params import ResponseCreateParamsBase
from openai.types.responses.response_includable import ResponseIncludable
from openresponses_types import CompactResource, ErrorStreamingEvent, ResponseResource
from pydantic import TypeAdapter

from cvllm_jax.openai import McpTool, RequestError
from cvllm_jax.responses.items.input_items import identified
from cvllm_jax.responses.items.opaque import encode_compaction
from cvllm_jax.responses.types import (
    CompactedResponse,
    Compaction,
    Conversation,
    ErrorDetails,
    ErrorEvent,
    HostedMcpTool,
    Includable,
    InputTokens,
    Item,
    ItemList,
    ListedTool,
    Response,
    ResponseRequest,
    ResponseUsage,
)

ITEMS = TypeAdapter(list[Item])
MCP = {"type": "mcp", "server_label": "a", "server_url": "https://user:key@mcp.example:8443/token/x?key=key"}
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}


def parse(**fields):
    return ResponseRequest.parse({"model": "m", "input": "hi", **fields})


def begun(**fields):
    return Response.begun(parse(**fields), id="resp_1", created_at=1)


def sdk(model, value):
    return TypeAdapter(model).validate_python(json.loads(value.model_dump_json()), strict=True)


def test_a_string_is_the_users_message():
    (item,) = parse().items
    assert (item.type, item.role, item.content[0].type, item.content[0].text) == ("message", "user", "input_text", "hi")


def test_every_parameter_of_the_sdk_is_known():
    unknown = set(ResponseCreateParamsBase.__annotations__) - set(ResponseRequest.model_fields)
    assert unknown == {"access_programs", "background_options", "image"}  # they choose among OpenAI's services
    assert set(get_args(ResponseIncludable)) == set(get_args(Includable.__value__))


def test_what_a_coding_agent_sends_is_accepted(caplog):
    with caplog.at_level(logging.WARNING):
        request = ResponseRequest.parse(
            {
                "model": "m",
                "instructions": "You are an agent.",
                "input": [
                    {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "rules"}]},
                    {"role": "user", "content": "go"},
                    {"type": "reasoning", "id": "rs_1", "summary": [], "content": None, "encrypted_content": "x"},
                    {"type": "function_call", "call_id": "c", "name": "shell", "arguments": "{}", "id": None},
                    {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "ok"}]},
                    {
                        "type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
                        "content": [{"type": "output_text", "text": "a", "annotations": [], "logprobs": None}],
                    },
                    {"id": "msg_2"},
                    {"type": None, "id": "msg_3"},
                ],
                "tools": [FUNCTION, {"type": "agents_only", "x": 1}, {"type": "web_search"}],
                "tool_choice": "auto", "parallel_tool_calls": False, "reasoning": {"effort": "medium"}, "store": False,
                "stream": True, "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k",
                "text": {"verbosity": "low"}, "agents_metadata": {"a": "b"},
            }
        )  # fmt: skip
    assert [item.type for item in request.items][-3:] == ["message", "item_reference", "item_reference"]
    assert [tool.name for tool in request.function_tools] == ["f"]
    assert request.includes("reasoning.encrypted_content")
    assert "agents_metadata" in caplog.text
    assert "agents_only" in caplog.text
    assert [tool.type for tool in Response.begun(request, id="resp_1", created_at=1).tools] == ["function"]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": 3}, "input", "invalid_type"),
        ({"input": None}, "input", "missing_required_parameter"),
        ({"input": [3]}, "input[0]", "invalid_type"),
        ({"input": [{}]}, "input[0].type", "missing_required_parameter"),
        ({"input": [{"type": "hologram"}]}, "input[0].type", "invalid_value"),
        ({"input": [{"type": ["message"]}]}, "input[0].type", "invalid_value"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role", "invalid_value"),
        ({"input": [{"role": "user"}]}, "input[0].content", "missing_required_parameter"),
        ({"input": [{"role": "user", "content": [{"type": "x"}]}]}, "input[0].content[0].type", "invalid_value"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text",
         "missing_required_parameter"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id",
         "missing_required_parameter"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": {}}]}, "input[0].arguments",
         "invalid_type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "missing_required_parameter"),
        ({"tools": [{"name": "f"}]}, "tools[0].type", "missing_required_parameter"),
        ({"tools": [{"type": "custom", "name": "f", "format": {"type": "grammar", "syntax": "ebnf",
                     "definition": "x"}}]}, "tools[0].format.syntax", "invalid_value"),
        ({"tools": [{**MCP, "server_label": "a b"}]}, "tools[0].server_label", "invalid_value"),
        ({"tools": [{**MCP, "require_approval": "sometimes"}]}, "tools[0].require_approval", "invalid_value"),
        ({"tools": [{**MCP, "connector_id": "connector_gmail"}]}, "tools[0].connector_id", "unsupported_parameter"),
        ({"tools": [MCP, MCP]}, "tools", "invalid_value"),
        ({"tool_choice": "any"}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type", "invalid_value"),
        ({"tool_choice": {"type": "allowed_tools", "tools": []}}, "tool_choice.tools", "empty_array"),
        ({"max_tool_calls": 0}, "max_tool_calls", "integer_below_min_value"),
        ({"max_output_tokens": 0}, "max_output_tokens", "integer_below_min_value"),
        ({"temperature": "1"}, "temperature", "invalid_type"),
        ({"temperature": 3}, "temperature", "decimal_above_max_value"),
        ({"top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
        ({"store": "yes"}, "store", "invalid_type"),
        ({"truncation": "some"}, "truncation", "invalid_value"),
        ({"include": ["thoughts"]}, "include[0]", "invalid_value"),
        ({"metadata": {"k": 1}}, "metadata.k", "invalid_type"),
        ({"metadata": {"k" * 65: "v"}}, "metadata", "invalid_value"),
        ({"metadata": {str(number): "v" for number in range(17)}}, "metadata", "invalid_value"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema",
         "missing_required_parameter"),
        ({"previous_response_id": "resp_1", "conversation": "conv_1"}, "previous_response_id",
         "mutually_exclusive_parameters"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "unsupported_parameter"),
        ({"context_management": [{"type": "compaction"}]}, "context_management", "unsupported_parameter"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_by_name(fields, param, code):
    with pytest.raises(RequestError) as caught:
        parse(**fields)
    assert (caught.value.param, caught.value.code) == (param, code)


def test_halves_of_surrogate_pairs_are_refused():
    with pytest.raises(RequestError, match=r"U\+D83D"):
        parse(metadata={"a": "\ud83d"})


@pytest.mark.parametrize("data", [None, [], "x", {"input": "hi"}, {"model": 3, "input": "hi"}])
def test_a_body_without_a_model_is_refused(data):
    with pytest.raises(RequestError):
        ResponseRequest.parse(data)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"agents_metadata": {}}, "agents_metadata"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "allowed_tools", "tools": [{"type": "web_search"}]}}, "tool_choice.tools[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]},
         "input[0].content[0].type"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_file"}]}]},
         "input[0].output[0].type"),
    ],
)  # fmt: skip
def test_strict_refuses_what_is_ignored_otherwise(fields, param):
    data = {"model": "m", "input": "hi", **fields}
    ResponseRequest.parse(data)
    with pytest.raises(RequestError) as caught:
        ResponseRequest.parse(data, strict=True)
    assert caught.value.param == param


def test_a_response_has_every_key_that_clients_look_for():
    response = begun()
    ResponseResource.model_validate_json(response.model_dump_json())
    sdk(SdkResponse, response)
    required = {name for name, field in ResponseResource.model_fields.items() if field.is_required()}
    assert required <= set(json.loads(response.model_dump_json()))
    assert {"error", "incomplete_details", "usage", "max_output_tokens"} <= set(response.model_dump(mode="json"))


def test_a_response_says_what_was_asked():
    asked = {
        "instructions": "Be brief.", "previous_response_id": "resp_0", "temperature": 0.5, "top_p": 0.9,
        "presence_penalty": 1.0, "frequency_penalty": -1.0, "top_logprobs": 3, "max_output_tokens": 100,
        "max_tool_calls": 2, "parallel_tool_calls": False, "truncation": "auto", "store": False, "background": False,
        "service_tier": "flex", "metadata": {"a": "b"}, "safety_identifier": "s", "prompt_cache_key": "k",
        "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]},
        "tools": [FUNCTION], "reasoning": {"effort": "low", "summary": "auto"},
    }  # fmt: skip
    response = begun(**asked)
    ResponseResource.model_validate_json(response.model_dump_json())
    sdk(SdkResponse, response)
    echoed = response.model_dump(mode="json")
    assert echoed["tools"] == [{**FUNCTION, "description": None, "strict": None}]
    assert {name: echoed[name] for name in asked if name != "tools"} == {n: v for n, v in asked.items() if n != "tools"}


def test_a_response_with_every_kind_of_tool_and_a_schema():
    grammar = {"type": "grammar", "syntax": "regex", "definition": "a+"}
    response = begun(
        tools=[FUNCTION, {"type": "custom", "name": "c", "format": grammar}, MCP],
        tool_choice={"type": "mcp", "server_label": "a"},
        text={"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}},
        conversation={"id": "conv_1"},
    )
    assert sdk(SdkResponse, response).text.format.schema_ == {"type": "object"}
    assert response.conversation.id == "conv_1"
    assert response.tools[1].model_dump()["format"] == grammar


def test_what_may_be_secret_is_in_no_dump():
    request = parse(tools=[{**MCP, "authorization": "key", "headers": {"X-Key": "key"}}])
    tool = request.mcp_tools[0]
    assert (tool.authorization, tool.headers, tool.server_url) == ("key", {"X-Key": "key"}, MCP["server_url"])
    for shown in (
        repr(request),
        request.model_dump_json(),
        Response.begun(request, id="r", created_at=1).model_dump_json(),
    ):
        assert "key" not in shown.replace("prompt_cache_key", "")
    assert tool.model_dump()["server_url"] == "https://mcp.example:8443/<redacted>"


@pytest.mark.parametrize(
    ("require_approval", "asks"),
    [
        (None, [False, False]),
        ("always", [True, True]),
        ("never", [False, False]),
        ({"never": {"tool_names": ["read"]}}, [False, True]),
        ({"always": {"tool_names": ["write"]}}, [False, True]),
        ({"never": {"read_only": True}}, [False, True]),
        ({"always": {"tool_names": ["write"]}, "never": {"tool_names": ["read", "write"]}}, [False, True]),
        ({"never": {}}, [True, True]),
        ({}, [False, False]),
    ],
)
def test_which_calls_wait_for_approval(require_approval, asks):
    tool = HostedMcpTool(server_label="a", require_approval=require_approval)
    assert [tool.asks(name, read_only=name == "read", default=False) for name in ("read", "write")] == asks


def test_calls_wait_for_approval_as_the_server_likes_it_if_the_request_is_silent():
    tool = HostedMcpTool(server_label="a")
    assert tool.asks("x")
    assert not tool.asks("x", default=False)


@pytest.mark.parametrize(
    ("allowed", "tools"),
    [
        (None, ["read", "write"]),
        (["write"], ["write"]),
        ({"tool_names": ["write"]}, ["write"]),
        ({"read_only": True}, ["read"]),
        ({}, ["read", "write"]),
    ],
)
def test_which_tools_of_a_server_the_model_sees(allowed, tools):
    tool = parse(tools=[{**MCP, "allowed_tools": allowed}]).mcp_tools[0]
    assert [name for name in ("read", "write") if tool.allows(name, read_only=name == "read")] == tools


def test_tools_and_formats_as_chat_completions_have_them():
    request = parse(
        tools=[{**FUNCTION, "strict": True, "description": "d"}, {"type": "custom", "name": "c"}],
        text={"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}},
    )
    function = request.function_tools[0].chat_tool()
    assert (function.function.name, function.function.strict, function.function.description) == ("f", True, "d")
    assert request.custom_tools[0].chat_tool().function.parameters["required"] == ["input"]
    assert request.text.chat_format().json_schema.schema_ == {"type": "object"}
    assert parse(text={}).text.chat_format().type == "text"


def test_listed_tools_leave_out_what_they_do_not_have():
    tool = McpTool(name="x", description=None, input_schema={"type": "object"})
    assert ListedTool.of(tool).model_dump() == {"name": "x", "input_schema": {"type": "object"}}
    assert ListedTool.of(tool).mcp_tool() == tool


@pytest.mark.parametrize(
    "item",
    [
        {"role": "user", "content": "hi"},
        {"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]},
        {"role": "assistant", "content": "hi"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "x"},
        {"type": "reasoning", "summary": []},
        {"type": "custom_tool_call", "call_id": "c", "name": "f", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "x"}]},
        {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True},
        {"type": "compaction", "encrypted_content": "x"},
    ],
)
def test_input_items_are_listed_with_what_clients_leave_out(item):
    (listed,) = identified(ITEMS.validate_python([item]))
    sdk(ResponseItem, listed)
    assert identified([listed]) == [listed]
    page = ItemList.of([listed], has_more=True)
    assert (page.first_id, page.last_id, page.has_more) == (listed.id, listed.id, True)
    if listed.type in ("message", "function_call", "function_call_output", "reasoning", "compaction"):
        ResponseResource.model_validate_json(begun().model_copy(update={"output": [listed]}).model_dump_json())


def test_the_other_resources():
    compaction = Compaction(id="cmp_1", encrypted_content=encode_compaction([]))
    compacted = CompactedResponse(id="resp_1", created_at=1, output=[compaction], usage=ResponseUsage())
    CompactResource.model_validate_json(compacted.model_dump_json())
    sdk(SdkCompactedResponse, compacted)
    sdk(InputTokenCountResponse, InputTokens(input_tokens=3))
    sdk(SdkConversation, Conversation(id="conv_1", created_at=1))
    assert ItemList.of([]).model_dump() == {
        "object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False,
    }  # fmt: skip


def test_an_error_event_is_valid_in_both_vocabularies():
    details = ErrorDetails(type="server_error", code=None, message="It broke.", param=None)
    event = ErrorEvent.of(details, 7)
    sdk(ResponseStreamEvent, event)
    ErrorStreamingEvent.model_validate_json(event.model_dump_json())
    assert openresponses_types.__spec_version__ == "2026-04-24"
