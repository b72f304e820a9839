"""OpenAI's own parser of the harmony format as the judge of ours.

It reads tokens and needs gpt-oss's vocabulary: ``make_harmony_vocabulary.py`` says how to get it.
"""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tool_formats import dump, prose, read

harmony = pytest.importorskip("openai_harmony", exc_type=ImportError)
if "TIKTOKEN_ENCODINGS_BASE" not in os.environ:
    pytest.skip("TIKTOKEN_ENCODINGS_BASE names no folder with o200k_base.tiktoken", allow_module_level=True)


@pytest.fixture(scope="module")
def encoding():
    return harmony.load_harmony_encoding(harmony.HarmonyEncodingName.HARMONY_GPT_OSS)


texts = prose.filter(str.strip).map(str.strip)
names = st.sampled_from(["get_weather", "f", "ns.g-1"])
arguments = st.dictionaries(st.sampled_from("abc"), st.one_of(texts, st.integers(), st.none())).map(dump)
messages = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["<|channel|>analysis", "<|channel|>commentary", "<|channel|>final"]), texts),
        st.tuples(names.map("<|channel|>commentary to=functions.{} <|constrain|>json".format), arguments),
        st.tuples(names.map("<|channel|>commentary to=functions.{}".format), arguments),
        st.tuples(names.map(" to=functions.{}<|channel|>commentary <|constrain|>json".format), arguments),
        st.tuples(names.map(" to=functions.{}<|channel|>analysis".format), arguments),
    ),
    min_size=1,
    max_size=4,
)


def judged(encoding, text):
    """What the judge says: reasoning, content and calls."""
    tokens = encoding.encode(text, allowed_special="all")
    reasoning, content, calls = [], [], []
    for message in encoding.parse_messages_from_completion_tokens(tokens, harmony.Role.ASSISTANT, strict=False):
        said = "".join(part.text for part in message.content)
        if message.recipient:
            calls.append((message.recipient.removeprefix("functions."), said))
        else:
            (reasoning if message.channel == "analysis" else content).append(said)
    return "\n".join(reasoning) or None, "\n".join(content) or None, calls


def ours(text):
    message = read("gpt_oss", [text])
    return message.reasoning, message.content, [(call.name, call.arguments) for call in message.tool_calls]


def written(parts):
    return "<|end|><|start|>assistant".join(f"{header}<|message|>{body}" for header, body in parts)


@settings(deadline=None)
@given(messages, st.sampled_from(["", "<|end|>", "<|return|>", "<|call|>"]))
def test_messages_read_as_the_judge_reads_them(encoding, parts, end):
    assert ours(written(parts) + end) == judged(encoding, written(parts) + end)
