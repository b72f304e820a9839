"""A script that these tests share, and what its answers are."""

import json

WEATHER_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "unit": "°C"}}\n</tool_call>'
REASONED = "<think>\nThe tool says 21.\n</think>\n\nIt is 21 °C in Paris 👋🏽, même à midi."
LONG = "".join(f"{number} " for number in range(1000)) + "đ" * 50
COUNTED = {f"line {number}": f"{number}: " + chr(ord("a") + number) * number for number in range(16)}

RULES = [
    {"when": r"(?i)\bweather\b", "say": WEATHER_CALL},
    {"when": r'\{"celsius": 21\}', "say": REASONED},
    {"when": "count to a thousand", "say": LONG},
    {"when": "say nothing", "say": ""},
    *({"when": f"^{when}$", "say": say} for when, say in COUNTED.items()),
    {"when": "a JSON answer", "say": '{"name": "Ada", "age": 36}'},
    {"when": "line", "say": "another line"},
]


def user(text):
    return [{"role": "user", "content": text}]


def write_script(folder, content, name="script.json"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path
