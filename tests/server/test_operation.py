"""What an operator sees: loading, keys, origins."""

import httpx
import pytest
from live_server import live_server
from stub_engine import StubEngine

from server.settings import ServerSettings

ORIGIN = {"origin": "https://page.example"}


def test_the_server_answers_503_until_the_model_is_ready():
    with live_server() as server:
        server.call(lambda: server.state.report("compiling", 3, 12))
        httpx.get(f"{server.url}/health")
        health = httpx.get(f"{server.url}/health")
        assert health.status_code == 503
        assert health.json() == {"status": "loading", "progress": {"stage": "compiling", "done": 3, "total": 12}}
        for answer in (server.chat(), httpx.get(f"{server.url}/v1/models"), httpx.get(f"{server.url}/v1/models/x")):
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "model_loading"
            assert "compiling" in answer.json()["error"]["message"]
            assert int(answer.headers["retry-after"]) >= 1
        server.call(lambda: server.state.ready(StubEngine()))
        httpx.get(f"{server.url}/health")
        health = httpx.get(f"{server.url}/health")
        assert (health.status_code, health.json()) == (200, {"status": "ok", "model": "org/stub"})
        assert server.chat().status_code == 200


@pytest.mark.parametrize("authorization", [None, "Bearer", "Bearer wrong", "Basic secret", "secret", "Bearer sécret"])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/org/stub", "/v1/chat/completions", "/v1/nothing"])
def test_without_the_key_every_v1_route_refuses(keyed_server, path, authorization):
    headers = {} if authorization is None else {"authorization": authorization.encode("latin-1")}
    answer = httpx.get(keyed_server.url + path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("authorization", ["Bearer secret", "bearer secret"])
def test_with_the_key_the_server_answers(keyed_server, authorization):
    assert keyed_server.chat(headers={"authorization": authorization}).status_code == 200
    assert httpx.get(f"{keyed_server.url}/health").status_code == 200


def test_the_settings_do_not_show_the_key():
    assert "secret" not in repr(ServerSettings(api_key="secret"))


def test_pages_may_call_only_where_their_origin_is_allowed(stub, server):
    assert "access-control-allow-origin" not in server.chat(headers=ORIGIN).headers
    with live_server(stub, ServerSettings(cors_origins=("https://page.example",), api_key="secret")) as open_server:
        preflight = httpx.options(
            f"{open_server.url}/v1/chat/completions",
            headers=ORIGIN
            | {
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization,content-type",
            },
        )
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://page.example"
        refused = open_server.chat(headers=ORIGIN)
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://page.example"
        other = open_server.chat(headers={"origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers


@pytest.fixture(scope="module")
def keyed_server():
    with live_server(StubEngine(), ServerSettings(api_key="secret")) as running:
        yield running
