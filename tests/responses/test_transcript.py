"""Items as the messages of a chat."""

import base64
import json

import pytest
from agent_reports import TOOL_NAMES, make_writer, reports, written
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from cvllm_jax.openai import RequestError
from cvllm_jax.openai.prompt import template_messages
from cvllm_jax.responses.items.opaque import (
    decode_compaction,
    decode_reasoning,
    encode_compaction,
    encode_reasoning,
)
from cvllm_jax.responses.items.transcript import messages_of, read_transcript
from cvllm_jax.responses.types import Item

ITEMS = TypeAdapter(list[Item])

ASKED = {"type": "message", "role": "user", "content": "hi"}
REQUEST = {"type": "mcp_approval_request", "id": "mcpr_1", "server_label": "a", "name": "delete", "arguments": "{}"}
APPROVED = {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True}


def items(*given_items):
    return ITEMS.validate_python(list(given_items))


def plain(messages):
    return [message.model_dump(exclude_none=True) for message in messages]


def messages(*given_items, instructions=None):
    return plain(messages_of(items(*given_items), instructions))


def call(call_id="c1", name="f", arguments="{}", **fields):
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments, **fields}


def output(call_id="c1", text="out"):
    return {"type": "function_call_output", "call_id": call_id, "output": text}


def mcp_call(item_id, **fields):
    return {
        "type": "mcp_call", "id": item_id, "server_label": "a", "name": "search", "arguments": "{}", "output": "3",
        "status": "completed", **fields,
    }  # fmt: skip


def assistant(*calls, **fields):
    made = [{"id": id_, "type": "function", "function": {"name": name, "arguments": args}} for id_, name, args in calls]
    return {"role": "assistant", **fields, **({"tool_calls": made} if made else {})}


def tool(call_id="c1", text="out", name="f"):
    return {"role": "tool", "content": text, "tool_call_id": call_id, "name": name}


def refused(*given_items):
    with pytest.raises(RequestError) as caught:
        messages_of(items(*given_items))
    assert caught.value.param == "input"
    return str(caught.value)


@settings(deadline=None)
@given(reports(), st.booleans(), st.booleans())
def test_output_items_come_to_what_the_agent_remembers(report, reasons, approve):
    writer = make_writer({"reasoning": {}} if reasons else {})
    written(writer, report.events)
    told = ITEMS.validate_json(ITEMS.dump_json(writer.response.output))
    answers, results = [], []
    for item in told:
        if item.type in ("function_call", "custom_tool_call") and item.status == "completed":
            answers.append({"type": f"{item.type}_output", "call_id": item.call_id, "output": "out"})
            results.append(item.call_id)
        elif item.type == "mcp_approval_request":
            answers.append({"type": "mcp_approval_response", "approval_request_id": item.id, "approve": approve})
    cut = report.events[-1].ending.value == "cut"
    if cut and answers:
        return  # calls before the cut one were told as whole: whoever has them may answer, and the agent forgot them
    transcript = read_transcript([*items(ASKED), *told, *items(*answers)], tool_names=TOOL_NAMES)
    assert {call.function.name for call in transcript.pending} <= {"delete"}
    mine = [message for message in transcript.messages[1:] if message.tool_call_id not in results]
    mine = [message for message in mine if message.content != "The user denied this call."]
    assert as_objects(mine) == as_objects(report.messages)
    assert set(transcript.approvals) == {call.id for call in transcript.pending}
    if not transcript.pending:
        template_messages(list(transcript.messages))


def as_objects(given_messages):
    """Messages with the arguments of calls as objects: how these are written is up to whoever writes them."""
    made = plain(given_messages)
    for message in made:
        for made_call in message.get("tool_calls", ()):
            made_call["function"]["arguments"] = json.loads(made_call["function"]["arguments"])
    return [message for message in made if message != {"role": "assistant", "content": ""}]


def test_messages_of_both_sides():
    assert messages(
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "yes"}], "phase": "commentary"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "type": "message"},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"role": "user", "content": []},
    ) == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes", "phase": "commentary"},
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": ""},
    ]


def test_system_messages_at_the_beginning_become_one():
    developer = {"role": "developer", "content": "Be kind."}
    assert messages(developer, ASKED, developer, instructions="Be brief.") == [
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        {"role": "user", "content": "hi"},
        {"role": "developer", "content": "Be kind."},
    ]
    assert messages(developer)[0]["role"] == "developer"


@pytest.mark.parametrize("kind", ["image", "file", "audio", "video"])
def test_what_is_no_text_is_named(kind):
    part = {"type": f"input_{kind}"}
    (message,) = messages({"role": "user", "content": [part]})
    assert message["content"] == f"[{kind} omitted: this model reads text only]"
    *_, result = messages(call(), {**output(), "output": [part, {"type": "input_text", "text": "x"}]})
    assert result["content"] == f"[{kind} omitted: this model reads text only]\nx"


def test_reasoning_and_calls_are_one_message_and_results_follow_in_the_order_of_the_calls():
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "h"}]}
    text = {"type": "message", "role": "assistant", "content": "let me see"}
    assert messages(
        ASKED, reasoning, text, call("c1"), call("c2", "g"), output("c2", "2"), output("c1", "1"), text
    ) == [
        {"role": "user", "content": "hi"},
        assistant(("c1", "f", "{}"), ("c2", "g", "{}"), content="let me see", reasoning_content="h"),
        tool("c1", "1"),
        tool("c2", "2", "g"),
        assistant(content="let me see"),
    ]


def test_calls_one_after_the_other_are_messages_of_their_own_even_with_the_same_id():
    assert messages(call("c"), output("c", "1"), call("c"), output("c", "2")) == [
        assistant(("c", "f", "{}")), tool("c", "1"), assistant(("c", "f", "{}")), tool("c", "2"),
    ]  # fmt: skip


def test_a_result_that_comes_late_is_put_after_its_call():
    assert [message["role"] for message in messages(call(), ASKED, output())] == ["assistant", "tool", "user"]


def test_arguments_that_are_no_object_are_shown_as_none():
    assert messages(call(arguments="oops"), output())[0] == assistant(("c1", "f", "{}"))


def test_custom_calls_are_calls_of_a_function_with_one_string():
    custom = {"type": "custom_tool_call", "call_id": "c1", "name": "note", "input": 'a"ü'}
    result = {"type": "custom_tool_call_output", "call_id": "c1", "output": "ok"}
    assert messages(custom, result) == [assistant(("c1", "note", '{"input": "a\\"ü"}')), tool("c1", "ok", "note")]


def test_cut_calls_are_left_out_unless_somebody_answers():
    cut = call(arguments='{"a', status="incomplete")
    assert messages(ASKED, {"role": "assistant", "content": "Let me"}, cut)[1] == assistant(content="Let me")
    assert len(messages(ASKED, cut, output())) == 3
    assert messages(ASKED, mcp_call("mcp_1", output=None, status="incomplete"))[1:] == [assistant(content="")]


def test_mcp_calls_of_unknown_ids_come_one_after_the_other():
    first, result, second, _ = messages(mcp_call("mcp_1"), mcp_call("mcp_2", output=None, error={"message": "down"}))
    (made,) = first["tool_calls"]
    assert len(made["id"]) == 9
    assert made["id"].isalnum()
    assert result == tool(made["id"], "3", "search")
    assert second["tool_calls"][0]["id"] != made["id"]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        ("down", "down"),
        ({"type": "http_error", "code": 500, "message": "down"}, "down"),
        ({"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": "a"}, {"type": "x"}]}, "a"),
        ({"type": "mcp_tool_execution_error", "content": {"a": 1}}, '{"a": 1}'),
    ],
)
def test_what_a_model_reads_of_a_failed_call(error, text):
    assert messages(mcp_call("mcp_1", output=None, error=error))[1]["content"] == text


def test_an_approved_call_is_pending_until_it_has_run():
    transcript = read_transcript(items(ASKED, REQUEST, APPROVED), tool_names={("a", "delete"): "a_delete"})
    (pending,) = transcript.pending
    assert pending.function.name == "a_delete"
    assert transcript.messages[-1].tool_calls == [pending]
    assert transcript.approvals[pending.id].id == "mcpr_1"

    ran = {**mcp_call("mcp_2", name="delete"), "approval_request_id": "mcpr_1"}
    transcript = read_transcript(items(ASKED, REQUEST, APPROVED, ran, ASKED))
    assert transcript.pending == []
    assert [message.role for message in transcript.messages] == ["user", "assistant", "tool", "user"]
    assert transcript.messages[2].content == "3"


def test_a_call_that_was_refused_although_it_was_asked_for_needs_no_answer():
    refused_call = {**mcp_call("mcp_2", name="delete", output=None, error="limit"), "approval_request_id": "mcpr_1"}
    for answers in ([], [APPROVED], [{**APPROVED, "approve": False}]):
        transcript = read_transcript(items(ASKED, REQUEST, refused_call, *answers))
        assert transcript.messages[-1].content == "limit"
        assert transcript.pending == []


def test_a_denied_call_tells_the_model_why():
    denied = {**APPROVED, "approve": False, "reason": "not today"}
    transcript = read_transcript(items(REQUEST, denied))
    assert transcript.pending == []
    assert transcript.messages[1].content == "The user denied this call. Reason: not today"


def test_lists_of_tools_are_kept_by_label():
    listed = {
        "type": "mcp_list_tools",
        "server_label": "a",
        "tools": [{"name": "x", "input_schema": {"type": "object"}}],
    }
    down = {"type": "mcp_list_tools", "server_label": "b", "tools": [], "error": "down"}
    transcript = read_transcript(items(listed, down, ASKED))
    assert [tool.name for tool in transcript.tool_lists["a"]] == ["x"]
    assert list(transcript.tool_lists) == ["a"]


def test_what_answers_nothing_and_what_nothing_answers_is_refused():
    assert refused(ASKED, output("zzz")) == "No tool call found for function call output with call_id zzz."
    assert refused(call(), output(), output()) == "No tool call found for function call output with call_id c1."
    assert refused(ASKED, call()) == "No tool output found for function call c1."
    custom = {"type": "custom_tool_call_output", "call_id": "c1", "output": "ok"}
    assert "custom tool call output" in refused(call(), output(), custom)
    assert "do not have an approval: mcpr_1" in refused(ASKED, REQUEST, ASKED)
    assert "No MCP approval request found with id 'mcpr_1'" in refused(ASKED, APPROVED)
    assert "answered already" in refused(REQUEST, APPROVED, APPROVED)
    assert refused({"type": "item_reference", "id": "msg_1"}) == "Item with id 'msg_1' not found."
    assert "nothing to answer" in refused()


def test_reasoning_comes_back_from_its_text_its_opaque_form_or_its_summary():
    summary = [{"type": "summary_text", "text": "s"}]
    content = [{"type": "reasoning_text", "text": "c"}]
    for fields, text in (
        ({"summary": summary, "content": content, "encrypted_content": "foreign"}, "c"),
        ({"summary": summary, "encrypted_content": encode_reasoning("e\0ü")}, "e\0ü"),
        ({"summary": summary}, "s"),
    ):
        (message,) = messages({"type": "reasoning", "id": "rs_1", **fields})
        assert message["reasoning_content"] == text
    assert "could not be verified" in refused({"type": "reasoning", "summary": [], "encrypted_content": "gAAAAABo"})


def test_a_compaction_stands_for_its_items():
    content = encode_compaction(items(ASKED, call(), output()))
    compaction = {"type": "compaction", "encrypted_content": content}
    assert messages(compaction, ASKED) == messages(ASKED, call(), output(), ASKED)


def test_a_compaction_cannot_hold_itself_or_references():
    inner = {"type": "compaction", "encrypted_content": encode_compaction(items(ASKED))}
    for item in (inner, {"type": "item_reference", "id": "msg_1"}):
        assert "could not be verified" in refused(
            {"type": "compaction", "encrypted_content": encode_compaction(items(item))}
        )


@settings(deadline=None)
@given(st.text() | st.binary().map(lambda data: base64.b64encode(data).decode()))
def test_opaque_content_that_was_not_made_here_is_refused(content):
    for decode in (decode_reasoning, decode_compaction):
        with pytest.raises(RequestError) as caught:
            decode(content)
        assert caught.value.code == "invalid_encrypted_content"


def test_opaque_content_of_one_kind_is_none_of_the_other():
    with pytest.raises(RequestError):
        decode_reasoning(encode_compaction([]))
    with pytest.raises(RequestError):
        decode_compaction(encode_reasoning("x"))
    nested = base64.urlsafe_b64encode(b"[" * 100_000).decode()
    with pytest.raises(RequestError):
        decode_compaction(nested)
