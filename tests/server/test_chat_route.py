"""POST /v1/chat/completions and /v1/models over a socket: bytes, SDK types and real clients."""

import asyncio
import json
from pathlib import Path

import httpx
import openai
import openai.types.chat as sdk
import pytest
from live_server import live_server
from stream_lint import lint_chat, parse_sse
from stub_engine import Script, StubEngine

import cvllm_jax
from cvllm_jax.params import FinishReason
from server.settings import ServerSettings

TEXT = "Hello, wörld 👋."
CHATML = (Path(cvllm_jax.__file__).parent / "testing" / "chatml.jinja").read_text(encoding="utf-8")
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
USER = [{"role": "user", "content": "hi"}]


def read_stream(server, **fields):
    answer = server.chat(stream=True, **fields)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    return answer.content


def test_a_plain_answer_is_a_chat_completion(server):
    answer = server.chat()
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    completion = sdk.ChatCompletion.model_validate(answer.json(), strict=True)
    assert completion.model == "org/stub"
    assert completion.choices[0].message.content == TEXT


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("include_usage", [False, True])
def test_a_stream_is_clean(server, include_usage, n):
    raw = read_stream(server, n=n, stream_options={"include_usage": include_usage})
    assert b"\r" not in raw
    assert raw.endswith(b"}\n\ndata: [DONE]\n\n")
    events = parse_sse(raw.decode())
    assert lint_chat(events, include_usage) == []
    for _, data in events[:-1]:
        sdk.ChatCompletionChunk.model_validate(json.loads(data), strict=True)


def test_a_silent_stream_sends_comments():
    engine = StubEngine(Script(text="ab", delay=0.3))
    with live_server(engine, ServerSettings(keep_alive_seconds=0.1)) as server:
        raw = read_stream(server)
    assert raw.count(b": keep-alive\n\n") >= 2
    assert lint_chat(parse_sse(raw.decode())) == []


def test_a_failure_midway_is_an_event():
    with live_server(StubEngine(Script(finish_reason=FinishReason.Error("boom")))) as server:
        events = parse_sse(read_stream(server).decode())
        assert json.loads(events[-2][1]) == {
            "error": {"message": "boom", "type": "server_error", "param": None, "code": "generation_failed"}
        }
        assert events[-1][1] == "[DONE]"
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.APIError, match="boom"):
            list(client.chat.completions.create(model="org/stub", messages=USER, stream=True))
        answer = server.chat()
        assert (answer.status_code, answer.json()["error"]["message"]) == (500, "boom")


def test_the_openai_client(server):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["org/stub"]
    assert client.models.retrieve("org/stub").owned_by == "cvllm-jax"
    answer = client.chat.completions.create(
        model="org/stub", messages=USER, logprobs=True, top_logprobs=1, extra_body={"top_k": 3}
    )
    assert answer.choices[0].message.content == TEXT
    assert len(answer.choices[0].logprobs.content) == len(TEXT.encode())
    with client.chat.completions.stream(
        model="org/stub", messages=USER, stream_options={"include_usage": True}
    ) as stream:
        stream.until_done()
        final = stream.get_final_completion()
    assert final.choices[0].message.content == TEXT
    assert final.usage.completion_tokens == len(TEXT.encode())
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4", messages=USER)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="org/stub", messages=USER, temperature=-1)
    assert caught.value.param == "temperature"


def test_many_streams_at_once_with_the_async_client(server):
    async def one(client):
        stream = await client.chat.completions.create(model="org/stub", messages=USER, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def scenario():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            return await asyncio.gather(*(one(client) for _ in range(32)))

    assert asyncio.run(scenario()) == [TEXT] * 32


def test_models_are_listed_under_their_served_name(stub):
    with live_server(stub, ServerSettings(served_model_name="mine")) as server:
        listed = httpx.get(f"{server.url}/v1/models").json()
        assert listed["object"] == "list"
        assert [model["id"] for model in listed["data"]] == ["mine"]
        assert httpx.get(f"{server.url}/v1/models/mine").json() == listed["data"][0]
        assert server.chat(model="mine").json()["model"] == "mine"
        assert httpx.get(f"{server.url}/v1/models/org/stub").status_code == 404


def test_the_models_own_sampling_defaults_hold():
    stub = StubEngine(generation_defaults={"temperature": 0.2, "top_p": 0.9})
    with live_server(stub) as server:
        server.chat(top_p=0.5)
    params = stub.seen[0][1]
    assert (params.temperature, params.top_p) == (0.2, 0.5)


@pytest.fixture(scope="module")
def caller():
    """A server whose model reasons and calls two tools."""
    script = Script(f"<think>\nHm.\n</think>\n\n{CALL}\n{CALL}")
    with live_server(StubEngine(script, template=CHATML, context=4096)) as server:
        yield server


@pytest.mark.parametrize("n", [1, 2])
def test_streams_of_calls_are_clean(caller, n):
    raw = read_stream(caller, tools=TOOLS, n=n, stream_options={"include_usage": True})
    events = parse_sse(raw.decode())
    assert lint_chat(events, True) == []
    for _, data in events[:-1]:
        sdk.ChatCompletionChunk.model_validate(json.loads(data), strict=True)
    assert json.loads(events[-2][1])["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


def test_the_openai_client_gets_calls(caller):
    client = openai.OpenAI(base_url=f"{caller.url}/v1", api_key="none", max_retries=0)
    answer = client.chat.completions.create(model="org/stub", messages=USER, tools=TOOLS, tool_choice="required")
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert choice.message.reasoning_content == "Hm."
    assert [json.loads(call.function.arguments) for call in choice.message.tool_calls] == [{"city": "Zürich"}] * 2
    with client.chat.completions.stream(model="org/stub", messages=USER, tools=TOOLS) as stream:
        stream.until_done()
        calls = stream.get_final_completion().choices[0].message.tool_calls
    assert [call.function.name for call in calls] == ["get_weather"] * 2
    turns = [*USER, choice.message.model_dump(exclude_none=True)]
    turns += [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in choice.message.tool_calls]
    assert client.chat.completions.create(model="org/stub", messages=turns, tools=TOOLS).choices
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="org/stub", messages=turns[-1:], tools=TOOLS)
    assert caught.value.param == "messages.[0].role"


def test_parsers_are_a_setting():
    settings = ServerSettings(tool_parser="none", reasoning_parser="none")
    engine = StubEngine(Script("<think>x</think>y"), template=CHATML, context=4096)
    with live_server(engine, settings) as server:
        assert server.chat().json()["choices"][0]["message"]["content"] == "<think>x</think>y"
        assert server.chat(tools=TOOLS).status_code == 400
