"""One module a resource; :data:`ROUTES` is all of them."""

from starlette.routing import BaseRoute, Route, WebSocketRoute

from server.routes.chat import create_chat_completion
from server.routes.completions import create_completion
from server.routes.conversations import (
    add_items,
    create_conversation,
    delete_conversation,
    delete_item,
    get_conversation,
    get_item,
    list_items,
    update_conversation,
)
from server.routes.embeddings import create_embeddings
from server.routes.health import get_health
from server.routes.models import get_model, list_models
from server.routes.responses import (
    cancel_response,
    compact_response,
    count_input_tokens,
    create_response,
    delete_response,
    get_response,
    list_input_items,
)
from server.routes.responses_socket import responses_socket
from server.routes.tokens import apply_template, detokenize, tokenize

__all__ = ["ROUTES"]

_RESPONSE = "/v1/responses/{response_id}"
_CONVERSATION = "/v1/conversations/{conversation_id}"

ROUTES: list[BaseRoute] = [
    Route("/health", get_health, methods=["GET"]),
    Route("/v1/models", list_models, methods=["GET"]),
    # A hub id has a slash in it
    Route("/v1/models/{model:path}", get_model, methods=["GET"]),
    Route("/v1/chat/completions", create_chat_completion, methods=["POST"]),
    Route("/v1/completions", create_completion, methods=["POST"]),
    Route("/v1/embeddings", create_embeddings, methods=["POST"]),
    Route("/v1/responses", create_response, methods=["POST"]),
    WebSocketRoute("/v1/responses", responses_socket),
    Route("/v1/responses/input_tokens", count_input_tokens, methods=["POST"]),
    Route("/v1/responses/compact", compact_response, methods=["POST"]),
    Route(_RESPONSE, get_response, methods=["GET"]),
    Route(_RESPONSE, delete_response, methods=["DELETE"]),
    Route(f"{_RESPONSE}/cancel", cancel_response, methods=["POST"]),
    Route(f"{_RESPONSE}/input_items", list_input_items, methods=["GET"]),
    Route("/v1/conversations", create_conversation, methods=["POST"]),
    Route(_CONVERSATION, get_conversation, methods=["GET"]),
    Route(_CONVERSATION, update_conversation, methods=["POST"]),
    Route(_CONVERSATION, delete_conversation, methods=["DELETE"]),
    Route(f"{_CONVERSATION}/items", list_items, methods=["GET"]),
    Route(f"{_CONVERSATION}/items", add_items, methods=["POST"]),
    Route(_CONVERSATION + "/items/{item_id}", get_item, methods=["GET"]),
    Route(_CONVERSATION + "/items/{item_id}", delete_item, methods=["DELETE"]),
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
    Route("/apply-template", apply_template, methods=["POST"]),
]
