"""examples/gateway.py, through its ASGI application."""

import asyncio

import httpx
import pytest

pytestmark = pytest.mark.anyio


@pytest.fixture
def client(load_example, adapter):
    app = load_example("gateway").create_app(adapter)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")


async def test_answers_in_its_own_form(client):
    async with client:
        response = await client.post("/generate", json={"prompt": "number 1", "options": {"max_length": 32}})
    assert response.status_code == 200
    assert response.json()["text"] == "A number."
    assert response.json()["tokens_used"] > 9


async def test_answers_many_at_once(client):
    async with client:
        asked = [client.post("/generate", json={"prompt": f"number {number % 5}"}) for number in range(40)]
        texts = [response.json()["text"] for response in await asyncio.gather(*asked)]
    assert texts == ["A number." if number % 5 in (1, 2, 3) else "Hello! How can I help?" for number in range(40)]


async def test_streams_text(client):
    async with client, client.stream("POST", "/stream", json={"prompt": "number 2"}) as response:
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        assert await response.aread() == b"A number."


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"prompt": "hi", "options": {"max_length": 0}}, "max_length"),
        ({"prompt": "hi", "options": {"max_length": 100_000}}, "100000"),
        ({"prompt": "hi", "option": {}}, "option"),
        ({"prompt": "hi " * 9000}, "tokens"),
    ],
)
@pytest.mark.parametrize("path", ["/generate", "/stream"])
async def test_says_what_is_wrong(client, path, body, said):
    async with client:
        response = await client.post(path, json=body)
    assert response.status_code == 400
    assert said in response.json()["error"]
