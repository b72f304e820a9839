"""A client that goes away frees what its request held; a server that stops ends its streams."""

import json
import socket
import threading
import time

import httpx
import pytest
from live_server import live_server
from stream_lint import parse_sse
from stub_engine import Script, StubEngine

from server.settings import ServerSettings


@pytest.fixture
def stub():
    engine = StubEngine(Script(forever=True, delay=0.005))
    yield engine
    engine.close()


@pytest.fixture
def server(stub):
    with live_server(stub) as running:
        yield running


def wait_for(condition, seconds=2.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def connect(server, stream, n=1):
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps(
        {"model": "org/stub", "messages": [{"role": "user", "content": "hi"}], "stream": stream, "n": n}
    ).encode()
    connection = socket.create_connection((host, int(port)), timeout=5)
    connection.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    )  # fmt: skip
    return connection


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_disconnects_frees_its_pages(server, stub, stream, n):
    connection = connect(server, stream, n)
    wait_for(lambda: stub.stats().running == n)
    connection.close()
    wait_for(lambda: stub.stats().running == 0, seconds=0.5)
    assert stub.stats().pages_free == stub.stats().pages_total


def test_a_client_that_never_reads_frees_its_pages(server, stub):
    stub.script.delay = 0.0
    connection = connect(server, stream=True)
    wait_for(lambda: stub.stats().running == 1)
    time.sleep(0.3)  # the socket's buffers are full by now
    connection.close()
    wait_for(lambda: stub.stats().running == 0)


def test_a_client_that_leaves_while_its_prompt_is_prepared(server, stub):
    entered, leave = threading.Event(), threading.Event()
    encode = stub.chat_template.encode

    def slow(*args, **kwargs):
        entered.set()
        leave.wait(5)
        return encode(*args, **kwargs)

    stub.chat_template.encode = slow
    connection = connect(server, stream=True)
    assert entered.wait(5)
    connection.close()
    time.sleep(0.1)
    leave.set()
    time.sleep(0.1)
    wait_for(lambda: stub.stats().running == 0)


def test_stopping_ends_what_runs_and_refuses_what_comes(server, stub):
    answers = {}

    def plain():
        answers["plain"] = server.chat()

    def streamed():
        answers["streamed"] = server.chat(stream=True)

    threads = [threading.Thread(target=target) for target in (plain, streamed)]
    for thread in threads:
        thread.start()
    wait_for(lambda: stub.stats().running == 2)
    server.call(server.state.drain)
    wait_for(lambda: httpx.get(f"{server.url}/health").json() == {"status": "stopping"})
    assert server.chat().json()["error"]["code"] == "server_stopping"
    assert stub.stats().running == 2
    server.call(server.state.stop)
    for thread in threads:
        thread.join(5)
    assert answers["plain"].status_code == 503
    assert answers["plain"].json()["error"]["code"] == "server_stopping"
    events = parse_sse(answers["streamed"].text)
    assert json.loads(events[-2][1])["error"]["code"] == "server_stopping"
    assert stub.stats().running == 0


def test_a_slow_reader_does_not_stall_others(stub):
    with live_server(stub, ServerSettings()) as server:
        connection = connect(server, stream=True)
        wait_for(lambda: stub.stats().running == 1)
        stub.script = Script(text="quick")
        started = time.monotonic()
        assert server.chat().json()["choices"][0]["message"]["content"] == "quick"
        assert time.monotonic() - started < 1
        connection.close()
        wait_for(lambda: stub.stats().running == 0)
