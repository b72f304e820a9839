"""The server over the real engine, with a tiny random model."""

import asyncio
import http.client
import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from live_server import live_server
from stream_lint import lint_chat, parse_sse

from cvllm_jax import InferenceEngine

CONTEXT = 256
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def engine(make_engine):
    return make_engine()


@pytest.fixture(scope="module")
def server(engine):
    with live_server(engine) as running:
        yield running


def ask(server, **fields):
    name = httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"]
    body = {"model": name, "messages": QUESTION, "temperature": 0, **fields}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)


@pytest.mark.parametrize("n", [1, 2])
def test_a_stream_adds_up_to_the_whole_answer(server, n):
    fields = {"n": n, "temperature": 1.0, "seed": 7, "max_tokens": 12, "logprobs": True, "top_logprobs": 3}
    whole = ask(server, **fields).json()
    streamed = ask(server, **fields, stream=True, stream_options={"include_usage": True})
    events = parse_sse(streamed.text)
    assert lint_chat(events, include_usage=True) == []
    chunks = [json.loads(data) for _, data in events[:-1]]
    assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    for index, choice in enumerate(whole["choices"]):
        parts = [chunk["choices"][0] for chunk in chunks[:-1] if chunk["choices"][0]["index"] == index]
        text = "".join(part["delta"].get("content", "") for part in parts)
        assert text == choice["message"]["content"]
        entries = [entry for part in parts if part["logprobs"] for entry in part["logprobs"]["content"]]
        assert [entry["bytes"] for entry in entries] == [e["bytes"] for e in choice["logprobs"]["content"]]
        assert all(len(entry["top_logprobs"]) == 3 for entry in entries)


def test_a_stop_string_ends_the_answer_before_it(server):
    whole = ask(server, max_tokens=30, ignore_eos=True).json()["choices"][0]["message"]["content"]
    stop = whole[8:10]
    cut = whole[: whole.index(stop)]
    answer = ask(server, max_tokens=30, ignore_eos=True, stop=[stop]).json()["choices"][0]
    assert (answer["message"]["content"], answer["finish_reason"]) == (cut, "stop")
    events = parse_sse(ask(server, max_tokens=30, ignore_eos=True, stop=stop, stream=True).text)
    assert lint_chat(events) == []
    deltas = [json.loads(data)["choices"][0]["delta"].get("content", "") for _, data in events[:-1]]
    assert "".join(deltas) == cut


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"max_tokens": 1000}, "max_tokens", f"maximum context length is {CONTEXT} tokens"),
        ({"messages": [{"role": "user", "content": "word " * 300}]}, "messages", f"{CONTEXT} tokens, but the messages"),
        ({"logit_bias": {"9999999": 1}}, "logit_bias", "9999999"),
        ({"stop_token_ids": [9999999]}, "stop_token_ids", "9999999"),
    ],
)
def test_refusals_of_the_engine_name_the_field(server, fields, param, words):
    answer = ask(server, **fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_disconnects_frees_its_pages(server, engine, stream):
    fields = {"ignore_eos": True, "stream": stream}
    url = httpx.URL(server.url)
    body = json.dumps({"model": engine.model_info().name, "messages": QUESTION, **fields})
    connection = http.client.HTTPConnection(url.host, url.port)
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    wait_for(lambda: engine.stats().running == 1)
    connection.close()
    wait_for(lambda: engine.stats().running == 0, seconds=1.5)
    assert engine.stats().pages_free == engine.stats().pages_total


def test_more_streams_than_places_all_finish(server, engine):
    async def one(client, index):
        stream = await client.chat.completions.create(
            model=engine.model_info().name,
            messages=[{"role": "user", "content": f"Count to {index}."}],
            stream=True,
            max_tokens=10,
            temperature=0,
        )
        return [chunk.choices[0].finish_reason async for chunk in stream][-1]

    async def scenario():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client, index) for index in range(10)))

    assert set(asyncio.run(scenario())) <= {"stop", "length"}
    assert engine.stats().pages_free == engine.stats().pages_total


def wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_step_that_fails_ends_its_own_requests_only(server, engine, monkeypatch, caplog):
    real, calls = engine.runner.dispatch, []

    def fail_once(plan):
        calls.append(plan)
        if len(calls) == 3:
            raise RuntimeError("the device caught fire")
        return real(plan)

    whole = ask(server, max_tokens=20).json()["choices"][0]
    with caplog.at_level(logging.CRITICAL), ThreadPoolExecutor(40) as pool:
        monkeypatch.setattr(engine.runner, "dispatch", fail_once)
        answers = list(pool.map(lambda _: ask(server, max_tokens=20), range(40)))
    failed = [answer for answer in answers if answer.status_code != 200]
    assert 0 < len(failed) < len(answers)
    for answer in failed:
        assert answer.status_code == 500
        assert answer.json()["error"] == {
            "message": "a step failed on the device: the device caught fire",
            "type": "server_error", "param": None, "code": "generation_failed",
        }  # fmt: skip
    assert all(answer.json()["choices"][0] == whole for answer in answers if answer.status_code == 200)
    assert httpx.get(f"{server.url}/health").json()["status"] == "ok"
    assert engine.stats().pages_free == engine.stats().pages_total


def test_an_engine_that_cannot_go_on_shows_in_health(make_engine, monkeypatch, caplog):
    with caplog.at_level(logging.CRITICAL), InferenceEngine.new_sync(make_engine().config) as engine:
        for method in ("dispatch", "reset"):
            monkeypatch.setattr(engine.runner, method, lambda *_: 1 / 0)
        with live_server(engine) as server:
            assert ask(server).status_code == 500
            health = httpx.get(f"{server.url}/health")
            assert (health.status_code, health.json()["status"]) == (503, "failed")
            for stream in (False, True):
                answer = ask(server, stream=stream)
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_stopped")
