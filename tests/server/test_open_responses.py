"""The 17 cases of the Open Responses specification's own suite, and what it demands and does not try.

The suite runs its cases at the same time, and so does the last test here. Every answer is shown to the types of
Open Responses and of OpenAI's SDK and to a linter of streams. All of it happens twice: with a model that answers, and
with one that reasons first.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
from openresponses_types import CompactResource, ResponseResource
from responses_api import WEATHER, kinds, output_types, text_of

IMAGE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
    "rkJggg=="
)


def message(text, role="user", **fields):
    return {"type": "message", "role": role, "content": text, **fields}


def check_completed(response, text=None):
    assert response["status"] == "completed"
    assert response["output"]
    if text is not None:
        assert text_of(response) == text


def basic_response(api, ask):
    check_completed(api.create([message(ask("Say hello in exactly 3 words."))]), "Hello to you.")


def streaming_response(api, ask):
    events = api.stream([message(ask("Please count to ten."))])
    assert kinds(events)[-1] == "completed"
    check_completed(events[-1]["response"])


def system_prompt(api, ask):
    pirate = message("You are a pirate.", role="system")
    check_completed(api.create([pirate, message(ask("Say hello."))]), "Hello there.")


def tool_calling(api, ask):
    response = api.create([message(ask("What's the weather like in San Francisco?"))], tools=[WEATHER])
    (called,) = (item for item in response["output"] if item["type"] == "function_call")
    assert (called["name"], called["arguments"]) == ("get_weather", '{"location": "San Francisco, CA"}')


def image_input(api, ask):
    content = [{"type": "input_image", "image_url": IMAGE}, {"type": "input_text", "text": ask("What is it?")}]
    check_completed(api.create([message(content)]))


def multi_turn(api, ask):
    turns = [message("I am Alice."), message("Hello Alice!", role="assistant"), message(ask("What is my name?"))]
    check_completed(api.create(turns), "Alice.")


def assistant_phase(api, ask):
    turns = [
        message("Look it up."),
        message("I look.", role="assistant", phase="commentary"),
        message("Found.", role="assistant", phase="final_answer"),
        message(ask("What is my name?")),
    ]
    check_completed(api.create(turns), "Alice.")


def response_output_phase_schema(api, ask):
    response = api.create(ask("Say hello."))
    for phase in ("commentary", "final_answer", None):
        response["output"][-1]["phase"] = phase
        ResponseResource.model_validate(response)


def websocket_response(api, ask):
    with api.socket() as socket:
        check_completed(socket.turn(model=api.model, input=[message(ask("Say hello in exactly 3 words."))]))


def websocket_sequential_responses(api, ask):
    with api.socket() as socket:
        first = socket.turn(model=api.model, input=ask("What is my name?"))
        second = socket.turn(model=api.model, input=ask("Say hello in exactly 3 words."))
    assert first["id"] != second["id"]
    assert (text_of(first), text_of(second)) == ("Alice.", "Hello to you.")


def websocket_continuation(api, ask):
    with api.socket() as socket:
        first = socket.turn(model=api.model, store=False, input=ask("What's the weather like?"), tools=[WEATHER])
        (called,) = (item for item in first["output"] if item["type"] == "function_call")
        output = {"type": "function_call_output", "call_id": called["call_id"], "output": ask("21 degrees")}
        second = socket.turn(
            model=api.model, store=False, previous_response_id=first["id"], input=[output], tools=[WEATHER]
        )
        chained = {"store": False, "previous_response_id": second["id"], "tools": [WEATHER]}
        third = socket.turn(model=api.model, input=ask("What is my name?"), **chained)
    check_completed(second, "It is 21 degrees.")
    check_completed(third, "Alice.")
    assert third["usage"]["input_tokens"] > second["usage"]["input_tokens"] > first["usage"]["input_tokens"]


def websocket_reconnect_store_false_recovery(api, ask):
    with api.socket() as socket:
        first = socket.turn(model=api.model, store=False, input=ask("Say hello."))
    with api.socket() as socket:
        again = {"model": api.model, "store": False, "input": ask("What is my name?")}
        assert socket.refused(**again, previous_response_id=first["id"])["code"] == "previous_response_not_found"
        whole = [message(ask("Say hello.")), *first["output"], message(ask("What is my name?"))]
        check_completed(socket.turn(**{**again, "input": whole}), "Alice.")


def websocket_previous_response_not_found(api, ask):
    with api.socket() as socket:
        error = socket.refused(model=api.model, input=ask("Say hello."), previous_response_id="resp_none")
        assert (error["code"], error["param"]) == ("previous_response_not_found", "previous_response_id")
        check_completed(socket.turn(model=api.model, input=ask("Say hello.")))


def websocket_failed_continuation_evicts_cache(api, ask):
    with api.socket() as socket:
        first = socket.turn(model=api.model, store=False, input=ask("Say hello."))
        unknown = [{"type": "function_call_output", "call_id": "call_none", "output": "x"}]
        again = {"model": api.model, "store": False, "previous_response_id": first["id"]}
        assert "call_none" in socket.refused(**again, input=unknown)["message"]
        assert socket.refused(**again, input=ask("Hi."))["code"] == "previous_response_not_found"


def compacted(api, ask):
    answer = api.post("/responses/compact", input=[message(ask("The code word is tango."))], prompt_cache_key="key")
    assert answer.status_code == 200, answer.text
    CompactResource.model_validate_json(answer.text)
    return answer.json()


def websocket_compact_new_chain(api, ask):
    output = compacted(api, ask)["output"]
    with api.socket() as socket:
        response = socket.turn(model=api.model, store=False, input=[*output, message(ask("What is my name?"))])
        again = socket.turn(model=api.model, store=False, previous_response_id=response["id"], input=ask("Say hello."))
    check_completed(response, "Alice.")
    check_completed(again)


def compact_response(api, ask):
    body = compacted(api, ask)
    assert body["object"] == "response.compaction"
    assert body["output"][-1].keys() == {"type", "id", "encrypted_content"}
    assert body["output"][-1]["type"] == "compaction"


def compact_missing_model(api, ask):
    answer = api.request("POST", "/responses/compact", {"input": ask("Say hello.")})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "model"


CASES = [
    basic_response, streaming_response, system_prompt, tool_calling, image_input, multi_turn, assistant_phase,
    response_output_phase_schema, websocket_response, websocket_sequential_responses, websocket_continuation,
    websocket_reconnect_store_false_recovery, websocket_previous_response_not_found,
    websocket_failed_continuation_evicts_cache, websocket_compact_new_chain, compact_response, compact_missing_model,
]  # fmt: skip


@pytest.fixture(params=["answers", "reasons"])
def ask(request):
    """What a user says; the model reasons where it ends in "Think."."""
    return (lambda text: text) if request.param == "answers" else (lambda text: f"{text} Think.")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_case_of_the_suite(api, ask, case):
    case(api, ask)


def test_the_suite_at_once(api, ask):
    with ThreadPoolExecutor(len(CASES)) as pool:
        for ended in [pool.submit(case, api, ask) for case in CASES]:
            ended.result(60)


def test_reasoning_is_told_in_the_words_that_both_specifications_know(api):
    plain = api.stream("Say hello. Think.")
    assert "reasoning_summary_text.delta" in kinds(plain)
    assert not [kind for kind in kinds(plain) if kind.startswith("reasoning_text")]
    asked = api.stream("Say hello. Think.", reasoning={"effort": "low"})
    assert "reasoning_text.delta" in kinds(asked)
    assert not [kind for kind in kinds(asked) if kind.startswith("reasoning_summary")]
    for events in (plain, asked):
        reasoning, answer = events[-1]["response"]["output"]
        assert reasoning["content"] == [{"type": "reasoning_text", "text": "Let me see."}]
        assert answer["content"][0]["text"] == "Hello there."


def test_a_choice_of_tools_is_hard(api, ask):
    other = {**WEATHER, "name": "other"}
    forced = api.create(ask("Say hello."), tools=[WEATHER], tool_choice="required")
    assert "function_call" in output_types(forced)
    never = api.create(ask("What's the weather?"), tools=[WEATHER], tool_choice="none")
    assert "function_call" not in output_types(never)
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "other"}]}
    among = api.create(ask("What's the weather?"), tools=[WEATHER, other], tool_choice=allowed)
    assert "get_weather" not in [item.get("name") for item in among["output"]]
    named = {"type": "function", "name": "other"}
    one = api.create(ask("What's the weather?"), tools=[WEATHER, other], tool_choice=named)
    assert [item["name"] for item in one["output"] if item["type"] == "function_call"] == ["other"]
    assert (among["tool_choice"], one["tool_choice"]) == (allowed, named)


def test_what_is_too_long_is_refused_and_never_dropped(api):
    long = [message("word " * 2000), message("yes", role="assistant"), message("Say hello in exactly 3 words.")]
    for truncation in ({}, {"truncation": "disabled"}):
        error = api.refused(input=long, **truncation)
        assert (error["code"], error["param"]) == ("context_length_exceeded", "input")
    shortened = api.create(long, truncation="auto")
    check_completed(shortened, "Hello to you.")
    assert shortened["usage"]["input_tokens"] < 200


def test_an_incomplete_item_is_the_last_one_of_an_incomplete_response(api, ask):
    events = api.stream(ask("count for ever"), max_output_tokens=40)
    response = events[-1]["response"]
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert [item["status"] for item in response["output"]][-1:] == ["incomplete"]
    assert {item["status"] for item in response["output"][:-1]} <= {"completed"}
    assert response["usage"]["output_tokens"] == 40


def test_a_chain_has_input_and_output_but_no_instructions(api):
    first = api.create("I am Alice.", instructions="word " * 100)
    second = api.create("What is my name?", previous_response_id=first["id"])
    assert second["instructions"] is None
    alone = api.create([message("I am Alice."), *first["output"], message("What is my name?")])
    assert second["usage"]["input_tokens"] == alone["usage"]["input_tokens"] < first["usage"]["input_tokens"]


def test_a_socket_has_no_parameters_of_http(api):
    with api.socket() as socket:
        error = socket.refused(model=api.model, input="hi", background=True)
        assert (error["param"], error["code"]) == ("background", "unsupported_parameter")
        check_completed(socket.turn(model=api.model, input="hi", stream=True))
