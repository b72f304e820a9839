"""Turning the text of a region into a value, as a ``response_template`` says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from cvllm_jax.errors import ModelLoadError
from cvllm_jax.openai.tool_parsers.anchors import Anchor, find_all

__all__ = ["Parse", "fill", "placeholder", "value_parser"]

type Parse = Callable[[str], Any]
"""Raises ValueError for text that is no such value."""

_PLACEHOLDER = re.compile(r"\{(\w+(?:\.\w+)*)\}")
_BARE_KEY = re.compile(r"(?<=[{,])(\s*)(\w+):")


def value_parser(kind: str, arguments: Mapping[str, Any]) -> Parse:
    """The parser for the content type ``kind``. Raises ModelLoadError for an unknown one or wrong arguments."""
    strip = bool(arguments.get("strip", True))
    match kind:
        case "text":
            return str.strip if strip else str
        case "int":
            return int
        case "float":
            return float
        case "bool":
            return lambda text: text.strip().lower() in ("true", "1")
        case "json":
            return _json_parser(arguments)
        case "xml-inline":
            return _tag_parser(arguments)
        case "kv-lines":
            return _line_parser(arguments, strip=strip)
    raise ModelLoadError(f"the response_template has a content type {kind!r}, which is not known")


def _inner(arguments: Mapping[str, Any]) -> Parse:
    inner = arguments.get("value_parser")
    return value_parser(inner.get("name", "text"), inner.get("args", {})) if isinstance(inner, Mapping) else str


def _json_parser(arguments: Mapping[str, Any]) -> Parse:
    delimiters = [(str(opening), str(closing)) for opening, closing in arguments.get("string_delims", ())]
    bare_keys = bool(arguments.get("unquoted_keys", False))
    allow_text = bool(arguments.get("allow_non_json", False))

    def parse(text: str) -> Any:
        plain = text if not delimiters and not bare_keys else _standard_json(text, delimiters, bare_keys=bare_keys)
        try:
            return json.loads(plain)
        except (ValueError, RecursionError) as error:
            if allow_text:
                return text.strip()
            raise ValueError(str(error)) from None

    return parse


def _standard_json(text: str, delimiters: list[tuple[str, str]], *, bare_keys: bool) -> str:
    """``text`` with strings between ``delimiters`` as JSON strings, and with quotes around keys that have none."""
    strings: list[str] = []
    for opening, closing in delimiters:
        rest, text = text, ""
        while (start := rest.find(opening)) >= 0 and (end := rest.find(closing, start + len(opening))) >= 0:
            # a number between control characters, which JSON does not have, holds the string's place
            text += f"{rest[:start]}\x01{len(strings)}\x02"
            strings.append(json.dumps(rest[start + len(opening) : end], ensure_ascii=False))
            rest = rest[end + len(closing) :]
        text += rest
    if bare_keys:
        text = _BARE_KEY.sub(r'\1"\2":', text)
    return re.sub("\x01(\\d+)\x02", lambda found: strings[int(found[1])] if int(found[1]) < len(strings) else "", text)


def _tag_parser(arguments: Mapping[str, Any]) -> Parse:
    pattern = arguments.get("tag_pattern")
    if not isinstance(pattern, str):
        raise ModelLoadError("the response_template has content xml-inline without a tag_pattern")
    anchor, inner, merge = Anchor.of_pattern(pattern), _inner(arguments), bool(arguments.get("merge_duplicates"))
    if "key" not in anchor.groups:
        raise ModelLoadError(f"the tag_pattern {pattern!r} of the response_template has no group named key")

    def parse(text: str) -> dict[str, Any]:
        values: dict[str, list[Any]] = {}
        for found in find_all(anchor, text):
            start, end = found.groups["key"]
            value_start, value_end = found.groups.get("value", (end, end))
            values.setdefault(text[start:end], []).append(inner(text[value_start:value_end]))
        return {key: found if merge and len(found) > 1 else found[-1] for key, found in values.items()}

    return parse


def _line_parser(arguments: Mapping[str, Any], *, strip: bool) -> Parse:
    line_end, separator = str(arguments.get("line_sep", "\n")), str(arguments.get("kv_sep", ":"))
    inner = _inner(arguments)
    if not line_end or not separator:
        raise ModelLoadError("the response_template has an empty separator in content kv-lines")

    def parse(text: str) -> dict[str, Any]:
        pairs = (line.partition(separator) for line in text.split(line_end) if separator in line)
        return {key.strip() if strip else key: inner(value.strip() if strip else value) for key, _, value in pairs}

    return parse


def placeholder(text: Any) -> list[str] | None:
    """The path that a whole-string placeholder such as ``{content.name}`` names; None for anything else."""
    found = _PLACEHOLDER.fullmatch(text) if isinstance(text, str) else None
    return found[1].split(".") if found is not None else None


def fill(template: Any, scope: Mapping[str, Any]) -> Any:
    """``template`` with its placeholders replaced. Raises ValueError for one that ``scope`` does not have."""
    if isinstance(template, Mapping):
        return {key: fill(value, scope) for key, value in template.items()}
    if isinstance(template, list):
        return [fill(value, scope) for value in template]
    path = placeholder(template)
    if path is None:
        return template
    value: Any = scope
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            raise ValueError(f"nothing to put in place of {template}")
        value = value[key]
    return value
