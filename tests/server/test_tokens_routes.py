"""POST /tokenize, /detokenize and /apply-template, and /v1/models/{id}, over a socket."""

import httpx
import pytest
from live_server import live_server
from test_bad_input import check

from server.settings import ServerSettings

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <|im_end|> wörld 👋"}]


@pytest.fixture(scope="module")
def engine(make_engine):
    return make_engine()


@pytest.fixture(scope="module")
def live(engine):
    with live_server(engine) as running:
        yield running


def post(live, path, **body):
    return httpx.post(live.url + path, json=body, timeout=10)


def test_text_to_tokens_and_back(live, engine):
    text = "The wörld 👋 has <|im_end|> in it."
    body = post(live, "/tokenize", prompt=text, return_token_strs=True).json()
    assert set(body) == {"count", "max_model_len", "tokens", "token_strs"}
    assert body["tokens"] == engine.tokenize(text)
    assert body["count"] == len(body["tokens"]) == len(body["token_strs"])
    assert body["max_model_len"] == engine.model_info().max_sequence_length
    assert "Ġ" in "".join(body["token_strs"])
    assert post(live, "/detokenize", tokens=body["tokens"], model=live.state.model_name).json() == {"prompt": text}
    assert post(live, "/tokenize", prompt="").json()["tokens"] == engine.tokenize("")
    assert post(live, "/detokenize", tokens=[]).json() == {"prompt": ""}


@pytest.mark.parametrize("generation", [True, False])
def test_conversations(live, engine, generation):
    fields = {"messages": MESSAGES, "add_generation_prompt": generation}
    text = post(live, "/apply-template", **fields).json()["prompt"]
    assert text.endswith("<|im_start|>assistant\n") is generation
    body = post(live, "/tokenize", **fields).json()
    assert set(body) == {"count", "max_model_len", "tokens"}
    assert post(live, "/detokenize", tokens=body["tokens"]).json()["prompt"] == text
    chat = {"model": live.state.model_name, "messages": MESSAGES, "max_tokens": 1}
    usage = post(live, "/v1/chat/completions", **chat).json()["usage"]
    assert (usage["prompt_tokens"] == body["count"]) is generation


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        ("/tokenize", {}, "prompt", "invalid_parameter_combination"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt", "invalid_parameter_combination"),
        ("/tokenize", {"prompt": ["a"]}, "prompt", "invalid_type"),
        ("/tokenize", {"messages": []}, "messages", "empty_array"),
        ("/tokenize", {"messages": [{"role": "king", "content": "a"}]}, "messages[0].role", "invalid_value"),
        ("/tokenize", {"messages": MESSAGES, "add_special_tokens": True}, "add_special_tokens",
         "invalid_parameter_combination"),
        ("/tokenize", {"messages": MESSAGES, "chat_template_kwargs": {"tools": []}}, "chat_template_kwargs", None),
        ("/detokenize", {}, "tokens", "missing_required_parameter"),
        ("/detokenize", {"tokens": "abc"}, "tokens", "invalid_type"),
        ("/detokenize", {"tokens": [1, -1]}, "tokens[1]", "integer_below_min_value"),
        ("/detokenize", {"tokens": [1, 100000]}, "tokens[1]", "invalid_value"),
        ("/apply-template", {}, "messages", "missing_required_parameter"),
    ],
)  # fmt: skip
def test_bad_input(live, path, body, param, code):
    check(post(live, path, **body), 400, code, param)


def test_models_by_name(live):
    name = live.state.model_name
    model = httpx.get(f"{live.url}/v1/models/{name}").json()
    assert (model["id"], model["object"]) == (name, "model")
    check(httpx.get(f"{live.url}/v1/models/org/other"), 404, "model_not_found", "model")
    for path in ("/tokenize", "/detokenize", "/apply-template"):
        fields = {"model": "other", "prompt": "a", "tokens": [1], "messages": MESSAGES}
        check(post(live, path, **fields), 404, "model_not_found", "model")


def test_a_key_guards_them_too(engine):
    with live_server(engine, ServerSettings(api_key="secret")) as live:
        for path in ("/tokenize", "/detokenize", "/apply-template", "/v1/completions", "/v1/embeddings"):
            assert post(live, path).status_code == 401
        assert post(live, "/health").status_code == 405
