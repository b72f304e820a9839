"""What an engine is built from: model, device, memory and batching limits."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

from cvllm_jax.errors import ConfigError, shown

__all__ = [
    "DType",
    "Device",
    "EngineConfig",
    "EngineConfigBuilder",
    "KernelSet",
    "KvCacheDType",
    "LoadFormat",
    "Progress",
    "QuantizationConfig",
    "QuantizationMethod",
]

#: Called as ``progress(stage, done, total)`` while something long runs; ``total`` may be 0 (unknown).
type Progress = Callable[[str, int, int], None]

#: Each is a row of a decode step.
MAX_SPECULATIVE_TOKENS = 15

_MODEL_PATH_REQUIRED = (
    "model_path is required: a GGUF file, a model folder or a hub id "
    "(the command 'cvllm-jax demo' installs the demo model, which find_demo_model() then finds)"
)

LoadFormat = Literal["auto", "dummy"]
KernelSet = Literal["auto", "xla", "hopper", "native"]
KvCacheDType = Literal["auto", "int8", "fp8"]
QuantizationMethod = Literal["none", "int8", "int4", "fp8"]


class DType(enum.Enum):
    """Type of weights, activations and KV cache."""

    AUTO = "auto"  # bf16 where the hardware multiplies it natively, else f32
    BF16 = "bf16"
    F16 = "f16"
    F32 = "f32"
    FP16 = "f16"  # noqa: PIE796 - another name for F16
    FP32 = "f32"  # noqa: PIE796

    @classmethod
    def parse(cls, text: str) -> DType:
        """``"bf16"``, ``"bfloat16"``, ``"float32"`` ... to a member."""
        names = {
            "auto": cls.AUTO, "bf16": cls.BF16, "bfloat16": cls.BF16, "f16": cls.F16, "fp16": cls.F16,
            "float16": cls.F16, "f32": cls.F32, "fp32": cls.F32, "float32": cls.F32,
        }  # fmt: skip
        if not isinstance(text, str) or text.lower() not in names:
            raise ConfigError(f"unknown dtype {shown(text)}; choose auto, bf16, f16 or f32", param="dtype")
        return names[text.lower()]


@dataclass(frozen=True, slots=True)
class Device:
    """Where the model runs: ``Device.cpu()``, ``Device.cuda(0)``, ``Device.metal(0)``."""

    kind: str
    index: int = 0

    def __post_init__(self) -> None:
        # which kinds and indices there are shows when an engine looks for the device
        if not isinstance(self.kind, str):
            raise ConfigError(f"a device's kind must be a string, not {shown(self.kind)}", param="device")
        if isinstance(self.index, bool) or not isinstance(self.index, int):
            raise ConfigError(f"a device's index must be a whole number, not {shown(self.index)}", param="device")

    @staticmethod
    def cpu() -> Device:
        """The processor and its memory; always there."""
        return Device("cpu")

    @staticmethod
    def cuda(index: int = 0) -> Device:
        """NVIDIA GPU number ``index``; needs the ``cuda`` extra."""
        return Device("cuda", index)

    @staticmethod
    def metal(index: int = 0) -> Device:
        """Apple GPU; needs jax-mps."""
        return Device("metal", index)

    @staticmethod
    def best_available() -> Device:
        """The first GPU that JAX sees, else the CPU. Initialises JAX's backends."""
        import jax

        return {"gpu": Device.cuda(0), "metal": Device.metal(0), "mps": Device.metal(0)}.get(
            jax.default_backend(), Device.cpu()
        )

    @staticmethod
    def parse(text: str) -> Device:
        """``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"metal"`` or ``"best"``."""
        if text in ("best", "auto"):
            return Device.best_available()
        match = re.fullmatch(r"(cpu|cuda|metal)(?::(\d{1,4}))?", text.lower()) if isinstance(text, str) else None
        if match is None:
            raise ConfigError(
                f"unknown device {shown(text)}; choose cpu, cuda, cuda:INDEX, metal or best", param="device"
            )
        return Device(match[1], int(match[2] or 0))

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationConfig:
    """How the weights of layers are quantised while they are loaded; what that costs is in ``docs/quantization.md``."""

    method: QuantizationMethod = "int8"
    """``"int8"``, ``"int4"`` (with a scale and an offset for each group), ``"fp8"`` (float8_e4m3fn), or ``"none"``:
    plain numbers, also of files in few bits."""
    group_size: int | None = None
    """Input channels that share a scale. None: 32 for int4, else all of a row."""

    def __post_init__(self) -> None:
        if self.method not in get_args(QuantizationMethod):
            raise ConfigError(
                f"unknown quantization method {shown(self.method)}; choose int8, int4, fp8 or none",
                param="quantization",
            )
        if self.group_size is not None:
            _require_positive("group_size", self.group_size)
            if self.method == "none":
                raise ConfigError("plain numbers have no group_size", param="quantization")

    @classmethod
    def parse(cls, text: str) -> Self:
        """``"int8"``, or ``"int4:128"`` for a method with its group size."""
        method, colon, size = text.partition(":")
        if colon and not (size.isdecimal() and len(size) < 10):
            raise ConfigError(f"the group size must be a whole number, not {shown(size)}", param="quantization")
        return cls(method=method, group_size=int(size) if colon else None)  # type: ignore[arg-type]  # checked there


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Everything an engine needs to know before it loads a model.

    A value that cannot be honoured is refused with a ConfigError, here where it shows at once,
    or when the engine is built where the model or the device decides; nothing is clamped.
    """

    model_path: str
    """Path of a GGUF file or a Hugging Face folder, a hub id such as ``org/name``, or ``scripted:FILE`` for a model
    that says what a file tells it (:mod:`cvllm_jax.testing`)."""
    load_format: LoadFormat = "auto"
    """``"dummy"`` makes random weights: ``model_path`` is a shape's name (``"llama-3.1-8b"`` ...) or a model folder."""
    device: Device | None = None
    """None: the best device that is available."""
    max_batch_size: int = 16
    """Sequences that decode together; more wait in the queue."""
    max_sequence_length: int | None = None
    """Prompt and answer together, in tokens. None: the model's context, as far as the page pool holds it."""
    kv_cache_memory: int | None = None
    """Bytes for the KV cache. None: chosen from free memory (`doctor` says how much)."""
    kv_cache_dtype: KvCacheDType = "auto"
    """``"int8"`` and ``"fp8"`` (float8_e4m3fn) store keys and values in 8 bits, with a scale a token and head; auto: as
    ``dtype``."""
    dtype: DType = DType.AUTO
    """Type of weights and activations; auto: bf16 where the device multiplies it, else f32."""
    quantization: QuantizationConfig | None = None
    """None: the few bits of the file where it has such; GGUF files on CPUs as int8, which is faster, unless ``dtype``
    is f32."""
    enable_cuda_graph: bool = True
    """Let XLA record a step as a CUDA graph. Only NVIDIA GPUs have them; elsewhere there is nothing to turn off."""
    kernels: KernelSet = "auto"
    """``"hopper"`` insists on the Pallas kernels for SM90 GPUs, ``"native"`` on those in C++ for x86 CPUs, which a C++
    compiler makes at the first start, ``"xla"`` uses none; auto: where they run and agree."""
    enable_chunked_prefill: bool = True
    """Split long prompts over several steps so that running answers go on; else a prompt is prefilled in one go."""
    prefill_chunk_size: int = 512
    """Prompt tokens of one step, over all sequences."""
    decode_steps: int = 1
    """Steps that run as one program while no request waits: fewer calls, but tokens come in groups of this size."""
    num_speculative_tokens: int = 0
    """Tokens that prompt lookup may guess for a sequence and one step verifies, with as many rows more: faster where
    answers repeat what they or their prompts say, and the same tokens. 0: no guesses."""
    enable_prefix_caching: bool = True
    """Keep the pages of finished requests and reuse them for prompts that begin alike."""
    page_size: int = 16
    """Tokens in one page of the KV cache."""
    max_queue_size: int = 1024
    """Requests that may wait for a place; one more is refused."""
    warmup: bool = True
    """Compile steps before they are needed: on a CPU those that serve any request before the engine is ready and the
    others in a thread, elsewhere all before it is ready. Without it steps compile when first needed."""
    compilation_cache: bool = True
    """Keep compiled steps on disk, so that the next start is fast."""
    debug: bool = False
    """Check every step's pages, positions and slots on the host before the device gets them."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    progress: Progress | None = dataclasses.field(default=None, compare=False, repr=False)
    """Called as ``progress(stage, done, total)`` while the engine loads and compiles; ``total`` may be 0 (unknown)."""

    def __post_init__(self) -> None:
        if not isinstance(self.model_path, str | Path) or not str(self.model_path):
            raise ConfigError(_MODEL_PATH_REQUIRED, param="model_path")
        object.__setattr__(self, "model_path", str(self.model_path))
        if isinstance(self.device, str):
            object.__setattr__(self, "device", Device.parse(self.device))
        if isinstance(self.dtype, str):
            object.__setattr__(self, "dtype", DType.parse(self.dtype))
        if not isinstance(self.device, Device | None):
            raise ConfigError(f"device must be a Device or its name, not {shown(self.device)}", param="device")
        if not isinstance(self.dtype, DType):
            raise ConfigError(f"dtype must be a DType or its name, not {shown(self.dtype)}", param="dtype")
        if not isinstance(self.quantization, QuantizationConfig | None):
            raise ConfigError(
                f"quantization must be a QuantizationConfig, not {shown(self.quantization)}", param="quantization"
            )
        for name, choices in (("load_format", LoadFormat), ("kernels", KernelSet), ("kv_cache_dtype", KvCacheDType)):
            if getattr(self, name) not in get_args(choices):
                names = " or ".join(get_args(choices))
                raise ConfigError(f"{name} must be {names}, not {shown(getattr(self, name))}", param=name)
        if not isinstance(self.revision, str | None) or self.revision == "":
            raise ConfigError(f"revision must be a branch, tag or commit, not {shown(self.revision)}", param="revision")
        if self.progress is not None and not callable(self.progress):
            raise ConfigError(f"progress must be a function, not {shown(self.progress)}", param="progress")
        for name in (
            "enable_cuda_graph", "enable_chunked_prefill", "enable_prefix_caching", "warmup", "compilation_cache",
            "debug",
        ):  # fmt: skip
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be True or False, not {shown(getattr(self, name))}", param=name)
        for name in ("max_batch_size", "prefill_chunk_size", "decode_steps", "page_size", "max_queue_size"):
            _require_positive(name, getattr(self, name))
        for name in ("max_sequence_length", "kv_cache_memory"):
            if getattr(self, name) is not None:
                _require_positive(name, getattr(self, name))
        if self.page_size & (self.page_size - 1) or self.page_size > 256:
            raise ConfigError(f"page_size must be a power of two up to 256, not {self.page_size}", param="page_size")
        if self.max_batch_size > 1024:
            raise ConfigError(f"max_batch_size is limited to 1024, not {self.max_batch_size}", param="max_batch_size")
        most = MAX_SPECULATIVE_TOKENS
        if type(self.num_speculative_tokens) is not int or not 0 <= self.num_speculative_tokens <= most:
            raise ConfigError(
                f"num_speculative_tokens must be from 0 to {most}, not {shown(self.num_speculative_tokens)}",
                param="num_speculative_tokens",
            )
        if self.num_speculative_tokens and self.decode_steps > 1:
            raise ConfigError(
                "num_speculative_tokens and decode_steps do not go together: what comes after a guess is known when "
                "its step has been read",
                param="num_speculative_tokens",
            )
        if self.decode_steps > 64:
            raise ConfigError(f"decode_steps is limited to 64, not {self.decode_steps}", param="decode_steps")

    @classmethod
    def builder(cls) -> EngineConfigBuilder:
        """A builder with a method for each field, ended by ``build()``."""
        return EngineConfigBuilder()

    @classmethod
    def from_model_path(cls, path: str | Path) -> Self:
        """The default configuration for one model."""
        return cls(model_path=path)  # type: ignore[arg-type]  # made a string there


class ConfigSettings:
    """One chainable method for each field of :class:`EngineConfig`, with the field's name."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def _set(self, name: str, value: Any) -> Self:
        self._values[name] = value
        return self

    def model_path(self, path: str | Path) -> Self:
        return self._set("model_path", path)

    def load_format(self, load_format: LoadFormat) -> Self:
        return self._set("load_format", load_format)

    def device(self, device: Device) -> Self:
        return self._set("device", device)

    def max_batch_size(self, sequences: int) -> Self:
        return self._set("max_batch_size", sequences)

    def max_sequence_length(self, tokens: int) -> Self:
        return self._set("max_sequence_length", tokens)

    def kv_cache_memory(self, size_bytes: int) -> Self:
        return self._set("kv_cache_memory", size_bytes)

    def kv_cache_dtype(self, dtype: KvCacheDType) -> Self:
        return self._set("kv_cache_dtype", dtype)

    def dtype(self, dtype: DType) -> Self:
        return self._set("dtype", dtype)

    def quantization(self, quantization: QuantizationConfig | None) -> Self:
        return self._set("quantization", quantization)

    def enable_cuda_graph(self, enable: bool) -> Self:
        return self._set("enable_cuda_graph", enable)

    def kernels(self, kernels: KernelSet) -> Self:
        return self._set("kernels", kernels)

    def enable_chunked_prefill(self, enable: bool) -> Self:
        return self._set("enable_chunked_prefill", enable)

    def prefill_chunk_size(self, tokens: int) -> Self:
        return self._set("prefill_chunk_size", tokens)

    def decode_steps(self, steps: int) -> Self:
        return self._set("decode_steps", steps)

    def num_speculative_tokens(self, tokens: int) -> Self:
        return self._set("num_speculative_tokens", tokens)

    def enable_prefix_caching(self, enable: bool) -> Self:
        return self._set("enable_prefix_caching", enable)

    def page_size(self, tokens: int) -> Self:
        return self._set("page_size", tokens)

    def max_queue_size(self, requests: int) -> Self:
        return self._set("max_queue_size", requests)

    def warmup(self, enable: bool) -> Self:
        return self._set("warmup", enable)

    def compilation_cache(self, enable: bool) -> Self:
        return self._set("compilation_cache", enable)

    def debug(self, enable: bool) -> Self:
        return self._set("debug", enable)

    def revision(self, revision: str | None) -> Self:
        return self._set("revision", revision)

    def progress(self, callback: Progress | None) -> Self:
        return self._set("progress", callback)

    def config(self) -> EngineConfig:
        """The configuration collected so far, checked."""
        if "model_path" not in self._values:
            raise ConfigError(_MODEL_PATH_REQUIRED, param="model_path")
        return EngineConfig(**self._values)


class EngineConfigBuilder(ConfigSettings):
    """``EngineConfig.builder().model_path(p).dtype(DType.BF16).build()``."""

    def build(self) -> EngineConfig:
        """The configuration collected so far. Raises ConfigError for what cannot be honoured."""
        return self.config()


def _require_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} must be a whole number, not {shown(value)}", param=name)
    if value < 1:
        raise ConfigError(f"{name} must be at least 1, not {shown(value)}", param=name)
    if value >= 2**63:
        raise ConfigError(f"{name} must be less than 2 to the power of 63, not {shown(value)}", param=name)
