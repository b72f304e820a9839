"""Run open language models with JAX.

Importing this package is cheap: each name loads what it needs when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "cvllm_jax.config": ("DType", "Device", "EngineConfig", "EngineConfigBuilder", "QuantizationConfig"),
    "cvllm_jax.errors": (
        "CancelledError", "ConfigError", "DeviceError", "Error", "GenerationError", "IoError",
        "McpConnectionError", "McpToolExecutionError", "ModelLoadError", "OtherError", "TokenizationError",
    ),
    "cvllm_jax.params": (
        "FinishReason", "GenerationOutput", "GenerationParams", "GenerationStats", "InferenceRequest", "RequestHandle",
        "RequestUpdate", "TokenUpdate", "TopLogprob",
    ),
    "cvllm_jax.info": ("EngineStats", "ModelInfo"),
    "cvllm_jax.engine.engine": ("InferenceEngine", "InferenceEngineBuilder"),
    "cvllm_jax.engine.stream": ("GenerationStream",),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

if TYPE_CHECKING:
    from cvllm_jax.config import Device, DType, EngineConfig, EngineConfigBuilder, QuantizationConfig
    from cvllm_jax.engine.engine import InferenceEngine, InferenceEngineBuilder
    from cvllm_jax.engine.stream import GenerationStream
    from cvllm_jax.errors import (
        CancelledError,
        ConfigError,
        DeviceError,
        Error,
        GenerationError,
        IoError,
        McpConnectionError,
        McpToolExecutionError,
        ModelLoadError,
        OtherError,
        TokenizationError,
    )
    from cvllm_jax.info import EngineStats, ModelInfo
    from cvllm_jax.params import (
        FinishReason,
        GenerationOutput,
        GenerationParams,
        GenerationStats,
        InferenceRequest,
        RequestHandle,
        RequestUpdate,
        TokenUpdate,
        TopLogprob,
    )

__all__ = [
    "CancelledError",
    "ConfigError",
    "DType",
    "Device",
    "DeviceError",
    "EngineConfig",
    "EngineConfigBuilder",
    "EngineStats",
    "Error",
    "FinishReason",
    "GenerationError",
    "GenerationOutput",
    "GenerationParams",
    "GenerationStats",
    "GenerationStream",
    "InferenceEngine",
    "InferenceEngineBuilder",
    "InferenceRequest",
    "IoError",
    "McpConnectionError",
    "McpToolExecutionError",
    "ModelInfo",
    "ModelLoadError",
    "OtherError",
    "QuantizationConfig",
    "RequestHandle",
    "RequestUpdate",
    "TokenUpdate",
    "TokenizationError",
    "TopLogprob",
]


def __getattr__(name: str) -> Any:
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'cvllm_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
