"""The examples of the API's specification, tool calling and streaming, in Python."""

import asyncio

import pytest

from cvllm_jax.openai import (
    ChatCompletionRequest,
    FunctionDefinition,
    McpTool,
    McpToolResult,
    Message,
    OpenAIAdapter,
    Tool,
    ToolCall,
    ToolChoice,
    merge_tool_call_delta,
)

pytestmark = pytest.mark.anyio

LOCATION = {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}


@pytest.fixture
def adapter(scripted):
    return OpenAIAdapter(scripted)


@pytest.fixture
def request_with_tools():
    tools = [
        Tool.function(
            FunctionDefinition("get_weather").with_description("Get current weather").with_parameters(LOCATION)
        )
    ]
    return ChatCompletionRequest(
        model="mistral-7b",
        messages=[Message.user("What's the weather in Tokyo?")],
        tools=tools,
        tool_choice=ToolChoice.mode("auto"),
    )


async def execute_tool(tool_call: ToolCall) -> str:
    await asyncio.sleep(0)
    return f"sunny in {tool_call.to_mcp_call().arguments['location']}"


async def test_tool_calling(adapter, request_with_tools):
    request = request_with_tools
    response = await adapter.chat_completion(request)
    assert response.model == "mistral-7b"
    tool_calls = response.choices[0].message.tool_calls
    assert tool_calls
    for tool_call in tool_calls:
        assert tool_call.function.name == "get_weather"
        result = await execute_tool(tool_call)
        follow_up = request.model_copy(
            update={
                "messages": [
                    *request.messages,
                    Message.assistant_with_tool_calls(tool_calls),
                    Message.tool_with_name(tool_call.id, result, tool_call.function.name),
                ]
            }
        )
        final_response = await adapter.chat_completion(follow_up)
        assert final_response.choices[0].message.content == "Tokyo is sunny."


async def test_streaming(adapter):
    request = ChatCompletionRequest(model="mistral-7b", messages=[Message.user("hi")])
    stream = await adapter.chat_completion_stream(request)
    text = ""
    async for chunk in stream:
        if content := chunk.choices[0].delta.content:
            text += content
    assert text == "Hello there."


async def test_streaming_with_tool_calls(adapter, request_with_tools):
    stream = await adapter.chat_completion_stream(request_with_tools)
    tool_calls: list[ToolCall] = []
    async for chunk in stream:
        delta = chunk.choices[0].delta
        for tool_call_delta in delta.tool_calls or ():
            merge_tool_call_delta(tool_calls, tool_call_delta)
        if chunk.choices[0].finish_reason is not None:
            assert chunk.choices[0].finish_reason == "tool_calls"
            break
    assert [await execute_tool(tool_call) for tool_call in tool_calls] == ["sunny in Tokyo"]


async def test_mcp_tools(adapter):
    mcp_tools = [McpTool(name="get_weather", description="Get current weather", input_schema=LOCATION)]
    request = ChatCompletionRequest(
        messages=[Message.user("The weather in Tokyo?")],
        tools=Tool.from_mcp_list(mcp_tools),
        tool_choice=ToolChoice.mode("auto"),
    )
    response = await adapter.chat_completion(request)
    assert response.model == adapter.engine_mut.model_info().name
    for tool_call in response.choices[0].message.tool_calls:
        mcp_call = tool_call.to_mcp_call()
        assert (mcp_call.name, mcp_call.arguments) == ("get_weather", {"location": "Tokyo"})
        result = McpToolResult(content=[{"type": "text", "text": "sunny"}])
        message = Message.from_mcp_result(tool_call.id, result, tool_call.function.name)
        assert (message.role, message.content, message.name) == ("tool", "sunny", "get_weather")
