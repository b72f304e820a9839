"""OpenAI's embeddings over an EmbeddingEngine."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np

from cvllm_jax.errors import EngineStoppedError, GenerationError, QueueFullError
from cvllm_jax.openai.embeddings_types import Embedding, EmbeddingRequest, EmbeddingResponse, EmbeddingUsage
from cvllm_jax.openai.errors import GenerationFailedError, RequestError
from cvllm_jax.openai.unsupported import log_unknown_names

if TYPE_CHECKING:
    from cvllm_jax.engine.embedding import EmbeddingEngine, EmbeddingOutput
    from cvllm_jax.engine.opening import AnyEngine

__all__ = ["create_embeddings", "create_embeddings_sync"]


async def create_embeddings(engine: AnyEngine, request: EmbeddingRequest) -> EmbeddingResponse:
    """The vectors of the request's texts. Cancelling the awaiting task drops those that have not begun.

    Raises RequestError, also for an engine whose model generates text, and QueueFullError.
    """
    encoder, texts = _prepare(engine, request)
    try:
        return _response(request, await encoder.embed(texts, prompt_name=request.prompt_name))
    except GenerationError as error:
        raise _refusal(error, request) from error


def create_embeddings_sync(
    engine: AnyEngine, request: EmbeddingRequest
) -> EmbeddingResponse:
    """:func:`create_embeddings` for callers without an event loop."""
    encoder, texts = _prepare(engine, request)
    try:
        return _response(request, encoder.embed_sync(texts, prompt_name=request.prompt_name))
    except GenerationError as error:
        raise _refusal(error, request) from error


def _prepare(
    engine: AnyEngine, request: EmbeddingRequest
) -> tuple[EmbeddingEngine, list[Any]]:
    log_unknown_names(request.model_extra or ())
    encoder: Any = engine
    info = encoder.model_info()
    if info.kind != "encoder":
        raise RequestError(
            f"The model '{info.name}' generates text and has no embeddings; use an embedding model.", param="model"
        )
    allowed = {encoder.dimensions, *encoder.pooling.matryoshka}
    if request.dimensions is not None and request.dimensions not in allowed:
        if len(allowed) == 1:
            message = f"This model does not support specifying dimensions; its embeddings have {encoder.dimensions}."
        else:
            sizes = ", ".join(map(str, sorted(allowed)))
            message = f"Invalid 'dimensions': this model's embeddings have one of the sizes {sizes}."
        raise RequestError(message, param="dimensions", code="invalid_value")
    texts: list[Any] = request.input if isinstance(request.input, list) else [request.input]
    return encoder, [texts] if isinstance(texts[0], int) else texts


def _response(request: EmbeddingRequest, output: EmbeddingOutput) -> EmbeddingResponse:
    vectors = output.vectors
    size = request.dimensions
    if size is not None and size < vectors.shape[1]:
        vectors = vectors[:, :size]
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return EmbeddingResponse(
        data=[
            Embedding(index=index, embedding=_encoded(vector, request.encoding_format))
            for index, vector in enumerate(vectors)
        ],
        model=request.model,
        usage=EmbeddingUsage(prompt_tokens=output.prompt_tokens, total_tokens=output.prompt_tokens),
    )


def _encoded(vector: np.ndarray, form: str | None) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()


def _refusal(error: GenerationError, request: EmbeddingRequest) -> GenerationError:
    """The engine's error in the words of the request."""
    if isinstance(error, QueueFullError | EngineStoppedError):
        return error
    if error.param is None:
        return GenerationFailedError(str(error))
    if error.param == "prompt_name":
        return RequestError(f"{error}.", param=error.param, code="invalid_value")
    whole = not isinstance(request.input, list) or isinstance(request.input[0], int)
    param = "input" if whole else error.param
    message = str(error).replace(error.param, f"'{param}'", 1)
    return RequestError(f"{message}.", param=param, code="invalid_value")
