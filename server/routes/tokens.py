"""POST /tokenize, /detokenize and /apply-template, as vLLM's servers have them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from cvllm_jax.openai import tokens
from server.body import read_json_object
from server.routes.models import check_model
from server.state import state_of

__all__ = ["apply_template", "detokenize", "tokenize"]


async def tokenize(request: Request) -> Response:
    """The token ids of a text or a conversation."""
    return await _answer(request, tokens.TokenizeRequest, tokens.tokenize)


async def detokenize(request: Request) -> Response:
    """The text of token ids."""
    return await _answer(request, tokens.DetokenizeRequest, tokens.detokenize)


async def apply_template(request: Request) -> Response:
    """A conversation as the text that the model reads."""
    return await _answer(request, tokens.TemplateRequest, tokens.apply_template)


async def _answer(request: Request, kind: Any, work: Callable[[Any, Any], BaseModel]) -> Response:
    state = state_of(request)
    engine = state.adapter.engine
    body = kind.parse(await read_json_object(request, state.settings.max_body_bytes))
    if body.model is not None:
        check_model(state, body.model, kind=None)
    answer = await asyncio.to_thread(work, engine, body)  # long texts take their time
    return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")
