"""How streams are framed, and requests whose client leaves while it sends them, over ASGI itself."""

import asyncio
import json

import pytest
from pydantic import BaseModel

from server.app import create_app
from server.errors import ApiError, error_body
from server.settings import ServerSettings
from server.sse import EventStream, Framing
from server.state import ServerState


class Item(BaseModel):
    type: str
    number: int


class Items:
    """Any async iterator that can be closed will do."""

    def __init__(self, *items):
        self._items = iter(items)
        self.closed = False

    def __aiter__(self):
        return self

    async def __anext__(self):
        item = next(self._items, None)
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, Exception):
            raise item
        return item

    async def aclose(self):
        self.closed = True


class Named(Framing):
    """Events with names, counted."""

    def __init__(self):
        self._next = 0

    def event(self, item):
        self._next = item.number + 1
        return f"event: {item.type}\n{super().event(item)}"

    def error(self, error):
        return f"event: error\ndata: {json.dumps({'number': self._next, **error_body(error)})}\n\n"


async def exchange(app, received, **scope):
    """The status and the body that an ASGI application answers."""
    messages, sent = iter(received), []

    async def receive():
        message = next(messages, None)
        if message is None:
            await asyncio.Event().wait()
        return message

    async def send(message):
        sent.append(message)

    await app({"type": "http", "method": "POST", "query_string": b"", "headers": [], **scope}, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:]).decode()


def streamed(*items, **settings):
    async def run():
        stream = Items(*items)
        _, body = await exchange(EventStream(stream, ServerState(ServerSettings()), **settings), [])
        assert stream.closed
        return body

    return asyncio.run(run())


def test_items_are_data_lines():
    assert streamed(Item(type="a", number=0)) == 'data: {"type":"a","number":0}\n\ndata: [DONE]\n\n'


def test_a_framing_of_its_own():
    body = streamed(Item(type="a", number=3), ApiError(500, "broken", kind="server_error"), framing=Named())
    assert body == (
        'event: a\ndata: {"type":"a","number":3}\n\n'
        'event: error\ndata: {"number": 4, "error": {"message": "broken", '
        '"type": "server_error", "param": null, "code": null}}\n\n'
        "data: [DONE]\n\n"
    )


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize"])
def test_a_client_that_leaves_amid_its_body_is_no_error(stub, path, caplog):
    received = [{"type": "http.request", "body": b'{"model"', "more_body": True}, {"type": "http.disconnect"}]
    headers = [(b"content-type", b"application/json")]
    status, _ = asyncio.run(exchange(create_app(stub), received, path=path, headers=headers))
    assert status == 499
    assert not caplog.records
