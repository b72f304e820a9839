"""The embedding engine: batches of many callers, limits, ends and failures."""

import asyncio
import gc
import json
import shutil
import threading
import time
import weakref

import numpy as np
import pytest

from cvllm_jax import ConfigError, EngineConfig, GenerationError, InferenceEngine, ModelLoadError
from cvllm_jax.engine.embedding import EmbeddingEngine
from cvllm_jax.engine.encoder import embed_shapes
from cvllm_jax.engine.opening import open_engine
from cvllm_jax.errors import CancelledError, QueueFullError, WrongEngineError


@pytest.fixture(scope="module")
def folder(pytestconfig):
    return pytestconfig.rootpath / "tests" / "golden" / "bert" / "bert_mean"


@pytest.fixture(scope="module")
def engine(folder):
    with EmbeddingEngine(config(folder)) as engine:
        yield engine


def config(folder, **settings):
    settings = {"device": "cpu", "dtype": "f32", "max_batch_size": 4, "prefill_chunk_size": 64, **settings}
    return EngineConfig(model_path=str(folder), **settings)


def some_texts(count, seed=0):
    draw = np.random.default_rng(seed)
    return [draw.integers(5, 256, draw.integers(1, 49)).tolist() for _ in range(count)]


def test_many_callers_get_their_own_vectors_and_nothing_compiles(engine):
    texts = some_texts(40)
    alone = [engine.embed_sync([text]).vectors[0] for text in texts]

    async def scenario():
        calls = [engine.embed(texts[start : start + 5]) for start in range(0, 40, 5)]
        return await asyncio.gather(*calls)

    steps = engine.stats().steps
    with engine.runner.programs.forbid_compile():
        outputs = asyncio.run(scenario())
    np.testing.assert_allclose(np.concatenate([output.vectors for output in outputs]), alone, atol=1e-5)
    assert [o.prompt_tokens for o in outputs] == [sum(map(len, texts[i : i + 5])) for i in range(0, 40, 5)]
    assert engine.stats().steps - steps < 40  # they ran together
    assert engine.stats().waiting == engine.stats().running == 0


def test_a_description_of_the_model(engine):
    info = engine.model_info()
    assert (info.kind, info.architecture) == ("encoder", "BertModel")
    assert (info.hidden_size, info.max_sequence_length) == (32, 48)
    assert (engine.pooling.mode, engine.pooling.normalize) == ("mean", True)
    assert engine.detokenize(engine.tokenize("the work")) == "the work"


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([[5] * 49], "input[0] has 49 tokens; this model takes at most 48"),
        (["a", "word " * 60], "input[1] has"),
        ([""], "input[0] is empty"), ([[]], "input[0] is empty"), ([], "no texts"), ("a", "must be a list"),
        ([[256]], "token 256"), ([[-1]], "token -1"), ([["a"]], "text or token ids"), ([5], "text or token ids"),
    ],
)  # fmt: skip
def test_texts_are_refused_and_never_cut(engine, texts, words):
    with pytest.raises(GenerationError) as caught:
        engine.embed_sync(texts)
    assert words in str(caught.value)
    assert caught.value.param.startswith("input")


def test_sizes_are_few_and_hold_the_longest():
    for longest, tokens, rows in ((512, 512, 16), (256, 512, 16), (8192, 512, 16), (7, 1, 1)):
        shapes = embed_shapes(longest, tokens, rows)
        assert len(shapes) <= (10 if longest <= 512 else 12)
        assert shapes[-1].length == longest
        assert all(shape.rows == 1 or shape.rows * shape.length <= tokens for shape in shapes)
        assert max(shape.rows for shape in shapes) <= rows


def test_a_step_that_fails_ends_its_own_calls_only(engine, monkeypatch, caplog):
    real = engine.runner.embed
    monkeypatch.setattr(engine.runner, "embed", lambda texts: 1 / 0)
    with pytest.raises(GenerationError, match="division by zero"):
        engine.embed_sync(["a", "b"])
    monkeypatch.setattr(engine.runner, "embed", real)
    assert engine.embed_sync(["a"]).vectors.shape == (1, 32)


def test_cancelling_and_a_full_queue(folder, monkeypatch):
    with EmbeddingEngine(config(folder, warmup=False, max_queue_size=2)) as engine:
        real, may_go = engine.runner.embed, threading.Event()
        monkeypatch.setattr(engine.runner, "embed", lambda texts: (may_go.wait(10), real(texts))[1])

        async def scenario():
            first, second = (asyncio.create_task(engine.embed(["a"] * 3)) for _ in range(2))
            while engine.stats().waiting + engine.stats().running < 6:  # noqa: ASYNC110 - a thread works on it
                await asyncio.sleep(0.001)
            with pytest.raises(QueueFullError):
                await engine.embed(["b"])
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            third = asyncio.create_task(engine.embed(["b"]))  # there is room again
            may_go.set()
            return (await first).vectors, (await third).vectors

        first, third = asyncio.run(scenario())
        assert np.array_equal(first[0], first[2])
        assert third.shape == (1, 32)


def test_closing_ends_what_waits(folder, monkeypatch):
    engine = EmbeddingEngine(config(folder, warmup=False))
    real = engine.runner.embed
    monkeypatch.setattr(engine.runner, "embed", lambda texts: (time.sleep(0.1), real(texts))[1])
    errors = []

    def call():
        try:
            engine.embed_sync(["a"] * 100)
        except CancelledError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    while not engine.stats().running:
        time.sleep(0.001)
    engine.close()
    engine.close()
    thread.join(10)
    assert len(errors) == 1
    with pytest.raises(CancelledError, match="closed"):
        engine.embed_sync(["a"])


def test_a_dropped_engine_ends_its_thread(folder):
    before = set(threading.enumerate())
    engine = EmbeddingEngine(config(folder, warmup=False))
    engine.embed_sync(["a"])
    assert "cvllm-jax embedding" in {thread.name for thread in set(threading.enumerate()) - before}
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None
    assert "cvllm-jax embedding" not in {thread.name for thread in set(threading.enumerate()) - before}


def test_each_engine_takes_its_own_kind(folder, tiny_model_path):
    with pytest.raises(WrongEngineError, match="gives embeddings and generates no text; load it with EmbeddingEngine"):
        InferenceEngine.new_sync(config(folder))
    with pytest.raises(WrongEngineError, match="generates text and has no embeddings; load it with InferenceEngine"):
        EmbeddingEngine(config(tiny_model_path))
    with open_engine(config(folder, warmup=False)) as opened:
        assert isinstance(opened, EmbeddingEngine)
    with pytest.raises(ConfigError, match="takes texts of 48 tokens"):
        EmbeddingEngine(config(folder, max_sequence_length=49))
    with EmbeddingEngine(config(folder, max_sequence_length=20, warmup=False)) as shorter:
        assert shorter.model_info().max_sequence_length == 20


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("modules.json", {}, "does not hold a JSON array"),
        ("modules.json", [{"type": "x.Transformer"}], "must list modules"),
        ("modules.json", [{"type": "x.Pooling", "path": "../elsewhere"}], "must list modules"),
        ("modules.json", [{"type": "x.Transformer", "path": ""}], "names no Pooling"),
        ("modules.json", [{"type": "x.Dense", "path": "2_Dense"}], "wants the module 'Dense'"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, "exactly one"),
        ("1_Pooling/config.json", {"pooling_mode_weightedmean_tokens": True}, "exactly one"),
        ("1_Pooling/config.json", {}, "it has none"),
        ("sentence_bert_config.json", {"max_seq_length": "long"}, "max_seq_length"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "which is none of its prompts"),
    ],
)
def test_what_the_files_ask_for_is_done_or_refused(folder, tmp_path, file, content, words):
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / file).write_text(json.dumps(content))
    with pytest.raises(ModelLoadError) as caught:
        EmbeddingEngine(config(tmp_path / "model", warmup=False))
    assert words in str(caught.value)


def test_newer_names_of_modes_and_no_files_at_all(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "lasttoken"}))
    with EmbeddingEngine(config(tmp_path / "model", warmup=False)) as engine:
        assert engine.pooling.mode == "lasttoken"
    (tmp_path / "model" / "modules.json").unlink()
    with EmbeddingEngine(config(tmp_path / "model", warmup=False)) as engine:
        assert (engine.pooling.mode, engine.pooling.normalize) == ("mean", False)
        assert engine.model_info().max_sequence_length == 64
