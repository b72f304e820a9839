"""Texts followed through a grammar, and answers written by chance."""

import functools
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import numpy as np

from cvllm_jax.grammar.matcher import CompiledGrammar, Matcher
from cvllm_jax.text import Tokenizer


def allowed(matcher: Matcher, size: int) -> list[int]:
    """The tokens that may come next."""
    mask = np.zeros((size + 31) // 32, np.uint32)
    matcher.mask(mask)
    tokens: list[int] = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()
    return tokens


def follow(matcher: Matcher, ids: list[int], size: int) -> bool:
    """Whether the grammar takes these tokens. It must take what masks allow; of forced text they allow one spelling."""
    for token in ids:
        in_mask, forced = token in allowed(matcher, size), matcher.forced_tokens()
        taken = matcher.advance(token)
        assert taken == in_mask or (taken and forced)
        if not taken:
            return False
    return True


def takes(grammar: CompiledGrammar, tokenizer: Tokenizer, text: str) -> bool:
    """Whether a text is an answer of the grammar."""
    matcher = grammar.matcher()
    return follow(matcher, byte_ids(tokenizer, text), grammar.vocabulary_size) and matcher.accepts_end


def byte_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text; those of its bytes where the vocabulary would put a space in front."""
    ids = tokenizer.encode(text)
    if b"".join(map(tokenizer.token_bytes, ids)) == text.encode():
        return ids
    singles = {tokenizer.token_bytes(token): token for token in range(tokenizer.vocab_size)}
    return [singles[bytes([byte])] for byte in text.encode()]


def accepts(grammar: CompiledGrammar, tokenizer: Tokenizer, schema: Any, value: Any) -> bool:
    """Whether a JSON value is an answer, with the members of objects as they stand or in the schema's order."""
    ordered = in_order(value, [schema], schema)
    return any(
        takes(grammar, tokenizer, json.dumps(candidate, ensure_ascii=False, indent=indent))
        for candidate in ((value,) if json.dumps(value) == json.dumps(ordered) else (value, ordered))
        for indent in (None, 2)
    )


def in_order(value: Any, schemas: list[Any], root: Any) -> Any:
    """The value with its members in the order in which the schemas that apply to it name them."""
    parts = [part for schema in schemas for part in applied(schema, root)]
    if isinstance(value, list):
        return [
            in_order(item, [child for part in parts for child in items_of(part, index)], root)
            for index, item in enumerate(value)
        ]
    if not isinstance(value, dict):
        return value
    names = [name for part in parts for name in part.get("properties", ())]
    names += [name for part in parts for name in part.get("required", ())]
    names += [name for part in parts for list_ in part.get("dependentRequired", {}).values() for name in list_]
    order = list(dict.fromkeys(name for name in [*names, *value] if name in value))
    return {
        name: in_order(value[name], [child for part in parts for child in members_of(part, name)], root)
        for name in order
    }


def applied(schema: Any, root: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """The schema and those that apply to the same value, in the order in which they give properties."""
    if not isinstance(schema, dict) or depth > 10:
        return
    late = ("oneOf", "not", "if", "then", "else", "dependencies", "dependentSchemas")
    for key in sorted(schema, key=lambda key: key in late):  # stable
        if key == "properties":
            yield schema
        elif key == "$ref" and isinstance(schema[key], str) and schema[key].startswith("#"):
            target = root
            for step in schema[key].split("/")[1:]:
                step = unquote(step).replace("~1", "/").replace("~0", "~")
                target = target[int(step) if isinstance(target, list) else step]
            yield from applied(target, root, depth + 1)
        elif key in ("allOf", "anyOf", "oneOf"):
            for option in schema[key]:
                yield from applied(option, root, depth + 1)
        elif key in ("then", "else", "if", "not"):
            yield from applied(schema[key], root, depth + 1)
        elif key in ("dependencies", "dependentSchemas"):
            for option in schema[key].values():
                yield from applied({"required": option} if isinstance(option, list) else option, root, depth + 1)
    if "properties" not in schema:
        yield schema


def members_of(part: dict[str, Any], name: str) -> list[Any]:
    own = [part["properties"][name]] if name in part.get("properties", ()) else []
    matching = [schema for pattern, schema in part.get("patternProperties", {}).items() if re.search(pattern, name)]
    return own + matching or [part.get("additionalProperties", True)]


def items_of(part: dict[str, Any], index: int) -> list[Any]:
    items = part.get("items", True)
    prefix = items if isinstance(items, list) else part.get("prefixItems", [])
    rest = part.get("additionalItems", True) if isinstance(items, list) else items
    return [prefix[index] if index < len(prefix) else rest]


@functools.cache
def closing_tokens(tokenizer: Tokenizer, ends: tuple[bytes, ...]) -> frozenset[int]:
    return frozenset(
        token
        for token in range(tokenizer.vocab_size)
        if tokenizer.is_special(token) or tokenizer.token_bytes(token) in ends
    )


def random_answer(
    grammar: CompiledGrammar,
    tokenizer: Tokenizer,
    seed: int,
    limit: int = 400,
    ends: tuple[bytes, ...] = (b'"', b"}"),
    begin: str = "",
) -> str | None:
    """What a model with random weights writes after ``begin``, or None if it has not ended within the limit.

    Half of the steps prefer a token that closes something, for else the strings of a small vocabulary never end.
    """
    random = np.random.default_rng(seed)
    matcher = grammar.matcher()
    closes = closing_tokens(tokenizer, ends)
    written = byte_ids(tokenizer, begin) if begin else []
    assert follow(matcher, written, grammar.vocabulary_size)
    for _ in range(limit):
        tokens = allowed(matcher, grammar.vocabulary_size)
        closing = closes.intersection(tokens)
        token = int(random.choice(sorted(closing) if closing and random.random() < 0.5 else tokens))
        if tokenizer.is_special(token):
            assert matcher.accepts_end and matcher.advance(token) and matcher.finished
            return b"".join(map(tokenizer.token_bytes, written)).decode()
        forced = matcher.forced_tokens()
        assert not forced or token in tokens
        assert matcher.advance(token)
        written.append(token)
    return None
