"""Options that several commands share, in groups, and how a command takes a group."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

import typer

from cvllm_jax.config import DType, EngineConfig, Progress, QuantizationConfig
from cvllm_jax.errors import ConfigError, GenerationError
from cvllm_jax.params import GenerationParams

__all__ = ["EngineOptions", "SamplingOptions", "parse_size", "with_options"]

_UNITS = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip


# options that turn a setting off
_SWITCHES = {
    "no_chunked_prefill": "enable_chunked_prefill",
    "no_prefix_caching": "enable_prefix_caching",
    "no_cuda_graph": "enable_cuda_graph",
    "no_warmup": "warmup",
    "no_compilation_cache": "compilation_cache",
}


def parse_size(text: str) -> int:
    """``"2GB"``, ``"1.5 GiB"`` or a plain number of bytes, as bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise typer.BadParameter(f"{text!r} is no size; write for example 500MB, 2GB or 1.5GiB")
    return int(float(match[1]) * unit)


def _engine(help_text: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel="Engine", show_default=False, **settings)


def _switch_off(name: str, help_text: str) -> Any:
    return _engine(help_text, name)  # by its name, or there would be a --no-no-... too


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """The engine's settings. None leaves a setting to EngineConfig's default."""

    device: Annotated[
        str | None,
        _engine("Where the model runs: cpu, cuda, cuda:1, metal. Default: the first GPU, else the CPU."),
    ] = None
    dtype: Annotated[
        str | None,
        _engine("Type of weights and KV cache: auto, bf16, f16, f32. Default: auto, bf16 where the device has it."),
    ] = None
    max_batch_size: Annotated[
        int | None, _engine("Sequences that decode together; further requests wait. Default: 16.")
    ] = None
    max_sequence_length: Annotated[
        int | None, _engine("Limit of prompt and answer together, in tokens. Default: the model's context.")
    ] = None
    kv_cache_memory: Annotated[
        int | None,
        _engine(
            "Memory for the KV cache, for example 500MB, 2GB or 1.5GiB. Default: chosen from free memory.",
            parser=parse_size,
            metavar="SIZE",
        ),
    ] = None
    kv_cache_dtype: Annotated[
        str | None,
        _engine("int8 and fp8 store the KV cache in 8 bits. Default: auto, as --dtype.", metavar="auto|int8|fp8"),
    ] = None
    quantization: Annotated[
        str | None,
        _engine(
            "Round the weights of layers while they load: int8, int4 (groups of 32) or fp8; "
            "a number behind a colon is the size of groups, as in int4:128. none reads plain numbers. Default: "
            "the few bits of the files where they have such, but int8 for GGUF files on CPUs.",
            metavar="int8|int4|fp8|none",
        ),
    ] = None
    kernels: Annotated[
        str | None,
        _engine(
            "hopper insists on the Pallas kernels for H100 and H200 GPUs, native on those in C++ for CPUs, xla uses "
            "none. Default: auto, the fastest that run here.",
            metavar="auto|xla|hopper|native",
        ),
    ] = None
    prefill_chunk_size: Annotated[
        int | None, _engine("Prompt tokens that are read in one step, over all requests. Default: 512.")
    ] = None
    decode_steps: Annotated[
        int | None,
        _engine("Steps to run in one go while no request waits; tokens then come in groups. Default: 1."),
    ] = None
    num_speculative_tokens: Annotated[
        int | None,
        _engine(
            "Tokens that are guessed from repetitions in prompt and answer, and verified in one step: faster for "
            "edits, quotations and code, and the same answers. Default: 0, no guesses."
        ),
    ] = None
    no_chunked_prefill: Annotated[
        bool,
        _switch_off("--no-chunked-prefill", "Read long prompts in one go. Answers that are running wait meanwhile."),
    ] = False
    no_prefix_caching: Annotated[
        bool, _switch_off("--no-prefix-caching", "Do not reuse the KV cache of earlier prompts that begin alike.")
    ] = False
    no_cuda_graph: Annotated[bool, _switch_off("--no-cuda-graph", "Do not record steps as CUDA graphs.")] = False
    page_size: Annotated[
        int | None, _engine("Tokens in one page of the KV cache, a power of two up to 256. Default: 16.")
    ] = None
    max_queue_size: Annotated[
        int | None, _engine("Requests that may wait; one more is refused with status 429. Default: 1024.")
    ] = None
    no_warmup: Annotated[
        bool,
        _switch_off(
            "--no-warmup", "Start at once and compile each step when it is first needed; early requests are slow."
        ),
    ] = False
    no_compilation_cache: Annotated[
        bool, _switch_off("--no-compilation-cache", "Do not keep compiled steps on disk for the next start.")
    ] = False
    debug: Annotated[bool, _engine("Check every step's plan on the host before the device gets it.")] = False
    revision: Annotated[str | None, _engine("Branch, tag or commit, for a model from the hub.")] = None
    load_format: Annotated[
        str | None,
        _engine(
            "dummy gives a model random weights, to measure speed: name a shape such as llama-3.1-8b, or a folder "
            "of which only config.json is read. Default: auto, the model's own weights.",
            metavar="auto|dummy",
        ),
    ] = None

    def config(self, model_path: str, progress: Progress | None = None) -> EngineConfig:
        """The engine's configuration; what is wrong with an option is a usage error."""
        given = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in _SWITCHES and getattr(self, field.name) is not None
        }
        for option, setting in _SWITCHES.items():
            given[setting] = not getattr(self, option)
        try:
            if self.dtype is not None:
                given["dtype"] = DType.parse(self.dtype)
            if self.quantization is not None:
                given["quantization"] = QuantizationConfig.parse(self.quantization)
            return EngineConfig(model_path=model_path, progress=progress, **given)
        except ConfigError as error:
            raise typer.BadParameter(str(error)) from error


def _sampling(help_text: str, **settings: Any) -> Any:
    return typer.Option(help=help_text, rich_help_panel="Sampling", show_default=False, **settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How tokens are chosen. None leaves a setting to the model's own recommendation."""

    temperature: Annotated[
        float | None, _sampling("Randomness; 0 takes the likeliest token. Default: the model's own, else 1.")
    ] = None
    top_p: Annotated[
        float | None, _sampling("Choose among the likeliest tokens that together have this probability.")
    ] = None
    top_k: Annotated[int | None, _sampling("Choose among this many of the likeliest tokens.")] = None
    min_p: Annotated[float | None, _sampling("Drop tokens less likely than this fraction of the likeliest one.")] = None
    repetition_penalty: Annotated[
        float | None, _sampling("Above 1 makes tokens that occurred already less likely.")
    ] = None
    seed: Annotated[int | None, _sampling("The same seed draws the same tokens. Default: a new one.")] = None
    max_tokens: Annotated[
        int | None,
        _sampling("Length of an answer at most, in tokens. Default: up to the end of the context."),
    ] = None
    stop: Annotated[
        list[str] | None, _sampling("End the answer before this text; up to four times.", metavar="TEXT")
    ] = None

    def request_fields(self) -> dict[str, Any]:
        """The given options by their names in a ChatCompletionRequest."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in given.items() if value not in (None, [])}

    def params(self, defaults: dict[str, Any]) -> GenerationParams:
        """The given options over ``defaults``; what is wrong with an option is a usage error."""
        given = {"max_tokens": None, **defaults, **self.request_fields()}
        given["stop_sequences"] = tuple(given.pop("stop", ()))
        try:
            return GenerationParams(**given)
        except GenerationError as error:
            raise typer.BadParameter(str(error)) from error


def with_options(**groups: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command take each group as one argument while the command line has its fields as options."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(function, eval_str=True).parameters.values()
        parameters = [parameter for parameter in own if parameter.name not in groups]
        for group in groups.values():
            hints = get_type_hints(group, include_extras=True)
            parameters += [
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=field.default,
                    annotation=hints[field.name],
                )
                for field in dataclasses.fields(group)
            ]

        @functools.wraps(function)
        def command(**values: Any) -> None:
            for name, group in groups.items():
                taken = {field.name: values.pop(field.name) for field in dataclasses.fields(group)}
                values[name] = group(**taken)
            function(**values)

        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate
