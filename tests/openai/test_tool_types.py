"""Tools, calls and MCP: how they are made, what they are on the wire, and what is refused."""

import json
from types import SimpleNamespace

import openai.types.chat as sdk
import pytest
from pydantic import TypeAdapter

from cvllm_jax.errors import McpToolExecutionError
from cvllm_jax.openai import (
    ChatCompletionRequest,
    FunctionCall,
    FunctionDefinition,
    McpTool,
    McpToolCall,
    McpToolResult,
    Message,
    RequestError,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    merge_tool_call_delta,
)

PARAMETERS = {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}


def test_a_function_is_made_step_by_step():
    plain = FunctionDefinition("get_weather")
    function = plain.with_description("Get current weather").with_parameters(PARAMETERS)
    assert plain.description is None
    tool = Tool.function(function)
    assert tool.function.name == "get_weather"
    wire = {
        "type": "function",
        "function": {"name": "get_weather", "description": "Get current weather", "parameters": PARAMETERS},
    }
    assert json.loads(tool.model_dump_json()) == wire
    assert Tool.model_validate(wire) == tool
    TypeAdapter(sdk.ChatCompletionFunctionToolParam).validate_python(wire)


@pytest.mark.parametrize(
    ("choice", "wire"),
    [
        (ToolChoice.mode("required"), "required"),
        (ToolChoice.Mode("auto"), "auto"),
        (ToolChoice.function("f"), {"type": "function", "function": {"name": "f"}}),
        (
            ToolChoice.allowed_tools(["f"]),
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]},
            },
        ),
    ],
)
def test_choices_on_the_wire(choice, wire):
    assert json.loads(choice.model_dump_json()) == wire
    TypeAdapter(sdk.ChatCompletionToolChoiceOptionParam).validate_python(wire)
    user = {"role": "user", "content": "x"}
    request = ChatCompletionRequest.parse({"model": "m", "messages": [user], "tool_choice": wire})
    assert request.tool_choice == choice


FUNCTION = {"type": "function", "function": {"name": "f"}}
REFUSED = [
    ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type", "invalid_value"),
    ({"tools": [{"function": {"name": "a b"}}]}, "tools[0].function.name", "invalid_value"),
    ({"tools": [{"function": {"name": "a" * 129}}]}, "tools[0].function.name", "string_above_max_length"),
    ({"tools": [{"function": {"name": "f", "parameters": []}}]}, "tools[0].function.parameters", "invalid_type"),
    ({"tools": [FUNCTION] * 129}, "tools", "array_above_max_length"),
    ({"tool_choice": "any"}, "tool_choice", "invalid_value"),
    ({"tool_choice": {"type": "any"}}, "tool_choice.type", "invalid_value"),
    ({"tool_choice": {}}, "tool_choice.type", "missing_required_parameter"),
    ({"tool_choice": {"type": "function"}}, "tool_choice.function", "missing_required_parameter"),
    ({"response_format": {"type": "yaml"}}, "response_format.type", "invalid_value"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_required_parameter"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format.json_schema.schema", "missing_required_parameter",
    ),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "empty_array"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": {}}}]}]},
        "messages[0].tool_calls[0].function.arguments", "invalid_type",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("extra", "param", "code"), REFUSED)
def test_wrong_tools_are_named(extra, param, code):
    with pytest.raises(RequestError) as caught:
        ChatCompletionRequest.parse({"model": "m", "messages": [{"role": "user", "content": "x"}], **extra})
    assert (caught.value.param, caught.value.code) == (param, code)
    assert "\n" not in str(caught.value)


def test_tools_come_from_mcp():
    ours = McpTool(name="read_file", description="Reads.", input_schema=PARAMETERS)
    theirs = SimpleNamespace(name="read_file", description="Reads.", input_schema=PARAMETERS)
    wire = {"name": "read_file", "description": "Reads.", "inputSchema": PARAMETERS}
    made = Tool.from_mcp_list([ours, theirs, wire])
    assert made[0] == made[1] == made[2]
    assert made[0].function.parameters == PARAMETERS
    assert Tool.filter_by_names(made, ["other"]) == []
    assert len(Tool.filter_by_names(made, ["read_file"])) == 3


def test_calls_and_results_go_to_mcp_and_back():
    call = ToolCall(id="c1", function=FunctionCall(name="f", arguments='{"x": 1}'))
    assert call.to_mcp_call() == McpToolCall(name="f", arguments={"x": 1})
    assert ToolCall(id="c", function=FunctionCall(name="f", arguments="")).to_mcp_call().arguments == {}
    for broken in ("{", "[1]", "1"):
        with pytest.raises(McpToolExecutionError, match="'f'"):
            ToolCall(id="c", function=FunctionCall(name="f", arguments=broken)).to_mcp_call()
    blocks = [{"type": "text", "text": "one"}, SimpleNamespace(type="text", text="two")]
    message = Message.from_mcp_result("c1", McpToolResult(content=blocks), name="f")
    assert message == Message.tool_with_name("c1", "one\ntwo", "f")
    assert Message.from_mcp_result("c1", {"structuredContent": {"a": 1}}).content == '{"a": 1}'
    image = {"type": "image", "data": "", "mimeType": "image/png"}
    assert "image/png" in Message.from_mcp_result("c1", McpToolResult(content=[image])).content


def test_deltas_add_up_to_calls():
    calls = []
    for delta in (
        {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"x"'}},
        {"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        {"index": 0, "function": {"arguments": ": 1}"}},
    ):
        merge_tool_call_delta(calls, ToolCallDelta(**delta))
    assert [(call.id, call.function.name, call.function.arguments) for call in calls] == [
        ("a", "f", '{"x": 1}'), ("b", "g", "{}"),
    ]  # fmt: skip
    for index in (-1, 2, 3):
        with pytest.raises(ValueError, match="of which only 2"):
            merge_tool_call_delta(calls, ToolCallDelta(index=index))
