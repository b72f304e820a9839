"""What is wrong with a request is said with the right status and all four keys, and the server goes on."""

import socket

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live_server import live_server
from stub_engine import Script, StubEngine

from server.settings import ServerSettings

URL = "/v1/chat/completions"
GOOD = b'{"model": "org/stub", "messages": [{"role": "user", "content": "hi"}]}'
JSON = {"content-type": "application/json"}


def check(answer, status, code, param=None, kind="invalid_request_error"):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(answer.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == (kind, param, code)
    assert "\n" not in error["message"]
    assert "Traceback" not in error["message"]
    return error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"nonsense", GOOD + b"x", b"\xff\xfe", b'{"model": "\\ud800"}', b'"a string"', b"[]", b"null",
        b"[" * 1_000_000, b'{"model":' * 100_000, b'{"messages": ' + b"[" * 300 + b"]" * 300 + b"}",
        b'{"seed": ' + b"9" * 10_000 + b"}",
    ],
    ids=lambda body: body[:20].decode("latin-1"),
)  # fmt: skip
def test_bodies_that_are_no_json_object(server, body):
    answer = httpx.post(server.url + URL, content=body, headers=JSON, timeout=10)
    check(answer, 400, "invalid_json")


def test_depth_is_refused_by_its_limit(server):
    for depth, status in ((190, 200), (201, 400)):
        body = GOOD[:-1] + b', "metadata": ' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"
        answer = httpx.post(server.url + URL, content=body, headers=JSON)
        assert answer.status_code == status
        assert ("deeper than 200" in answer.text) == (depth > 200)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
def test_other_content_types(server, headers):
    answer = httpx.post(server.url + URL, content=GOOD, headers=headers)
    assert answer.status_code == 415
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_charset_utf8_is_json(server):
    headers = {"content-type": 'application/JSON; charset="UTF-8"'}
    assert httpx.post(server.url + URL, content=GOOD, headers=headers).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_over_the_limit(stub, chunked):
    with live_server(stub, ServerSettings(max_body_bytes=1000)) as server:
        for size in (1001, 3_000_000):
            body = b"x" * size
            content = iter([body[:700], body[700:]]) if chunked else body
            answer = httpx.post(server.url + URL, content=content, headers=JSON, timeout=10)
            assert "1000 bytes" in check(answer, 413, "body_too_large")
        exact = GOOD + b" " * (1000 - len(GOOD))
        assert httpx.post(server.url + URL, content=exact, headers=JSON).status_code == 200


def test_unknown_paths_and_methods(server):
    check(httpx.get(server.url + "/v1/nothing"), 404, "unknown_url")
    check(httpx.post(server.url + "/v1/chat/completions/", json={}), 404, "unknown_url")
    answer = httpx.get(server.url + URL)
    check(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
    check(httpx.delete(server.url + "/v1/models"), 405, "method_not_allowed")


def test_unknown_models(server):
    message = check(server.chat(model="gpt-4"), 404, "model_not_found")
    assert message.startswith("The model `gpt-4` does not exist or you do not have access to it")
    assert "`org/stub`" in message
    check(httpx.get(server.url + "/v1/models/gpt-4"), 404, "model_not_found", "model")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": []}, "messages", "empty_array"),
        ({"temperature": -0.1}, "temperature", "decimal_below_min_value"),
        ({"max_tokens": 10_000}, "max_tokens", "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "x" * 600}]}, "messages", "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "raise!"}]}, "messages", "invalid_value"),
        ({"logit_bias": {"999": 1}}, "logit_bias", "invalid_value"),
        ({"tools": [{}]}, "tools[0].function", "missing_required_parameter"),
        ({"tools": [{"function": {"name": "f"}}]}, "tools", "unsupported_parameter"),
        ({"tool_choice": "required"}, "tool_choice", None),
        ({"tools": [{"function": {"name": "f"}}] * 2}, "tools[1].function.name", "invalid_value"),
        ({"messages": [{"role": "tool", "tool_call_id": "c", "content": "x"}]}, "messages.[0].role", None),
        ({"top_logprobs": 2}, "top_logprobs", None),
        ({"n": 129}, "n", "integer_above_max_value"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "invalid_parameter_combination"),
        ({"stop": ""}, "stop", "empty_string"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"structured_outputs": {}}, "structured_outputs", "invalid_parameter_combination"),
    ],
)
def test_refused_fields(server, fields, param, code, stream):
    check(server.chat(stream=stream, **fields), 400, code, param)


def test_not_a_number_is_named(server):
    body = GOOD[:-1] + b', "temperature": NaN}'
    answer = httpx.post(server.url + URL, content=body, headers=JSON)
    assert "nan" in check(answer, 400, "invalid_value", "temperature")


def test_stream_options_need_a_stream(server):
    check(server.chat(stream_options={"include_usage": True}), 400, None, "stream_options")


def test_a_full_queue_says_when_to_come_again():
    with live_server(StubEngine(Script(forever=True), max_queue_size=0)) as server:
        for stream in (False, True):
            answer = server.chat(stream=stream)
            check(answer, 429, "rate_limit_exceeded", kind="rate_limit_error")
            assert int(answer.headers["retry-after"]) >= 1


def test_unexpected_errors_keep_their_details_to_themselves(stub, server):
    def broken(*_, **__):
        raise RuntimeError("secret detail")

    stub.chat_template.encode = broken
    for stream in (False, True):
        answer = server.chat(stream=stream)
        assert "secret" not in check(answer, 500, None, kind="server_error")
    del stub.chat_template.encode
    assert server.chat().status_code == 200


def test_broken_http_leaves_the_server_alone(server):
    host, port = server.url.removeprefix("http://").split(":")
    for junk in (b"\x00\x01\x02\r\n\r\n", b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: x\r\n\r\n"):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(junk)
            connection.recv(1000)
    assert server.chat().status_code == 200


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_body_is_a_clean_refusal(server, body):
    answer = httpx.post(server.url + URL, content=body, headers=JSON)
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
