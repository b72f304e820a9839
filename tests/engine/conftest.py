"""Engines that several files here share."""

import pytest

from cvllm_jax import EngineConfig, InferenceEngine
from cvllm_jax.engine.devices import step_shapes


@pytest.fixture(scope="session")
def gpu_steps_engine(tiny_model_path):
    """The steps that are compiled for a GPU, greedy and straight, on the CPU."""
    config = EngineConfig(
        model_path=str(tiny_model_path), dtype="f32", device="cpu", max_batch_size=4, max_sequence_length=256,
        prefill_chunk_size=128,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cvllm_jax.engine.loading.step_shapes", lambda config, platform: step_shapes(config, "gpu"))
        engine = InferenceEngine(config)
    with engine:
        yield engine
