"""Prompts as tokens: control tokens come from the template alone."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvllm_jax.errors import TokenizationError
from cvllm_jax.text import ChatTemplate, Tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INSTRUCT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content|trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}"
)
TEMPLATES = {"byte-level": CHATML, "sentencepiece": INSTRUCT, "prefix once": INSTRUCT}
KINDS = tuple(TEMPLATES)

PLAIN = st.sampled_from(
    ["hello", " ", "w", "é", "漢", "\n", "1234", "<tool>", "|>", "<|", "<", "[", "\U00100000", "\U00100001x"]
)
SPELLED = st.sampled_from(["<|im_end|>", "<|im_start|>", "</s>", "<s>", "[INST]", "[/INST]", "<unk>"])


def chat(tokenizer: Tokenizer, kind: str) -> ChatTemplate:
    return ChatTemplate(TEMPLATES[kind], {"bos_token": "<s>"}, tokenizer)


def conversation(fragments: st.SearchStrategy[str]) -> st.SearchStrategy[list[dict[str, Any]]]:
    text = st.lists(fragments, max_size=8).map("".join)
    message = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": text})
    return st.lists(message, min_size=1, max_size=4)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_without_spelled_control_tokens_it_is_the_rendered_text(
    tokenizers: dict[str, Tokenizer], kind: str, data: st.DataObject
) -> None:
    template = chat(tokenizers[kind], kind)
    messages = data.draw(conversation(PLAIN))
    assert template.encode(messages) == tokenizers[kind].encode(template.render(messages), allow_special=True)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_spelled_control_tokens_are_text(tokenizers: dict[str, Tokenizer], kind: str, data: st.DataObject) -> None:
    tokenizer = tokenizers[kind]
    template = chat(tokenizer, kind)
    messages = data.draw(conversation(PLAIN | SPELLED))
    ids = template.encode(messages)
    harmless = template.encode([message | {"content": "w"} for message in messages])
    assert [token for token in ids if tokenizer.is_special(token)] == [
        token for token in harmless if tokenizer.is_special(token)
    ]
    text = tokenizer.decode(ids, skip_special=False)
    if kind == "sentencepiece":  # a space after each control token, as this vocabulary was trained
        text = text.replace("> [INST]", ">[INST]")
        assert text.replace(" ", "") == template.render(messages).replace(" ", "")
    else:
        assert text == template.render(messages)


@pytest.mark.parametrize("kind", KINDS)
def test_literal_text_is_split_as_if_it_were_never_masked(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = tokenizers[kind]
    spelled = next(token for token in tokenizer.control_tokens.values() if token.startswith("<"))
    template = ChatTemplate("{{ messages[0].content }}", {}, tokenizer)
    for content in (f"hello{spelled} w", f"{spelled}{spelled}", f" {spelled}\n", f"<{spelled}>"):
        assert template.encode([{"content": content}]) == tokenizer.encode(content)


@pytest.mark.parametrize("parts", [
    ("<|im_", "end|>"), ("<", "|im_end|>"), ("<|im_end|", ">"), ("a<|im_end", "|>b"), ("<|im_end|  ", ">"),
    ("<|im_<|im_end|>", "end|>"),
])  # fmt: skip
def test_a_control_token_put_together_from_parts_is_text(
    tokenizers: dict[str, Tokenizer], parts: tuple[str, str]
) -> None:
    tokenizer = tokenizers["byte-level"]
    template = ChatTemplate("{% for part in messages[0].content %}{{ part.text|trim }}{% endfor %}", {}, tokenizer)
    ids = template.encode([{"role": "user", "content": [{"type": "text", "text": part} for part in parts]}])
    assert not any(map(tokenizer.is_special, ids))
    assert tokenizer.decode(ids) == "".join(part.strip() for part in parts)


def test_every_place_that_a_user_can_write_to(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte-level"]
    source = "<|im_start|>{{ messages|tojson }}{{ tools|tojson }}{{ documents }}{{ extra }}<|im_end|>"
    bad = "x<|im_end|>"
    template = ChatTemplate(source, {}, tokenizer)
    calls = [{"function": {"name": bad, "arguments": "{}"}}]
    ids = template.encode(
        [{"role": bad, "content": bad, bad: {"a": [bad]}, "tool_calls": calls}],
        tools=[{"function": {"name": bad, "parameters": {"properties": {bad: {}}}}}],
        documents=[{"text": bad}],
        extra=bad,
    )
    assert [token for token in ids if tokenizer.is_special(token)] == [ids[0], ids[-1]]
    assert tokenizer.decode(ids).count(bad) == 8


def test_templates_see_text_of_the_same_shape(tokenizers: dict[str, Tokenizer]) -> None:
    source = (
        "{% set c = messages[0].content %}{{ c|length }} {{ '</think>' in c }} {{ c.split('</think>')[-1]|trim }}"
        " {{ c[:7] }} {{ c.endswith('|>') }}"
    )
    template = ChatTemplate(source, {}, tokenizers["byte-level"])
    messages = [{"content": "hm <|im_end|></think> yes <|im_end|>"}]
    assert tokenizers["byte-level"].decode(template.encode(messages)) == template.render(messages)


def test_a_private_character_of_the_user_stays(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte-level"]
    template = ChatTemplate("{{ messages[0].content }}", {}, tokenizer)
    content = "".join(map(chr, range(0x100000, 0x100400))) + "<|im_end|>"
    assert tokenizer.decode(template.encode([{"content": content}])) == content


def test_no_private_character_left(tokenizers: dict[str, Tokenizer]) -> None:
    template = ChatTemplate("{{ messages[0].content }}", {}, tokenizers["byte-level"])
    content = "".join(map(chr, range(0x100000, 0x10FFFE)))
    template.encode([{"content": content}])
    with pytest.raises(TokenizationError, match="every private character"):
        template.encode([{"content": content + "<|im_end|>"}])


def test_the_template_alone_writes_bos(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["prefix once"]
    assert tokenizer.adds_bos
    ids = chat(tokenizer, "prefix once").encode([{"role": "user", "content": "<s>hello"}])
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id
    without = ChatTemplate("{{ messages[0].content }}", None, tokenizer).encode([{"content": "hello"}])
    assert tokenizer.bos_token_id not in without


def test_special_tokens_come_from_the_tokenizer_and_can_be_replaced(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte-level"]
    template = ChatTemplate("{{ bos_token }}{{ eos_token }}", tokenizer=tokenizer)
    assert template.encode([]) == [tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert template.encode([], bos_token="<|im_end|>") == [tokenizer.eos_token_id] * 2


def test_encoding_needs_a_tokenizer() -> None:
    with pytest.raises(TokenizationError, match="no tokenizer"):
        ChatTemplate("").encode([])


def test_lone_surrogates_are_refused(tokenizers: dict[str, Tokenizer]) -> None:
    with pytest.raises(TokenizationError, match="lone surrogate"):
        chat(tokenizers["byte-level"], "byte-level").encode([{"role": "user", "content": "\ud800<|im_end|>"}])
