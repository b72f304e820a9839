"""The pattern machine finds what Python's ``re`` finds."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvllm_jax.errors import ModelLoadError
from cvllm_jax.openai.tool_parsers.anchors import Anchor, Search, find_all

atoms = st.sampled_from(
    ["a", "b", "c", ".", r"\w", r"\s", "[^a]", "[]b]", r"[\w-]", r"\.", "(?:ab|a)", "(?:a|b|)", "$", "^"]
)
repeats = st.sampled_from(["", "", "", "*", "+", "?", "*?", "+?", "??", "{2}", "{1,2}", "{,2}?"])
simple = st.lists(st.tuples(atoms, repeats).map("".join), min_size=1, max_size=4).map("".join)
grouped = st.lists(simple, min_size=1, max_size=3).map(lambda parts: "(?P<one>" + "|".join(parts) + ")")


def joined(parts):
    """Python's ``re`` ends a repetition at an empty round, where the machine tries the other alternatives first."""
    before, group, repeat, after = parts
    may_be_empty = (judge := compiled(group)) is not None and judge.fullmatch("") is not None
    return before + group + ("" if may_be_empty else repeat) + after


patterns = st.tuples(st.one_of(st.just(""), simple), grouped, repeats, st.one_of(st.just(""), simple)).map(joined)
texts = st.text("abc. -]", max_size=8)


def search(pattern, text):
    found = Search(Anchor.of_pattern(pattern))
    for at, char in enumerate(text):
        found.step(at, char)
    found.end(len(text))
    return found.found


def compiled(pattern):
    """None for what ``re`` refuses, such as a repeated ``$``."""
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error:
        return None


@settings(max_examples=300, deadline=None)
@given(patterns, texts)
def test_the_first_match_is_the_one_that_re_finds(pattern, text):
    judge = compiled(pattern)
    if judge is None:
        return
    expected, found = judge.search(text), search(pattern, text)
    assert (expected is None) == (found is None)
    if expected is not None:
        assert (found.start, found.end) == expected.span()


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (
            r"<parameter=(?P<key>\w+)>\s*(?P<value>.*?)\s*</parameter>",
            "<parameter=a>\n1 2\n</parameter><parameter=b></parameter>",
        ),
        (r"(?P<a>a+)(?P<b>a*?)b?", "aaab a ab"),
        (r"(?P<x>\d{2,3})", "1 12 1234567"),
        (r"x*", "axxb"),
    ],
)
def test_all_matches_and_groups(pattern, text):
    expected = [
        (m.span(), {name: m.span(name) for name in m.groupdict()}) for m in re.finditer(pattern, text, re.DOTALL)
    ]
    assert [((m.start, m.end), dict(m.groups)) for m in find_all(Anchor.of_pattern(pattern), text)] == expected


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(?=a)", "has a group"),
        (r"(a)\1", "what is not supported here"),
        (r"\b", "what is not supported here"),
        ("a**", "possessive or double repetition"),
        ("a*+", "possessive or double repetition"),
        ("(a", "not closed"),
        ("a)", "a bracket too many"),
        ("*a", "repeats nothing"),
        ("[b-a]", "is malformed"),
        ("a{500}", "the limit is 100"),
        ("(?:(?:a{100}){100}){100}", "is larger than 2000 steps"),
        ("a" * 3000, "is larger than 2000 steps"),
        ("a|" * 3000, "is larger than 2000 steps"),
        ("(" * 30 + ")" * 30, "nests groups deeper than 20"),
    ],
)
def test_what_is_not_supported_is_refused(pattern, reason):
    with pytest.raises(ModelLoadError, match=reason):
        Anchor.of_pattern(pattern)


def test_literals_and_the_last_match():
    assert Anchor.of_literals(["ab", "abc", "{x}"]).after_last("abcd ab {x}!") == "!"
    assert Anchor.of_literals(["<|a|>", "<|a|>b"]).after_last("<|a|>b") == ""
    assert Anchor.of_literals(["x"]).after_last("none") == ""
    assert Anchor.of_pattern("a+").after_last("aab aac") == "c"
