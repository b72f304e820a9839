"""Texts followed through a grammar, and answers written by chance."""

import json
from typing import Any

import numpy as np

from cvllm_jax.grammar.matcher import CompiledGrammar, Matcher
from cvllm_jax.text import Tokenizer


def allowed(matcher: Matcher, size: int) -> list[int]:
    """The tokens that may come next."""
    mask = np.zeros((size + 31) // 32, np.uint32)
    matcher.mask(mask)
    return [int(token) for token in np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))]


def follow(matcher: Matcher, ids: list[int], size: int) -> bool:
    """Whether the grammar takes these tokens. Masks and steps must agree."""
    for token in ids:
        expected = token in allowed(matcher, size)
        assert matcher.advance(token) == expected
        if not expected:
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
    ordered = in_order(value, list(dict.fromkeys(names_in(schema))))
    return any(
        takes(grammar, tokenizer, json.dumps(candidate, ensure_ascii=False, indent=indent))
        for candidate in ((value,) if json.dumps(value) == json.dumps(ordered) else (value, ordered))
        for indent in (None, 2)
    )


def names_in(schema: Any) -> list[str]:
    """The names of properties, in the order in which a schema first has them."""
    if isinstance(schema, list):
        return [name for item in schema for name in names_in(item)]
    if not isinstance(schema, dict):
        return []
    names = list(schema["properties"]) if isinstance(schema.get("properties"), dict) else []
    if isinstance(schema.get("required"), list):
        names += [name for name in schema["required"] if isinstance(name, str)]
    return names + [name for item in schema.values() for name in names_in(item)]


def in_order(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [in_order(item, names) for item in value]
    if not isinstance(value, dict):
        return value
    known = sorted((name for name in value if name in names), key=names.index)
    return {name: in_order(value[name], names) for name in [*known, *(n for n in value if n not in names)]}


def random_answer(
    grammar: CompiledGrammar, tokenizer: Tokenizer, seed: int, limit: int = 400, ends: tuple[bytes, ...] = (b'"', b"}")
) -> str | None:
    """What a model with random weights writes, or None if it has not ended within the limit.

    Half of the steps prefer a token that closes something, for else the strings of a small vocabulary never end.
    """
    random = np.random.default_rng(seed)
    matcher = grammar.matcher()
    written: list[int] = []
    for _ in range(limit):
        tokens = allowed(matcher, grammar.vocabulary_size)
        closing = [token for token in tokens if tokenizer.is_special(token) or tokenizer.token_bytes(token) in ends]
        token = int(random.choice(closing if closing and random.random() < 0.5 else tokens))
        if tokenizer.is_special(token):
            assert matcher.accepts_end and matcher.advance(token) and matcher.finished
            return b"".join(map(tokenizer.token_bytes, written)).decode()
        forced = matcher.forced_tokens()
        assert not forced or token in tokens
        assert matcher.advance(token)
        written.append(token)
    return None
