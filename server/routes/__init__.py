"""One module a resource; :data:`ROUTES` is all of them."""

from starlette.routing import Route

from server.routes.chat import create_chat_completion
from server.routes.completions import create_completion
from server.routes.embeddings import create_embeddings
from server.routes.health import get_health
from server.routes.models import get_model, list_models
from server.routes.tokens import apply_template, detokenize, tokenize

__all__ = ["ROUTES"]

ROUTES = [
    Route("/health", get_health, methods=["GET"]),
    Route("/v1/models", list_models, methods=["GET"]),
    # A hub id has a slash in it
    Route("/v1/models/{model:path}", get_model, methods=["GET"]),
    Route("/v1/chat/completions", create_chat_completion, methods=["POST"]),
    Route("/v1/completions", create_completion, methods=["POST"]),
    Route("/v1/embeddings", create_embeddings, methods=["POST"]),
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
    Route("/apply-template", apply_template, methods=["POST"]),
]
