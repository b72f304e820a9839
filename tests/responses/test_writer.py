"""Events and items of responses, judged by the SDK's types, Open Responses' types and a linter of streams."""

import json

import openresponses_types
import pytest
from agent_reports import TARGETS, TEXT, USAGE, logprob, make_writer, pieces, reports, written
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response as SdkResponse
from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter
from stream_lint import lint_responses

from cvllm_jax.openai import FunctionCall, McpTool, Message, ToolCall
from cvllm_jax.responses.agent.types import (
    AgentEnded,
    AgentEnding,
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
from cvllm_jax.responses.items.opaque import decode_reasoning
from cvllm_jax.responses.types import McpApprovalRequest, ResponseError, ResponseEvent

SDK_EVENT = TypeAdapter(ResponseStreamEvent)
OUR_EVENT = TypeAdapter(ResponseEvent)
OPEN_EVENTS = {
    kind: model
    for model in vars(openresponses_types).values()
    if isinstance(model, type) and issubclass(model, BaseModel) and model.__name__.endswith("StreamingEvent")
    for kind in model.model_fields["type"].annotation
}


def wire(events):
    """Events as clients get them."""
    return [(event.type, event.model_dump_json()) for event in events]


def lint(events):
    return lint_responses([*wire(events), ("done", "[DONE]")])


def check(events, *, plain=False):
    """Ask all judges; ``plain``: Open Responses' too, which knows no MCP and no custom tools."""
    assert lint(events) == []
    for _, data in wire(events):
        SDK_EVENT.validate_json(data, strict=True)
        OUR_EVENT.validate_json(data)
        if plain:
            OPEN_EVENTS[json.loads(data)["type"]].model_validate_json(data)


def kinds(events):
    return [event.type.removeprefix("response.") for event in events]


def item_types(response):
    return [item.type for item in response.output]


def ended(ending=AgentEnding.ANSWERED, **fields):
    return AgentEnded(ending=ending, messages=[], usage=USAGE, **fields)


def turn_ended(turn=1, reason="stop"):
    return TurnEnded(turn=turn, message=Message.assistant(""), finish_reason=reason, usage=USAGE)


def call(name, arguments="{}", call_id="call_1"):
    return ToolCall(id=call_id, function=FunctionCall(name=name, arguments=arguments))


@settings(deadline=None)
@given(
    reports(), st.booleans(), st.lists(st.sampled_from(["message.output_text.logprobs", "reasoning.encrypted_content"]))
)
def test_every_run_makes_a_stream_that_all_judges_accept(report, reasons, include):
    request = {"include": include, **({"reasoning": {"effort": "low"}} if reasons else {})}
    writer = make_writer(request)
    events = written(writer, report.events)
    check(events)
    SdkResponse.model_validate(json.loads(writer.response.model_dump_json()), strict=True)
    assert events[-1].response == writer.response
    added = [event.item.id for event in events if event.type == "response.output_item.added"]
    assert [item.id for item in writer.response.output] == added
    assert len(set(added)) == len(added)


@settings(deadline=None)
@given(reports(names=("lookup",)))
def test_without_other_tools_open_responses_accepts_every_event(report):
    writer = make_writer({"tools": [{"type": "function", "name": "lookup"}]})
    check(written(writer, report.events), plain=True)
    openresponses_types.ResponseResource.model_validate_json(writer.response.model_dump_json())


@settings(deadline=None, max_examples=50)
@given(reports(), st.data())
@pytest.mark.parametrize("stop", ["fail", "cancel"])
def test_a_response_that_stops_midway_closes_what_it_began(stop, report, data):
    writer = make_writer()
    count = data.draw(st.integers(0, len(report.events) - 1))
    events = written(writer, report.events[:count])
    if stop == "fail":
        events += writer.fail(ResponseError(code="server_error", message="The engine stopped."))
        assert (events[-1].type, writer.response.status) == ("response.failed", "failed")
        assert writer.response.error.message == "The engine stopped."
    else:
        events += writer.cancel()
        assert (events[-1].type, writer.response.status) == ("response.incomplete", "cancelled")
    check(events)
    opened = [event.output_index for event in events if event.type == "response.output_item.added"]
    assert [event.output_index for event in events if event.type == "response.output_item.done"] == opened
    assert writer.cancel() == writer.fail(ResponseError(code="server_error", message="")) == []


def test_a_message_is_told_in_the_order_of_the_api():
    writer = make_writer()
    events = written(writer, [TurnStarted(1), TextPiece("Hel"), TextPiece("lo"), turn_ended(), ended()])
    assert kinds(events) == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert events[2].item.content == []
    assert events[2].item.status == "in_progress"
    assert writer.response.output_text == "Hello"
    assert (writer.response.status, writer.response.completed_at) == ("completed", 1001)
    assert writer.response.usage.total_tokens == 12
    check(events, plain=True)


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ({}, ["reasoning_summary_part.added", "reasoning_summary_text.delta", "reasoning_summary_text.done",
              "reasoning_summary_part.done"]),
        ({"reasoning": {}}, ["content_part.added", "reasoning_text.delta", "reasoning_text.done", "content_part.done"]),
    ],
)  # fmt: skip
def test_reasoning_text_is_told_only_to_clients_that_sent_reasoning(request_, told):
    writer = make_writer(request_)
    events = written(writer, [TurnStarted(1), ReasoningPiece("hmm"), TextPiece("Hi"), turn_ended(), ended()])
    assert kinds(events)[2:8] == ["output_item.added", *told, "output_item.done"]
    reasoning = writer.response.output[0]
    assert reasoning.content[0].text == "hmm"
    assert [part.text for part in reasoning.summary] == ([] if request_ else ["hmm"])
    check(events, plain=not request_)


def test_reasoning_comes_in_opaque_form_for_clients_that_include_it():
    writer = make_writer({"include": ["reasoning.encrypted_content"]})
    written(writer, [TurnStarted(1), ReasoningPiece("h\0mm"), turn_ended(), ended()])
    assert decode_reasoning(writer.response.output[0].encrypted_content) == "h\0mm"


def test_logprobs_are_there_if_included():
    events = [TurnStarted(1), TextPiece("a", [logprob("a")]), TextPiece("b", [logprob("b")]), turn_ended(), ended()]
    writer = make_writer({"include": ["message.output_text.logprobs"]})
    told = written(writer, events)
    assert [entry.token for entry in writer.response.output[0].content[0].logprobs] == ["a", "b"]
    assert told[4].logprobs[0].top_logprobs[0].bytes == []
    writer = make_writer()
    assert all(not event.logprobs for event in written(writer, events) if event.type.endswith("output_text.delta"))
    assert writer.response.output[0].content[0].logprobs == []


def test_a_function_call_is_done_as_soon_as_the_model_goes_on():
    writer = make_writer()
    events = written(
        writer, [TurnStarted(1), CallStarted(0, "call_1", "lookup"), CallArguments(0, "{}"), TextPiece("and")]
    )
    assert kinds(events)[2:7] == [
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "output_item.added",
    ]  # fmt: skip
    assert events[4].name == "lookup"


def test_calls_that_run_together_end_in_order_and_hold_back_what_comes_after():
    writer = make_writer()
    first, second = call("a_search", call_id="call_a"), call("b_search", call_id="call_b")
    events = written(
        writer,
        [
            TurnStarted(1), CallStarted(0, "call_a", "a_search"), CallArguments(0, "{}"),
            CallStarted(1, "call_x", "lookup"), CallArguments(1, "{}"),
            CallStarted(2, "call_b", "b_search"), CallArguments(2, "{}"), turn_ended(reason="tool_calls"),
        ],
    )  # fmt: skip
    assert "output_item.done" not in kinds(events)
    events += [told for event in (ToolStarted(first), ToolStarted(second)) for told in writer.take(event)]
    done = writer.take(ToolEnded(first, ToolOutcome(text="3")))
    assert kinds(done) == ["mcp_call.completed", "output_item.done", "output_item.done"]
    failed = writer.take(ToolEnded(second, ToolOutcome(text="no", error="no")))
    assert kinds(failed) == ["mcp_call.failed", "output_item.done"]
    events += [*done, *failed, *writer.take(ended(AgentEnding.CALLS, open_calls=[call("lookup", call_id="call_x")]))]
    check(events)
    assert item_types(writer.response) == ["mcp_call", "function_call", "mcp_call"]
    searched, _, other = writer.response.output
    assert (searched.name, searched.server_label, searched.output, searched.error) == ("search", "a", "3", None)
    assert (other.status, other.output) == ("failed", None)
    assert other.error == {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": "no"}]}


def test_a_call_that_needs_approval_is_a_request_and_runs_in_another_response():
    writer = make_writer()
    events = written(
        writer,
        [
            TurnStarted(1), CallStarted(0, "call_1", "delete"), CallArguments(0, '{"x"'), CallArguments(0, ":1}"),
            turn_ended(reason="tool_calls"), ended(AgentEnding.APPROVAL, open_calls=[call("delete")]),
        ],
    )  # fmt: skip
    assert kinds(events)[2:] == ["output_item.added", "output_item.done", "completed"]
    check(events)
    (request,) = writer.response.output
    assert (request.server_label, request.name, request.arguments) == ("a", "delete", '{"x":1}')

    writer = make_writer(approvals={"call_1": request})
    pending = call("delete", '{"x":1}')
    events = written(writer, [ToolStarted(pending), ToolEnded(pending, ToolOutcome(text="gone"))])
    assert kinds(events)[2:] == [
        "output_item.added", "mcp_call.in_progress", "mcp_call_arguments.delta", "mcp_call_arguments.done",
        "mcp_call.completed", "output_item.done",
    ]  # fmt: skip
    check([*events, *writer.take(ended())])
    (ran,) = writer.response.output
    assert (ran.approval_request_id, ran.arguments, ran.output) == (request.id, '{"x":1}', "gone")


def test_an_approved_call_whose_tool_is_gone_shows_its_failure():
    request = McpApprovalRequest(id="mcpr_1", server_label="z", name="old", arguments="{}")
    writer = make_writer(approvals={"call_1": request})
    check(written(writer, [ToolEnded(call("z_old"), ToolOutcome(text="no tool", error="no tool")), ended()]))
    assert (writer.response.output[0].server_label, writer.response.output[0].status) == ("z", "failed")


def test_a_policy_that_asks_where_the_targets_did_not_say_so_makes_a_request_too():
    writer = make_writer()
    events = written(
        writer,
        [
            TurnStarted(1), CallStarted(0, "call_1", "a_search"), CallArguments(0, "{}"),
            turn_ended(reason="tool_calls"), ended(AgentEnding.APPROVAL, open_calls=[call("a_search")]),
        ],
    )  # fmt: skip
    check(events)
    assert item_types(writer.response) == ["mcp_call", "mcp_approval_request"]
    assert writer.response.output[0].status == "incomplete"


def test_calls_of_tools_that_do_not_exist_are_not_shown():
    writer = make_writer()
    events = written(
        writer,
        [
            TurnStarted(1), CallStarted(0, "call_1", "ghost"), CallArguments(0, "{}"), turn_ended(reason="tool_calls"),
            ToolEnded(call("ghost"), ToolOutcome(text="Error", error="there is no tool called 'ghost'")),
            TurnStarted(2), TextPiece("Sorry"), turn_ended(2), ended(),
        ],
    )  # fmt: skip
    check(events, plain=True)
    assert item_types(writer.response) == ["message"]


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_cut_call_is_incomplete_and_last(name):
    writer = make_writer()
    events = written(
        writer,
        [
            TurnStarted(1), TextPiece("Let me see."), CallStarted(0, "call_1", name), CallArguments(0, '{"input": "a'),
            turn_ended(reason="length"), ended(AgentEnding.CUT),
        ],
    )  # fmt: skip
    check(events)
    response = writer.response
    assert (events[-1].type, response.status, response.completed_at) == ("response.incomplete", "incomplete", None)
    assert response.incomplete_details.reason == "max_output_tokens"
    statuses = [item.status for item in response.output]
    assert statuses == (["completed"] if name == "delete" else ["completed", "incomplete"])


def test_lists_of_tools():
    writer = make_writer()
    events = [*writer.begin(), *writer.start_listing("a"), *writer.start_listing("b")]
    assert kinds(events)[2:] == ["output_item.added", "mcp_list_tools.in_progress"] * 2
    tool = McpTool(name="search", input_schema={"type": "object"}, annotations={"readOnlyHint": True})
    events += [*writer.list_tools("b", error="it is down"), *writer.list_tools("a", [tool]), *writer.list_tools("c")]
    events += writer.take(ended())
    check(events)
    listed, failed, empty = writer.response.output
    assert listed.model_dump(exclude={"id"}) == {
        "type": "mcp_list_tools",
        "server_label": "a",
        "tools": [{"name": "search", "input_schema": {"type": "object"}, "annotations": {"readOnlyHint": True}}],
    }
    assert (failed.server_label, failed.error, failed.tools) == ("b", "it is down", [])
    assert (empty.server_label, empty.tools) == ("c", [])


def test_a_queued_response_starts_later():
    writer = make_writer({"background": True})
    events = writer.begin(queued=True)
    assert [event.response.status for event in events] == ["queued", "queued"]
    events += [*writer.start(), *writer.take(TurnStarted(1)), *writer.take(TextPiece("Hi")), *writer.take(ended())]
    assert kinds(events)[:3] == ["created", "queued", "in_progress"]
    check(events, plain=True)


def test_the_response_so_far_has_the_items_that_are_done():
    writer = make_writer()
    written(writer, [TurnStarted(1), ReasoningPiece("hmm"), TextPiece("Hel")])
    assert item_types(writer.response) == ["reasoning"]
    assert writer.response.status == "in_progress"


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=20), st.booleans(), st.data())
def test_a_custom_tools_input_is_told_as_its_text_for_every_split(text, ascii_only, data):
    arguments = json.dumps({"input": text}, ensure_ascii=ascii_only)
    _, deltas, item = custom_call(data.draw(pieces(arguments)))
    assert "".join(deltas) == item.input == text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (r'{"input": "a\qb"}', r"a\qb"),
        (r'{"input": "\ud83d\ude00"}', "\U0001f600"),
        (r'{"input": "\ud83d"}', "\ufffd"),
        (r'{"input": "\ude00\ud83dx"}', "\ufffd\ufffdx"),
        (r'{"input": "\ud83d\ud83d\ude00"}', "\ufffd\U0001f600"),
        (r'{"input": "\ud83d\n"}', "\ufffd\n"),
        (r'{"input": "\u12"}', r"\u12"),
        ('{"input": "raw\nline"}', "raw\nline"),
        ('{"input": "a", "input": "b"} and more', "a"),
        ('{"other": 1, "input": "a"}', "a"),
        (r'{"other": 1, "input": "\ud83d"}', "\ufffd"),
        ('{"input": 5}', '{"input": 5}'),
        ("SELECT 1", "SELECT 1"),
        ("[" * 5000, "[" * 5000),
        ("{}", ""),
        ("", ""),
    ],
)
def test_a_custom_tools_input_is_read_whatever_the_model_wrote(arguments, text):
    for parts in ([arguments], list(arguments)):
        _, deltas, item = custom_call(parts)
        assert "".join(deltas) == item.input == text


@settings(deadline=None)
@given(TEXT, st.data())
def test_a_cut_custom_input_is_a_beginning(text, data):
    arguments = json.dumps({"input": text})
    cut = arguments[: data.draw(st.integers(0, len(arguments)))]
    events, deltas, item = custom_call([cut], reason="length")
    check(events)
    assert text.startswith(item.input) or item.input.endswith("\ufffd")
    assert "".join(deltas) == item.input


def custom_call(parts, reason="tool_calls"):
    writer = make_writer()
    ending = ended(AgentEnding.CUT if reason == "length" else AgentEnding.CALLS)
    arguments = [CallArguments(0, part) for part in parts]
    events = written(
        writer, [TurnStarted(1), CallStarted(0, "call_1", "note"), *arguments, turn_ended(reason=reason), ending]
    )
    deltas = [event.delta for event in events if event.type == "response.custom_tool_call_input.delta"]
    return events, deltas, writer.response.output[0]


def test_a_call_that_would_need_approval_is_none_to_approve_if_the_agent_refuses_it():
    writer = make_writer()
    refused = call("delete", "oops")
    events = written(
        writer,
        [
            TurnStarted(1), CallStarted(0, "call_1", "delete"), CallArguments(0, "oops"),
            turn_ended(reason="tool_calls"), ToolEnded(refused, ToolOutcome(text="no JSON", error="no JSON")), ended(),
        ],
    )  # fmt: skip
    check(events)
    (item,) = writer.response.output
    assert (item.type, item.status, item.arguments) == ("mcp_call", "failed", "oops")
