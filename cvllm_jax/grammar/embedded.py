"""The texts of a grammar of its own as a part of an answer, written as the markup around them wants it."""

from __future__ import annotations

from cvllm_jax.grammar import lark
from cvllm_jax.grammar.compiler import complaint
from cvllm_jax.grammar.enclosed import enclosed
from cvllm_jax.grammar.errors import GrammarError
from cvllm_jax.grammar.escaped import escaped_rules
from cvllm_jax.grammar.lark_syntax import LarkRule, LarkSource, read_lark
from cvllm_jax.grammar.regex_syntax import read_regex
from cvllm_jax.grammar.spec import TextGrammar
from cvllm_jax.grammar.syntax_tree import Pattern
from cvllm_jax.grammar.text_encoding import PLAIN, json_string

__all__ = ["in_json_string", "up_to"]

MAX_DEFINITION = 1 << 16


def in_json_string(grammar: TextGrammar, without: str = "") -> str:
    """An expression, for a Lark grammar, of what stands between the quotes of JSON strings whose texts are the
    grammar's.

    Characters that need no escape have none, but for those beyond ASCII where any may stand: they may have one.

    Arguments:
        without: ASCII characters that are always escaped.

    Raises:
        GrammarError: the grammar is invalid, or cannot be a part of another one.
    """
    return _nested(escaped_rules(_read(grammar), json_string(without)), grammar)


def up_to(close: str, grammar: TextGrammar, forbidden: tuple[str, ...], *, strips: bool = False) -> str:
    """An expression, for a Lark grammar, of the grammar's texts as they are and of ``close`` after them.

    Arguments:
        forbidden: texts that no text of the grammar is let have in it, as it would end there for who reads it.
        strips: who reads it takes whitespace at either end away.

    Raises:
        GrammarError: as :func:`in_json_string`; or the grammar's texts would not always be read as they are.
    """
    source, after = enclosed(_read(grammar), close, forbidden, strips=strips)
    return f"{_nested(_rules(source), grammar)} {after}"


def _read(grammar: TextGrammar) -> LarkSource:
    definition = grammar.definition
    if len(definition) > MAX_DEFINITION:
        raise GrammarError(f"a grammar for a text may have {MAX_DEFINITION} characters, not {len(definition)}")
    if grammar.syntax == "regex":
        return LarkSource(rules={"start": LarkRule(Pattern(read_regex(definition, anchors=True)))})
    if message := complaint(definition):
        raise GrammarError(message)
    return read_lark(definition)


def _nested(rules: str, grammar: TextGrammar) -> str:
    """The rules with names of their own. A pattern always comes to an end; rules may force text without end."""
    return f"%lark {{\n{rules}{lark.NOT_FORCING if grammar.syntax == 'lark' else ''}}}"


def _rules(source: LarkSource) -> str:
    terminal = PLAIN.terminal
    lines = [f"{name}{'[lazy]' if it.lazy else ''}: {terminal(it.body)}" for name, it in source.rules.items()]
    lines += [f"{name}: {terminal(body)}" for name, body in source.terminals.items()]
    lines += [f"%ignore {terminal(body)}" for body in source.ignored]
    return "".join(f"{line}\n" for line in lines)
