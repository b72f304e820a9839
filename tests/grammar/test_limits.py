"""What is made to explode stops in bounded time and memory, and others do not notice."""

import subprocess
import sys
import textwrap

import pytest

from cvllm_jax.grammar import GrammarError, JsonSchemaGrammar, LarkGrammar, RegexGrammar


def nested(levels):
    schema = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def deep_list(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


def chain(links):
    definitions = {f"d{link}": {"items": {"$ref": f"#/$defs/d{link + 1}"}} for link in range(links)}
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{links}": {}}}


def choices(parts, options):
    """An intersection of alternatives: options ** parts combinations."""
    return {"allOf": [
        {"anyOf": [{"type": "object", "properties": {f"p{part}{option}": {}}} for option in range(options)]}
        for part in range(parts)
    ]}  # fmt: skip


EXPLODING = {
    "repetition of repetition": RegexGrammar("(a{1000}){1000}"),
    "three repetitions": JsonSchemaGrammar({"type": "string", "pattern": "((a{1,100}){1,100}){1,100}"}),
    "nested groups": RegexGrammar("(" * 50_000 + "a" + ")" * 50_000),
    "long": RegexGrammar("a" * 500_000),
    "nested schema": JsonSchemaGrammar(nested(5000)),
    "chain": JsonSchemaGrammar(chain(5000)),
    "choices": JsonSchemaGrammar(choices(10, 10)),
    "properties": JsonSchemaGrammar({"properties": {f"p{i}": {} for i in range(30_000)}}),
    "values": JsonSchemaGrammar({"enum": [f"{i}" * 20 for i in range(30_000)]}),
    "exclusive choices": JsonSchemaGrammar({"oneOf": [{"required": [f"{i}", f"{i + 1}"]} for i in range(300)]}),
    "choices in any order": JsonSchemaGrammar({**choices(10, 10), "not": {"required": ["a"]}}),
    "dependencies": JsonSchemaGrammar({"dependentRequired": {f"{i}": [f"{i + 1}"] for i in range(300)}}),
    "properties in any order": JsonSchemaGrammar(
        {"properties": {f"p{i}": {"properties": {f"q{i}": {"maxLength": i}}} for i in range(3000)}, "not": {"const": 1}}
    ),
    "patterns in any order": JsonSchemaGrammar(
        {"properties": {f"p{i}": {} for i in range(60)}, "patternProperties": {f"^p{i}_": {} for i in range(60)}}
        | {"not": {"const": 1}}
    ),
    "nested values": JsonSchemaGrammar({"const": deep_list(5000)}),
    "lark nesting": LarkGrammar("start: " + "(" * 100_000 + '"a"' + ")" * 100_000),
    "lark repetition": LarkGrammar('start: ("a"{1000}){1000}', ends=True),
    "lark size": LarkGrammar("\n".join(f'r{i}: "a"' for i in range(200_000))),
}


@pytest.mark.parametrize("name", EXPLODING)
def test_explosions_are_refused(compiler, name):
    with pytest.raises(GrammarError) as refusal:
        compiler.compile(EXPLODING[name])
    assert len(str(refusal.value)) < 500


def test_catastrophic_backtracking_is_none(compiler, tokenizer):
    matcher = compiler.compile(RegexGrammar("(a+)+(a|a)*(a*)*b")).matcher()
    assert all(matcher.advance(tokenizer.encode("a")[0]) for _ in range(200))
    assert matcher.advance(tokenizer.encode("b")[0]) and matcher.finished


def test_explosions_take_little_time_and_memory():
    """In a process of its own, with a limit on memory that the worst of them would need by far."""
    code = """
        import resource, time
        import test_limits, vocabularies
        from cvllm_jax.grammar import GrammarError
        from cvllm_jax.grammar.compiler import GrammarCompiler
        from cvllm_jax.text import Tokenizer

        tokenizer = Tokenizer(vocabularies.byte_level())
        compiler = GrammarCompiler(tokenizer, [vocabularies.end_of(tokenizer)], tokenizer.vocab_size)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for name, grammar in test_limits.EXPLODING.items():
            start = time.process_time()
            try:
                compiler.compile(grammar)
            except GrammarError:
                pass
            assert time.process_time() - start < 5, name
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert used < 500 << 10, f"{used} KiB"
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=120,
        env={"PYTHONPATH": ":".join(sys.path), "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", ['start: /a+/ "a"', 'start: "a" start', 'start: (A /a+/ A)+\nA: "a"'])
def test_text_that_is_forced_without_end_is_left_to_the_model(compiler, tokenizer, text):
    matcher = compiler.compile(LarkGrammar(text)).matcher()
    for _ in range(5):
        assert matcher.forced_tokens() == []
        assert matcher.advance(tokenizer.encode("a")[0])
    assert not matcher.accepts_end
