"""The agent's loop, with the scripted model in the real engine and tools that a test writes down."""

import asyncio
import json
from contextlib import aclosing

import pytest
from agent_script import ADD, CHATML, REPEAT, run, task, tool
from hypothesis import given, settings
from hypothesis import strategies as st
from stub_engine import Script, StubEngine

from cvllm_jax.errors import McpToolExecutionError
from cvllm_jax.openai import FunctionCall, Message, OpenAIAdapter, RequestError, ToolCall, ToolChoice
from cvllm_jax.openai.prompt import check_tool_turns, template_messages
from cvllm_jax.responses.agent.loop import run_agent
from cvllm_jax.responses.agent.types import (
    AgentEnded,
    AgentEnding,
    Approval,
    CallArguments,
    CallStarted,
    ReasoningPiece,
    TextPiece,
    ToolEnded,
    ToolOutcome,
    ToolStarted,
    TurnEnded,
    TurnStarted,
)


async def collect(adapter, agent_task):
    async with aclosing(run_agent(adapter, agent_task)) as events:
        return [event async for event in events]


def work(adapter, agent_task):
    """All events; what was added must be what the chat template takes."""
    events = run(collect(adapter, agent_task))
    assert isinstance(events[-1], AgentEnded)
    conversation = [*agent_task.chat.messages, *events[-1].messages]
    template_messages(conversation)
    if not events[-1].open_calls:
        check_tool_turns(conversation)
    return events


def of(events, *kinds):
    return [event for event in events if isinstance(event, kinds)]


def a_call(name, arguments="{}", call_id="call_1"):
    return ToolCall(id=call_id, function=FunctionCall(name=name, arguments=arguments))


def results(ended):
    return [message.content for message in ended.messages if message.role == "tool"]


async def fails(call):
    raise McpToolExecutionError("the disk is full")


async def sleeps(call):
    await asyncio.sleep(60)
    return ToolOutcome(text="awake")


def test_an_answer_with_a_tool(adapter):
    events = work(adapter, task("add 2 and 3"))
    kinds = [type(event) for event in events]
    for kind in (TextPiece, ReasoningPiece, CallArguments):  # any number of them, where there is one
        kinds = [name for name, next_name in zip(kinds, [*kinds[1:], None]) if not (name is next_name is kind)]
    assert kinds == [
        TurnStarted, ReasoningPiece, TextPiece, CallStarted, CallArguments, TurnEnded, ToolStarted, ToolEnded,
        TurnStarted, ReasoningPiece, TextPiece, TurnEnded, AgentEnded,
    ]  # fmt: skip
    first, second = of(events, TurnEnded)
    (call,) = first.message.tool_calls
    assert (first.turn, first.finish_reason, first.message.content) == (1, "tool_calls", "Let me see.")
    assert first.message.reasoning_content == "A sum."
    assert json.loads(call.function.arguments) == {"a": 2, "b": 3}
    assert "".join(event.text for event in of(events, CallArguments)) == call.function.arguments
    assert of(events, CallStarted) == [CallStarted(0, call.id, "add")]
    assert of(events, ToolEnded) == [ToolEnded(call, ToolOutcome(text="The sum is 5."))]
    assert (second.turn, second.finish_reason, second.message.content) == (2, "stop", "It is 5.")
    ended = events[-1]
    assert ended.ending is AgentEnding.ANSWERED
    assert ended.messages == [
        first.message, Message.tool_with_name(call.id, "The sum is 5.", "add"), second.message
    ]  # fmt: skip
    assert ended.usage.total_tokens == first.usage.total_tokens + second.usage.total_tokens
    assert ended.usage.completion_tokens_details.reasoning_tokens == sum(
        turn.usage.completion_tokens_details.reasoning_tokens for turn in (first, second)
    )
    assert second.usage.prompt_tokens_details.cached_tokens > 0, "the second turn goes on from the first one's pages"


def test_text_comes_with_its_log_probabilities(adapter):
    events = work(adapter, task("add 2 and 3", chat={"logprobs": True, "top_logprobs": 1}))
    pieces = of(events, TextPiece)
    assert "".join(piece.text for piece in pieces) == "Let me see.It is 5."
    assert "".join(entry.token for piece in pieces for entry in piece.logprobs) == "Let me see.It is 5."
    assert not any(piece.logprobs for piece in of(work(adapter, task("hello")), TextPiece))


def test_tools_of_one_turn_run_at_the_same_time_and_report_in_order(adapter):
    both, ended = asyncio.Barrier(2), []

    async def meets(call):
        async with asyncio.timeout(10):
            await both.wait()
        if call.to_mcp_call().arguments["a"] == 2:
            await asyncio.sleep(0.05)  # the first call ends last
        ended.append(call.to_mcp_call().arguments["a"])
        return ToolOutcome(text=f"sum is 5 ({ended[-1]})")

    events = work(adapter, task("add twice", tools=[tool("add", meets)]))
    assert ended == [1, 2]
    calls = of(events, TurnEnded)[0].message.tool_calls
    assert [event.call for event in of(events, ToolStarted)] == calls
    assert [event.call for event in of(events, ToolEnded)] == calls
    assert results(events[-1]) == ["sum is 5 (2)", "sum is 5 (1)"]


@pytest.mark.parametrize(
    ("text", "tools", "error"),
    [
        ("add 2 and 3", [tool("add", fails)], "the disk is full"),
        ("add 2 and 3", [tool("add", sleeps)], "'add' did not answer within 0.05 seconds"),
        ("write badly", [ADD], "the arguments of 'add' are no JSON object"),
        ("use nothing", [ADD], "there is no tool called 'nothing'"),
    ],
)
def test_what_goes_wrong_with_a_call_is_told_to_the_model(adapter, text, tools, error):
    events = work(adapter, task(text, tools=tools, tool_timeout_secs=0.05))
    (outcome,) = [event.outcome for event in of(events, ToolEnded)]
    assert outcome == ToolOutcome(text=f"Error: {error}", error=error)
    assert results(events[-1]) == [outcome.text]
    assert (events[-1].ending, events[-1].messages[-1].content) == (AgentEnding.ANSWERED, "That did not work.")
    ran = not error.startswith(("the arguments", "there is no"))
    assert len(of(events, ToolStarted)) == ran


def test_a_bad_call_is_remembered_without_its_arguments(adapter):
    events = work(adapter, task("write badly"))
    assert of(events, TurnEnded)[0].message.tool_calls[0].function.arguments == "[1, 2]"
    assert events[-1].messages[0].tool_calls[0].function.arguments == "{}"


def test_output_is_bounded(adapter):
    async def talks(call):
        return ToolOutcome(text="x" * 10_000_000)

    events = work(adapter, task("add 2 and 3", tools=[tool("add", talks)], max_tool_output_chars=100))
    (outcome,) = [event.outcome for event in of(events, ToolEnded)]
    assert outcome.text == "x" * 100 + "\n[cut: the first 100 of 10000000 characters]"
    assert events[-1].ending is AgentEnding.ANSWERED


def test_calls_of_the_clients_tools_end_it_when_the_others_have_run(adapter):
    events = work(adapter, task("add and ask"))
    own, clients = of(events, TurnEnded)[0].message.tool_calls
    assert of(events, ToolEnded) == [ToolEnded(own, ToolOutcome(text="The sum is 5."))]
    ended = events[-1]
    assert (ended.ending, list(ended.open_calls)) == (AgentEnding.CALLS, [clients])
    assert results(ended) == ["The sum is 5."]


@pytest.mark.parametrize(
    ("approval", "ending", "result"),
    [
        (Approval.ALLOW, AgentEnding.ANSWERED, ["The sum is 5.", "The sum is 5."]),
        (Approval.DENY, AgentEnding.ANSWERED, ["Error: this call was denied", "The sum is 5."]),
        (Approval.ASK, AgentEnding.APPROVAL, ["The sum is 5."]),
    ],
)
def test_approval(adapter, approval, ending, result):
    async def policy(call):
        return approval if call.to_mcp_call().arguments["a"] == 2 else Approval.ALLOW

    events = work(adapter, task("add twice", approval=policy))
    ended = events[-1]
    first = of(events, TurnEnded)[0].message.tool_calls[0]
    assert (ended.ending, results(ended)) == (ending, result)
    assert list(ended.open_calls) == ([first] if approval is Approval.ASK else [])


def test_pending_calls_run_first_and_unasked(adapter):
    async def policy(call):
        raise AssertionError("not to be asked")

    calls = [a_call("add", '{"a": 4, "b": 1}', "call_a"), a_call("nothing", call_id="call_b")]
    chat = {"messages": [Message.user("hi"), Message.assistant_with_tool_calls(calls)]}
    events = work(adapter, task("", chat=chat, pending=calls, approval=policy))
    assert [type(event) for event in events[:4]] == [ToolStarted, ToolEnded, ToolEnded, TurnStarted]
    assert results(events[-1]) == ["The sum is 5.", "Error: there is no tool called 'nothing'"]


def test_pending_calls_that_the_client_runs_end_it_at_once(adapter):
    calls = [a_call("client")]
    chat = {"messages": [Message.user("hi"), Message.assistant_with_tool_calls(calls)]}
    (ended,) = work(adapter, task("", chat=chat, pending=calls))
    assert ended == AgentEnded(ending=AgentEnding.CALLS, messages=[], open_calls=calls, usage=None)


def test_an_answer_that_is_cut_runs_no_call(adapter):
    ended = work(adapter, task("at length", chat={"max_tokens": 8}))[-1]
    assert (ended.ending, ended.messages[0].content) == (AgentEnding.CUT, "and so o")
    events = work(adapter, task("call at length", chat={"max_tokens": 80}))
    assert of(events, CallStarted) and not of(events, ToolStarted, ToolEnded)
    assert (events[-1].ending, list(events[-1].open_calls)) == (AgentEnding.CUT, [])
    assert (events[-1].messages[0].content, events[-1].messages[0].tool_calls) == ("", None)
    assert of(events, TurnEnded)[0].message.tool_calls


def test_max_turns(adapter):
    events = work(adapter, task("without end", max_turns=3))
    assert [event.turn for event in of(events, TurnStarted)] == [1, 2, 3]
    assert events[-1].ending is AgentEnding.MAX_TURNS
    assert [message.role for message in events[-1].messages] == ["assistant", "tool"] * 3


def test_max_tool_calls(adapter):
    """Only the first of two calls runs; then the model may still call what the client runs."""
    events = work(adapter, task("add twice", max_tool_calls=1))
    limit = "Error: the limit of 1 tool calls is reached; answer with what you have"
    assert results(events[-1]) == ["The sum is 5.", limit]
    assert len(of(events, ToolStarted)) == 1
    ended = work(adapter, task("without end", tools=[REPEAT], max_tool_calls=2))[-1]
    assert ended.ending is AgentEnding.ANSWERED
    assert [message.role for message in ended.messages] == ["assistant", "tool"] * 2 + ["assistant"]
    assert ended.messages[-1].tool_calls is None


def test_a_forced_call_holds_for_the_first_turn(adapter):
    for choice in ("required", {"type": "function", "function": {"name": "add"}}):
        ended = work(adapter, task("add twice", chat={"tool_choice": choice}))[-1]
        assert (ended.ending, ended.messages[-1].content) == (AgentEnding.ANSWERED, "It is 5.")
        assert results(ended)[0] == "The sum is 5."


def test_only_some_tools_may_be_called(adapter):
    forced = work(adapter, task("ask the client", callable=["add"], chat={"tool_choice": "required"}, max_turns=1))
    assert {event.name for event in of(forced, CallStarted)} == {"add"}
    ended = work(adapter, task("add 2 and 3", callable=[]))[-1]
    assert (ended.ending, len(ended.messages)) == (AgentEnding.ANSWERED, 1)
    chosen = ToolChoice.allowed_tools(["add", "client"], "required")
    ended = work(adapter, task("ask the client", callable=["client", "repeat"], chat={"tool_choice": chosen}))[-1]
    assert (ended.ending, ended.open_calls[0].function.name) == (AgentEnding.CALLS, "client")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"chat": {"n": 2}}, "n"),
        ({"callable": ["add"], "chat": {"tool_choice": ToolChoice.function("client")}}, "tool_choice"),
        ({"callable": [], "chat": {"tool_choice": "required"}}, "tool_choice"),
        ({"tools": [], "chat": {"tool_choice": "required"}}, "tool_choice"),
        ({"chat": {"max_tokens": 100_000}}, "max_tokens"),
    ],
)
def test_tasks_that_cannot_be_done_are_refused(adapter, fields, param):
    with pytest.raises(RequestError) as caught:
        work(adapter, task("hello", **fields))
    assert caught.value.param == param


def test_without_tools_it_is_a_chat(adapter):
    events = work(adapter, task("JSON", tools=[], chat={"response_format": {"type": "json_object"}}))
    assert (events[-1].ending, events[-1].messages) == (AgentEnding.ANSWERED, [Message.assistant('{"sum": 5}')])


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_leaving_amid_a_tool_waits_for_its_end(adapter, how):
    both, left = asyncio.Barrier(3), []

    async def waits(call):
        try:
            await both.wait()
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.02)
            left.append(call)

    async def scenario():
        events = run_agent(adapter, task("add twice", tools=[tool("add", waits)]))
        if how == "close":
            await anext(event async for event in events if isinstance(event, ToolStarted))
            await both.wait()
            await events.aclose()
        else:
            consumer = asyncio.ensure_future(anext(event async for event in events if isinstance(event, ToolEnded)))
            await both.wait()
            consumer.cancel()
            with pytest.raises(asyncio.CancelledError):
                await consumer
        assert len(left) == 2
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


def test_leaving_amid_an_answer_ends_the_request(adapter):
    async def scenario():
        async with aclosing(run_agent(adapter, task("at length"))) as events:
            await anext(event async for event in events if isinstance(event, TextPiece))
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(scenario())


def test_a_broken_tool_ends_the_agent_and_its_neighbours(adapter):
    """A tool may raise errors of the library; anything else is a defect and shows as one."""
    left = []

    async def breaks(call):
        if call.to_mcp_call().arguments["a"] == 1:
            raise ZeroDivisionError
        try:
            await asyncio.sleep(60)
        finally:
            left.append(call)

    async def scenario():
        with pytest.raises(ZeroDivisionError):
            await collect(adapter, task("add twice", tools=[tool("add", breaks)], tool_timeout_secs=0.2))
        assert asyncio.all_tasks() - {asyncio.current_task()} == set()

    run(scenario())
    assert len(left) == 1


def test_one_limit_for_the_tokens_of_all_turns(adapter):
    used = work(adapter, task("add 2 and 3"))[-1].usage.completion_tokens
    cut = work(adapter, task("add 2 and 3", max_output_tokens=used - 3))[-1]
    assert (cut.ending, cut.usage.completion_tokens) == (AgentEnding.CUT, used - 3)
    none_left = work(adapter, task("add 2 and 3", max_output_tokens=1))[-1]
    assert (none_left.ending, none_left.usage.completion_tokens) == (AgentEnding.CUT, 1)
    larger = work(adapter, task("add 2 and 3", max_output_tokens=10**6))[-1]  # a limit and no demand
    assert larger.ending is AgentEnding.ANSWERED


KINDS = ("works", "fails", "client", "denied", "asks", "unknown", "malformed")


@st.composite
def turns(draw):
    """Turns of calls, each a kind and how long its tool takes, in milliseconds; then an answer."""
    one_call = st.tuples(st.sampled_from(KINDS), st.integers(0, 5))
    return draw(st.lists(st.lists(one_call, min_size=1, max_size=4), max_size=3))


def spoken(calls):
    objects = [
        {"name": name, "arguments": [1] if name == "malformed" else {"wait": wait, "number": number}}
        for number, (name, wait) in enumerate(calls)
    ]
    return "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in objects)


@settings(deadline=None, max_examples=30)
@given(planned=turns())
def test_results_come_in_order_whatever_the_calls_do(planned):
    async def works(call):
        arguments = call.to_mcp_call().arguments
        await asyncio.sleep(arguments["wait"] / 1000)
        if call.function.name == "fails":
            raise McpToolExecutionError(f"{arguments['number']} failed")
        return ToolOutcome(text=f"{arguments['number']} worked")

    async def policy(call):
        return {"denied": Approval.DENY, "asks": Approval.ASK}.get(call.function.name, Approval.ALLOW)

    tools = [tool(name, None if name == "client" else works) for name in KINDS if name != "unknown"]
    scripts = [Script(text=spoken(calls)) for calls in planned]
    with StubEngine([*scripts, Script(text="The end.")], template=CHATML, context=16384) as engine:
        events = run(collect(OpenAIAdapter(engine), task("go", tools=tools, approval=policy)))
    expected = {
        "works": "{} worked", "fails": "Error: {} failed", "denied": "Error: this call was denied",
        "unknown": "Error: there is no tool called 'unknown'",
        "malformed": "Error: the arguments of 'malformed' are no JSON object",
    }  # fmt: skip
    stops = [{"client", "asks"} & {name for name, _ in calls} for calls in planned]
    taken = planned[: next((index + 1 for index, stop in enumerate(stops) if stop), len(planned))]
    closed = not any(stops)
    messages = events[-1].messages
    assert [message.role for message in messages] == [
        role
        for calls in taken
        for role in ("assistant", *("tool" for name, _ in calls if name not in ("client", "asks")))
    ] + ["assistant"] * closed
    assert results(events[-1]) == [
        expected[name].format(number)
        for calls in taken
        for number, (name, _) in enumerate(calls)
        if name in expected
    ]
    assert [event.outcome.text for event in of(events, ToolEnded)] == results(events[-1])
    assert [message.tool_call_id for message in messages if message.role == "tool"] == [
        event.call.id for event in of(events, ToolEnded)
    ]
    assert [call.function.name for call in events[-1].open_calls] == (
        [] if closed else [name for name, _ in taken[-1] if name in ("client", "asks")]
    )
    if closed:
        assert events[-1].ending is AgentEnding.ANSWERED
        check_tool_turns([Message.user("go"), *messages])
    else:
        assert events[-1].ending is (AgentEnding.APPROVAL if "asks" in stops[len(taken) - 1] else AgentEnding.CALLS)
    pieces = "".join(event.text for event in of(events, CallArguments))
    calls = [call for turn in of(events, TurnEnded) for call in turn.message.tool_calls or ()]
    assert pieces == "".join(call.function.arguments for call in calls)
