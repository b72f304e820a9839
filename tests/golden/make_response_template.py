"""Writes response_template.json: what transformers 5.23 makes of answers, by response templates.

Not in it: texts with more than one region of a text field that is not joined, of which transformers keeps the last.

    python tests/golden/make_response_template.py
"""

import json
from itertools import product
from pathlib import Path

from transformers.utils.chat_parsing import parse_response

CALL = {"type": "function", "function": "{content}"}
NAMED = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
THINK = {"open": "<think>", "close": "</think>"}

TEMPLATES = {
    "tags": {
        "start_anchor": "<|im_start|>assistant\n",
        "defaults": {"role": "assistant"},
        "fields": {
            "thinking": THINK,
            "tool_calls": {
                "open": "<tool_call>", "close": "</tool_call>", "repeats": True, "content": "json", "transform": CALL
            },
            "content": {"close": ["<|im_end|>", "<|im_start|>"]},
        },
    },
    "inline": {
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {
            "reasoning_content": THINK,
            "tool_calls": {
                "open_pattern": r"<tool_call>\s*<function=(?P<name>\w+)>",
                "close": "</tool_call>",
                "repeats": True,
                "content": "xml-inline",
                "content_args": {
                    "tag_pattern": r"<parameter=(?P<key>\w+)>\s*(?P<value>.*?)\s*</parameter>",
                    "value_parser": {"name": "json", "args": {"allow_non_json": True}},
                },
                "transform": NAMED,
            },
            "content": {"close": "<|im_end|>", "content_args": {"strip": False}},
        },
    },
    "channels": {
        "start_anchor_pattern": r"<\|start\|>assistant",
        "fields": {
            "thinking": {"open": "<|channel|>analysis<|message|>", "close": "<|end|>"},
            "content": {"open": "<|channel|>final<|message|>", "close": ["<|end|>", "<|return|>"]},
            "tool_calls": {
                "open_pattern": r"<\|channel\|>commentary to=functions\.(?P<name>\w+).*?<\|message\|>",
                "close": "<|call|>",
                "repeats": True,
                "content": "json",
                "transform": NAMED,
            },
        },
    },
    "list": {
        "start_anchor": "<|CHATBOT|>",
        "fields": {
            "content": {"open": "<|START_RESPONSE|>", "close": "<|END_RESPONSE|>"},
            "thinking": {"open": "<|START_THINKING|>", "close": "<|END_THINKING|>"},
            "tool_calls": {
                "open": "<|START_ACTION|>",
                "close": "<|END_ACTION|>",
                "content": "json",
                "transform_each": True,
                "transform": {"type": "function", "function": {"name": "{tool_name}", "arguments": "{parameters}"}},
            },
        },
    },
    "dialect": {
        "start_anchor": ["<|turn>model\n", "<tool_response|>"],
        "fields": {
            "thinking": {"open": "<|channel>thought\n", "close": "<channel|>"},
            "tool_calls": {
                "open_pattern": r"<\|tool_call>call:(?P<name>\w+)",
                "close": "<tool_call|>",
                "repeats": True,
                "content": "json",
                "content_args": {"unquoted_keys": True, "string_delims": [['<|"|>', '<|"|>']]},
                "transform": NAMED,
            },
            "content": {"close": ["<turn|>", "<eos>"]},
        },
    },
    "blocks": {
        "start_anchor": "<|message_model|>",
        "fields": {
            "thinking": {
                "open_pattern": r"(?:<\|message_model\|>)?[^<]*<\|thinking\|>",
                "close": "<|end_message|>",
                "repeats": True,
                "join": "",
                "content_args": {"strip": False},
            },
            "content": {
                "open_pattern": r"(?:<\|message_model\|>)?[^<]*<\|text\|>",
                "close": "<|end_message|>",
                "repeats": True,
                "join": "\n\n",
            },
            "tool_calls": {
                "open_pattern": r"(?:<\|message_model\|>)?[^<]*<\|invoke\|>",
                "close": "<|end_message|>",
                "repeats": True,
                "content": "json",
                "transform": {
                    "type": "function", "function": {"name": "{content.name}", "arguments": "{content.args}"}
                },
            },
        },
    },
    "lines": {
        "start_anchor": "Assistant:",
        "fields": {
            "thinking": {"open_pattern": r"(?:^|<think>\s*)", "close": "</think>"},
            "content": {"open": "<response>\n", "close_pattern": r"\n?</response>"},
            "tool_calls": {
                "open_pattern": r"\[(?P<name>[a-z_]+)\]\n",
                "close_pattern": r"\n{2}|\Z",
                "repeats": True,
                "content": "kv-lines",
                "content_args": {"kv_sep": "=", "value_parser": {"name": "int"}},
                "transform": NAMED,
            },
        },
    },
}  # fmt: skip

PIECES = {
    "tags": (
        ["", "<think>\nHm, <tool_call>?\n</think>\n\n", "<think></think>"],
        ["", "Let me see < this.\n", " é"],
        ['<tool_call>\n{"name": "f", "arguments": {"a": [1, "x"]}}\n</tool_call>',
         '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
         '<tool_call>{"name": "g", "arguments": {"b": "}"}}</tool_call>',
         ""],
        ["", "<|im_end|>"],
    ),
    "inline": (
        ["", "<think>\nHm\n</think>"],
        ["", "\n Well."],
        ["<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n<parameter=b> x y </parameter>"
         "</function></tool_call>",
         "<tool_call> <function=g></function></tool_call>", ""],
        ["", "<|im_end|>"],
    ),
    "channels": (
        ["", "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"],
        ["<|channel|>final<|message|>Yes. <|return|>", "<|channel|>final<|message|>Yes",
         '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>',
         '<|channel|>commentary to=functions.f<|message|> {"a": 1} ', ""],
    ),
    "list": (
        ["", "<|START_THINKING|>Hm.<|END_THINKING|>"],
        ["", "<|START_RESPONSE|> Yes. <|END_RESPONSE|>", "<|START_RESPONSE|>Ye"],
        ["", '<|START_ACTION|>[\n  {"tool_call_id": "0", "tool_name": "f", "parameters": {"a": 1}},'
             ' {"tool_name": "g", "parameters": {}}\n]<|END_ACTION|>'],
    ),
    "dialect": (
        ["", "<|channel>thought\nHm.<channel|>"],
        ["", "Yes."],
        ["", '<|tool_call>call:f{city:<|"|>Bern {x:1}<|"|>,days:2,list:[true,<|"|>a<|"|>]}<tool_call|>',
         "<|tool_call>call:f{}<tool_call|><|tool_call>call:g{a:1}<tool_call|>"],
        ["", "<turn|>", "<eos>"],
    ),
    "blocks": (
        ["", "<|thinking|> a <|end_message|>", "ann<|thinking|>a<|end_message|><|message_model|>bob<|thinking|>b"],
        ["", "<|end_message|><|message_model|><|text|> Yes. <|end_message|>"
             "<|message_model|>x<|text|>And.<|end_message|>"],
        ["", '<|message_model|><|invoke|>{"name": "f", "args": {"a": null}}<|end_message|>'],
    ),
    "lines": (
        ["Hm.</think>", "<think>Hm.</think>", "</think>"],
        ["", "<response>\nYes.\n</response>", "<response>\nYes.</response>\n"],
        ["", "[f]\na=1\nb = 2", "[f]\na=1\n\n[g_h]\nskip\nb=3\n\n"],
    ),
}  # fmt: skip

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "parameters": {
                "properties": {"b": {"type": "string"}, "city": {"type": "string"}, "a": {"type": "integer"}}
            },
        },
    }
]


def main() -> None:
    cases = []
    for name, pieces in PIECES.items():
        for parts in product(*pieces):
            text = "".join(parts)
            cases.append([name, "", text, parse_response(text, TEMPLATES[name], prefix="", tools=TOOLS)])
    for name, prompt, text in (
        ("tags", "<|im_start|>assistant\nOld<|im_end|><|im_start|>assistant\n<think>\n", "Hm\n</think>\nYes"),
        ("tags", "<think><|im_start|>assistant\n", "Yes"),
        (
            "channels",
            "<|start|>assistant<|channel|>final<|message|>x<|end|><|start|>assistant",
            "<|channel|>final<|message|>y",
        ),
        ("dialect", "<|turn>model\n<|channel>thought\n<tool_response|>", "Yes."),
    ):
        cases.append([name, prompt, text, parse_response(text, TEMPLATES[name], prefix=prompt, tools=TOOLS)])
    golden = {"templates": TEMPLATES, "tools": TOOLS, "cases": cases}
    lines = [json.dumps(case, ensure_ascii=False) for case in golden.pop("cases")]
    head = json.dumps(golden, ensure_ascii=False)[:-1]
    path = Path(__file__).with_name("response_template.json")
    path.write_text(f'{head}, "cases": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
