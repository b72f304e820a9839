"""Grammars compiled for one model's vocabulary."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cvllm_jax.errors import shown
from cvllm_jax.grammar import lark
from cvllm_jax.grammar.any_order import AnyOrder
from cvllm_jax.grammar.errors import GrammarError
from cvllm_jax.grammar.json_schema import SchemaReader
from cvllm_jax.grammar.matcher import CompiledGrammar
from cvllm_jax.grammar.patterns import rewrite_pattern
from cvllm_jax.grammar.schema_logic import Json, Schema
from cvllm_jax.grammar.spec import (
    AfterText,
    Grammar,
    JsonObjectGrammar,
    JsonSchemaGrammar,
    LarkGrammar,
    RegexGrammar,
    ToolCallGrammar,
    cache_key,
)
from cvllm_jax.grammar.vocabulary import Vocabulary
from cvllm_jax.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

__all__ = ["GrammarCompiler", "complaint", "json_rule"]

MAX_GRAMMAR_BYTES = 1 << 20
MAX_CACHED = 32

# One space, or a line break with its indentation: what serialisers write. Unlimited whitespace would let a model that
# has lost its way fill an answer with it.
WHITESPACE = r"\x20|\r?\n[\x20\t]{0,64}"
PLAIN_ESCAPES = 'nrbtf\\"'

# Grammars made to explode stop within some 10 ms a mask and some 10 MB.
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "max_items_in_row": 5000,
    "step_max_items": 50_000,
    "max_lexer_states": 30_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}


class GrammarCompiler:
    """Compiles grammars for a vocabulary. Any number of threads may use it at once; llguidance lets go of the GIL.

    Arguments:
        eos_token_ids: the tokens that end an answer.
        vocab_size: how many logits the model has; bits of masks beyond the tokenizer's tokens are never set.

    Raises:
        ConfigError: llguidance is not installed, or there is no end token.
        TokenizationError: the vocabulary is one of words, whose tokens stand for no bytes.
    """

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: Sequence[int], vocab_size: int) -> None:
        self._vocabulary = Vocabulary(tokenizer, eos_token_ids, vocab_size)
        self._cache: OrderedDict[str, CompiledGrammar] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """The grammar, from a cache where it was compiled before. It takes milliseconds, at its limits a second or two:
        not a thing for the engine's thread.

        Raises:
            GrammarError: it is invalid, too large, or has what cannot be enforced.
        """
        try:
            key = cache_key(grammar)
            if len(key) > MAX_GRAMMAR_BYTES:
                raise GrammarError(f"a grammar may have {MAX_GRAMMAR_BYTES} bytes, not {len(key)}")
            with self._lock:
                if key in self._cache:
                    self._cache.move_to_end(key)
                    return self._cache[key]
            compiled = self._compiled(self._source(grammar))
        except RecursionError:
            raise GrammarError("the grammar is nested too deep") from None
        except UnicodeEncodeError as error:
            raise GrammarError(f"the grammar has {shown(error.object[error.start])}, which is no character") from None
        with self._lock:
            self._cache[key] = compiled
            while len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)
        return compiled

    def _compiled(self, source: str) -> CompiledGrammar:
        from llguidance import LLMatcher, LLParserLimits

        def build() -> LLMatcher:
            state = LLMatcher(self._vocabulary.engine, source, log_level=0, limits=LLParserLimits(**LIMITS))
            if state.is_error():
                raise GrammarError(_explained(state.get_error()))
            return state

        compiled = CompiledGrammar(build, self._vocabulary.size, self._vocabulary.end_tokens)
        # Two steps find what is too large only once it is used, and an answer that can never begin.
        matcher = compiled.matcher()
        mask = np.zeros((self._vocabulary.size + 31) // 32, np.uint32)
        for _ in range(2):
            matcher.mask(mask)
            matcher.advance(int(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))[0]))
        return compiled

    def _source(self, grammar: Grammar) -> str:
        """What the engine's parser reads."""
        from llguidance import LLMatcher

        match grammar:
            case LarkGrammar(text, ends):
                return LLMatcher.grammar_from_lark(text if ends else f"{text}\n{lark.NOT_FORCING}")
            case RegexGrammar(pattern):
                return LLMatcher.grammar_from_regex(rewrite_pattern(pattern, whole=True))
            case _:
                return LLMatcher.grammar_from_lark(self._rules(grammar))

    def _rules(self, grammar: Grammar) -> str:
        """Lark rules for it, beginning with ``start``."""
        control_tokens = self._vocabulary.control_tokens
        match grammar:
            case JsonSchemaGrammar(schema):
                return f"start: {json_rule(schema)}\n"
            case JsonObjectGrammar():
                return self._rules(JsonSchemaGrammar({"type": "object"}))
            case RegexGrammar(pattern):
                return f"start: REGEX\nREGEX: /{rewrite_pattern(pattern, whole=True)}/\n"
            case ToolCallGrammar():
                reader = SchemaReader()
                call = _json(reader, {"anyOf": [_call(grammar, name, reader.read(it)) for name, it in grammar.tools]})
                return "start: answer\n" + lark.tool_calls(grammar, call, control_tokens)
            case AfterText(marker, inner):
                rules = self._rules(inner).replace("start:", "inner:", 1)
                return f"start: before inner\n{lark.after_text(marker, control_tokens)}{rules}"
            case _:
                raise GrammarError(f"a {type(grammar).__name__} is no grammar")


def json_rule(schema: Json) -> str:
    """An expression, for a Lark grammar, of JSON that validates against a schema. Raises GrammarError as
    :meth:`GrammarCompiler.compile`."""
    reader = SchemaReader()
    read = reader.read(schema)
    if not reader.any_order:
        return _json(reader, read)
    options = _options(reader, read)
    return AnyOrder(reader.definitions, reader.logic, reader.any_order, options, complaint).expression(read)


def _call(grammar: ToolCallGrammar, name: str, arguments: Schema) -> Schema:
    return {
        "type": "object",
        "properties": {
            grammar.name_key: {"const": name},
            grammar.arguments_key: {"allOf": [{"type": "object"}, arguments]},
        },
        "required": [grammar.name_key, grammar.arguments_key],
        "additionalProperties": False,
    }


def _json(reader: SchemaReader, schema: Schema) -> str:
    """An expression for JSON that validates against a schema of the reader's, with members in its order."""
    if schema is False:
        raise GrammarError("the schema accepts no value")
    content = {} if schema is True else schema
    return "%json " + json.dumps(
        {"x-guidance": _options(reader, schema), **content, "$defs": reader.definitions}, ensure_ascii=False
    )


def _options(reader: SchemaReader, schema: Schema) -> dict[str, Json]:
    """How the engine reads the schema."""
    options: dict[str, Json] = {"whitespace_pattern": WHITESPACE}
    if reader.needs_plain_names(schema):
        options["json_allowed_escapes"] = PLAIN_ESCAPES
    else:
        options["json_allow_general_unicode_escapes"] = True
    return options


def complaint(rules: str) -> str:
    """What the engine says of a grammar that it cannot compile, or nothing."""
    from llguidance import LLMatcher, LLParserLimits

    message: str = LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(rules), limits=LLParserLimits(**LIMITS))
    return message and _explained(message)


def _explained(message: str) -> str:
    """One sentence from the engine's message, which begins with positions in what this module wrote and goes on with
    the grammar."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    reason = lines[0] if lines else "it gives no reason"
    _, ours, schema = reason.partition("failed to compile JSON schema: ")
    return f"the {'schema' if ours else 'grammar'} cannot be compiled: {(schema or reason)[:300]}"
