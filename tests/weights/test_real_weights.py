"""Models whose files this project neither has nor fetches, from a folder that CVLLM_TEST_WEIGHTS names.

The folder holds ``qwen2.5-coder-0.5b-instruct-q4_k_m.gguf`` and ``embeddinggemma-300m``, a Hugging Face folder, or one
of them. What llama.cpp makes of the first is in ``tests/golden/qwen2_5_coder.json``.
"""

import ast
import json
import os
from pathlib import Path

import numpy as np
import pytest

from cvllm_jax import EngineConfig, GenerationParams
from cvllm_jax.engine.opening import open_engine
from cvllm_jax.engine.scoring import prompt_logits

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "qwen2_5_coder.json").read_text())
VARIABLE = "CVLLM_TEST_WEIGHTS"
#: llama.cpp rounds activations to 8 bits: where two tokens are nearer than this, either may come first.
CLOSE = 0.8


def needs(name):
    folder = os.environ.get(VARIABLE)
    path = Path(folder or "", name)
    reason = f"set {VARIABLE} to a folder that holds {name}" + (f"; {folder} does not" if folder else "")
    return path, pytest.mark.skipif(not folder or not path.exists(), reason=reason)


CODER, needs_coder = needs("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf")
EMBEDDER, needs_embedder = needs("embeddinggemma-300m")


@pytest.fixture(scope="module")
def coder():
    with open_engine(EngineConfig(model_path=str(CODER), dtype="f32", max_batch_size=1, warmup=False)) as engine:
        yield engine


@needs_coder
def test_tokens_are_those_of_llama_cpp(coder):
    for text, expected in GOLDEN["texts"]:
        assert coder.tokenize(text) == expected, text


@needs_coder
@pytest.mark.parametrize("chat", GOLDEN["chats"], ids=lambda chat: chat["question"][:20])
def test_greedy_answers_are_those_of_llama_cpp(coder, chat):
    params = GenerationParams(max_tokens=len(chat["tokens"]), temperature=0.0)
    answer = list(coder.generate_sync(chat["prompt"], params).tokens)
    expected = chat["tokens"]
    differs = next((i for i, pair in enumerate(zip(answer, expected)) if pair[0] != pair[1]), None)
    if differs is not None:  # from there on the texts are different ones
        assert chat["margins"][differs] < CLOSE, f"token {differs} of {len(expected)}"


@needs_coder
def test_code_that_it_writes_runs(coder):
    prompt = coder.chat_template.encode([{"role": "user", "content": GOLDEN["chats"][0]["question"]}])
    text = coder.generate_sync(prompt, GenerationParams(max_tokens=256, temperature=0.0)).text
    code = text.split("```python\n")[1].split("```")[0]
    function = next(node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef))
    names = {}
    exec(ast.unparse(function), names)
    assert [names[function.name](n) for n in (0, 1, 2, 10)] == [0, 1, 1, 55]


@needs_coder
def test_perplexity_is_that_of_llama_cpp(coder):
    tokens = coder.tokenize((ROOT / "LICENSE").read_text())[:257]
    logits = prompt_logits(coder, tokens[:-1]).astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    perplexity = np.exp(-scores[np.arange(256), tokens[1:]].mean())
    assert perplexity == pytest.approx(GOLDEN["license_perplexity"], rel=0.02)


@needs_embedder
def test_related_texts_are_near_and_others_are_not():
    texts = ("The cat sits on the mat.", "A cat is sitting on a rug.", "Stock prices fell sharply on Monday.")
    with open_engine(EngineConfig(model_path=str(EMBEDDER), dtype="f32", warmup=False)) as engine:
        first, related, other = engine.embed_sync(texts).vectors
    near, far = (np.dot(first, v) / np.linalg.norm(first) / np.linalg.norm(v) for v in (related, other))
    assert near > 0.75
    assert far < 0.35
