import pytest
from live_server import live_server
from stub_engine import StubEngine


@pytest.fixture(scope="module")
def stub():
    engine = StubEngine()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def server(stub):
    with live_server(stub) as running:
        yield running
