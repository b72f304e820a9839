"""The ``response_template`` of a checkpoint, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from cvllm_jax.errors import ModelLoadError
from cvllm_jax.openai.tool_parsers.anchors import Anchor
from cvllm_jax.openai.tool_parsers.response_values import Parse, value_parser

__all__ = ["ResponseField", "ResponseTemplate"]

_TEMPLATE_KEYS = {"version", "defaults", "fields", "start_anchor", "start_anchor_pattern"}
_FIELD_KEYS = {
    *("open", "open_pattern", "close", "close_pattern", "content", "content_args"),
    *("repeats", "join", "optional", "transform", "transform_each"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseField:
    """One key of a message and the region of text that it is found in."""

    name: str
    opening: Anchor | None
    """None: the region is wherever no other one is."""
    closing: Anchor | None
    """None: the region goes on to the end of the text."""
    content: str
    content_args: Mapping[str, Any]
    parse: Parse
    repeats: bool
    """There may be more than one region."""
    join: str | None
    transform: Any
    transform_each: bool

    @property
    def strips(self) -> bool:
        return bool(self.content_args.get("strip", True))

    @classmethod
    def from_dict(cls, name: str, spec: Any) -> Self:
        if not isinstance(spec, Mapping) or (unknown := set(spec) - _FIELD_KEYS):
            raise ModelLoadError(
                f"the field {name!r} of the response_template "
                + (f"has unknown keys {sorted(unknown)}" if isinstance(spec, Mapping) else "is no object")
            )
        content, arguments, join = spec.get("content", "text"), spec.get("content_args", {}), spec.get("join")
        if not isinstance(arguments, Mapping) or not isinstance(join, str | None):
            raise ModelLoadError(
                f"the field {name!r} of the response_template has content_args or join of a wrong type"
            )
        return cls(
            name=name,
            opening=_anchor(spec, "open"),
            closing=_anchor(spec, "close"),
            content=content,
            content_args=arguments,
            parse=value_parser(content, arguments),
            repeats=bool(spec.get("repeats", False)),
            join=join,
            transform=spec.get("transform"),
            transform_each=bool(spec.get("transform_each", False)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseTemplate:
    """How a model's text becomes a message."""

    fields: tuple[ResponseField, ...]
    implicit: ResponseField | None
    start: Anchor
    """What the assistant's part of a prompt begins behind."""

    @classmethod
    def from_dict(cls, spec: Any) -> Self:
        """Raises ModelLoadError for a template that is malformed or needs what is not supported."""
        if not isinstance(spec, Mapping) or not isinstance(spec.get("fields"), Mapping) or not spec["fields"]:
            raise ModelLoadError("the response_template has no fields")
        if spec.get("version", 1) != 1:
            raise ModelLoadError(f"the response_template has version {spec['version']!r}; supported is 1")
        if unknown := set(spec) - _TEMPLATE_KEYS:
            raise ModelLoadError(f"the response_template has unknown keys {sorted(unknown)}")
        start = _anchor(spec, "start_anchor")
        if start is None:
            raise ModelLoadError("the response_template has neither start_anchor nor start_anchor_pattern")
        fields = tuple(ResponseField.from_dict(name, field) for name, field in spec["fields"].items())
        implicit = [field for field in fields if field.opening is None]
        if len(implicit) > 1:
            names = ", ".join(field.name for field in implicit)
            raise ModelLoadError(f"the response_template has more than one field without an opening: {names}")
        return cls(fields=fields, implicit=implicit[0] if implicit else None, start=start)


def _anchor(spec: Mapping[str, Any], key: str) -> Anchor | None:
    """The literal or literals at ``key`` or the pattern at ``key_pattern``."""
    literal, pattern = spec.get(key), spec.get(f"{key}_pattern")
    if literal is not None and pattern is not None:
        raise ModelLoadError(f"the response_template has both {key} and {key}_pattern")
    if pattern is not None:
        if not isinstance(pattern, str):
            raise ModelLoadError(f"{key}_pattern of the response_template is no text")
        return Anchor.of_pattern(pattern)
    if literal is None:
        return None
    literals = [literal] if isinstance(literal, str) else literal
    if not isinstance(literals, list) or not literals or not all(isinstance(one, str) and one for one in literals):
        raise ModelLoadError(f"{key} of the response_template is neither text nor a list of texts")
    return Anchor.of_literals(literals)
