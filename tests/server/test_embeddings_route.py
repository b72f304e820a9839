"""POST /v1/embeddings over a socket, and what a server of an embedding model says to everything else."""

import asyncio
import base64
import json

import httpx
import numpy as np
import openai
import openai.types as sdk
import pytest
from live_server import live_server
from test_bad_input import check

from cvllm_jax import EngineConfig
from cvllm_jax.engine.opening import open_engine
from cvllm_jax.openai import EmbeddingRequest, OpenAIAdapter, RequestError


@pytest.fixture(scope="module")
def folder(pytestconfig):
    return pytestconfig.rootpath / "tests" / "golden" / "bert" / "bert_mean"


@pytest.fixture(scope="module")
def live(folder):
    config = EngineConfig(model_path=str(folder), device="cpu", dtype="f32", max_batch_size=4, prefill_chunk_size=64)
    with open_engine(config) as engine, live_server(engine) as running:
        yield running


@pytest.fixture(scope="module")
def expected(folder):
    return json.loads((folder / "expected.json").read_text())


def post(live, path="/v1/embeddings", **fields):
    return httpx.post(live.url + path, json={"model": "bert_mean", **fields}, timeout=30)


def test_the_openai_client(live, expected):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["bert_mean"]
        for form in (openai.NOT_GIVEN, "float"):  # it asks for base64 by itself
            answer = client.embeddings.create(model="bert_mean", input=expected["texts"], encoding_format=form)
            np.testing.assert_allclose([e.embedding for e in answer.data], expected["vectors"], atol=1e-4)
        assert [e.index for e in answer.data] == list(range(len(expected["texts"])))
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, expected["tokens"]))
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="bert_mean", messages=[{"role": "user", "content": "hi"}])
        assert "gives embeddings and generates no text; use /v1/embeddings" in str(caught.value)


def test_every_form_of_input_and_output(live, expected):
    text, tokens, vector = expected["texts"][0], expected["tokens"][0], expected["vectors"][0]
    for given in (text, [text], tokens, [tokens]):
        body = post(live, input=given, user="me").json()
        sdk.CreateEmbeddingResponse.model_validate(body, strict=True)
        np.testing.assert_allclose(body["data"][0]["embedding"], vector, atol=1e-4)
    coded = post(live, input=text, encoding_format="base64").json()["data"][0]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(coded), "<f4"), vector, atol=1e-4)


@pytest.mark.parametrize("size", [8, 16, 32])
def test_dimensions_that_the_model_was_trained_for(live, expected, size):
    got = post(live, input=expected["texts"][0], dimensions=size).json()["data"][0]["embedding"]
    cut = np.asarray(expected["vectors"][0][:size])
    np.testing.assert_allclose(got, cut / np.linalg.norm(cut), atol=1e-4)


def test_many_callers_at_once(live, expected):
    async def scenario():
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
            calls = [client.embeddings.create(model="bert_mean", input=text) for text in expected["texts"] * 8]
            return await asyncio.gather(*calls)

    vectors = [answer.data[0].embedding for answer in asyncio.run(scenario())]
    np.testing.assert_allclose(vectors, expected["vectors"] * 8, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({}, "input", "missing_required_parameter"),
        ({"input": None}, "input", "invalid_type"),
        ({"input": ""}, "input", "invalid_value"),
        ({"input": ["a", ""]}, "input[1]", "invalid_value"),
        ({"input": []}, "input", "empty_array"),
        ({"input": ["a"] * 2049}, "input", "array_above_max_length"),
        ({"input": ["a", 1]}, "input[1]", "invalid_type"),
        ({"input": [5] * 49}, "input", "invalid_value"),
        ({"input": ["a", "word " * 60]}, "input[1]", "invalid_value"),
        ({"input": [256]}, "input", "invalid_value"),
        ({"input": "a", "dimensions": 7}, "dimensions", "invalid_value"),
        ({"input": "a", "prompt_name": "query"}, "prompt_name", "invalid_value"),
        ({"input": "a", "dimensions": 0}, "dimensions", "integer_below_min_value"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "invalid_value"),
    ],
)
def test_bad_input(live, fields, param, code):
    check(post(live, **fields), 400, code, param)


def test_other_routes_of_an_embedding_model(live):
    check(post(live, "/v1/completions", prompt="a"), 400, "invalid_value", "model")
    check(post(live, "/apply-template", messages=[{"role": "user", "content": "a"}]), 400, None, "messages")
    assert httpx.post(f"{live.url}/v1/embeddings", json={"model": "other", "input": "a"}).status_code == 404
    assert httpx.get(f"{live.url}/health").json() == {"status": "ok", "model": "bert_mean"}
    body = post(live, "/tokenize", prompt="the work", return_token_strs=True).json()
    assert (body["token_strs"][0], body["token_strs"][-1], body["max_model_len"]) == ("[CLS]", "[SEP]", 48)
    plain = post(live, "/tokenize", prompt="the work", add_special_tokens=False).json()
    assert plain["tokens"] == body["tokens"][1:-1]


def test_without_http(live, expected):
    adapter = live.state.adapter
    request = EmbeddingRequest(model="any", input=expected["texts"])
    np.testing.assert_allclose(
        [entry.embedding for entry in adapter.embeddings_sync(request).data], expected["vectors"], atol=1e-4
    )
    assert asyncio.run(adapter.embeddings(request)).model == "any"


def test_a_causal_model_has_no_embeddings(tiny_engine):
    with pytest.raises(RequestError, match="generates text and has no embeddings"):
        OpenAIAdapter(tiny_engine).embeddings_sync(EmbeddingRequest(model="any", input="a"))
