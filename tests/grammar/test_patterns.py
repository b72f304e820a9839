"""Patterns mean here what they mean to a validator."""

import json
import re

import pytest
from answers import takes
from hypothesis import given, settings
from hypothesis import strategies as st

from cvllm_jax.grammar import GrammarError, JsonSchemaGrammar, RegexGrammar
from cvllm_jax.grammar.patterns import not_any_of, rewrite_pattern

TEXTS = [
    "", "a", "b", "ab", "ba", "aab", "A", "5", "٣", "é", "-", "_", " ", "\x1c", "[", "]", "{a}", "a&b", "x,y", "\\",
    "/", "~", '"', "\nb",
]  # fmt: skip

SAME = [
    "abc", "^a", "b$", "^$", "^(a|b)$", "(^a|b)$", "a|^b", "(?:^|,)y", "x(?:,|$)", "a*?b", "^a+$", "^a{2}b$", "^a{1,}$",
    "[[]", "[a&&b]", "[+--]", "[a~~b]", r"[\w-]|٣|é", "^{a}$", r"^[\]\[]$", r"\x41", r"\u0041", r"\/", r"\-", r"\_",
    r"^\\$", r"^[^\d]$", r"^[^\w]$", r"^[^\s]$", "(?P<n>a)b", "^[^^]$", "[a-]", r"^[\b]$", "^.{2}$", "^a?b?$",
    "(a|b|)x?", "^(?:a|b){2}$", '^[^"]$', r"^[^\\]+$", r'^[^"\\]$', r"^[\x00-\x1f]$", r"^[^\x00-\x1f]$", r'^[^\n"]$',
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Possible:FutureWarning")
@pytest.mark.parametrize("pattern", SAME)
def test_patterns_match_what_python_matches(compiler, tokenizer, pattern):
    grammar = compiler.compile(JsonSchemaGrammar({"type": "string", "pattern": pattern}))
    whole = compiler.compile(RegexGrammar(pattern))
    for text in TEXTS:
        assert takes(grammar, tokenizer, json.dumps(text, ensure_ascii=False)) == bool(re.search(pattern, text)), text
        assert takes(whole, tokenizer, text) == bool(re.fullmatch(pattern, text)), text


@pytest.mark.parametrize(("pattern", "one", "other"), [(r"^\D$", "a", "٣"), (r"^\W$", "-", "é"), (r"^\d$", "5", "٣")])
def test_where_dialects_differ_only_what_all_match_is_written(compiler, tokenizer, pattern, one, other):
    grammar = compiler.compile(RegexGrammar(pattern))
    assert takes(grammar, tokenizer, one)
    assert not takes(grammar, tokenizer, other)


@pytest.mark.parametrize(
    ("pattern", "position", "what"),
    [
        ("ab(c", 2, "unmatched"), ("ab)", 2, "unmatched"), ("[ab", 0, "unmatched"), ("a(?=b)", 1, "lookaround"),
        ("a(?<!b)", 1, "lookaround"), (r"(a)\1", 3, "reference"), (r"\bfoo", 0, "word boundary"), ("a^b", 1, r"'\^'"),
        ("a$b", 2, r"after '\$'"), ("(a$)*", 0, "anchor"), ("x{,3}", 1, "different ways"), ("a**", 2, "repetition"),
        ("*a", 0, "nothing"), ("(?i)a", 0, "options"), (r"\Aa", 0, "escape"), ("[]a]", 0, "different ways"),
        ("[z-a]", 1, "order"), (r"[\w-z]", 1, "range between"), ("a{3,2}", 1, "least"), (r"\ud800", 0, "no character"),
        ("(a{1000}){1000}", 0, "written out"), ("(" * 100 + "a" + ")" * 100, 60, "nested"), ("a\\", 2, "end"),
        (r"\p{", 0, "property"), ("a{9999999}", 1, "repetition"),
    ],
)  # fmt: skip
def test_refusals_say_where(pattern, position, what):
    with pytest.raises(GrammarError, match=f"{what}.* at character {position}"):
        rewrite_pattern(pattern)


def test_long_patterns_are_refused():
    with pytest.raises(GrammarError, match="20000 characters"):
        rewrite_pattern("a" * 20_001)


PIECES = ["a", "b", "[ab]", "[^a]", ".", r"\w", r"\D", "(?:a|b)", "(a|)", "x?", "a{1,2}", "b*", r"\.", "|", "é", "["]
PATTERNS = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)


@settings(max_examples=60, deadline=None)
@given(PATTERNS, st.text("abx.é", max_size=5))
def test_what_is_accepted_matches_in_python(compiler, tokenizer, pattern, text):
    try:
        grammar = compiler.compile(RegexGrammar(pattern))
    except GrammarError:
        return
    if takes(grammar, tokenizer, text):
        assert re.fullmatch(pattern, text)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("ab", max_size=3), min_size=1, max_size=4), st.text("abc", max_size=4))
def test_other_texts(texts, text):
    pattern = not_any_of(texts).strip("^$").replace(r"\x{0}", r"\x00")
    assert bool(re.fullmatch(pattern, text)) == (text not in texts)
