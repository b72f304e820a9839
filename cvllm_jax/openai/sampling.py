"""A request's sampling fields as GenerationParams."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from cvllm_jax.errors import GenerationError
from cvllm_jax.grammar import Grammar
from cvllm_jax.openai.errors import RequestError
from cvllm_jax.openai.types import ChatCompletionRequest
from cvllm_jax.params import GenerationParams

__all__ = ["SAMPLING_DEFAULT_NAMES", "check_length", "generation_params", "request_error"]

#: What a model's own files may recommend and a request may leave open.
SAMPLING_DEFAULT_NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")

# GenerationParams' names -> the request's, where they differ
_REQUEST_NAMES = {"stop_sequences": "stop", "prompt": "messages"}


def generation_params(
    request: ChatCompletionRequest,
    defaults: Mapping[str, Any],
    *,
    vocab_size: int,
    grammar: Grammar | None = None,
    skip_special_tokens: bool = True,
) -> list[GenerationParams]:
    """One GenerationParams a choice; ``defaults`` fill in what the request leaves open.

    Raises RequestError that names the request's field.
    """
    sampling = dict(defaults)
    for name in (
        *SAMPLING_DEFAULT_NAMES,
        "frequency_penalty",
        "presence_penalty",
        "min_tokens",
        "ignore_eos",
    ):
        if (value := getattr(request, name)) is not None:
            sampling[name] = value
    if sampling.get("top_k") in (-1, 0):
        sampling["top_k"] = None
    if request.top_logprobs and not request.logprobs:
        raise RequestError(
            "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.", param="top_logprobs"
        )
    try:
        return [
            GenerationParams(
                **sampling,
                max_tokens=_max_tokens(request),
                stop_sequences=_stop(request),
                stop_token_ids=tuple(request.stop_token_ids or ()),
                logit_bias=_logit_bias(request, vocab_size),
                logprobs=bool(request.logprobs),
                top_logprobs=request.top_logprobs or 0,
                seed=_choice_seed(request.seed, index),
                grammar=grammar,
                skip_special_tokens=skip_special_tokens,
            )
            for index in range(request.n or 1)
        ]
    except GenerationError as error:
        raise request_error(error, request) from error


def check_length(request: ChatCompletionRequest, prompt_tokens: int, limit: int) -> None:
    """Refuse a conversation, or an explicit ``max_tokens``, that does not fit into ``limit`` tokens."""
    if prompt_tokens >= limit:
        raise RequestError(
            f"This model's maximum context length is {limit} tokens, but the messages have {prompt_tokens} "
            "and the answer needs at least one more; shorten the messages.",
            param="messages",
            code="context_length_exceeded",
        )
    wanted = _max_tokens(request)
    if wanted is not None and prompt_tokens + wanted > limit:
        raise RequestError(
            f"This model's maximum context length is {limit} tokens, but {prompt_tokens + wanted} were "
            f"requested: {prompt_tokens} in the messages and {wanted} for the answer; "
            f"at most {limit - prompt_tokens} fit.",
            param=_max_tokens_name(request),
            code="context_length_exceeded",
        )


def request_error(error: GenerationError, request: ChatCompletionRequest) -> RequestError:
    """The engine's refusal with the name that the request uses for the field."""
    if isinstance(error, RequestError):
        return error
    param = error.param
    if param == "max_tokens":
        param = _max_tokens_name(request)
    elif param is not None:
        param = _REQUEST_NAMES.get(param, param)
    return RequestError(str(error), param=param, code="invalid_value")


def _max_tokens(request: ChatCompletionRequest) -> int | None:
    old, new = request.max_tokens, request.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise RequestError(
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported, "
            "unless they are equal.",
            param="max_tokens",
            code="invalid_parameter_combination",
        )
    return new if new is not None else old


def _max_tokens_name(request: ChatCompletionRequest) -> str:
    return "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"


def _stop(request: ChatCompletionRequest) -> tuple[str, ...]:
    if request.stop == "":
        raise RequestError(
            "Invalid 'stop': empty string. Expected a string of at least 1 character.",
            param="stop",
            code="empty_string",
        )
    return (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())


def _logit_bias(request: ChatCompletionRequest, vocab_size: int) -> dict[int, float]:
    biases = {}
    for key, bias in (request.logit_bias or {}).items():
        # isdigit alone accepts other scripts' digits, which JSON clients never mean
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise RequestError(
                f"Invalid key in 'logit_bias': {key[:50]!r}. Keys must be token ids.",
                param="logit_bias",
                code="invalid_value",
            )
        if int(key) >= vocab_size:
            raise RequestError(
                f"Invalid key in 'logit_bias': {int(key)}. Maximum value is {vocab_size - 1}.",
                param="logit_bias",
                code="invalid_value",
            )
        biases[int(key)] = bias
    return biases


def _choice_seed(seed: int | None, index: int) -> int | None:
    """Choice 0 draws as a request with n=1 would; the others from seeds of their own."""
    if seed is None or index == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest)
