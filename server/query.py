"""Parameters in the query of a URL."""

from __future__ import annotations

from typing import Literal

from starlette.requests import Request

from cvllm_jax.openai import RequestError

__all__ = ["query_flag", "query_list", "query_number", "query_order"]


def query_number(request: Request, name: str, default: int, least: int, most: int) -> int:
    """A whole number; raises RequestError for anything else."""
    text = request.query_params.get(name)
    if text is None:
        return default
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text)
    if digits.isascii() and digits.isdigit() and len(digits) <= 18 and least <= sign * int(digits) <= most:
        return sign * int(digits)
    raise RequestError(
        f"Invalid '{name}': expected a whole number from {least} to {most}, but got '{text[:100]}'.",
        param=name,
        code="invalid_value",
    )


def query_flag(request: Request, name: str) -> bool:
    text = request.query_params.get(name, "false").lower()
    if text not in ("true", "false", "1", "0"):
        raise RequestError(
            f"Invalid '{name}': expected true or false, but got '{text[:100]}'.", param=name, code="invalid_type"
        )
    return text in ("true", "1")


def query_list(request: Request, name: str) -> list[str]:
    """The values of a parameter that may be there several times, also as ``name[]``, as some clients write it."""
    return [value for key, value in request.query_params.multi_items() if key in (name, f"{name}[]")]


def query_order(request: Request) -> Literal["asc", "desc"]:
    match request.query_params.get("order", "desc"):
        case "asc":
            return "asc"
        case "desc":
            return "desc"
        case other:
            raise RequestError(
                f"Invalid 'order': expected 'asc' or 'desc', but got '{other[:100]}'.",
                param="order",
                code="invalid_value",
            )
