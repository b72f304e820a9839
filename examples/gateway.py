"""A gateway with an API of its own over one engine: python gateway.py [MODEL]

    curl http://127.0.0.1:3000/generate -d '{"prompt": "Name a city.", "options": {"max_length": 32}}'
    curl -N http://127.0.0.1:3000/stream -d '{"prompt": "Name a city."}'

The first answers with JSON, the second with the text as it is made.
"""

import sys
from collections.abc import AsyncIterator

import uvicorn
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from cvllm_jax import EngineConfig, Error, InferenceEngine
from cvllm_jax.checkpoints.demo import find_demo_model
from cvllm_jax.openai import ChatCompletionRequest, ChatCompletionStream, Message, OpenAIAdapter, RequestError


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")

    temperature: float = Field(default=0.2, ge=0, le=2)
    max_length: int = Field(default=128, ge=1)


class Prompt(BaseModel):
    """What this gateway takes."""

    model_config = ConfigDict(extra="forbid")

    prompt: str
    options: Options = Options()

    def to_chat(self) -> ChatCompletionRequest:
        return ChatCompletionRequest(
            messages=[Message.user(self.prompt)],
            temperature=self.options.temperature,
            max_tokens=self.options.max_length,
        )


def create_app(adapter: OpenAIAdapter) -> Starlette:
    """The gateway over an adapter, which answers any number of requests at once and needs no lock."""

    async def generate(request: Request) -> JSONResponse:
        prompt = Prompt.model_validate_json(await request.body())
        response = await adapter.chat_completion(prompt.to_chat())
        return JSONResponse({"text": response.choices[0].message.content, "tokens_used": response.usage.total_tokens})

    async def stream(request: Request) -> StreamingResponse:
        prompt = Prompt.model_validate_json(await request.body())
        chunks = await adapter.chat_completion_stream(prompt.to_chat())  # what is refused, is refused here
        return StreamingResponse(text_of(chunks), media_type="text/plain; charset=utf-8")

    return Starlette(
        routes=[Route("/generate", generate, methods=["POST"]), Route("/stream", stream, methods=["POST"])],
        exception_handlers={ValidationError: refuse, Error: refuse},
    )


async def text_of(chunks: ChatCompletionStream) -> AsyncIterator[str]:
    """The text of an answer, piece by piece. A client that leaves ends its request."""
    async with chunks:
        async for chunk in chunks:
            yield chunk.choices[0].delta.content or ""


async def refuse(request: Request, error: Exception) -> JSONResponse:
    """What is wrong stands in the error's text; all but a wrong request is the engine's trouble."""
    wrong_request = isinstance(error, ValidationError | RequestError)
    return JSONResponse({"error": str(error)}, status_code=400 if wrong_request else 503)


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else find_demo_model()
    with OpenAIAdapter(InferenceEngine(EngineConfig(model_path=model))) as adapter:
        uvicorn.run(create_app(adapter), host="127.0.0.1", port=3000)


if __name__ == "__main__":
    main()
