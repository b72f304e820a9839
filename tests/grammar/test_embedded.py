"""Grammars for texts within an answer: as JSON strings and as they are. The engine, which knows both, is the judge."""

import json
import re
from contextlib import suppress

import pytest
from answers import random_answer, takes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patch_grammar import PATCH_GRAMMAR

from cvllm_jax.grammar import GrammarError, LarkGrammar, TextGrammar
from cvllm_jax.grammar.embedded import in_json_string, up_to

GRAMMARS = {
    "patch": PATCH_GRAMMAR,
    "sums": "start: sum\nsum: (sum /[+-]/)? part\npart: INT | \"(\" sum \")\"\n%import common.INT\n%ignore /[ \\n]+/",
    "strings": 'start: (ESCAPED_STRING ";")*\n%import common.ESCAPED_STRING\n%import common (WS, CR)\n%ignore WS',
    "lines": 'start: line{1,4}\nline: /[^\\n]*/ "\\n"',
    "quotes": 'start: (A | B)+ "\\\\"?\nA: "\\"" /[^"]*/ "\\""\nB: /[a-c\\t]+/',
    "tabs": 'start: ("\\t" | "\\n" | "a")~2..5 [ "\\"" ]',
    "nested": 'start: "(" start ")" | "[" start "\\"]" | x*\nx: /[\\\\x]\\n?/',
    "without": 'start: A B?\nA: /[a-z\\n]+/ & ~/(?s:.*)b(?s:.*)/\nB: "\\u0001" | "é".."ü" "😀"i',
    "lazy": 'start: s "\\n" t\ns[lazy]: /(?s:.*)"/\nt[suffix="\\n"]: /.*/',
    "classes": r"""start: /[[:punct:]&&[^"<]]\s?[^\w\W\p{L}]?[\d--5]/ /(?i)a[b-d~~c-e]\\|\x{22}+/ /(?x) a b [ \n c ] # d
    /""",
    "empty": 'start: "" | A | /\\t?/ A\nA: /(\\n|ab)*/',
    "named": 'start: r0 T1 start-a?\n!r0: "1" | "\\n"\n?start-a: _T2\nT1: "\\t"+\n_T2: /\\r/',
}
PATTERNS = [
    r"^(?P<month>January|May)\s+\d{1,2}(?:st|nd)?\s+\d{4}$", '"[^"]*"', r"(?i:yes|no)|\n\t*", r"[^a-z]{2,3}\\?", "",
    r"\p{Lu}\P{L}[^\S ]/",
]  # fmt: skip
SOURCES = {name: TextGrammar("lark", text) for name, text in GRAMMARS.items()} | {
    pattern: TextGrammar("regex", pattern) for pattern in PATTERNS
}
ENDS = tuple(character.encode() for character in '"\n)];')
MARKS = ("</p>", "<p=")


def plain(source):
    """The grammar by itself, as the engine reads it."""
    if source.syntax == "lark":
        return LarkGrammar(source.definition)
    return LarkGrammar("start: P\nP: /" + source.definition.strip("^$").replace("/", r"\x{2f}") + "/") if (
        source.definition
    ) else LarkGrammar('start: ""')


def inside(expression):
    return LarkGrammar(f'start: "<" {expression} ">"')


@pytest.mark.parametrize("name", SOURCES)
def test_what_stands_in_a_json_string_is_a_text_of_the_grammar(compiler, tokenizer, name):
    source = SOURCES[name]
    alone = compiler.compile(plain(source))
    quoted = compiler.compile(LarkGrammar(f'start: "\\"" {in_json_string(source)} "\\""'))
    for seed in range(25):
        written = random_answer(quoted, tokenizer, seed, ends=ENDS)
        if written is not None:
            text = json.loads(written)
            text.encode()
            assert takes(alone, tokenizer, text)
        text = random_answer(alone, tokenizer, seed, ends=ENDS)
        if text is not None:
            text = text.rstrip() if "%ignore" in source.definition else text
            assert takes(quoted, tokenizer, json.dumps(text, ensure_ascii=False)), text


@pytest.mark.parametrize("name", SOURCES)
def test_what_stands_as_it_is_is_a_text_of_the_grammar(compiler, tokenizer, name):
    source = SOURCES[name]
    alone = compiler.compile(plain(source))
    for close in ("\n</p>\n", "</p>"):
        try:
            raw = compiler.compile(inside(up_to(close, source, MARKS)))
        except GrammarError:
            assert "%ignore" in source.definition
            continue
        ended = 0
        for seed in range(15):
            text = random_answer(alone, tokenizer, seed, ends=ENDS)
            for begin in {"<", f"<{text or ''}"}:
                try:
                    written = random_answer(raw, tokenizer, seed, ends=(*ENDS, b"<"), begin=begin)
                except AssertionError:
                    assert begin != "<"
                    continue
                if written is None:
                    continue
                ended += 1
                text, mark, rest = written[1:].partition(close)
                assert (mark, rest) == (close, ">")
                assert not any(it in text for it in MARKS)
                assert takes(alone, tokenizer, text), text
        assert ended


def test_characters_may_always_be_escaped(compiler, tokenizer):
    source = TextGrammar("regex", "[<a]+")
    quoted = compiler.compile(LarkGrammar(f'start: "\\"" {in_json_string(source, "<")} "\\""'))
    assert takes(quoted, tokenizer, r'"a\u003ca"')
    assert not takes(quoted, tokenizer, '"<"')


def test_characters_beyond_ascii_may_be_escaped(compiler, tokenizer):
    for definition in (r".*", r"(?s:.)*", r'[^"]+', "[^a-z]*", r"[\S\s]*"):
        quoted = compiler.compile(
            LarkGrammar(f'start: "\\"" {in_json_string(TextGrammar("regex", definition))} "\\""')
        )
        for text in ("é\x80ÿĀ\ud7ff\ue000\uffff\U00010000😀\U0010ffff", "éé"):
            assert takes(quoted, tokenizer, json.dumps(text))
            assert takes(quoted, tokenizer, json.dumps(text, ensure_ascii=False))
        for written in (r'"\ud83d"', r'"\ud83dx"', r'"\ude00"', r'"\u0041"'):
            assert not takes(quoted, tokenizer, written)
    only = compiler.compile(LarkGrammar(f'start: "\\"" {in_json_string(TextGrammar("regex", "[^é]"))} "\\""'))
    assert takes(only, tokenizer, '"è"') and not takes(only, tokenizer, r'"\u00e9"')


def test_a_patch_as_models_write_it(compiler, tokenizer):
    patch = (
        '*** Begin Patch\n*** Update File: src/a.py\n@@ def f():\n-    return "x\\n"\n+    return \'é\t</b>\'\n \n+\n'
        "*** Add File: b\n+\n+\\\n*** End Patch"
    )
    source = SOURCES["patch"]
    quoted = compiler.compile(LarkGrammar(f'start: "\\"" {in_json_string(source)} "\\""'))
    raw = compiler.compile(inside(up_to("\n</p>\n", source, MARKS)))
    for text in (patch, patch + "\n"):
        assert takes(quoted, tokenizer, json.dumps(text, ensure_ascii=False))
        assert takes(raw, tokenizer, f"<{text}\n</p>\n>")
    assert not takes(raw, tokenizer, f"<{patch.replace('</b>', '</p>')}\n</p>\n>")
    assert not takes(quoted, tokenizer, json.dumps(patch.replace("@@", "@"), ensure_ascii=False))


@pytest.mark.parametrize(
    ("syntax", "definition", "message"),
    [
        ("lark", 'start: <|end|> "a"', "a control token"),
        ("lark", 'start: %json {"type": "object"}', "a directive"),
        ("lark", "start: @other", "a reference to another grammar|cannot be compiled"),
        ("lark", "start: %regex {\"substring_chars\": \"abc\"}", "a directive"),
        ("lark", "start: a::0x0\na::_: \"a\" %if eq(_, 0)", "a directive|a parameter"),
        ("lark", 'start: a\na[max_tokens=3]: /a+/', "attribute 'max_tokens'"),
        ("lark", 'start: a\na[stop="b"]: /a+/', "attribute 'stop'"),
        ("lark", "start: a", "cannot be compiled"),
        ("lark", "start: /a(?=b)/", "cannot be compiled"),
        ("lark", "start: " + "(" * 40 + '"a"' + ")" * 40, "nested"),
        ("lark", f'start: "a" // {"x" * 70_000}', "65536 characters"),
        ("lark", 'a: "a"', "no start rule|cannot be compiled"),
        ("lark", "%llguidance {}\nstart: \"a\"", "a directive"),
        ("regex", "a(?=b)", "lookaround"),
        ("regex", "a\\b", "escape"),
        ("regex", "(a", r"unmatched '\('"),
        ("regex", "a)", r"unmatched '\)'"),
        ("regex", "[a", r"unmatched '\['"),
        ("regex", "a$b", "anchor"),
        ("regex", "*", "repetition of nothing"),
        ("regex", r"\p{Klingon}", "property class"),
        ("regex", "(?R)a", "flag 'R'|lookaround"),
        ("regex", "(" * 50 + ")" * 50, "nested groups"),
        ("regex", "\\ud800", "character code"),
    ],
)
def test_what_cannot_be_followed_is_refused(syntax, definition, message):
    for embed in (in_json_string, lambda source: up_to("</p>", source, MARKS)):
        with pytest.raises(GrammarError, match=message):
            embed(TextGrammar(syntax, definition))


def test_forbidden_texts_across_terminals_are_refused():
    for definition in ('start: "<" "/p>"', 'start: a+\na: "<" | "/p>"', 'start: /a?</ "/" A\nA: /[a-z]+>/'):
        with pytest.raises(GrammarError, match="its texts may have '</p>'"):
            up_to("\n</p>", TextGrammar("lark", definition), MARKS)
    assert up_to("\n</p>", TextGrammar("lark", 'start: "<" /[a-o]+/'), MARKS)


def test_hostile_grammars_end_soon(compiler):
    hostile = [
        'start: /a+/ "a"',  # "a" for ever
        'start: "a" start',
        "start: " + " ".join(f'"\\n"? /[\\n{index}]*/' for index in range(300)),
        "start: r0\n" + "\n".join(f"r{it}: r{it + 1} r{it + 1} | /\\n?/" for it in range(400)) + '\nr400: "a\\n"',
        'start: ("a" | "\\n" /.*/){900,1000}',
        "start: " + " | ".join(f'/(a?){{{index}}}\\n/' for index in range(500)),
    ]
    for definition in hostile:
        for embed in (in_json_string, lambda source: up_to("\n</p>", source, MARKS)):
            with suppress(GrammarError, RecursionError):  # as it may be
                compiler.compile(inside(embed(TextGrammar("lark", definition))))


_CHARACTERS = st.sampled_from([*'ab"\\/<>()', "\\n", "\\t", "\\\\", '\\"', ".", "[^a]", '[a-c"]', "[^\\n]", "\\s", "é"])


def _patterns():
    def larger(inner):
        return st.one_of(
            st.lists(inner, min_size=1, max_size=3).map("".join),
            st.lists(inner, min_size=2, max_size=3).map(lambda it: f"(?:{'|'.join(it)})"),
            st.tuples(inner, st.sampled_from(["*", "+", "?", "{1,2}"])).map(lambda it: f"(?:{it[0]}){it[1]}"),
        )

    leaf = _CHARACTERS.map(lambda it: re.sub(r"^([()/])$", r"\\\1", it) if len(it) == 1 and it != "\\" else it)
    return st.recursive(leaf.filter(lambda it: it != "\\"), larger, max_leaves=5)


def _rules():
    leaf = st.one_of(
        _patterns().map(lambda it: f"/{it}/"),
        st.text('ab"\\\n\t<é', min_size=1, max_size=3).map(lambda it: json.dumps(it, ensure_ascii=False)),
        st.just("A"),
    )

    def larger(inner):
        return st.one_of(
            st.lists(inner, min_size=1, max_size=3).map(" ".join),
            st.lists(inner, min_size=2, max_size=3).map(lambda it: f"({' | '.join(it)})"),
            st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}"])).map(lambda it: f"({it[0]}){it[1]}"),
        )

    body = st.recursive(leaf, larger, max_leaves=5)
    ignored = st.sampled_from(["", "%ignore /[ \\n]+/\n", '%ignore "\\t"\n'])
    return st.tuples(body, _patterns(), ignored).map(lambda it: f"start: {it[0]}\nA: /{it[1]}/\n{it[2]}")


@pytest.mark.slow  # random grammars may be ambiguous, and then a mask takes seconds
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(definition=_rules(), seed=st.integers(0, 100))
def test_any_grammar_is_the_same_in_a_json_string(compiler, tokenizer, definition, seed):
    source = TextGrammar("lark", definition)
    try:
        alone = compiler.compile(LarkGrammar(definition))
        quoted = compiler.compile(LarkGrammar(f'start: "\\"" {in_json_string(source)} "\\""'))
    except GrammarError:
        return
    written = random_answer(quoted, tokenizer, seed, ends=ENDS, limit=100)
    if written is not None:
        text = json.loads(written)
        text.encode()
        assert takes(alone, tokenizer, text), text
    text = random_answer(alone, tokenizer, seed, ends=ENDS, limit=100)
    if text is not None and "%ignore" not in definition:
        assert takes(quoted, tokenizer, json.dumps(text, ensure_ascii=False)), text
