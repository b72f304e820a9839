"""The whole way once, as a new user goes it: `cvllm-jax serve` with the demo model, curl's request, a stream."""

import json
import re
import shlex
import signal
import subprocess
import sys

import httpx
import openai
from command_line import environment


def test_serving_the_demo_model(demo_model_path):
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "cvllm_jax", "serve", str(demo_model_path), "--port", "0"),
            *("--max-sequence-length", "256", "--max-batch-size", "2", "--prefill-chunk-size", "64"),
        ],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        ready, _, curl = (process.stdout.readline() for _ in range(3))
        url = re.search(r"http://[\d.:]+\d", ready)[0]
        command = shlex.split(curl)
        assert command[:2] == ["curl", f"{url}/v1/chat/completions"]
        body = json.loads(command[command.index("-d") + 1])
        answer = httpx.post(command[1], json=body, timeout=60).json()
        assert "Paris" in answer["choices"][0]["message"]["content"]

        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        stream = client.chat.completions.create(**body, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert text == answer["choices"][0]["message"]["content"]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
