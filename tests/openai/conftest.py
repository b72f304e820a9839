import pytest
from stub_engine import StubEngine


@pytest.fixture
def stub():
    engine = StubEngine()
    yield engine
    engine.close()
