import json
import sys
from pathlib import Path

import pytest
from stub_engine import StubEngine

# modules that these tests share, some with the grammars' own; importlib mode adds no folder by itself
sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "grammar")]

from answer_script import CHATML, SCRIPT


@pytest.fixture
def stub():
    engine = StubEngine()
    yield engine
    engine.close()


@pytest.fixture
def make_stub():
    """Stub engines by their script, with a template that knows tools and reasoning."""
    engines = []

    def make(script, *, template=CHATML, **settings):
        engines.append(StubEngine(script, template=template, context=4096, **settings))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(scope="session")
def scripted(make_engine, tmp_path_factory):
    """The real engine with a model that says :data:`SCRIPT`."""
    path = tmp_path_factory.mktemp("script") / "script.json"
    path.write_text(json.dumps(SCRIPT), encoding="utf-8")
    return make_engine(model_path=f"scripted:{path}", max_sequence_length=8192)
