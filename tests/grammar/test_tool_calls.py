"""Tool calls between markers, and answers that reason first."""

import json

import pytest
from answers import allowed, follow, random_answer

from cvllm_jax.grammar import (
    AfterText,
    GrammarError,
    JsonSchemaGrammar,
    RegexGrammar,
    tool_call_grammar,
)

WEATHER = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 5}}, "required": ["city"],
           "additionalProperties": False}  # fmt: skip
ADD = {"properties": {"x": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}}
TOOLS = [("weather", WEATHER), ("add", ADD)]
CALL = '{"name": "weather", "arguments": {"city": "Rome"}}'
OTHER = '{"name":"add","arguments":{"x":1}}'


@pytest.fixture
def takes(compiler, tokenizer):
    """Whether a text, in which control tokens are spelled out, is an answer."""

    def check(grammar, text):
        compiled = compiler.compile(grammar)
        matcher = compiled.matcher()
        ids = tokenizer.encode(text, allow_special=True)
        return follow(matcher, ids, compiled.vocabulary_size) and matcher.accepts_end

    return check


def hermes(**how):
    return tool_call_grammar("<tool_call>\n", "\n", "\n</tool_call>", TOOLS, **how)


def wrapped(call):
    return f"<tool_call>\n{call}\n</tool_call>"


def test_required_calls(takes):
    grammar = hermes(at_least_one=True)
    assert takes(grammar, wrapped(CALL))
    assert takes(grammar, f"{wrapped(CALL)}\n{wrapped(OTHER)}")
    for text in ("", "text", f"text {wrapped(CALL)}", wrapped(CALL) + " text", wrapped("{}")):
        assert not takes(grammar, text)
    assert not takes(grammar, wrapped(CALL.replace("city", "town")))
    assert not takes(grammar, wrapped(CALL.replace("weather", "other")))
    assert not takes(grammar, wrapped(OTHER.replace("1", '"one"')))
    assert not takes(grammar, wrapped('{"name": "add", "arguments": []}'))


def test_one_call_alone(takes, compiler, tokenizer):
    grammar = hermes(at_least_one=True, parallel=False)
    assert takes(grammar, wrapped(CALL))
    assert not takes(grammar, f"{wrapped(CALL)}\n{wrapped(CALL)}")
    matcher = compiler.compile(grammar).matcher()
    assert follow(matcher, tokenizer.encode(wrapped(CALL)), tokenizer.vocab_size + 13)
    assert matcher.finished


def test_calls_amid_text(takes):
    grammar = hermes(at_least_one=False)
    both = f"so: {wrapped(CALL)}\n{wrapped(OTHER)}"
    for text in ("", "no call", f"so: {wrapped(CALL)}", both, f"{both}\n\n", "<tool", "{"):
        assert takes(grammar, text)
    for text in ("<tool_call>", "<tool_call> no", wrapped("{}"), "a <tool_call>\nb", f"{both} done"):
        assert not takes(grammar, text)
    single = hermes(at_least_one=False, parallel=False)
    assert takes(single, f"so: {wrapped(CALL)}")
    assert not takes(single, wrapped(CALL) * 2)


def test_markers_that_are_control_tokens(takes, tokenizer, compiler):
    grammar = tool_call_grammar("<|call|>", "", "</think>", TOOLS, at_least_one=False)
    assert takes(grammar, f"text <|call|>{CALL}</think>")
    assert not takes(grammar, "text <|call|>{}")
    compiled = compiler.compile(grammar)
    # Text that spells the marker would be read as one.
    assert not follow(compiled.matcher(), tokenizer.encode("text <|call|>"), compiled.vocabulary_size)


def test_calls_without_markers(takes):
    grammar = tool_call_grammar("", "; ", "", TOOLS, at_least_one=False, arguments_key="parameters")
    call = CALL.replace("arguments", "parameters")
    for text in ("", "text {", call, f"{call}; {call}"):
        assert takes(grammar, text)
    for text in ("{", CALL, call + "x"):
        assert not takes(grammar, text)


@pytest.mark.parametrize("name", ['q"uote', "ü", "a b", "</x>"])
def test_names_of_all_kinds(takes, name):
    grammar = tool_call_grammar("<c>", "", "</c>", [(name, True)], at_least_one=True)
    assert takes(grammar, f"<c>{json.dumps({'name': name, 'arguments': {'x': [1]}}, ensure_ascii=False)}</c>")


def test_any_written_call_parses(compiler, tokenizer):
    compiled = compiler.compile(hermes(at_least_one=True))
    texts = [text for seed in range(15) if (text := random_answer(compiled, tokenizer, seed))]
    assert texts
    for text in texts:
        inside = text.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
        for part in inside.split("\n</tool_call>\n<tool_call>\n"):
            assert json.loads(part)["name"] in ("weather", "add")


def test_bad_tools_are_refused(compiler):
    with pytest.raises(GrammarError, match="at least one"):
        tool_call_grammar("", "", "", [], at_least_one=True)
    with pytest.raises(GrammarError, match="different names"):
        tool_call_grammar("", "", "", [("a", True), ("a", True)], at_least_one=True)
    with pytest.raises(GrammarError, match="contains"):
        compiler.compile(tool_call_grammar("", "", "", [("a", {"contains": {}})], at_least_one=True))


@pytest.mark.parametrize("marker", ["</think>", "</thought>"])
def test_answers_after_reasoning(takes, marker, tokenizer, compiler):
    grammar = AfterText(marker, JsonSchemaGrammar(WEATHER))
    assert takes(grammar, marker + '{"city":"a"}')
    assert takes(grammar, "hm {" + marker + '\n\n{"city":"a"}')
    for text in ("", '{"city":"a"}', marker, marker + "no", marker * 2):
        assert not takes(grammar, text)
    assert takes(AfterText(marker, RegexGrammar("a/b+")), f"x{marker}a/bb")
    assert takes(AfterText(marker, hermes(at_least_one=True)), f"x{marker}\n{wrapped(CALL)}")
    amid_text = AfterText(marker, hermes(at_least_one=False))
    assert takes(amid_text, f"x{marker}\nSo be it. {wrapped(CALL)}") and takes(amid_text, f"x{marker}no call")
    assert len(allowed(compiler.compile(grammar).matcher(), tokenizer.vocab_size + 13)) > 100
