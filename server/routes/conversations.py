"""The routes under /v1/conversations."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from cvllm_jax.responses.conversations import ConversationRequest, Conversations, ItemsRequest
from server.body import read_json_object
from server.query import query_list, query_number, query_order
from server.state import state_of

__all__ = [
    "add_items",
    "create_conversation",
    "delete_conversation",
    "delete_item",
    "get_conversation",
    "get_item",
    "list_items",
    "update_conversation",
]


async def create_conversation(request: Request) -> Response:
    conversations = await _conversations(request)
    return await _answered(conversations.create(ConversationRequest.parse(await _json(request))))


async def get_conversation(request: Request) -> Response:
    return await _answered((await _conversations(request)).retrieve(_id(request)))


async def update_conversation(request: Request) -> Response:
    conversations = await _conversations(request)
    return await _answered(conversations.update(_id(request), ConversationRequest.parse(await _json(request))))


async def delete_conversation(request: Request) -> Response:
    return await _answered((await _conversations(request)).delete(_id(request)))


async def list_items(request: Request) -> Response:
    page = (await _conversations(request)).items(
        _id(request),
        after=request.query_params.get("after"),
        before=request.query_params.get("before"),
        limit=query_number(request, "limit", 20, 1, 100),
        order=query_order(request),
        include=query_list(request, "include"),
    )
    return await _answered(page)


async def add_items(request: Request) -> Response:
    conversations = await _conversations(request)
    items = ItemsRequest.parse(await _json(request))
    return await _answered(conversations.add(_id(request), items, query_list(request, "include")))


async def get_item(request: Request) -> Response:
    item = (await _conversations(request)).item(
        _id(request), request.path_params["item_id"], query_list(request, "include")
    )
    return await _answered(item)


async def delete_item(request: Request) -> Response:
    return await _answered((await _conversations(request)).delete_item(_id(request), request.path_params["item_id"]))


async def _conversations(request: Request) -> Conversations:
    return Conversations(await state_of(request).open_store())


def _id(request: Request) -> str:
    conversation_id: str = request.path_params["conversation_id"]
    return conversation_id


async def _json(request: Request) -> dict[str, Any]:
    return await read_json_object(request, state_of(request).settings.max_body_bytes)


async def _answered(work: Awaitable[BaseModel]) -> Response:
    return Response((await work).model_dump_json(), media_type="application/json")
