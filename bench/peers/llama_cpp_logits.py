"""llama.cpp's logits after given tokens: ``python -m bench.peers.llama_cpp_logits MODEL THREADS TOKENS FOLDER``.

TOKENS is a JSON file with ``prompt``, read 512 tokens at a time as prompts are, and ``sequences`` of one length, which
are decoded side by side. FOLDER gets prompt.npy ``[T, V]`` and sequences.npy ``[B, T, V]``, in f32.
"""

import json
import sys
from pathlib import Path

import numpy as np

from bench.peers.llama_cpp import load

CHUNK = 512


def main() -> None:
    model, threads, source, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
    wanted = json.loads(source.read_text())
    engine = load(model, threads)

    prompt, rows = wanted["prompt"], []
    context = engine.context(1, len(prompt))
    for start in range(0, len(prompt), CHUNK):
        part = prompt[start : start + CHUNK]
        engine.add(context, [(token, start + index, 0, True) for index, token in enumerate(part)])
        rows += [engine.logits(context, index).copy() for index in range(len(part))]
    np.save(folder / "prompt.npy", np.stack(rows))

    sequences, steps = wanted["sequences"], []
    context = engine.context(len(sequences), len(sequences[0]))
    for position, tokens in enumerate(zip(*sequences)):
        engine.add(context, [(token, position, index, True) for index, token in enumerate(tokens)])
        steps.append([engine.logits(context, index).copy() for index in range(len(tokens))])
    np.save(folder / "sequences.npy", np.stack(steps, 1))


if __name__ == "__main__":
    main()
