"""Masks, steps and forced tokens of one answer."""

import threading

import numpy as np
import pytest
from answers import allowed, follow, takes

from cvllm_jax.errors import ConfigError, GenerationError
from cvllm_jax.grammar import GrammarError, JsonObjectGrammar, JsonSchemaGrammar, LarkGrammar, RegexGrammar
from cvllm_jax.grammar.compiler import GrammarCompiler


def test_the_end_is_allowed_only_where_the_grammar_accepts_it(compiler, tokenizer, end):
    matcher = compiler.compile(RegexGrammar("ab+")).matcher()
    size = tokenizer.vocab_size + 13
    for text, expected in (("a", {"a"}), ("b", {"b"}), ("b", {"b", end})):
        tokens = allowed(matcher, size)
        assert {token if token == end else tokenizer.token_bytes(token).decode() for token in tokens} == expected
        assert matcher.accepts_end == (end in tokens)
        assert end in tokens or not matcher.advance(end)
        assert matcher.advance(tokenizer.encode(text)[0])
    assert not matcher.finished
    assert matcher.advance(end) and matcher.finished


def test_a_finished_answer_allows_the_end_alone(compiler, tokenizer, end):
    grammar = compiler.compile(RegexGrammar("ab"))
    matcher = grammar.matcher()
    assert follow(matcher, tokenizer.encode("ab"), grammar.vocabulary_size)
    assert matcher.finished and matcher.accepts_end and matcher.forced_tokens() == []
    assert allowed(matcher, grammar.vocabulary_size) == [end]
    assert not matcher.advance(tokenizer.encode("a")[0])
    assert matcher.finished


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_control_tokens_and_padding_are_no_text(compilers, tokenizers, kind):
    tokenizer = tokenizers[kind]
    grammar = compilers[kind].compile(RegexGrammar(r"[\s\S]*"))
    tokens = allowed(grammar.matcher(), grammar.vocabulary_size)
    special = {name for token, name in tokenizer.control_tokens.items() if token in tokens}
    assert special == {"<|end|>"}
    assert max(tokens) < tokenizer.vocab_size
    assert len(tokens) > 128


def test_text_may_spell_a_control_token(compiler, tokenizer):
    assert takes(compiler.compile(RegexGrammar(r"<\|end\|>")), tokenizer, "<|end|>")


def test_forced_tokens_are_those_that_the_tokenizer_writes(compiler, tokenizer):
    schema = {"properties": {"name": {"const": "abc"}}, "required": ["name"], "additionalProperties": False}
    matcher = compiler.compile(JsonSchemaGrammar({"type": "object", **schema})).matcher()
    assert matcher.advance(tokenizer.encode('{"')[0])
    forced = matcher.forced_tokens()
    assert forced and tokenizer.decode(forced).startswith("name")
    assert all(matcher.advance(token) for token in forced)


def test_forced_tokens_have_no_space_in_front(compilers, tokenizers):
    matcher = compilers["sentencepiece"].compile(RegexGrammar("abc")).matcher()
    tokens = matcher.forced_tokens()
    assert b"".join(map(tokenizers["sentencepiece"].token_bytes, tokens)) == b"abc"
    assert all(matcher.advance(token) for token in tokens) and matcher.finished


def test_copies_and_rollback(compiler, tokenizer):
    grammar = compiler.compile(RegexGrammar("(ab|cd)+"))
    matcher = grammar.matcher()
    a, b, c, d = (tokenizer.encode(letter)[0] for letter in "abcd")
    assert matcher.advance(a)
    other = matcher.copy()
    assert matcher.advance(b) and matcher.advance(c)
    assert not other.advance(c) and other.advance(b)
    matcher.rollback(2)
    assert allowed(matcher, grammar.vocabulary_size) == [b]
    matcher.rollback(1)
    assert matcher.advance(c) and matcher.advance(d)
    with pytest.raises(ValueError, match="of 2 tokens 3"):
        matcher.rollback(3)


def test_a_mask_needs_its_array(compiler, tokenizer):
    matcher = compiler.compile(RegexGrammar("a")).matcher()
    words = (tokenizer.vocab_size + 13 + 31) // 32
    for wrong in (np.zeros(words - 1, np.uint32), np.zeros(words, np.int64), np.zeros(2 * words, np.uint32)[::2]):
        with pytest.raises(ValueError, match=f"{words} words"):
            matcher.mask(wrong)


def test_equal_grammars_are_compiled_once(compiler):
    first = compiler.compile(JsonSchemaGrammar({"type": "integer", "minimum": 3}))
    assert compiler.compile(JsonSchemaGrammar({"type": "integer", "minimum": 3})) is first
    assert compiler.compile(JsonSchemaGrammar({"type": "integer", "minimum": 4})) is not first
    # Another order of the properties is another answer.
    one, other = ({"type": "object", "properties": {name: {} for name in names}} for names in ("ab", "ba"))
    assert compiler.compile(JsonSchemaGrammar(one)) is not compiler.compile(JsonSchemaGrammar(other))


def test_many_threads_compile_and_follow(compiler, tokenizer):
    failures = []

    def work(number: int) -> None:
        for step in range(10):
            grammar = compiler.compile(JsonSchemaGrammar({"const": f"value {(number + step) % 4}"}))
            if not takes(grammar, tokenizer, f'"value {(number + step) % 4}"'):
                failures.append((number, step))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_an_answer_outlives_its_automaton(compiler, tokenizer, monkeypatch):
    """Answers share an automaton. When one of them wears it out, the others go on with a new one."""
    limits = {"step_lexer_fuel": 3000, "verbose_errors": False}
    monkeypatch.setattr("cvllm_jax.grammar.compiler.LIMITS", limits)
    grammar = compiler.compile(RegexGrammar("(?:.*a.*b){40}[ab]{30}c|(?:.*b){50}"))
    steady, greedy = grammar.matcher(), grammar.matcher()
    a, b = (tokenizer.encode(letter)[0] for letter in "ab")
    size = grammar.vocabulary_size
    assert a in allowed(steady, size) and steady.advance(a)
    with pytest.raises(GrammarError, match="cannot be followed further"):
        for step in range(200):
            allowed(greedy, size)
            greedy.advance(a if step % 2 else b)
    assert b in allowed(steady, size) and steady.advance(b)
    assert a in allowed(grammar.matcher(), size)


def test_an_automaton_that_takes_long_to_make_is_not_made_amid_an_answer(compiler, tokenizer, monkeypatch):
    """Masks are made where all answers wait for them."""
    limits = {"step_lexer_fuel": 3000, "verbose_errors": False}
    monkeypatch.setattr("cvllm_jax.grammar.compiler.LIMITS", limits)
    monkeypatch.setattr("cvllm_jax.grammar.matcher.RENEWAL_SECONDS", 0.0)
    grammar = compiler.compile(RegexGrammar("(?:.*a.*b){40}[ab]{31}c|(?:.*b){50}"))
    a, b = (tokenizer.encode(letter)[0] for letter in "ab")
    greedy = grammar.matcher()
    with pytest.raises(GrammarError, match="cannot be followed further"):
        for step in range(200):
            allowed(greedy, grammar.vocabulary_size)
            greedy.advance(a if step % 2 else b)
    made = []
    build = grammar._build
    monkeypatch.setattr(grammar, "_build", lambda: made.append(build()) or made[-1])
    with pytest.raises(GrammarError, match="cannot be followed further"):
        allowed(greedy, grammar.vocabulary_size)
    assert not made
    grammar.prepare()
    assert len(made) == 1
    assert a in allowed(grammar.matcher(), grammar.vocabulary_size)
    assert len(made) == 1


def test_errors_are_of_requests(compiler):
    assert issubclass(GrammarError, GenerationError)
    with pytest.raises(GrammarError, match="foo"):
        compiler.compile(LarkGrammar("start: foo"))


def test_a_model_needs_an_end(tokenizer):
    with pytest.raises(ConfigError, match="end-of-sequence"):
        GrammarCompiler(tokenizer, [], tokenizer.vocab_size)


def test_without_llguidance_the_extra_is_named(tokenizer, end, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(ConfigError, match=r"cvllm-jax\[structured\]"):
        GrammarCompiler(tokenizer, [end], tokenizer.vocab_size)


def test_json_object(compiler, tokenizer):
    grammar = compiler.compile(JsonObjectGrammar())
    for text in ("{}", '{"a": [1, {"b": null}], "\\u0061": "é"}', '{\n  "a": 1\n}'):
        assert takes(grammar, tokenizer, text)
    for text in ("[]", " {}", '{"a": 1,}', "{,}", '{"a":\n\n1}', '{"a":  1}', '{"a": "\\ud800"}', "{} "):
        assert not takes(grammar, tokenizer, text)
