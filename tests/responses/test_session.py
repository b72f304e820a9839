"""Sessions: the scripted model in the real engine, with real MCP servers on sockets and functions."""

import asyncio
import json
import os
import runpy
import subprocess
import sys
from typing import Annotated

import pytest
from conftest import ROOT, wait_until_idle
from pydantic import Field

import cvllm_jax.responses
from cvllm_jax.errors import CancelledError, ConfigError, McpConnectionError, ModelLoadError, OtherError
from cvllm_jax.mcp import McpServerConfig
from cvllm_jax.openai import Message, RequestError
from cvllm_jax.openai.prompt import check_tool_turns
from cvllm_jax.responses import (
    AgentEnded,
    AgentEnding,
    Approval,
    ConversationOptions,
    ResponsesSession,
    ResponsesSessionBuilder,
    SessionConfig,
    TextPiece,
    ToolEnded,
    ToolStarted,
    TurnEnded,
    function_tool,
)

TASK = (
    "Read the README.md file, summarize it, create a GitHub issue with the summary, "
    "and post a message in the #dev Slack channel."
)
OPTIONS = ConversationOptions().with_max_turns(20).with_allowed_tools(["read_file", "create_issue", "post_message"])
ODD = ConversationOptions(allowed_tools=["slow", "fail", "large"])


def run(coroutine, seconds=60):
    return asyncio.run(asyncio.wait_for(coroutine, seconds))


@pytest.fixture
def engine(agent_engine):
    yield agent_engine
    wait_until_idle(agent_engine)


@pytest.fixture
def session(engine, mcp_urls):
    builder = ResponsesSession.builder().engine(engine)
    for name, url in mcp_urls.items():
        builder.add_mcp_server(name, url, "Bearer TOKEN" if name == "github" else None)
    with builder.build_sync() as session:
        yield session


def test_the_specifications_example(engine, mcp_urls):
    async def scenario():
        session = await (
            ResponsesSession.builder()
            .engine(engine)
            .add_mcp_server("fs", mcp_urls["fs"], None)
            .add_mcp_server("github", mcp_urls["github"], "Bearer TOKEN")
            .add_mcp_server("slack", mcp_urls["slack"], "Bearer TOKEN")
            .build()
        )
        async with session:
            return await session.run_conversation([Message.user(TASK)], OPTIONS)

    result = run(scenario())
    assert result.final_message == "I have opened issue 7 and told #dev."
    assert [call.function.name for call in result.tool_calls_executed] == ["read_file", "create_issue", "post_message"]
    assert [call.server for call in result.tool_calls_executed] == ["fs", "github", "slack"]
    assert [call.result for call in result.tool_calls_executed] == [
        "# Demo\nThis is README.md.", "issue 7: Summary", "posted to #dev"
    ]  # fmt: skip
    assert (result.turns_taken, result.completed, result.ending) == (4, True, AgentEnding.ANSWERED)
    assert [step.turn for step in result.steps] == [1, 2, 3, 4]
    assert [len(step.tool_calls) for step in result.steps] == [1, 1, 1, 0]
    assert result.usage.total_tokens == sum(step.usage.total_tokens for step in result.steps)
    assert [message.role for message in result.messages] == ["user"] + ["assistant", "tool"] * 3 + ["assistant"]
    check_tool_turns(result.messages)


def test_public_names_load_and_the_package_is_cheap():
    assert all(getattr(cvllm_jax.responses, name).__name__ for name in cvllm_jax.responses.__all__)
    for module, heavy in (("responses", "{'pydantic', 'jax'}"), ("responses.session", "{'mcp', 'sqlalchemy'}")):
        code = f"import sys, cvllm_jax.{module}; print(sorted({heavy} & sys.modules.keys()))"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def contents(messages):
    return [(message.role, message.content, message.name) for message in messages]


def test_every_way_of_asking_gives_the_same(session):
    async def streamed():
        async with session.run_conversation_stream(TASK, OPTIONS) as stream:
            with pytest.raises(OtherError, match="has not ended"):
                _ = stream.result
            events = [event async for event in stream]
            return events, stream.result

    def following(events):
        return (yield from events)

    whole = run(session.run_conversation([Message.user(TASK)], OPTIONS))
    events, result = run(streamed())  # in another event loop than the one before
    sync_events = []
    generator = session.run_conversation_stream_sync(TASK, OPTIONS)
    with pytest.raises(StopIteration) as stopped:
        while True:
            sync_events.append(next(generator))
    for other in (result, stopped.value.value, session.run_conversation_sync(TASK, OPTIONS)):
        assert contents(other.messages) == contents(whole.messages)
        assert other.final_message == whole.final_message
        assert (other.turns_taken, other.completed) == (whole.turns_taken, True)
        assert other.usage.total_tokens == whole.usage.total_tokens
        assert [call.result for call in other.tool_calls_executed] == [
            call.result for call in whole.tool_calls_executed
        ]
    assert list(map(type, events)) == list(map(type, sync_events))
    assert isinstance(events[-1], AgentEnded)
    text = "".join(event.text for event in events if isinstance(event, TextPiece))
    assert text == whole.final_message
    assert [event.message for event in events if isinstance(event, TurnEnded)] == [
        step.message for step in result.steps
    ]
    assert [event.call for event in events if isinstance(event, ToolEnded)] == [
        result.call for result in result.tool_calls_executed
    ]


def test_a_conversation_goes_on(session):
    first = session.run_conversation_sync("hello")
    second = session.run_conversation_sync([*first.messages, Message.user("JSON")])
    assert (first.final_message, second.final_message) == ("Hello there.", '{"sum": 5}')
    assert [message.role for message in second.messages] == ["user", "assistant"] * 2


def test_what_is_not_allowed_is_not_there(session):
    result = session.run_conversation_sync("delete it", OPTIONS)
    assert result.tool_calls_executed == []
    (refused,) = result.steps[0].tool_calls
    assert (refused.executed, refused.error) == (False, "there is no tool called 'delete_file'")
    assert result.final_message == "That did not work."


def test_tools_of_one_name_are_told_apart_and_answer_to_it(session):
    names = {tool.name for tool in run(session.list_tools())}
    assert {"read_file", "fs__search", "slack__search"} <= names
    for allowed in (["search"], ["fs__search", "slack__search"]):
        result = session.run_conversation_sync("search", ConversationOptions(allowed_tools=allowed))
        assert [call.result for call in result.tool_calls_executed] == ["fs has a", "slack has b"]


def test_failing_tools_are_told_to_the_model(session):
    result = session.run_conversation_sync("fail", ODD)
    (failed,) = result.tool_calls_executed
    assert failed.error and failed.result == f"Error: {failed.error}"
    assert (result.final_message, result.completed) == ("That did not work.", True)
    result = session.run_conversation_sync("slowly", ODD.with_tool_timeout_secs(0.2))
    assert result.tool_calls_executed[0].error == "'slow' did not answer within 0.2 seconds"
    assert result.completed


def test_ten_megabytes_are_no_problem(session):
    result = session.run_conversation_sync("ten megabytes", ODD.with_max_tool_output_chars(1000))
    (large,) = result.tool_calls_executed
    assert len(large.result) < 1100
    assert result.completed


def test_a_server_that_is_down_is_an_error(engine):
    builder = ResponsesSession.builder().engine(engine).add_mcp_server("x", "http://127.0.0.1:9/mcp")
    with builder.build_sync() as session, pytest.raises(McpConnectionError, match="'x'"):
        session.run_conversation_sync("hello")


def test_max_turns_and_max_tool_calls(session):
    options = OPTIONS.with_max_turns(2)
    result = session.run_conversation_sync(TASK, options)
    assert (result.completed, result.ending, result.turns_taken) == (False, AgentEnding.MAX_TURNS, 2)
    assert (result.final_message, len(result.tool_calls_executed)) == (None, 2)
    rest = session.run_conversation_sync(result.messages, OPTIONS)
    assert rest.final_message == "I have opened issue 7 and told #dev."
    limited = session.run_conversation_sync(TASK, OPTIONS.with_max_tool_calls(1))
    assert (len(limited.tool_calls_executed), limited.completed) == (1, True)


def test_calls_wait_for_approval(session):
    asked = []

    async def policy(call):
        asked.append(call.function.name)
        return Approval.ALLOW if call.function.name == "read_file" else Approval.ASK

    options = OPTIONS.with_approval(policy)
    result = session.run_conversation_sync(TASK, options)
    assert (result.ending, result.completed) == (AgentEnding.APPROVAL, False)
    assert [call.function.name for call in result.open_calls] == ["create_issue"]
    approved = session.run_conversation_sync(result.messages, options)
    assert [call.function.name for call in approved.tool_calls_executed] == ["create_issue"]
    assert approved.open_calls[0].function.name == "post_message"
    refusal = Message.tool(approved.open_calls[0].id, "Error: not today")
    denied = session.run_conversation_sync([*approved.messages, refusal], options)
    assert (denied.final_message, denied.tool_calls_executed) == ("That did not work.", [])
    assert asked == ["read_file", "create_issue", "post_message"]


def test_functions_as_tools(engine):
    async def add(a: int, b: Annotated[int, Field(description="the second")] = 0) -> str:
        """Adds two numbers."""
        return f"The sum is {a + b}."

    def repeat(text: str) -> dict[str, str]:
        return {"text": text}

    config = SessionConfig(engine=engine, tools=[add, repeat])
    with ResponsesSession(config) as session:
        (tool, _) = run(session.list_tools())
        assert tool.definition.function.description == "Adds two numbers."
        assert tool.definition.function.parameters["properties"]["b"]["description"] == "the second"
        result = session.run_conversation_sync("add 2 and 3")
        assert (result.final_message, result.tool_calls_executed[0].server) == ("It is 5.", None)
        result = session.run_conversation_sync("without end", ConversationOptions(max_turns=1))
        assert result.tool_calls_executed[0].result == '{"text":"without end"}'
        badly = session.run_conversation_sync("search")
        assert [call.executed for call in badly.steps[0].tool_calls] == [False, False]


def test_what_goes_wrong_in_functions_is_told_to_the_model(engine, caplog):
    def fail(reason: str = "disk full"):
        raise OSError(reason)

    def slow(seconds: int):
        raise AssertionError("not reached")

    def large(size: int):
        return object()

    with ResponsesSession(SessionConfig(engine=engine, tools=[fail, slow, large])) as session:
        for text, error in (
            ("fail", "OSError: disk full"),
            ("slowly", "seconds: Missing required argument"),
            ("ten megabytes", "PydanticSerializationError: Unable to serialize unknown type: <class 'object'>"),
        ):
            result = session.run_conversation_sync(text)
            assert result.tool_calls_executed[0].error == error
            assert result.final_message == "That did not work."
    assert "disk full" in caplog.text


@pytest.mark.parametrize("function", [lambda x: x, print, 5, lambda *a: a])
def test_functions_that_cannot_be_tools(function):
    with pytest.raises(ConfigError, match="cannot be a tool"):
        function_tool(function)


def test_a_session_closes_the_engine_that_it_made(engine):
    session = ResponsesSession.builder().engine_config(engine.config).build_sync()
    own = session.adapter.engine
    assert session.run_conversation_sync("hello").final_message == "Hello there."
    session.close()
    session.close()
    with pytest.raises(OtherError, match="closed"):
        session.run_conversation_sync("hello")
    with pytest.raises(CancelledError, match="closed"):
        own.generate_sync("hello")
    ResponsesSession(SessionConfig(engine=engine)).close()
    assert engine.generate_sync("abc").text


def test_configuration_that_makes_no_sense_is_refused(engine, tmp_path):
    def twice(): ...

    for make in (
        lambda: SessionConfig(),
        lambda: SessionConfig(engine=engine, model_path="x"),
        lambda: ResponsesSession(SessionConfig(engine=engine, tools=[twice, twice])),
        lambda: ResponsesSession.builder().add_mcp_server("a", "http://a/mcp").add_mcp_server("a", "http://b/mcp"),
        lambda: ResponsesSession.builder().add_mcp_server("a", McpServerConfig(url="http://a/mcp"), "TOKEN"),
        lambda: ResponsesSession.builder().mcp_config(tmp_path / "mcp.json"),
        lambda: ConversationOptions(max_turns=0),
        lambda: ConversationOptions(tool_timeout_secs=0),
        lambda: ConversationOptions(max_tool_output_chars=True),
        lambda: ConversationOptions(allowed_tools="read_file"),
    ):
        with pytest.raises(ConfigError):
            make()
    with pytest.raises(ModelLoadError):
        ResponsesSession.builder().model_path(tmp_path / "nothing").build_sync()
    with ResponsesSession(SessionConfig(engine=engine)) as session:
        with pytest.raises(ConfigError, match="allowed_tools names 'a'; the tools are: none at all"):
            session.run_conversation_sync("hello", ConversationOptions(allowed_tools=["a"]))
        with pytest.raises(RequestError, match="temperature"):
            session.run_conversation_sync("hello", ConversationOptions(temperature=-1))
        with pytest.raises(RequestError, match="messages"):
            session.run_conversation_sync([])


def test_servers_from_a_file(engine, mcp_urls, tmp_path):
    program = {"command": sys.executable, "args": [str(ROOT / "tests" / "mcp" / "sample_server.py")]}
    off = {"url": "http://127.0.0.1:9/mcp", "disabled": True}
    servers = {"fs": {"url": mcp_urls["fs"]}, "sample": program, "off": off}
    (tmp_path / "mcp.json").write_text(json.dumps({"mcpServers": servers}))
    with ResponsesSession.builder().engine(engine).mcp_config(tmp_path / "mcp.json").build_sync() as session:
        result = session.run_conversation_sync("add 2 and 3", ConversationOptions(allowed_tools=["read_file", "add"]))
        assert [(call.server, call.result) for call in result.tool_calls_executed] == [("sample", "5")]


def test_closing_amid_an_event_loop(engine, mcp_urls):
    async def scenario():
        session = await ResponsesSession.builder().engine(engine).add_mcp_server("fs", mcp_urls["fs"]).build()
        assert await session.list_tools()
        session.close()
        while len(asyncio.all_tasks()) > 1:  # noqa: ASYNC110  # connections end when the loop goes on
            await asyncio.sleep(0.005)

    run(scenario(), seconds=20)


def test_the_example_runs(engine, mcp_urls, monkeypatch, capsys):
    monkeypatch.setattr(ResponsesSessionBuilder, "model_path", lambda builder, path: builder.engine(engine))
    monkeypatch.setattr(sys, "argv", ["agent.py", "a-model", mcp_urls["fs"], mcp_urls["slack"]])
    runpy.run_path(str(ROOT / "examples" / "agent.py"))
    assert capsys.readouterr().out.splitlines() == [
        'get_weather({"city": "Paris"}): {"city":"Paris","sky":"clear","celsius":21.0}',
        "It is 21 °C in Paris.",
    ]


@pytest.mark.parametrize("leave", ["cancel", "close"])
def test_leaving_amid_a_tool_stops_it(session, leave):
    from mcp_servers import SLOW

    async def more_than(name, count):
        while SLOW[name] <= count:  # noqa: ASYNC110  # the server counts in a thread of its own
            await asyncio.sleep(0.005)

    async def scenario():
        begun, cancelled = SLOW["begun"], SLOW["cancelled"]
        stream = session.run_conversation_stream("slowly", ODD)
        if leave == "cancel":
            waiting = asyncio.create_task(stream.finish())
            await more_than("begun", begun)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        else:
            await anext(event async for event in stream if isinstance(event, ToolStarted))
            await more_than("begun", begun)
            await stream.aclose()
        await more_than("cancelled", cancelled)

    run(scenario(), seconds=20)


def descriptors():
    return len(os.listdir("/proc/self/fd"))


async def many_sessions(engine, urls, count):
    """Sessions of which every other one is cancelled amid a slow tool; all end."""
    started = asyncio.Semaphore(0)

    async def one(index):
        builder = ResponsesSession.builder().engine(engine).add_mcp_server("odd", urls["odd"])
        async with await builder.build() as session:
            options = ODD.with_tool_timeout_secs(120 if index % 2 else 1)
            async with session.run_conversation_stream("slowly", options) as stream:
                async for event in stream:
                    if isinstance(event, ToolStarted):
                        started.release()
                return stream.result

    tasks = [asyncio.create_task(one(index)) for index in range(count)]
    for _ in tasks:
        await started.acquire()
    for task in tasks[1::2]:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in ended[1::2])
    assert all(result.completed and result.tool_calls_executed[0].error for result in ended[::2])
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("count", [16, pytest.param(200, marks=pytest.mark.slow)])
def test_sessions_with_a_slow_server_leak_nothing(engine, mcp_urls, count):
    run(many_sessions(engine, mcp_urls, 2))  # what is made once is made now
    before = descriptors()
    run(many_sessions(engine, mcp_urls, count), seconds=300)
    for _ in range(200):
        if descriptors() <= before:
            break
        asyncio.run(asyncio.sleep(0.05))
    assert descriptors() <= before
