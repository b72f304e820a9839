"""POST /v1/completions over a socket: the bytes, the OpenAI client, and what is refused."""

import asyncio
import json

import httpx
import openai
import openai.types as sdk
import pytest
from conftest import wait_until_idle
from live_server import live_server
from stream_lint import parse_sse
from stub_engine import Script, StubEngine
from test_bad_input import check

from cvllm_jax.params import FinishReason

PROMPT = "The licence"


@pytest.fixture(scope="module")
def engine(make_engine):
    engine = make_engine()
    yield engine
    wait_until_idle(engine)


@pytest.fixture(scope="module")
def live(engine):
    with live_server(engine) as running:
        yield running


@pytest.fixture
def client(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def post(live, path="/v1/completions", **fields):
    name = live.state.model_name
    return httpx.post(live.url + path, json={"model": name, "prompt": PROMPT, "temperature": 0, **fields}, timeout=30)


def test_the_openai_client(client, live):
    name = live.state.model_name
    answer = client.completions.create(model=name, prompt=[PROMPT, "b"], max_tokens=5, logprobs=2, echo=True, seed=1)
    assert answer.object == "text_completion"
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].text.startswith(PROMPT)
    assert answer.choices[0].logprobs.text_offset[0] == 0
    stream = client.completions.create(
        model=name, prompt=[PROMPT, "b"], max_tokens=5, seed=1, echo=True, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    texts, chunks = ["", ""], list(stream)
    for chunk in chunks[:-1]:
        assert chunk.usage is None
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in answer.choices]
    assert (chunks[-1].choices, chunks[-1].usage.total_tokens) == ([], answer.usage.total_tokens)
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="gpt-3.5-turbo-instruct", prompt="a")
    assert caught.value.code == "model_not_found"


def test_the_bytes_of_a_plain_answer(live):
    answer = post(live, max_tokens=3)
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    sdk.Completion.model_validate(body, strict=True)
    assert body["id"].startswith("cmpl-")
    assert set(body["choices"][0]) == {"text", "index", "logprobs", "finish_reason"}
    assert body["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("include_usage", [False, True])
def test_the_bytes_of_a_stream(live, n, include_usage):
    answer = post(live, max_tokens=4, n=n, stream=True, stream_options={"include_usage": include_usage}, logprobs=1)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert b"\r" not in answer.content
    events = [data for _, data in parse_sse(answer.text)]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(data) for data in events[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert all(("usage" in chunk) is include_usage for chunk in chunks)
    for index in range(n):
        choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
        reasons = [choice["finish_reason"] for choice in choices if choice["index"] == index]
        assert reasons[-1] in ("stop", "length")
        assert set(reasons[:-1]) == {None}


def test_a_failure_midway_is_an_event():
    with live_server(StubEngine(Script(text="ab", finish_reason=FinishReason.Error("boom")))) as live:
        events = parse_sse(post(live, stream=True).text)
        assert json.loads(events[-2][1])["error"]["message"] == "boom"
        assert events[-1][1] == "[DONE]"
        assert check(post(live), 500, "generation_failed", kind="server_error") == "boom"


def test_clients_that_leave_free_their_pages(live, engine):
    async def begun():
        while not engine.stats().running:  # noqa: ASYNC110 - a thread begins it
            await asyncio.sleep(0.001)

    async def scenario():
        async with httpx.AsyncClient(timeout=10) as client:
            body = {"model": live.state.model_name, "prompt": [PROMPT] * 3, "max_tokens": 200, "ignore_eos": True}
            body["logit_bias"] = {"2": -100}
            tasks = [
                asyncio.create_task(client.post(f"{live.url}/v1/completions", json={**body, "stream": stream}))
                for stream in (False, True)
            ]
            await begun()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(scenario())
    wait_until_idle(engine)


def test_scoring_long_prompts_leaves_chats_alone(live, engine):
    async def scenario():
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
            name = live.state.model_name
            score = {"model": name, "prompt": [[7, 8, 9] * 80] * 4, "echo": True, "logprobs": 1, "max_tokens": 0}
            scores, *chats = await asyncio.gather(
                client.completions.create(**score),
                *(client.completions.create(model=name, prompt=PROMPT, max_tokens=30, seed=2) for _ in range(4)),
            )
            return scores, chats

    compiled = engine.stats().compilations
    scores, chats = asyncio.run(scenario())
    assert len({chat.choices[0].text for chat in chats}) == 1
    assert len({tuple(choice.logprobs.token_logprobs[1:]) for choice in scores.choices}) == 1
    assert engine.stats().compilations == compiled


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": None}, "prompt", "invalid_type"),
        ({"prompt": []}, "prompt", "empty_array"),
        ({"prompt": ["a"] * 2049}, "prompt", "array_above_max_length"),
        ({"prompt": {"text": "a"}}, "prompt", "invalid_type"),
        ({"prompt": [[1, 2], "a"]}, "prompt[1]", "invalid_type"),
        ({"prompt": [1000000]}, "prompt", "invalid_value"),
        ({"prompt": [1] * 100_000}, "prompt", "context_length_exceeded"),
        ({"max_tokens": 1000}, "max_tokens", "context_length_exceeded"),
        ({"max_tokens": "5"}, "max_tokens", "invalid_type"),
        ({"best_of": 3}, "best_of", "unsupported_parameter"),
        ({"best_of": 100}, "best_of", "integer_above_max_value"),
        ({"suffix": "end"}, "suffix", "unsupported_parameter"),
        ({"logprobs": 6}, "logprobs", "integer_above_max_value"),
        ({"n": 200}, "n", "integer_above_max_value"),
        ({"temperature": -1}, "temperature", "decimal_below_min_value"),
        ({"stop": []}, "stop", "empty_array"),
        ({"stop": ""}, "stop", "empty_string"),
        ({"logit_bias": {"9999999": 1}}, "logit_bias", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_input(live, fields, param, code, stream):
    if "stream_options" in fields and stream:
        return
    check(post(live, **fields, stream=stream), 400, code, param)


def test_models_of_the_other_kind_are_refused(live):
    body = {"model": live.state.model_name, "input": "a"}
    answer = httpx.post(f"{live.url}/v1/embeddings", json=body)
    assert "use /v1/chat/completions" in check(answer, 400, "invalid_value", "model")
