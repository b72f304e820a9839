"""Reasoning is split off at the beginning of an answer, however the text arrives; calls are found in the rest."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvllm_jax.errors import ConfigError
from cvllm_jax.openai import get_reasoning_parser, get_tool_parser
from cvllm_jax.openai.reasoning import REASONING_PARSERS, message_stream
from cvllm_jax.openai.tool_parsers import TOOL_PARSERS, ContentDelta, ReasoningDelta, ToolCallStart, fold

TAGS = {
    "think": ("<think>", "</think>"),
    "mistral": ("[THINK]", "[/THINK]"),
    "seed_oss": ("<seed:think>", "</seed:think>"),
    "cohere": ("<|START_THINKING|>", "<|END_THINKING|>"),
    "gemma4": ("<|channel>thought\n", "<channel|>"),
    "reasoning": ("<reasoning>", "</reasoning>"),
    "thought": ("<thought>", "</thought>"),
}
tagged = pytest.mark.parametrize("name", TAGS)
words = st.text("ab é\n<>", max_size=12)
pieces = st.lists(
    st.one_of(
        st.sampled_from(["<think>", "</think>", "<thi", "</", "\n\n", "<tool_call>", '{"name": "f", "arguments": {}}']),
        words,
    ),
    max_size=8,
)


def test_every_parser_is_tested_here():
    assert {*TAGS, "gpt_oss"} == set(REASONING_PARSERS)


@tagged
def test_reasoning_and_answer(name):
    opening, closing = TAGS[name]
    parser = get_reasoning_parser(name)
    assert parser.parse(f"{opening}\nFirst this,\nthen that.\n{closing}\n\nYes. ") == (
        "First this,\nthen that.",
        "Yes. ",
    )
    assert parser.parse(f"\n{opening}a{closing}b") == ("a", "b")
    assert parser.parse(f"{opening}\n\n{closing}\n\nNo.") == (None, "No.")


@tagged
def test_the_prompt_may_have_opened_it(name):
    opening, closing = TAGS[name]
    parser = get_reasoning_parser(name)
    assert parser.starts_inside(f"<|im_start|>assistant\n{opening}\n")
    assert not parser.starts_inside("<|im_start|>assistant\n")
    assert not parser.starts_inside(f"What does {opening} mean?<|im_start|>assistant\n")
    assert not parser.starts_inside(f"{opening}\n\n{closing}\n\n")
    assert parser.parse(f"a\n{closing}\nb", starts_inside=True) == ("a", "b")
    assert parser.parse(f"{opening}a{closing}b", starts_inside=True) == ("a", "b")


@tagged
def test_an_answer_cut_in_its_reasoning_is_reasoning(name):
    opening, closing = TAGS[name]
    parser = get_reasoning_parser(name)
    assert parser.parse(f"{opening}\nOn the one hand ") == ("On the one hand", None)
    assert parser.parse("On the one hand", starts_inside=True) == ("On the one hand", None)
    assert parser.parse(f"{opening}well{closing[:-1]}") == ("well", None)


@pytest.mark.parametrize("name", REASONING_PARSERS)
@settings(deadline=None)
@given(words)
def test_text_without_reasoning_is_unchanged(name, text):
    assert get_reasoning_parser(name).parse(text) == (None, text)


def test_tags_in_the_answer_are_its_own_text():
    parser = get_reasoning_parser("think")
    assert parser.parse("Write <think>so</think>.") == (None, "Write <think>so</think>.")
    assert parser.parse("<think>a</think>b<think>c</think>") == ("a", "b<think>c</think>")


def test_channels():
    parser = get_reasoning_parser("openai_gptoss")
    text = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>"
    assert parser.parse(text) == ("Hm.", "Yes.")
    assert parser.parse("<|channel|>analysis<|message|>Hm") == ("Hm", None)
    assert not parser.starts_inside("<|start|>assistant")
    assert parser.parse('<|channel|>commentary to=functions.f<|message|>{"a": 1}<|call|>') == (None, '{"a": 1}')


def message(parser, tools, prompt, texts):
    stream = message_stream(parser, tools, prompt=prompt)
    return fold([*(event for text in texts for event in stream.feed(text)), *stream.finish()])


@settings(deadline=None)
@given(pieces, st.booleans())
def test_any_pieces_give_one_message(texts, inside):
    parser, tools = get_reasoning_parser("think"), TOOL_PARSERS["hermes"](make_id=lambda: "id")
    prompt = "<think>\n" if inside else ""
    whole = message(parser, tools, prompt, ["".join(texts)])
    assert message(parser, tools, prompt, texts) == whole
    assert message(parser, tools, prompt, "".join(texts)) == whole


def test_calls_are_found_after_reasoning_and_not_in_it():
    parser, tools = get_reasoning_parser("think"), get_tool_parser("hermes")
    call = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    found = message(parser, tools, "", [f"<think>\nPerhaps {call}\n</think>\n\nLet me see.\n{call}"])
    assert found.reasoning == f"Perhaps {call}"
    assert found.content == "Let me see."
    assert [(made.name, made.arguments) for made in found.tool_calls] == [("f", '{"a": 1}')]
    assert message(parser, tools, "", [f"<think>a</think>\n{call}"]).content is None


def test_parsers_may_be_missing():
    assert message(None, None, "", ["<think>", "", "a"]).content == "<think>a"
    assert message(None, get_tool_parser("hermes"), "", ["<think>a"]).content == "<think>a"
    assert message(get_reasoning_parser("think"), None, "", ["<think>a</think>b"]).content == "b"


def test_a_format_with_both_is_read_once():
    text = (
        "<|channel|>analysis<|message|>Hm.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.f<|message|>{}<|call|>"
    )
    stream = message_stream(get_reasoning_parser("gpt_oss"), get_tool_parser("gpt_oss"))
    events = [*stream.feed(text), *stream.finish()]
    assert [type(event) for event in events[:2]] == [ReasoningDelta, ToolCallStart]


def test_nothing_waits_that_is_certain():
    stream = get_reasoning_parser("think").stream()
    assert stream.feed("<think>Well") == [ReasoningDelta("Well")]
    assert stream.feed(" then") == [ReasoningDelta(" then")]
    assert stream.feed("</think>\n\nYes") == [ContentDelta("Yes")]


def test_parsers_go_by_name():
    assert get_reasoning_parser("auto", chat_template="{{ messages }}") is None
    assert get_reasoning_parser("auto", chat_template="</think>").name == "think"
    with pytest.raises(ConfigError, match="no reasoning parser 'nothing'; there are auto, gpt_oss, think"):
        get_reasoning_parser("nothing")
