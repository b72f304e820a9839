"""What a grammar costs, and how soon 64 streams begin.

``python -m bench.serving [MODEL]``: tokens a second of 16 streams, free and under grammars, which take turns within
each round of one run; then the time until the first text of 64 requests that arrive at a server together.
"""

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from bench.machine import save, versions
from cvllm_jax import EngineConfig, GenerationParams, InferenceEngine
from cvllm_jax.checkpoints.demo import find_demo_model
from cvllm_jax.grammar import JsonSchemaGrammar, LarkGrammar

STREAMS, TOKENS, ROUNDS = 16, 96, 5
PORT = 18471

#: Any text, until a mark that no model writes: a mask for every token and never a forced one.
ANY_TEXT = LarkGrammar('start: TEXT "<|bench-end|>"\nTEXT: /(.|\\n)*/')
PEOPLE = JsonSchemaGrammar(
    {
        "type": "array",
        "minItems": 50,
        "items": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "member": {"type": "boolean"}},
            "required": ["name", "age", "member"],
            "additionalProperties": False,
        },
    }
)


def tokens_per_second(engine: InferenceEngine, grammar: object) -> float:
    """Of all streams together, from their start to their end."""
    params = GenerationParams(
        temperature=0.0, max_tokens=TOKENS, grammar=grammar, **({} if grammar else {"ignore_eos": True})
    )
    begin = time.perf_counter()
    prompts = (f"{index}. Here is a list of people and what is known of them:" for index in range(STREAMS))
    streams = [engine.generate_stream_sync(prompt, params) for prompt in prompts]
    total = sum(len(stream.finish().tokens) for stream in streams)
    return total / (time.perf_counter() - begin)


def constrained(model: str) -> dict[str, list[float]]:
    config = EngineConfig(model_path=model, max_batch_size=STREAMS, enable_prefix_caching=False)
    samples: dict[str, list[float]] = {"free": [], "any text": [], "JSON schema": []}
    with InferenceEngine(config) as engine:
        engine.wait_until_warm()
        engine.compile_grammar(ANY_TEXT)
        while not engine.runner.halves:  # compiled when the first grammar comes
            time.sleep(0.1)
        for round_ in range(ROUNDS + 1):
            for name, grammar in (("free", None), ("any text", ANY_TEXT), ("JSON schema", PEOPLE)):
                rate = tokens_per_second(engine, grammar)
                if round_:  # the first round warms up
                    samples[name].append(rate)
    return samples


@contextmanager
def server(model: str) -> Iterator[str]:
    command = [sys.executable, "-m", "cvllm_jax", "serve", model, "--port", str(PORT), "--max-batch-size", "64"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{PORT}"
    try:
        while process.poll() is None:
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


async def first_texts(url: str, streams: int) -> list[float]:
    """Seconds from the start of all requests to the first text of each."""

    async def one(client: httpx.AsyncClient, name: str, index: int, begin: float) -> float:
        body = {
            "model": name, "stream": True, "max_tokens": 16,
            "messages": [{"role": "user", "content": f"Tell me something about the number {index}."}],
        }  # fmt: skip
        first = 0.0
        async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
            async for line in response.aiter_lines():
                if first or not line.startswith("data: {"):
                    continue
                if json.loads(line[6:])["choices"][0]["delta"].get("content"):
                    first = time.perf_counter() - begin
        return first

    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=streams)) as client:
        name = (await client.get(f"{url}/v1/models")).json()["data"][0]["id"]
        begin = time.perf_counter()
        return sorted(await asyncio.gather(*(one(client, name, index, begin) for index in range(streams))))


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else find_demo_model()
    if model is None:
        sys.exit("name a model, or install the demo model: cvllm-jax demo")
    samples = constrained(str(model))
    ratios = {
        name: statistics.median(rate / free for rate, free in zip(rates, samples["free"], strict=True))
        for name, rates in samples.items()
    }
    for name, rates in samples.items():
        print(f"{name:<12} {statistics.median(rates):7.1f} tokens/s  {ratios[name]:.3f} of free", flush=True)
    with server(str(model)) as url:
        asyncio.run(first_texts(url, 8))  # warms up
        alone, together = asyncio.run(first_texts(url, 1)), asyncio.run(first_texts(url, 64))
    print(f"first text   {alone[0]:.2f} s alone; of 64: {together[0]:.2f} s first, {together[31]:.2f} s median, "
          f"{together[-1]:.2f} s last")  # fmt: skip
    path = save("serving", {
        "command": "python -m bench.serving", "model": os.path.basename(str(model)),
        "versions": versions(["jax", "llguidance"]), "streams": STREAMS, "tokens_per_stream": TOKENS,
        "tokens_per_second": samples, "ratio_to_free": ratios,
        "first_text_seconds": {"alone": alone, "of_64": together},
    })  # fmt: skip
    print(path)


if __name__ == "__main__":
    main()
