"""How each format writes an answer, for tests that go for all of them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from hypothesis import strategies as st

from cvllm_jax.openai.tool_parsers import TOOL_PARSERS, ParsedMessage, fold

TYPES = {"text": "string", "count": "integer", "ratio": "number", "flag": "boolean", "list": "array", "map": "object"}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"properties": properties}}}
    for properties in [{key: {"type": kind} for key, kind in TYPES.items()}]
    for name in ("get_weather", "f")
]

type Call = tuple[str, dict]


@dataclass(frozen=True)
class Format:
    """One way to write calls after content; ``verbatim`` where arguments pass as they are written."""

    parser: str
    write: Callable[[str, Sequence[Call]], str]
    verbatim: bool = True

    def parse(self, text: str) -> ParsedMessage:
        return read(self.parser, [text])


def read(parser: str, pieces: Sequence[str]) -> ParsedMessage:
    """The message that streaming ``pieces`` gives; ids are counted."""
    numbers = count()
    stream = TOOL_PARSERS[parser](make_id=lambda: f"id{next(numbers)}").stream(TOOLS)
    return fold([*(event for piece in pieces for event in stream.feed(piece)), *stream.finish()])


def dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def objects(calls: Sequence[Call], key: str = "arguments") -> list[dict]:
    return [{"name": name, key: arguments} for name, arguments in calls]


def hermes(content: str, calls: Sequence[Call]) -> str:
    return content + "".join(f"\n<tool_call>\n{dump(call)}\n</tool_call>" for call in objects(calls))


def llama3(content: str, calls: Sequence[Call]) -> str:
    return content + "; ".join(map(dump, objects(calls, "parameters")))


def llama3_tagged(content: str, calls: Sequence[Call]) -> str:
    return f"{content}<|python_tag|>" + ";".join(map(dump, objects(calls, "parameters"))) if calls else content


def mistral_list(content: str, calls: Sequence[Call]) -> str:
    return (
        f"{content}[TOOL_CALLS] {dump([{**call, 'id': 'abcdefghi'} for call in objects(calls)])}" if calls else content
    )


def mistral_named(content: str, calls: Sequence[Call]) -> str:
    return content + "".join(f"[TOOL_CALLS]{name}[ARGS]{dump(arguments)}" for name, arguments in calls)


def mistral_with_id(content: str, calls: Sequence[Call]) -> str:
    return content + "".join(f"[TOOL_CALLS]{name}[CALL_ID]AbCdEfGh1[ARGS]{dump(value)}" for name, value in calls)


def granite(content: str, calls: Sequence[Call]) -> str:
    return f"{content}<|tool_call|>{json.dumps(objects(calls), indent=4, ensure_ascii=False)}" if calls else content


def phi4_functools(content: str, calls: Sequence[Call]) -> str:
    return f"{content}functools{dump(objects(calls))}" if calls else content


def phi4_tags(content: str, calls: Sequence[Call]) -> str:
    return f"{content}<|tool_call|>{dump(objects(calls))}<|/tool_call|>" if calls else content


def _deepseek(content: str, calls: Sequence[str]) -> str:
    framed = "\n".join(f"<｜tool▁call▁begin｜>{call}<｜tool▁call▁end｜>" for call in calls)
    return f"{content}<｜tool▁calls▁begin｜>{framed}<｜tool▁calls▁end｜>" if calls else content


def deepseek_v3(content: str, calls: Sequence[Call]) -> str:
    return _deepseek(content, [f"function<｜tool▁sep｜>{name}\n```json\n{dump(args)}\n```" for name, args in calls])


def deepseek_v31(content: str, calls: Sequence[Call]) -> str:
    return _deepseek(content, [f"{name}<｜tool▁sep｜>{dump(arguments)}" for name, arguments in calls])


def qwen3_coder(content: str, calls: Sequence[Call]) -> str:
    written = content
    for name, arguments in calls:
        written += f"\n<tool_call>\n<function={name}>\n"
        for key, value in arguments.items():
            written += f"<parameter={key}>\n{value if isinstance(value, str) else dump(value)}\n</parameter>\n"
        written += "</function>\n</tool_call>"
    return written


def glm45(content: str, calls: Sequence[Call], line: str = "\n") -> str:
    written = content
    for name, arguments in calls:
        written += f"\n<tool_call>{name}{line}"
        for key, value in arguments.items():
            value = value if isinstance(value, str) else dump(value)
            written += f"<arg_key>{key}</arg_key>{line}<arg_value>{value}</arg_value>{line}"
        written += "</tool_call>"
    return written


def glm47(content: str, calls: Sequence[Call]) -> str:
    return glm45(content, calls, "")


def minimax_m2(content: str, calls: Sequence[Call]) -> str:
    if not calls:
        return content
    written = f"{content}\n<minimax:tool_call>\n"
    for name, arguments in calls:
        written += f'<invoke name="{name}">\n'
        for key, value in arguments.items():
            value = value if isinstance(value, str) else dump(value)
            written += f'<parameter name="{key}">{value}</parameter>\n'
        written += "</invoke>\n"
    return written + "</minimax:tool_call>"


def pythonic(content: str, calls: Sequence[Call]) -> str:
    written = (f"{name}({', '.join(f'{key}={value!r}' for key, value in args.items())})" for name, args in calls)
    return f"[{', '.join(written)}]" if calls else content


def gpt_oss(content: str, calls: Sequence[Call]) -> str:
    said = f"<|channel|>commentary<|message|>{content}<|end|>" if content else ""
    return said + "".join(
        f"<|start|>assistant<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{dump(value)}<|call|>"
        for name, value in calls
    )


FORMATS = {
    write.__name__: Format(parser, write, verbatim=parser not in ("qwen3_coder", "glm45", "minimax_m2", "pythonic"))
    for parser, write in (
        ("hermes", hermes),
        ("llama3_json", llama3),
        ("llama3_json", llama3_tagged),
        ("mistral", mistral_list),
        ("mistral", mistral_named),
        ("mistral", mistral_with_id),
        ("granite", granite),
        ("phi4_mini", phi4_functools),
        ("phi4_mini", phi4_tags),
        ("deepseek_v3", deepseek_v3),
        ("deepseek_v3", deepseek_v31),
        ("qwen3_coder", qwen3_coder),
        ("glm45", glm45),
        ("glm45", glm47),
        ("minimax_m2", minimax_m2),
        ("pythonic", pythonic),
        ("gpt_oss", gpt_oss),
    )
}

MARKUP = (
    *("<tool_call>", "</tool_call>", "<function=f>", "<parameter=text>", "</parameter>", "</function>", "functools"),
    *("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<minimax:tool_call>", "</minimax:tool_call>"),
    *('<invoke name="f">', "</invoke>", '<parameter name="text">'),
    *("<|python_tag|>", "<|python_start|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|tool_call|>", "<|/tool_call|>"),
    *(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
    ),
    *("<|start|>", "<|channel|>", "<|message|>", "<|call|>", "<|end|>", "analysis", "commentary", " to=functions.f "),
    *(
        '{"name": "f"',
        '"arguments": ',
        '"parameters": {}',
        "{",
        "}",
        "[",
        "]",
        '"',
        "\\",
        "\\u",
        "d83d",
        "f(",
        ")",
        "=",
    ),
    *(",", ";", ":", " ", "\n", "f", "x", "1", "é", "<", "'", "'''", "</", "<|", "<｜"),
)
"""Pieces of all formats, to make nonsense of."""

nonsense = st.lists(st.sampled_from(MARKUP), max_size=14).map("".join)
# text of a model, without the formats' own markers and the brackets that begin calls in formats without markers
prose = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="<>[]{}|="), max_size=20)
_strings = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>\r"), max_size=8)
_values = {
    "text": _strings,
    "count": st.integers(-(10**20), 10**20),
    "ratio": st.floats(allow_nan=False, allow_infinity=False),
    "flag": st.booleans(),
    "list": st.lists(st.one_of(_strings, st.integers(), st.none(), st.booleans()), max_size=3),
    "map": st.dictionaries(
        _strings, st.recursive(_strings, lambda v: st.lists(v, max_size=2), max_leaves=4), max_size=2
    ),
}
calls = st.lists(
    st.tuples(st.sampled_from(["get_weather", "f", "unknown_tool"]), st.fixed_dictionaries({}, optional=_values)),
    max_size=3,
)


def cuts(text: str, draw: Callable) -> list[str]:
    """``text`` in pieces that ``draw`` chooses."""
    places = sorted(draw(st.sets(st.integers(0, len(text)), max_size=8)))
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]
