"""Worker: llama.cpp's own library, greedy, without the cost of a sampler or a chat loop.

``python -m bench.peers.llama_cpp MODEL THREADS`` in an environment with llama-cpp-python. LLAMA_CPP_LIB_PATH names a
folder with libraries of the same version to use in place of those that the package was built with.
"""

import ctypes
import os
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp as lib
import numpy as np

from bench.worker import Measure, work

#: Tokens in one call, as llama.cpp's own tools have them.
BATCH = 2048
#: Cells of a cache come in multiples of this.
PADDING = 256


def load(path: str, threads: int) -> "Sequences":
    """A model file, on the CPU."""
    folder = os.environ.get("LLAMA_CPP_LIB_PATH")
    if folder:  # kernels are libraries of their own there, one for each kind of CPU
        ggml = ctypes.CDLL(str(next(Path(folder).glob("libggml.v*.so"))))
        ggml.ggml_backend_load_all_from_path(folder.encode())
    lib.llama_backend_init()
    options = lib.llama_model_default_params()
    options.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(path.encode(), options)
    if model is None:
        raise RuntimeError(f"llama.cpp cannot load {path}")
    return Sequences(model, threads)


class Sequences:
    """Sequences of tokens in a cache that each has for itself."""

    def __init__(self, model: Any, threads: int) -> None:
        self._model, self._threads = model, threads
        self._vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        self._batch = lib.llama_batch_init(BATCH, 0, 1)
        self._contexts: dict[tuple[int, int], Any] = {}

    @cache  # noqa: B019 - lives as long as the process
    def context(self, sequences: int, length: int) -> Any:
        """Room for so many sequences of up to ``length`` tokens each."""
        options = lib.llama_context_default_params()
        options.n_ctx = sequences * -(-length // PADDING) * PADDING
        options.n_batch, options.n_seq_max = BATCH, sequences
        options.n_threads = options.n_threads_batch = self._threads
        return lib.llama_init_from_model(self._model, options)

    def add(self, context: Any, tokens: list[tuple[int, int, int, bool]]) -> None:
        """Reads ``(token, position, sequence, whether its logits are wanted)``."""
        batch = self._batch
        for index, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[index], batch.pos[index], batch.logits[index] = token, position, wanted
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
        batch.n_tokens = len(tokens)
        if status := lib.llama_decode(context, batch):
            raise RuntimeError(f"llama_decode returned {status}")

    def logits(self, context: Any, index: int) -> np.ndarray:
        """[V], of a token of the last call; a view that the next call overwrites."""
        pointer = lib.llama_get_logits_ith(context, index)
        return np.ctypeslib.as_array(pointer, (self._vocabulary,))

    def run(self, job: dict[str, Any]) -> tuple[int, float, list[list[int]]]:
        prompts, new_tokens = job["prompts"], job["outputs"][0]
        context = self.context(len(prompts), max(map(len, prompts)) + new_tokens)
        lib.llama_memory_clear(lib.llama_get_memory(context), False)
        read = [
            (token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        last = [index for index, (*_, wanted) in enumerate(read) if wanted]

        start = time.perf_counter()
        self.add(context, read)
        answers = [[int(self.logits(context, index).argmax())] for index in last]
        started = time.perf_counter()
        if job["phase"] == "prefill":
            return len(read), started - start, answers
        for ahead in range(new_tokens - 1):
            self.add(context, [(a[-1], len(p) + ahead, i, True) for i, (p, a) in enumerate(zip(prompts, answers))])
            for index, answer in enumerate(answers):
                answer.append(int(self.logits(context, index).argmax()))
        return len(prompts) * (new_tokens - 1), time.perf_counter() - started, answers


def start() -> tuple[Measure, dict[str, Any]]:
    sequences = load(sys.argv[1], int(sys.argv[2]))
    described = lib.llama_print_system_info().decode()
    return sequences.run, {"versions": {"llama-cpp-python": lib.__version__}, "system": described}


if __name__ == "__main__":
    work(start)
