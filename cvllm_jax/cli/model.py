"""Which model a command uses, and getting it ready."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from typing import TYPE_CHECKING

from cvllm_jax.cli.options import EngineOptions
from cvllm_jax.cli.progress import ProgressBars
from cvllm_jax.errors import ModelLoadError

if TYPE_CHECKING:
    from cvllm_jax.engine.engine import InferenceEngine

__all__ = ["leave", "load_engine", "model_source"]


def model_source(model: str | None) -> str:
    """``model``, or the demo model's file if None was named. Raises ModelLoadError."""
    if model is not None:
        return model
    from cvllm_jax.checkpoints.demo import find_demo_model

    found = find_demo_model()
    if found is None:
        raise ModelLoadError(
            "no model was named and the demo model is not installed; install it with 'cvllm-jax demo', "
            "or name a GGUF file, a model folder or a hub id"
        )
    return str(found)


def load_engine(model: str | None, options: EngineOptions, *modules: str) -> InferenceEngine:
    """The engine of a command that uses it itself, loaded behind progress bars.

    Arguments:
      modules: what the command imports next; a thread does that while weights and programs are read.
    """
    source = model_source(model)
    with ProgressBars() as progress:
        config = options.config(source, progress)
        from cvllm_jax.engine.engine import InferenceEngine  # loads JAX: only once the options are right

        for module in modules:
            threading.Thread(target=importlib.import_module, args=(module,), name="cvllm-jax imports").start()
        return InferenceEngine.new_sync(config)


def leave(engine: InferenceEngine) -> None:
    """End the process here if closing the engine would wait for a compiler, which cannot be interrupted."""
    if engine.warming_up:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
