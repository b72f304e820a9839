"""What all tests share: the CPU, one folder of compiled steps, and small engines that are ready to use."""

import os
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
# before jax is imported: tests run on the CPU, and executables outlive the run, because compiling is what costs
os.environ["JAX_PLATFORMS"] = "cpu"
# Mosaic's interpreter runs each warpgroup in a thread of XLA's pool, which otherwise has one for each processor
os.environ.setdefault("NPROC", "16")
os.environ["CVLLM_CACHE"] = str(ROOT / ".pytest_cache" / "cvllm-jax")
for folder in ("tests", "tests/server", "tests/cli", "tests/checkpoints", "tests/engine"):
    sys.path.append(str(ROOT / folder))  # modules that tests share; importlib mode adds no folder by itself
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell starts its background jobs like this, and every process that a test starts would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402
from compiled_programs import ENGINES, let_go_of_programs_if_many  # noqa: E402

GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture
def anyio_backend():
    """What runs asynchronous tests."""
    return "asyncio"


@pytest.fixture(scope="session")
def tiny_model_path():
    """A complete Hugging Face folder: two layers, 288 tokens, a byte-level tokenizer and a ChatML template."""
    return GOLDEN / "llama" / "llama_gqa_tied"


@pytest.fixture(scope="session")
def make_engine(tiny_model_path):
    """Engines by configuration, each made once and closed at the end of the run.

    Engines that differ in ``max_batch_size``, ``max_sequence_length``, ``page_size`` or ``kv_cache_memory`` compile
    programs of their own; other settings share them.
    """
    from cvllm_jax import EngineConfig, InferenceEngine

    def make(**settings):
        settings = {
            "model_path": str(tiny_model_path), "dtype": "f32", "device": "cpu", "max_batch_size": 16,
            "max_sequence_length": 256, "prefill_chunk_size": 64, "debug": True, **settings,
        }  # fmt: skip
        key = tuple(sorted(settings.items()))
        if key not in ENGINES:
            ENGINES[key] = InferenceEngine.new_sync(EngineConfig(**settings))
            ENGINES[key].wait_until_warm()
        return ENGINES[key]

    yield make
    for engine in ENGINES.values():
        engine.close()


def wait_until_idle(engine, seconds=10.0):
    """Wait for cancelled requests to leave, then require that nothing is left and every page is back."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        stats = engine.stats()
        if stats.running == stats.waiting == 0 and stats.pages_free == stats.pages_total:
            return
        time.sleep(0.005)
    raise AssertionError(f"the engine was left with requests or pages: {engine.stats()}")


@pytest.fixture
def tiny_engine(make_engine):
    """A warm engine in f32 that the whole run shares; a test must leave it idle."""
    engine = make_engine()
    yield engine
    wait_until_idle(engine)


@pytest.fixture
def tight_engine(make_engine):
    """As ``tiny_engine``, with 64 places but only 24 pages, so that many requests must preempt each other."""
    engine = make_engine(max_batch_size=64, kv_cache_memory=25 * PAGE_BYTES, max_sequence_length=128)
    yield engine
    wait_until_idle(engine)


#: 2 (k and v) * 2 layers * 2 kv heads * 16 tokens * 8 floats * 4 bytes of the tiny model.
PAGE_BYTES = 2 * 2 * 2 * 16 * 8 * 4


@pytest.fixture(scope="session")
def demo_model_path():
    """The demonstration model's GGUF file."""
    from cvllm_jax.checkpoints.demo import DEMO_INSTALL_COMMAND, find_demo_model

    path = find_demo_model()
    if path is None:
        pytest.skip(f"the demo model is not installed: {DEMO_INSTALL_COMMAND}")
    return path


@pytest.fixture(autouse=True, scope="module")
def _few_memory_maps():
    yield
    let_go_of_programs_if_many()
